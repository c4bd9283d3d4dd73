"""One coordinate at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from zograd.core.vector import Address, Basis, Vector, basis
from zograd.laws.base import Draw, Law
from zograd.noise import fold


@basis
@dataclass(frozen=True, slots=True)
class Unit(Basis):
    """e_i: 1 at one element of one leaf, 0 elsewhere. `element` counts in memory order."""

    leaf: int
    element: int

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        i = self.element - at.start
        if at.leaf == self.leaf and 0 <= i < out.numel():
            out[i] += coef


def unit(index: int, shapes: Sequence[tuple[int, ...]]) -> Unit:
    """Coordinate number `index` of all leaves end to end."""
    for leaf, shape in enumerate(shapes):
        numel = math.prod(shape)
        if index < numel:
            return Unit(leaf, index)
        index -= numel
    raise IndexError(f"there are {sum(math.prod(s) for s in shapes)} coordinates; number {index} is past the end")


@dataclass(frozen=True, slots=True)
class Coordinate(Law):
    """v = +-sqrt(d) e_i, i uniform over the d coordinates of all leaves, the sign a fair coin.

    Total variance d - 1, the minimum, but all of it where the gradient is: variance (d - 1) g_i^2 of coordinate i. The
    sign makes odd moments vanish, so that one-sided estimates have no bias from the curvature.
    """

    fixed_norm: bool = True

    def __call__(self, draw: Draw) -> Vector:
        bits = fold(draw.key, 0)  # one for the sign, 63 for the place: uniform up to d / 2^63
        side = 1.0 if bits & 1 else -1.0
        return Vector(((unit((bits >> 1) * draw.dim >> 63, draw.shapes), side * math.sqrt(draw.dim)),))
