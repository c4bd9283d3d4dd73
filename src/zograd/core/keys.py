"""Where every key of zograd comes from: one tree under the seed, so that no two uses of randomness share a key.

    key of a step        fold(seed, t), 0 <= t < 2^32                    its children: `OfStep`
    shared by steps      fold(fold(fold(seed, 2^32), domain), period)    the domains: `Shared`
    seed of a part       fold(fold(seed, 2^32 + 1), part)                the parts: `Part`
    coordinates          fold(fold(seed, 2^33), period)

A part that draws before a run or outside of it (scores for a mask, diagnostics) takes a seed of its own: a mask must
not be chosen by the noise that it is then trained with. Below a key that only one part knows, that part may number its
children as it likes.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

from zograd.noise import fold

SHARED, PARTS, COORDINATES = 1 << 32, (1 << 32) + 1, 1 << 33
"""Children of the seed that are no steps, whose numbers are below all of these."""


class OfStep(IntEnum):
    """What the key of a step is divided into."""

    DIRECTION = 0
    SCALAR = 1
    """Scalar random numbers of an estimator (`Ask.rng`)."""
    ROUNDING = 2
    """Stochastic rounding of the move."""
    EVALUATION = 3
    """torch's, NumPy's and Python's random state while the loss is evaluated."""


class Shared(IntEnum):
    """What directions of several steps have in common. Laws outside of zograd take numbers from 1024 on."""

    LEFT = 16
    RIGHT = 17
    SCATTER = 18
    """Random masks."""


class Part(IntEnum):
    """Parts that draw directions without being a run, or random numbers that are not directions."""

    SENSITIVITY = 0
    DENSITIES = 1
    DIAGNOSTICS = 2
    BATCHES = 3
    """The order of batches that a black box is given."""
    COMMON = 4
    """Seeds that the points of a step share."""
    WORKERS = 5
    """The random state of evaluations in worker processes."""
    ESTIMATE = 6
    """Estimates outside of a run (`zograd.gradient`)."""
    BLACK_BOX = 8
    """Backward passes of `zograd.black_box`."""


@lru_cache(maxsize=64)  # all directions of a step ask for the same few
def of_step(seed: int, step: int, what: OfStep | None = None) -> int:
    """The key of a step, or of a domain within it."""
    return fold(seed, step) if what is None else fold(seed, step, what)


def direction(seed: int, step: int, j: int) -> int:
    """The key of direction number j of a step."""
    return fold(of_step(seed, step, OfStep.DIRECTION), j)


def shared(seed: int, domain: int, period: int = 0) -> int:
    """A key that all steps of a period share; `domain` is one of `Shared`, or a number from 1024 on."""
    return fold(fold(fold(seed, SHARED), domain), period)


def coordinates(seed: int, period: int) -> int:
    """The key by which the coordinates of a period are chosen, for estimators that evaluate them one by one."""
    return fold(fold(seed, COORDINATES), period)


def seed_of(seed: int, part: Part) -> int:
    """The seed that a part uses in place of the seed of the run."""
    return fold(fold(seed, PARTS), part)
