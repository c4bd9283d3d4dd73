"""Laws of directions: how v is drawn, with E[v v^T] = I in frame coordinates.

Total variance of the two-point estimate D_v v (mu -> 0), in units of |g|^2:
    Rademacher, sphere   d - 1   (the minimum over all laws with E[v v^T] = I)
    Gaussian             d + 1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from zograd.noise import Kind
from zograd.vector import Gram, Noise, Vector


class Law(Protocol):
    """key -> direction. `dim` is the dimension; `gram` gives inner products for laws that normalise."""

    @property
    def fixed_norm(self) -> bool:
        """Whether |v|^2 = d always."""

    def __call__(self, key: int, dim: int, gram: Gram) -> Vector: ...


@dataclass(frozen=True, slots=True)
class Rademacher:
    """v_i = +1 or -1 with probability 1/2. The default: |v|^2 = d exactly, one random bit a weight.

    Variance of coordinate i of D_v v: |g|^2 - g_i^2.
    """

    fixed_norm: bool = True

    def __call__(self, key: int, dim: int, gram: Gram) -> Vector:
        return Vector(((Noise(Kind.SIGN, key), 1.0),))


@dataclass(frozen=True, slots=True)
class Gaussian:
    """v_i ~ N(0, 1) from an integer quantile table of 65,536 equiprobable atoms: the same bits on every device.

    Variance of coordinate i of D_v v: |g|^2 + g_i^2.
    """

    fixed_norm: bool = False

    def __call__(self, key: int, dim: int, gram: Gram) -> Vector:
        return Vector(((Noise(Kind.NORMAL, key), 1.0),))


@dataclass(frozen=True, slots=True)
class Sphere:
    """v = sqrt(d) z / |z| with z ~ N(0, I): uniform on the sphere of radius sqrt(d).

    Costs one more pass of noise generation a direction, for |z| (an exact integer sum, so v does not depend on
    chunking or threads). In high dimension |z| = sqrt(d) (1 +- 1/sqrt(2d)): Gaussian does as well for less.
    """

    fixed_norm: bool = True

    def __call__(self, key: int, dim: int, gram: Gram) -> Vector:
        z = Vector(((Noise(Kind.NORMAL, key), 1.0),))
        return z * math.sqrt(dim / float(gram([z])[0, 0]))
