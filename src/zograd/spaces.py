"""Spaces: what a step means at x. A direction, drawn in frame coordinates, is lifted to a tangent and retracted.

Momentum, Adam moments and Vectors live in frame coordinates, so that a space needs no transport of its own:
Adam on the positive orthant is Adam on log x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Space(Protocol):
    """Elementwise or leafwise geometry. All tensors are blocks of the same shape, in the accumulation dtype."""

    @property
    def flat(self) -> bool:
        """Whether lift_ and move_ are x + z, so that a store may add noise to weights in one pass."""

    @property
    def whole_leaf(self) -> bool:
        """Whether blocks must be whole leaves (matrix manifolds) rather than chunks."""

    @property
    def slots(self) -> Mapping[str, float]:
        """d-sized state of the metric and its initial value."""

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        """z <- the tangent vector at x with frame coordinates z."""

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        """x <- Retr_x(v)."""

    def explain(self, x: Tensor) -> str | None:
        """None when x lies in the space, otherwise why not."""


@dataclass(frozen=True, slots=True)
class Euclidean:
    """R^d: Retr_x(v) = x + v."""

    flat: bool = True
    whole_leaf: bool = False

    @property
    def slots(self) -> Mapping[str, float]:
        return {}

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return z

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        return x.add_(v)

    def explain(self, x: Tensor) -> str | None:
        return None


@dataclass(frozen=True, slots=True)
class PositiveOrthant:
    """R^d_{>0} with the metric sum_i u_i v_i / x_i^2, isometric to R^d by y = log x: complete and flat.

    exp_x(v) = x * exp(v / x); frame coordinates are those of y, so mu and lr are relative (log) units and no probe
    ever leaves the orthant. Scaling x by any positive vector leaves the trajectory in y unchanged.
    """

    flat: bool = False
    whole_leaf: bool = False

    @property
    def slots(self) -> Mapping[str, float]:
        return {}

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return z.mul_(x)

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        return x.mul_(v.div_(x).exp_())

    def explain(self, x: Tensor) -> str | None:
        bad = torch.nonzero(~(x.flatten() > 0))
        if not len(bad):
            return None
        i = int(bad[0])
        return f"element {i} is {x.flatten()[i].item():g}, but the positive orthant needs every element > 0"


@dataclass(frozen=True, slots=True)
class Diagonal:
    """R^d with the metric sum_i h_i u_i v_i, h > 0: frame coordinates z stand for the step z / sqrt(h).

    log h is the slot "log_curvature", 0 (h = 1) until a rule changes it: in logarithms a change of 1e-8 of h = 1 is
    not lost to float32. by_row: one h for each row of a leaf (its first axis by the rest), in the memory of inference.
    """

    by_row: bool = False
    flat: bool = False
    whole_leaf: bool = False

    @property
    def slots(self) -> Mapping[str, float]:
        from zograd.stores.base import PerRow  # stores stand in spaces

        return {"log_curvature": PerRow(0.0) if self.by_row else 0.0}

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return z.mul_(slots["log_curvature"].mul(-0.5).exp_())

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        return x.add_(v)

    def explain(self, x: Tensor) -> str | None:
        return None
