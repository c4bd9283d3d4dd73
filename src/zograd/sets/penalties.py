"""Penalties and boxes with a proximal map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zograd.sets.base import Unit, positive
from zograd.sums import row_sums_


@dataclass(frozen=True, slots=True)
class L1:
    """r(x) = weight sum_i |x_i|. prox: y - clip(y, -t weight, t weight), which sets small elements to exact zeros."""

    weight: float
    unit: ClassVar[Unit] = "element"

    def __post_init__(self) -> None:
        positive(self, "weight", self.weight)

    def prox_(self, y: Tensor, t: float) -> Tensor:
        return y.sub_(y.clamp(-t * self.weight, t * self.weight))


@dataclass(frozen=True, slots=True)
class Box:
    """The indicator of {x : low <= x_i <= high}. prox: clip(y, low, high)."""

    low: float
    high: float
    unit: ClassVar[Unit] = "element"

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"a box needs low <= high, got low={self.low}, high={self.high}")

    def prox_(self, y: Tensor, t: float) -> Tensor:
        return y.clamp_(self.low, self.high)


@dataclass(frozen=True, slots=True)
class GroupL2:
    """r(x) = weight sum_rows |x_row|_2, over the rows of each leaf (its first axis by the rest): the group lasso.

    prox: y_row max(0, 1 - t weight / |y_row|): a row is zero as a whole or not at all. Each element of a vector is a
    row of its own.
    """

    weight: float
    unit: ClassVar[Unit] = "row"

    def __post_init__(self) -> None:
        positive(self, "weight", self.weight)

    def prox_(self, y: Tensor, t: float) -> Tensor:
        norm = row_sums_(y * y).sqrt_()
        keep = norm > t * self.weight
        norm.reciprocal_().mul_(-t * self.weight).add_(1.0)
        return y.mul_(norm.where(keep, 0.0)[:, None])
