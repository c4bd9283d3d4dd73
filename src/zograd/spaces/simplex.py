"""The probability simplex in three metrics, one simplex a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from zograd.spaces.base import Extent, Space, refuse_metric, row_sum, shorten_
from zograd.spaces.sphere import sphere_exp, sphere_log, sphere_transport


@dataclass(frozen=True, slots=True)
class Simplex(Space):
    """{p : p_i > 0, sum_i p_i = total} for each row along the last axis: a leaf of shape (N, 6) is N simplices.

    metric:
    - "log-ratio" (Aitchison): flat and complete. With xi = z - mean z, Retr(lift z) = softmax(log p + xi), which is
      its exponential map; mu and lr are in log units. A gradient in it carries a factor p_i: steps near a vertex are
      small, so where vertices are optimal they are reached slowly.
    - "conformal": h <., .> with h = 1 + sum_k p_k^-2, complete (Riemannian ZO, arXiv 2601.08039, Definition 2.5). Of a
      long move the first part, of length rho in the metric, is made: |v| <= rho min_k p_k stays inside. Probes are
      undistorted while mu sqrt(n) <= rho for rows of n.
    - "fisher-rao": sum_i v_i^2 / p_i, that of the sphere x = 2 sqrt(p). Not complete: geodesics reach the wall in
      finite length and are reflected there, so that probes stay inside but those across a wall see its other side.

    Elements are kept at least as large as the smallest normal number. Cost: no memory beyond a few rows.
    """

    metric: Literal["log-ratio", "conformal", "fisher-rao"] = "log-ratio"
    total: float = 1.0
    rho: float = 0.5
    flat: ClassVar[bool] = False
    unit: ClassVar[Extent] = "row"

    def __post_init__(self) -> None:
        refuse_metric(self, self.metric, METRICS)
        if not 0 < self.total < math.inf:
            raise ValueError(f"a simplex needs total > 0, got {self.total}")
        if not 0 < self.rho < 1:
            raise ValueError(f"rho must lie in (0, 1), so that moves stay inside, got {self.rho}")

    @property
    def geometry(self) -> Geometry:
        return METRICS[self.metric](self.total, self.rho)

    @property
    def curvature(self) -> float | str:
        return self.geometry.curvature

    @property
    def complete(self) -> bool:
        return self.metric != "fisher-rao"

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return self.geometry.lift_(z, x)

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        self.geometry.move_(x, v)
        return x.mul_(self.total / row_sum(x)).clamp_min_(torch.finfo(x.dtype).tiny)

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return self.geometry.inner(x, u, v)

    def explain(self, x: Tensor) -> str | None:
        x = x.view(-1, x.shape[-1] if x.ndim else 1)
        if len(bad := torch.nonzero(~(x.flatten() > 0))):
            i = int(bad[0])
            return f"element {i} is {x.flatten()[i].item():g}, but a simplex needs every element > 0"
        sums = row_sum(x.double())[:, 0]
        slack = self.total * max(1e-6, 8 * torch.finfo(x.dtype).eps)
        if len(bad := torch.nonzero(~((sums - self.total).abs() <= slack))):
            row, last = int(bad[0]), x.shape[-1]
            return (
                f"row {row} along the last axis ({last} elements) sums to {sums[row].item():g}, but a simplex needs "
                f"{self.total:g}; divide by x.sum(-1, keepdim=True)"
            )
        return None

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Where the geodesic from x with velocity v is after unit time. "conformal" has no formula and raises."""
        self._closed("exp")
        return self.move_(x.clone(), v.clone())

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The v with exp(x, v) = y."""
        return self._closed("log").log(x, y)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The length of the geodesic from x to y, one a row."""
        return self._closed("dist").dist(x, y)

    def transport(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """u, tangent at x, carried in parallel along the geodesic to y."""
        return self._closed("transport").transport(x, y, u)

    def _closed(self, what: str) -> _LogRatio | _FisherRao:
        if isinstance(self.geometry, _Conformal):
            raise NotImplementedError(
                f"the conformal metric has no closed form of {what}; metric='log-ratio' or 'fisher-rao' have one"
            )
        return self.geometry


@dataclass(frozen=True, slots=True)
class _LogRatio:
    total: float
    rho: float
    curvature: ClassVar[float] = 0.0

    def lift_(self, z: Tensor, p: Tensor) -> Tensor:
        """p (z - sum_i p_i z_i / total): the derivative of softmax, symmetric."""
        return z.sub_(row_sum(p * z) / self.total).mul_(p)

    def move_(self, p: Tensor, v: Tensor) -> Tensor:
        """softmax(log p + v / p), up to the sum: v / p is xi up to a constant a row."""
        xi = v.div_(p)
        return p.mul_(xi.sub_(xi.amax(-1, keepdim=True)).exp_())

    def inner(self, p: Tensor, u: Tensor, v: Tensor) -> Tensor:
        a = u / p
        return ((a - row_sum(a) / a.shape[-1]) * (v / p)).sum()

    def log(self, p: Tensor, q: Tensor) -> Tensor:
        return self.lift_((q / p).log_(), p)

    def dist(self, p: Tensor, q: Tensor) -> Tensor:
        y = (q / p).log_()
        return row_sum((y - row_sum(y) / y.shape[-1]).square_())[..., 0].sqrt_()

    def transport(self, p: Tensor, q: Tensor, u: Tensor) -> Tensor:
        return self.lift_(u / p, q)


@dataclass(frozen=True, slots=True)
class _Conformal:
    total: float
    rho: float
    curvature: ClassVar[str] = "between -1 and 0 (measured)"

    def lift_(self, z: Tensor, p: Tensor) -> Tensor:
        return z.sub_(row_sum(z) / z.shape[-1]).div_(self.factor(p))

    def move_(self, p: Tensor, v: Tensor) -> Tensor:
        length = self.factor(p).mul_(row_sum(v * v).sqrt_())
        return p.add_(shorten_(v, length, self.rho))

    def inner(self, p: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (self.factor(p).square_() * u * v).sum()

    def factor(self, p: Tensor) -> Tensor:
        """sqrt(h)."""
        return row_sum(p**-2).add_(1.0).sqrt_()


@dataclass(frozen=True, slots=True)
class _FisherRao:
    total: float
    rho: float

    @property
    def curvature(self) -> float:
        return 0.25 / self.total

    @property
    def radius(self) -> float:
        """Of the sphere of 2 sqrt(p)."""
        return 2.0 * math.sqrt(self.total)

    def lift_(self, z: Tensor, p: Tensor) -> Tensor:
        """sqrt(p) (z - s <s, z>), s = sqrt(p / total)."""
        s = (p / self.total).sqrt_()
        return z.sub_(s * row_sum(s * z)).mul_(p.sqrt())

    def move_(self, p: Tensor, v: Tensor) -> Tensor:
        root = p.sqrt()
        x = sphere_exp(2.0 * root, v.div_(root), self.radius)
        return p.copy_(x.square_().mul_(0.25))

    def inner(self, p: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u * v / p).sum()

    def log(self, p: Tensor, q: Tensor) -> Tensor:
        return p.sqrt() * sphere_log(2.0 * p.sqrt(), 2.0 * q.sqrt(), self.radius)

    def dist(self, p: Tensor, q: Tensor) -> Tensor:
        return row_sum(self.log(p, q).square_().div_(p))[..., 0].sqrt_()

    def transport(self, p: Tensor, q: Tensor, u: Tensor) -> Tensor:
        x, y = 2.0 * p.sqrt(), 2.0 * q.sqrt()
        return q.sqrt() * sphere_transport(x, y, u / p.sqrt(), self.radius)


Geometry: TypeAlias = _LogRatio | _Conformal | _FisherRao
METRICS: dict[str, type[Geometry]] = {"log-ratio": _LogRatio, "conformal": _Conformal, "fisher-rao": _FisherRao}
