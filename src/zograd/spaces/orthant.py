"""The positive orthant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zograd.spaces.base import Extent, Space, length, refuse_metric, total

INSTEAD = (
    "; the flat metric is not complete, so it is no space here: write Euclidean() with rules.Proximal("
    "sets.NonNegative()), as QZO does, whose probes leave the orthant"
)


@dataclass(frozen=True, slots=True)
class PositiveOrthant(Space):
    """R^d_{>0} in a complete metric.

    metric:
    - "log": sum_i u_i v_i / x_i^2, isometric to R^d by y = log x: complete and flat. exp_x(v) = x * exp(v / x); frame
      coordinates are those of y, so mu and lr are relative (log) units and no probe ever leaves the orthant. Scaling x
      by any positive vector leaves the trajectory in y unchanged.
    - "conformal": h <u, v> with h = 1 + sum_i x_i^-2 over the leaf (Riemannian ZO, arXiv 2601.08039, Definition 2.5).
      Of a long move the first part, of length rho in the metric, is made: |v| <= rho min_i x_i stays inside. One small
      element slows all of its leaf. Probes are undistorted while mu sqrt(d) <= rho. A move sees its leaf whole.
    """

    metric: Literal["log", "conformal"] = "log"
    rho: float = 0.5
    flat: ClassVar[bool] = False
    complete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_metric(self, self.metric, ("log", "conformal"), INSTEAD)
        if not 0 < self.rho < 1:
            raise ValueError(f"rho must lie in (0, 1), so that moves stay inside, got {self.rho}")

    @property
    def unit(self) -> Extent:
        return "element" if self.metric == "log" else "leaf"

    @property
    def curvature(self) -> float | str:
        return 0.0 if self.metric == "log" else "between -1 and 0 (measured)"

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return z.mul_(x) if self.metric == "log" else z.div_(conformal_factor(x))

    def colift_(self, w: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return self.lift_(w, x, slots)  # a diagonal

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        if self.metric == "conformal":
            size = conformal_factor(x) * math.sqrt(total(v, v))
            return x.add_(v, alpha=min(1.0, self.rho / size) if size > 0.0 else 1.0)
        known = torch.finfo(x.dtype)
        return x.mul_(v.div_(x).exp_()).clamp_(known.tiny, known.max)  # beyond, 0 and infinity are outside

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        if self.metric == "conformal":
            return (u * v).sum() * conformal_factor(x) ** 2
        return (u / x * (v / x)).sum()

    def explain(self, x: Tensor) -> str | None:
        bad = torch.nonzero(~(x.flatten() > 0))
        if not len(bad):
            return None
        i = int(bad[0])
        return f"element {i} is {x.flatten()[i].item():g}, but the positive orthant needs every element > 0"

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """x * exp(v / x): where the geodesic from x with velocity v is after unit time."""
        self._needs_log("exp")
        return x * (v / x).exp_()

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """x * log(y / x): the v with exp(x, v) = y."""
        self._needs_log("log")
        return x * (y / x).log_()

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """|log(y / x)|, over all elements."""
        self._needs_log("dist")
        return length((y / x).log_())

    def transport(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """u * y / x: u, tangent at x, carried in parallel to y."""
        self._needs_log("transport")
        return u * (y / x)

    def _needs_log(self, what: str) -> None:
        if self.metric != "log":
            raise NotImplementedError(f"the conformal metric has no closed form of {what}; metric='log' has one")


def conformal_factor(x: Tensor) -> float:
    """sqrt(h), h = 1 + sum_i x_i^-2."""
    inverse = x.double().reciprocal()
    return math.sqrt(1.0 + total(inverse, inverse))
