"""Units of variables under constraints: whether a minimum is one in all of them, and a search in other ones."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from zograd.api.constraints import Evaluated
from zograd.api.strategies.base import UNLIKE, Points, Problem, Routine, Strategy, Trace, Values, points, rms, uneven
from zograd.api.strategies.ladder import RATIO, RESOLVED
from zograd.api.strategies.lagrangian import Evaluation
from zograd.api.strategies.nested import nested
from zograd.api.variables import Flat, Variables

SETTLED = 1e-4
"""The share of the largest slopes along a variable below which what is left of them does not count."""

LITTLE = 1e-8
"""The share of the change of f since x0 that variables may still promise at a minimum."""

GROSS = 1e-2
"""That share at the end of the outer loop, where kinks promise more than there is."""

SMALL = 1e-3
"""Widths of bounds, or an x0, so far below 1 are taken for units."""

SPREAD = 30.0
"""Ratio of the largest slopes along variables from which these may have different units."""

RADII = 10
"""At which the curvature along a variable is looked for, from 1e-4 of its size on, each 30 times the one before."""

FARTHER = 12
"""At which a flat Lagrangian is looked at."""


def powers(units: Flat) -> Flat:
    """The powers of two next to units, so that x / unit and back is x again."""
    found: Flat = np.ldexp(1.0, np.clip(np.rint(np.log2(units)), -500, 500).astype(int))
    return found


def at_start(problem: Problem, values: Flat, slopes: Flat, *, sized: bool) -> Flat | None:
    """Units to begin in where values repeat; None for those of x0.

    They are the widths of narrow bounds, or x0 where that is small. A small x0 may also be one that is nearly zero: it
    is taken for a unit where all slopes promise a change of a thousand times the values over the length 1. values,
    slopes: of f and of all rows at x0. sized: whether variables of an x0 with unlike sizes have these for units.
    """
    if problem.lower is not None and problem.upper is not None:
        width = problem.upper.astype(np.float64) - problem.lower
        if np.all((width > 0) & (width < SMALL)):
            return powers(width)
    x = np.abs(problem.x0.astype(np.float64))
    if sized and np.max(x) > UNLIKE * np.min(x[x > 0], initial=math.inf):
        return powers(np.where(x > 0, x, 1.0))
    size = rms(problem.x0)
    if 0 < size < SMALL and np.all(slopes * SMALL > np.abs(values)):
        return powers(np.full(problem.dim, size))
    return None


def in_units(strategy: Strategy, trace: Trace, start: Evaluation, units: Flat, values: Sequence[float]) -> Routine:
    """The strategy on z -> f(units z), from `start`. units: powers of two. values: at the start."""
    problem, x = trace.problem, start.x
    old, low, high = problem.variables, problem.lower, problem.upper

    def at(z: Flat) -> Flat:
        return problem.inside((units * z).astype(x.dtype))

    z = (x / units).astype(x.dtype)
    inner = Trace(
        replace(
            problem,
            variables=Variables(old.shaped(z)),
            lower=None if low is None else (low / units).astype(low.dtype),
            upper=None if high is None else (high / units).astype(high.dtype),
        ),
        trace.left, lambda: z, trace.fun, list(values), trace.noise,
        strategies=trace.strategies, reason=trace.reason,
    )  # fmt: skip

    def follow() -> None:
        trace.fun, trace.noise, trace.stationary, trace.reason = inner.fun, inner.noise, inner.stationary, inner.reason
        if (standing := inner.standing) is not None:
            trace.standing = replace(standing, x=at(standing.x))

    def asked(request: Points) -> Points:
        follow()
        return Points(lambda i: at(request.make(i)), len(request), request.rows)

    trace.position = lambda: at(inner.position())
    end = yield from nested(strategy, inner, trace, asked=asked)
    follow()
    return end


def softer(
    problem: Problem,
    here: Evaluation,
    weights: Flat,
    price: float,
    which: np.ndarray[Any, np.dtype[np.intp]],
    most: Flat | None,
    change: float,
    share: float,
) -> Generator[Points, Values, Flat | None]:
    """Units in which the search should go on; None where no more than `share` of `change` is promised.

    change: what f has changed so far. weights: of the rows in the Lagrangian L, price: the sum of what violations are
    worth in it. most: the largest sums of sizes of the slopes of f and of weighted rows along each variable that were
    seen, where they are known. which: the variables that are not settled; one is settled where the slope of L is less
    than `SETTLED` of them, whatever its unit. Along each of these, two values of L, at the first radius where their
    second difference b is resolved, promise the drop a^2 / (2 b), a half of their difference. The units are then the
    lengths over which L changes by as much as f has: by its curvature along those variables, by its slopes along
    others.
    """
    x = here.x.astype(np.float64)
    size = np.maximum(np.abs(x), 1.0)
    length = np.full(x.size, math.nan)
    promises = np.zeros(x.size)
    for i in which:
        length[i], promises[i] = yield from along(problem, here, weights, int(i))
    promise = float(np.sum(promises)) + price
    if not max(share * change, RESOLVED * rounding(here.value, weights, here.x)) < promise < math.inf:
        return None
    change = max(change, promise)
    slopes = size if most is None else np.divide(change, most, out=size, where=most > 0)
    return powers(np.where(length > 0, math.sqrt(change) * length, slopes))


def along(problem: Problem, here: Evaluation, weights: Flat, i: int) -> Generator[Points, Values, tuple[float, float]]:
    """(length over which the curvature of L along a variable makes a difference of 1, the drop that it promises)."""
    x = here.x
    r = 1e-4 * max(abs(float(x[i])), 1.0)
    room = math.inf
    if problem.lower is not None and problem.upper is not None:
        room = float(min(x[i] - problem.lower[i], problem.upper[i] - x[i]))
    for _ in range(RADII):
        r = min(r, room)
        ends = [x.copy(), x.copy()]
        ends[0][i] += r
        ends[1][i] -= r
        if not ends[1][i] < x[i] < ends[0][i]:
            return math.nan, 0.0
        values = yield points(ends)
        plus, minus = (lagrangian(value, weights) for value in values)
        second = plus - 2 * lagrangian(here.value, weights) + minus
        noise = max(rounding(value, weights, x) for value in (here.value, *values))
        noise += float(np.finfo(x.dtype).eps) * abs(float(x[i])) * abs(plus - minus) / r  # that of x within f and c
        if not math.isfinite(second) or second < -RESOLVED * noise:
            return math.nan, 0.0
        if second > RESOLVED * noise:
            return r / math.sqrt(second), (plus - minus) ** 2 / (8 * second)
        if r >= room:
            return math.nan, 0.0
        r *= RATIO
    return math.nan, 0.0


def at_rest(problem: Problem, trace: Trace, here: Evaluation, weights: Flat) -> Generator[Points, Values, bool]:
    """Whether L has a minimum near a point where differences are no more than its rounding.

    Along a random direction, at radii that grow until values differ: a slope that outweighs the curvature goes on.
    """
    x, middle = here.x.astype(np.float64), lagrangian(here.value, weights)
    direction = uneven(problem.seed, x.size)
    noise = float(np.finfo(here.x.dtype).eps) * abs(middle)
    r = 1e-4 * max(1.0, float(np.max(np.abs(x))))
    for _ in range(FARTHER):
        ends = [problem.inside((x + side * r * direction).astype(here.x.dtype)) for side in (1.0, -1.0)]
        if trace.left < 2 or not np.allclose((ends[0] + ends[1]) / 2, x, rtol=1e-6, atol=1e-6 * r):
            return True  # a bound is near; nothing speaks against it
        plus, minus = (lagrangian(value, weights) for value in (yield points(ends)))
        slope, bend = abs(plus - minus) / 2, plus - 2 * middle + minus
        if not math.isfinite(bend) or max(slope, abs(bend)) > RESOLVED * noise:
            return not slope > max(bend, RESOLVED * noise)
        r *= RATIO
    return True


def rounding(value: float, weights: Flat, x: Flat) -> float:
    """The rounding of L: that of its parts, which may cancel."""
    parts = float(np.abs(weights) @ np.abs(value.c)) if isinstance(value, Evaluated) else 0.0
    return float(np.finfo(x.dtype).eps) * (abs(value) + parts)


def lagrangian(value: float, weights: Flat) -> float:
    """f + weights c of an evaluation; NaN for a failed one."""
    return float(value + weights @ value.c) if isinstance(value, Evaluated) and math.isfinite(value) else math.nan
