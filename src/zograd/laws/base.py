"""The base of laws, and the three that draw every element of v independently.

Total variance of the two-point estimate D_v v (mu -> 0), in units of |g|^2:
    Rademacher, sphere   d - 1   (the minimum over all laws with E[v v^T] = I)
    Gaussian             d + 1
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from zograd.core import keys
from zograd.core.messages import message
from zograd.core.parts import Part, declared
from zograd.core.vector import Gram, Noise, Vector
from zograd.noise import Kind


@message()
class Draw:
    """What a law may know of the direction it is to draw: number j of step `step` of a run, on leaves of `shapes`."""

    seed: int
    step: int
    j: int
    shapes: tuple[tuple[int, ...], ...]
    gram: Gram

    @property
    def key(self) -> int:
        """The key of this direction's own noise."""
        return keys.direction(self.seed, self.step, self.j)

    @cached_property
    def dim(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def number(self, j: int) -> Draw:
        """The same step's direction number j (a law of mutually orthogonal directions looks at those before)."""
        return self if j == self.j else Draw(self.seed, self.step, j, self.shapes, self.gram)

    def shared(self, domain: int, every: int = 0) -> int:
        """A key that all directions of a run share, or those of `every` consecutive steps.

        domain: one of `keys.Shared`; a law outside of zograd takes a number of its own, from 1024 on.
        """
        return keys.shared(self.seed, domain, self.step // every if every else 0)


class Law(Part, ABC):
    """Draw -> direction v with E[v v^T] = I. Equal draws give equal directions.

    A law of your own defines `__call__` and declares, where the default is wrong: `fixed_norm`, and what every part may
    (`zograd.core.parts.Part`): `slots`, `prepare`, `misfit`. A law that masks another says where in `support`.
    """

    __slots__ = ()

    @declared
    def fixed_norm(self) -> bool:
        """Whether |v|^2 = d always."""
        return False

    @abstractmethod
    def __call__(self, draw: Draw, /) -> Vector:
        """The direction of this draw."""


@dataclass(frozen=True, slots=True)
class Rademacher(Law):
    """v_i = +1 or -1 with probability 1/2. The default: |v|^2 = d exactly, one random bit a weight.

    Variance of coordinate i of D_v v: |g|^2 - g_i^2.
    """

    fixed_norm: bool = True

    def __call__(self, draw: Draw) -> Vector:
        return Vector(((Noise(Kind.SIGN, draw.key), 1.0),))


@dataclass(frozen=True, slots=True)
class Gaussian(Law):
    """v_i ~ N(0, 1) from an integer quantile table of 65,536 equiprobable atoms: the same bits on every device.

    Variance of coordinate i of D_v v: |g|^2 + g_i^2.
    """

    fixed_norm: bool = False

    def __call__(self, draw: Draw) -> Vector:
        return Vector(((Noise(Kind.NORMAL, draw.key), 1.0),))


@dataclass(frozen=True, slots=True)
class Sphere(Law):
    """v = sqrt(d) z / |z| with z ~ N(0, I): uniform on the sphere of radius sqrt(d).

    Costs one more pass of noise generation a direction, for |z| (an exact integer sum, so v does not depend on
    chunking or threads). In high dimension |z| = sqrt(d) (1 +- 1/sqrt(2d)): Gaussian does as well for less.
    """

    fixed_norm: bool = True

    def __call__(self, draw: Draw) -> Vector:
        z = Vector(((Noise(Kind.NORMAL, draw.key), 1.0),))
        return z * math.sqrt(draw.dim / float(draw.gram([z])[0, 0]))
