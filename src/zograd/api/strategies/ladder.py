"""The curvature of f at the start, from second differences on a ladder of radii, and how rough f is."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from zograd.api.strategies.base import Points, Problem, Values, points, uneven
from zograd.api.variables import Flat

RESOLVED = 100.0
"""A second difference so many times the noise counts as measured."""

RUNGS = 10
"""Radii at which the curvature is looked for."""

RATIO = 30.0
"""Of two successive radii. The second difference of a smooth f falls by the square of it, that at a kink by itself."""

LEVEL = 10.0
"""A second difference that falls by less from one radius to the next is that of roughness."""


class Search(Protocol):
    """What the ladder reads of a search, at its point x with the value f."""

    problem: Problem
    x: Flat
    f: float
    grid: float

    @property
    def noise(self) -> float: ...
    def given(self, x: Flat) -> Flat: ...
    def centred(self, v: Flat) -> tuple[Flat, Flat]: ...
    def stairs(self, seen: list[float]) -> float: ...


class Ladder:
    """Radii from 1e-4 max(1, |x|) on, which fall as long as second differences are resolved, and rise before.

    It ends where two successive curvatures agree within a factor of 2, and that one is taken. Where none agree, second
    differences may be those of a roughness that repeats, as of a solver with a tolerance, of a rounded f, or of one in
    float32: they do not fall with the radius, or all at once. Then the noise is their size over sqrt(6), as it would be
    for three independent values, and the radius is the first above the beginning whose second difference is resolved
    in such noise.

    radius, curvature: found; the curvature is 0 where none is resolved. rough: the standard deviation of the
    roughness, 0 where none was seen. ripples: whether curvatures agree, but only below a radius above which second
    differences hardly fall: f may be a smooth ripple on something else. sure: whether f is rough, and not only next to
    a kink. changed: whether any value differs from f(x).
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        self.direction = uneven(search.problem.seed, search.x.size)
        self.scale = max(1.0, float(np.max(np.abs(search.x))))
        self.room = self.widest()
        self.radius, self.curvature, self.rough = 0.0, 0.0, 0.0
        self.changed = self.ripples = self.sure = False
        self.seen: list[float] = []

    def widest(self) -> float:
        """The largest radius at which not all variables are cut by their bounds."""
        low, high = self.search.problem.lower, self.search.problem.upper
        if low is None or high is None:
            return math.inf
        half = high.astype(np.float64) / 2 - low.astype(np.float64) / 2
        return float(np.max(half / np.abs(self.direction)))

    def __call__(self) -> Generator[Points, Values, None]:
        """Climb up or down until a curvature is found."""
        search, scale = self.search, self.scale
        start = 1e-4 * (scale if 1e-4 * scale <= self.room else self.room)
        farthest = min(1e4 * scale, self.room)
        r, climbed = start, False
        found: list[tuple[float, float]] = []
        falling: list[float] = []
        for _ in range(RUNGS):
            second, curvature = yield from self.at(r)
            resolved = second >= RESOLVED * search.noise
            if math.isfinite(second) and resolved:
                found.append((min(r, self.room), curvature))
                if len(found) > 1 and found[-2][1] < 2 * found[-1][1] < 4 * found[-2][1]:
                    self.radius, self.curvature = found[-1]
                    self.ripples = level(falling, search.noise) > 0
                    return
            up = math.isfinite(second) and not resolved
            if falling or not up:
                falling.append(second)
            if (found and not resolved) or (up and r > farthest):
                break
            climbed |= up
            r *= RATIO if up else 1 / RATIO
        self.rough = level(falling, search.noise)
        self.sure = self.rough > 0
        self.rough = self.rough or gap(falling, search.noise)
        if climbed:  # all that is known of it is that it hides the second difference of the radius below
            self.rough *= math.sqrt(6) / RATIO**2
        if self.rough:
            found, r = [], start
            while not found and r <= farthest:
                r *= RATIO
                second, curvature = yield from self.at(r)
                if RESOLVED * self.rough <= second < math.inf:
                    found.append((min(r, self.room), curvature))
        self.radius, self.curvature = found[-1] if found else (min(r, self.room), 0.0)

    def at(self, r: float) -> Generator[Points, Values, tuple[float, float]]:
        """(second difference, curvature) at a radius."""
        search = self.search
        here, v = search.centred(r * self.direction)
        middle = search.f
        asked = [search.given(here + v), search.given(here - v)]
        if here is not search.x:
            asked.append(search.given(here))
        told = yield points(asked)
        plus, minus = told[:2]
        middle = told[2] if len(told) > 2 else middle
        second = abs(plus - 2 * middle + minus)
        self.changed |= any(f != search.f for f in (plus, minus, middle))
        x0 = search.given(search.x)  # f(x0) at x0 itself, where a bound is, makes no staircase
        self.seen += [f for y, f in zip(asked, told, strict=True) if not np.array_equal(y, x0)]
        search.grid = max(search.grid, search.stairs(self.seen))
        with np.errstate(over="ignore"):
            square = float(v @ v)
        if 0 < square < math.inf:
            return second, second / square
        most = float(np.max(np.abs(v)))  # squares leave the range of numbers
        return second, second / most / most / float(np.square(v / most).sum())


def level(seconds: Sequence[float], noise: float) -> float:
    """The standard deviation of a roughness, from second differences at radii that fall by `RATIO`; 0 without one.

    noise: the rounding of f. Rough are second differences from where on they hardly fall.
    """
    for k, (above, below) in enumerate(pairwise(seconds)):
        if math.isfinite(above) and max(RESOLVED * noise, above / LEVEL) <= below < math.inf and below > 0:
            rough = [s for s in seconds[k + 1 :] if 0 < s < math.inf]
            return float(np.sqrt(np.mean(np.square(rough)) / 6))
    return 0.0


def gap(seconds: Sequence[float], noise: float) -> float:
    """The same from a second difference below which there is nothing, though that of a smooth f would be resolved.

    So it is where f is rounded, or float32, and also next to a kink.
    """
    for above, below in pairwise(seconds):
        if below < RESOLVED * noise and RATIO**2 * RESOLVED**2 * noise < above < math.inf:
            return above / math.sqrt(6)
    return 0.0
