"""Penalties and boxes with a proximal map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zograd.core.sums import Sum, row_sums_
from zograd.sets.base import Extent, OneTensor, Place, positive


@dataclass(frozen=True, slots=True)
class L1:
    """r(x) = weight sum_i |x_i|. prox: y - clip(y, -t weight, t weight), which sets small elements to exact zeros."""

    weight: float
    unit: ClassVar[Extent] = "element"

    def __post_init__(self) -> None:
        positive(self, "weight", self.weight)

    def prox_(self, y: Tensor, t: float) -> Tensor:
        return y.sub_(y.clamp(-t * self.weight, t * self.weight))


@dataclass(frozen=True, slots=True)
class Box(OneTensor):
    """{x : low <= x_i <= high}. The projection clips; argmin <g, s> = low where g_i > 0, high elsewhere.

    Either bound may be infinite; then linear functions have no minimiser.
    """

    low: float
    high: float
    whole_leaf: ClassVar[bool] = False
    unit: ClassVar[Extent] = "element"

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"a box needs low <= high, got low={self.low}, high={self.high}")

    def project_(self, x: Tensor) -> Tensor:
        """x <- clip(x, low, high)."""
        return x.clamp_(self.low, self.high)

    def scan(self, g: Tensor, at: Place, found: Sum | None) -> Sum:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"no point of Box({self.low:g}, {self.high:g}) minimises a linear function; bound the box")
        lowest = Sum() if found is None else found
        lowest.add(self.vertex_(torch.empty_like(g), g, at, lowest), g)
        return lowest

    def vertex_(self, out: Tensor, g: Tensor, at: Place, found: Sum) -> Tensor:
        return out.fill_(self.high).masked_fill_(g > 0, self.low)

    def lowest(self, found: Sum) -> float:
        return found.value

    def explain(self, *leaves: Tensor) -> str | None:
        for x in leaves:
            low, high = (float(x.min()), float(x.max())) if x.numel() else (self.low, self.high)
            if low < self.low or high > self.high:
                return f"its elements reach from {low:g} to {high:g}, but the box from {self.low:g} to {self.high:g}"
        return None


@dataclass(frozen=True, slots=True)
class NonNegative(OneTensor):
    """{x : x_i >= 0}: Box(0, inf). The projection is max(x, 0)."""

    unit: ClassVar[Extent] = "element"

    def project_(self, x: Tensor) -> Tensor:
        """x <- max(x, 0)."""
        return x.clamp_(min=0.0)

    def lmo_(self, g: Tensor) -> Tensor:
        """Raises ValueError: linear functions have no minimiser on a cone but 0 or none."""
        raise ValueError("no point of NonNegative() minimises a linear function; bound it, as Box(0.0, high)")

    def explain(self, *leaves: Tensor) -> str | None:
        least = min((float(x.min()) for x in leaves if x.numel()), default=0.0)
        return None if least >= 0.0 else f"its least element is {least:g}, but every element must be >= 0"


@dataclass(frozen=True, slots=True)
class GroupL2:
    """r(x) = weight sum_rows |x_row|_2, over the rows of each leaf (its first axis by the rest): the group lasso.

    prox: y_row max(0, 1 - t weight / |y_row|): a row is zero as a whole or not at all. Each element of a vector is a
    row of its own.
    """

    weight: float
    unit: ClassVar[Extent] = "row"

    def __post_init__(self) -> None:
        positive(self, "weight", self.weight)

    def prox_(self, y: Tensor, t: float) -> Tensor:
        norm = row_sums_(y * y).sqrt_()
        keep = norm > t * self.weight
        norm.reciprocal_().mul_(-t * self.weight).add_(1.0)
        return y.mul_(norm.where(keep, 0.0)[:, None])
