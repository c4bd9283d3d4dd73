"""Balls and the simplex, over all leaves together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zograd.core.sums import Sum
from zograd.sets.base import FAR, Ball, Gathered, OneTensor, Place, positive

ROUNDING = 1 + 1e-6
"""How far outside a point may lie and still count as inside: weights are rounded after each step."""


def total(values: Iterable[Tensor]) -> float:
    return math.fsum(float(v.double().sum()) for v in values)


def outside(what: str, size: float, ball: str, radius: float) -> str | None:
    return None if size <= radius * ROUNDING else f"{what} = {size:g}, but the {ball} has radius {radius:g}"


@dataclass(frozen=True, slots=True)
class L1Ball(OneTensor):
    """{x : sum_i |x_i| <= radius}. argmin <g, s> = -radius sign(g_k) e_k with k = argmax |g_k|, the first of equals.

    The projection shrinks every |x_i| by the threshold that leaves radius in all, exact, from one sort of all elements:
    streamed, it holds a copy of them in float64.
    """

    radius: float
    whole_leaf: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive(self, "radius", self.radius)

    def scan(self, g: Tensor, at: Place, found: tuple[float, int] | None) -> tuple[float, int]:
        k = int(torch.argmax(g.abs()))
        value = float(g[k])
        return (value, at.start + k) if found is None or abs(value) > abs(found[0]) else found

    def vertex_(self, out: Tensor, g: Tensor, at: Place, found: tuple[float, int]) -> Tensor:
        out.zero_()
        value, k = found
        if at.start <= k < at.start + out.numel() and value != 0.0:
            out[k - at.start] = -self.radius if value > 0 else self.radius
        return out

    def lowest(self, found: tuple[float, int]) -> float:
        return -self.radius * abs(found[0])

    def measure(self, y: Tensor, found: Gathered | None) -> Gathered:
        sizes = Gathered() if found is None else found
        sizes.add(y.abs())
        return sizes

    def project_block_(self, y: Tensor, found: Gathered) -> Tensor:
        theta = found.threshold(self.radius) if found.total > self.radius else 0.0
        if not theta <= FAR * self.radius:
            return y.copy_(found.over_(y.abs(), self.radius).copysign(y))
        exact = y.double()
        return y.copy_(exact - exact.clamp(-theta, theta))

    def explain(self, *leaves: Tensor) -> str | None:
        return outside("sum |x_i|", total(x.abs() for x in leaves), "l1 ball", self.radius)

    def ball(self, dim: int) -> Ball:
        """Radius / sqrt(d): |r|_1 <= sqrt(d) |r|, with equality for vectors of signs."""
        return Ball(0.0, self.radius / math.sqrt(dim))


@dataclass(frozen=True, slots=True)
class L2Ball(OneTensor):
    """{x : |x| <= radius}. argmin <g, s> = -radius g / |g|. The projection is x min(1, radius / |x|)."""

    radius: float
    whole_leaf: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive(self, "radius", self.radius)

    def scan(self, g: Tensor, at: Place, found: Sum | None) -> Sum:
        return self.measure(g, found)

    def vertex_(self, out: Tensor, g: Tensor, at: Place, found: Sum) -> Tensor:
        norm = math.sqrt(found.value)
        return out.copy_(g).mul_(-self.radius / norm) if norm > 0.0 else out.zero_()

    def lowest(self, found: Sum) -> float:
        return -self.radius * math.sqrt(found.value)

    def measure(self, y: Tensor, found: Sum | None) -> Sum:
        squares = Sum() if found is None else found
        squares.add(y, y)
        return squares

    def project_block_(self, y: Tensor, found: Sum) -> Tensor:
        norm = math.sqrt(found.value)
        return y.mul_(self.radius / norm) if norm > self.radius else y

    def explain(self, *leaves: Tensor) -> str | None:
        return outside("|x|", math.sqrt(total(x.double().square() for x in leaves)), "l2 ball", self.radius)

    def ball(self, dim: int) -> Ball:
        """The set itself."""
        return Ball(0.0, self.radius)


@dataclass(frozen=True, slots=True)
class LInfBall(OneTensor):
    """{x : max_i |x_i| <= radius}. argmin <g, s> = -radius sign(g). The projection clips every element."""

    radius: float
    whole_leaf: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive(self, "radius", self.radius)

    def scan(self, g: Tensor, at: Place, found: Sum | None) -> Sum:
        size = Sum() if found is None else found
        size.add(g.abs())
        return size

    def vertex_(self, out: Tensor, g: Tensor, at: Place, found: Sum) -> Tensor:
        return torch.sign(g, out=out).mul_(-self.radius)

    def lowest(self, found: Sum) -> float:
        return -self.radius * found.value

    def project_(self, x: Tensor) -> Tensor:
        """x <- clip(x, -radius, radius)."""
        return x.clamp_(-self.radius, self.radius)

    def explain(self, *leaves: Tensor) -> str | None:
        largest = max(float(x.abs().max()) for x in leaves if x.numel())
        return outside("max |x_i|", largest, "l-infinity ball", self.radius)

    def ball(self, dim: int) -> Ball:
        """|r|_inf <= |r|."""
        return Ball(0.0, self.radius)


@dataclass(frozen=True, slots=True)
class Simplex(OneTensor):
    """{x : x_i >= 0, sum_i x_i = radius}. argmin <g, s> = radius e_k with k = argmin g_k, the first of equals.

    The projection is max(x - theta, 0) with the theta that leaves radius in all, exact, from one sort of all elements:
    streamed, it holds a copy of them in float64. For a space of simplices, one a row, see `zograd.spaces.Simplex`.
    """

    radius: float = 1.0
    whole_leaf: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive(self, "radius", self.radius)

    def scan(self, g: Tensor, at: Place, found: tuple[float, int] | None) -> tuple[float, int]:
        k = int(torch.argmin(g))
        value = float(g[k])
        return (value, at.start + k) if found is None or value < found[0] else found

    def vertex_(self, out: Tensor, g: Tensor, at: Place, found: tuple[float, int]) -> Tensor:
        out.zero_()
        if at.start <= found[1] < at.start + out.numel():
            out[found[1] - at.start] = self.radius
        return out

    def lowest(self, found: tuple[float, int]) -> float:
        return self.radius * found[0]

    def measure(self, y: Tensor, found: Gathered | None) -> Gathered:
        elements = Gathered() if found is None else found
        elements.add(y)
        return elements

    def project_block_(self, y: Tensor, found: Gathered) -> Tensor:
        return found.over_(y, self.radius)

    def explain(self, *leaves: Tensor) -> str | None:
        least, size = min(float(x.min()) for x in leaves if x.numel()), total(leaves)
        if least < -self.radius * (ROUNDING - 1):
            return f"its least element is {least:g}, but the simplex needs every element >= 0"
        if abs(size - self.radius) > self.radius * (ROUNDING - 1):
            return f"sum x_i = {size:g}, but the simplex needs {self.radius:g}"
        return None

    def ball(self, dim: int) -> Ball:
        """Raises ValueError: sum x_i is fixed, so probes in all directions leave."""
        raise ValueError("Simplex has no interior: sum x_i is fixed; use space=spaces.Simplex(), which probes stay in")
