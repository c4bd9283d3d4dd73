"""Penalties with a proximal map, and the non-negative orthant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zograd.core.sums import Sum, row_sums_
from zograd.sets.base import Ball, Extent, OneTensor, positive


@dataclass(frozen=True, slots=True)
class L1:
    """r(x) = weight sum_i |x_i|. prox: y - clip(y, -t weight, t weight), which sets small elements to exact zeros."""

    weight: float
    unit: ClassVar[Extent] = "element"

    def __post_init__(self) -> None:
        positive(self, "weight", self.weight)

    def prox_(self, y: Tensor, t: float) -> Tensor:
        return y.sub_(y.clamp(-t * self.weight, t * self.weight))

    def add_value(self, total: Sum, y: Tensor) -> None:
        total.add(y.abs().mul_(self.weight))


@dataclass(frozen=True, slots=True)
class NonNegative(OneTensor):
    """{x : x_i >= 0}: Box(0, inf). The projection is max(x, 0)."""

    def project_(self, x: Tensor) -> Tensor:
        """x <- max(x, 0)."""
        return x.clamp_(min=0.0)

    def lmo_(self, g: Tensor) -> Tensor:
        """Raises ValueError: linear functions have no minimiser on a cone but 0 or none."""
        raise ValueError("no point of NonNegative() minimises a linear function; bound it, as Box(0.0, high)")

    def explain(self, *leaves: Tensor) -> str | None:
        least = min((float(x.min()) for x in leaves if x.numel()), default=0.0)
        return None if least >= 0.0 else f"its least element is {least:g}, but every element must be >= 0"

    def ball(self, dim: int) -> Ball:
        """Around the vector of ones, up to the bounds."""
        return Ball(torch.ones(dim, dtype=torch.float64, device="cpu"), 1.0)


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

    def add_value(self, total: Sum, y: Tensor) -> None:
        total.add(row_sums_(y * y).sqrt_().mul_(self.weight))
