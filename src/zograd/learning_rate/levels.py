"""`Levels`: what the points of a step tell of the loss at its centre: level, slope, curvature and noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.sums import mean
from zograd.core.vector import Vector, combination
from zograd.estimators.base import Estimator
from zograd.learning_rate.auto import Measured, _complete, _pairs, _rest, radii
from zograd.learning_rate.controller import State

A = TypeVar("A")

MORE = 3
"""Evaluations that `Levels` adds to a step at most."""

PATIENT = 3
"""Steps without a value that are let pass in a row, where failures come and go."""


@dataclass(frozen=True)
class Levels(Measured[A]):
    """The inner estimator, with level, slope, curvature and noise of the loss measured from its own points.

    Beside slope2, trace and curvature2 of `Measured`, the meters are
        level    mean over the pairs of (f(x + mu v) + f(x - mu v)) / 2, which is f(x) + mu^2 v^T H v / 2
        spread2  the variance of a pair's term of that mean, where there are several pairs
        failures the share of pairs that were left out
        equal    the share of the values of pairs that are the number f(x), as on a staircase; only where it is not 0
        here     f(x), the mean of its values, where it was evaluated
        chance   1 where a point that had failed was evaluated again, and had a value: failures come and go
        repeat2  the unbiased variance of the values of f(x) in this step, where it was evaluated twice (`Ask.repeats`)
    Pairs with a value that is not finite are left out; then f(x) is evaluated too. Where it is not finite either, the
    estimate is empty, with that loss, which refuses the step. Where it is, a pair with one finite point that lies lower
    than x joins the estimate with its one-sided slope, (f(x + mu v) - f(x)) / mu: a way down that stays where f is
    finite. Costs up to 3 evaluations more: on measuring steps one more value of f(x), and with `Ask.repeats` = 2
    another; a pair needs one where the estimator has none; the first point that failed is evaluated again.
    """

    @property
    def takes_failures(self) -> bool:
        return self.inner.takes_failures

    @property
    def evaluations(self) -> int:
        return self.inner.evaluations + MORE

    def most_evaluations(self, terms: int) -> int:
        return self.inner.most_evaluations(terms) + MORE * max(terms, 1)

    def __call__(self, ask: Ask) -> Routine[A]:
        routine = self.inner(ask)
        queries = list(next(routine))
        measures = ask.moves < self.warm or ask.step % self.every == 0
        pairs = _pairs(queries)
        sides = [] if pairs else _sides(queries)
        extra, center, completed = _complete(ask, queries, pairs)
        if not measures and (pairs or sides):
            extra, center, completed = [], (-1 if pairs else center), pairs
        here = [center] if center >= 0 else []
        if here and measures:
            here += [len(queries) + len(extra) + k for k in range(ask.repeats - 1)]
            extra = [*extra, *[Query(rows=(*queries, *extra)[center].rows)] * (ask.repeats - 1)]
        f = yield [*queries, *extra]
        values = list(f)
        failed = [k for k, value in enumerate(values) if not math.isfinite(value)]
        chance = False
        if failed:  # whether x itself is where f is finite, and whether the point fails again
            more = [*([] if here else [Query(rows=queries[0].rows)]), [*queries, *extra][failed[0]]]
            told = yield more[: len(queries) + MORE - len(values)]
            here = here or [len(values)]
            chance = len(told) == len(more) and math.isfinite(told[-1])
            if chance:
                values[failed[0]] = told[-1]
            values += told
        r = radii(ask, self.inner, [*queries, *extra])
        meters = _meters(values, here, completed, sides, r)
        meters |= ({"chance": 1.0} if chance else {}) | ({"one_sided": 1.0} if self.inner.one_sided else {})
        one_sided = [] if self.inner.mends_pairs else _one_sided(values, here, pairs, queries, r)
        outside = [values[i] for i in here if not math.isfinite(values[i])]
        estimate = yield from _rest(routine, values[: len(queries)])
        if outside:
            return replace(estimate, vector=Vector(), writes={}, loss=outside[0])
        if one_sided:
            estimate, meters = _with(estimate, meters, one_sided, len(pairs))
        return replace(estimate, meters={**meters, **estimate.meters})


def _one_sided(
    f: Sequence[float], here: list[int], pairs: list[tuple[int, int]], queries: Sequence[Query], r: Sequence[float]
) -> list[tuple[float, Vector]]:
    """(slope, direction) of the pairs of which one point failed: 0 where the other one does not lie lower than f(x)."""
    found = []
    if here and all(math.isfinite(f[i]) for i in here):
        f0 = mean([f[i] for i in here])
        for i, j in pairs:
            if math.isfinite(f[i]) != math.isfinite(f[j]):
                k = i if math.isfinite(f[i]) else j
                found.append((min((f[k] - f0) / r[k], 0.0), queries[k].at / r[k]))
    return found


def _with(
    estimate: Estimate[A], meters: dict[str, float], one_sided: list[tuple[float, Vector]], pairs: int
) -> tuple[Estimate[A], dict[str, float]]:
    """The estimate and the squared slope as means over whole pairs and one-sided ones."""
    whole = round((1 - meters["failures"]) * pairs)
    share = whole / (whole + len(one_sided))
    slopes, directions = zip(*one_sided, strict=True)
    added = combination([s / (whole + len(one_sided)) for s in slopes], directions)
    slope2 = share * meters.get("slope2", 0.0) + (1 - share) * mean([s * s for s in slopes])
    loss = estimate.loss if math.isfinite(estimate.loss) else meters["here"]
    meters = {**meters, "slope2": slope2} if slope2 else {k: v for k, v in meters.items() if k != "slope2"}
    return replace(estimate, vector=share * estimate.vector + added, loss=loss), meters


def _sides(queries: Sequence[Query]) -> list[int]:
    """Positions of the points around f(x), where the estimator evaluates it; none where it does not."""
    if not any(not query.at for query in queries):
        return []
    return [i for i, query in enumerate(queries) if query.at]


def _meters(
    f: Sequence[float], here: list[int], pairs: list[tuple[int, int]], sides: list[int], r: Sequence[float]
) -> dict[str, float]:
    fine = [(f[i], f[j], r[i]) for i, j in pairs if math.isfinite(f[i]) and math.isfinite(f[j])]
    center = [f[i] for i in here]
    asked, had = (len(sides), sum(math.isfinite(f[i]) for i in sides)) if sides else (len(pairs), len(fine))
    meters = {} if had == asked else {"failures": 1 - had / asked}
    if fine:
        slopes = [(plus - minus) / (2 * mu) for plus, minus, mu in fine]
        levels = [(plus + minus) / 2 for plus, minus, _ in fine]
        meters |= {"slope2": mean([s * s for s in slopes]), "level": mean(levels)}
        if len(levels) > 1:
            meters["spread2"] = _variance(levels)
    if center and all(map(math.isfinite, center)):
        meters["here"] = f0 = mean(center)
        if len(center) > 1:
            meters["repeat2"] = _variance(center)
        if sides and had:
            slopes = [(f[i] - f0) / r[i] for i in sides if math.isfinite(f[i])]
            meters |= {"slope2": mean([s * s for s in slopes]), "level": f0}
        if fine:
            second = [(plus - 2 * f0 + minus) / (mu * mu) for plus, minus, mu in fine]
            meters |= {"trace": mean(second), "curvature2": mean([c * c for c in second])}
            if same := sum((plus == f0) + (minus == f0) for plus, minus, _ in fine):
                meters["equal"] = same / (2 * len(fine))
    return {name: value for name, value in meters.items() if math.isfinite(value)}


def _variance(values: Sequence[float]) -> float:
    """Unbiased, of two numbers or more."""
    middle = mean(values)
    return mean([(v - middle) * (v - middle) for v in values]) * len(values) / (len(values) - 1)


def with_levels(estimator: Estimator[A], every: int, warm: int) -> Estimator[A]:
    """The estimator with levels measured; one that moves the queries of another has them measured inside of it."""
    if isinstance(estimator, Levels):
        return estimator
    if estimator.shifts:
        inner: Any = estimator
        return replace(inner, inner=with_levels(inner.inner, every, warm))  # type: ignore[no-any-return]
    if isinstance(estimator, Measured):
        return Levels(estimator.inner, estimator.every, estimator.warm)
    return Levels(estimator, every, warm)


# ---- the noise of single values, in the state of a controller -------------------------------------------------------

KEPT = 12
"""Variances that are remembered."""


BENT = 0.5
"""The share of the slopes above which mu v^T H v / 2 spoils one-sided ones."""

CENTRAL = 32
"""Steps for which differences are then taken to both sides."""


def sense_noise(state: State, meters: Mapping[str, float]) -> None:
    """Remember the variance of repeated values, whether failures come and go, and whether one-sided slopes are bad."""
    if {"trace", "slope2", "mu"} <= meters.keys():
        bend = meters["mu"] * abs(meters["trace"]) / 2
        if "one_sided" in meters and bend > BENT * math.sqrt(meters["slope2"]):
            state["bent"] = CENTRAL + 1
    state["bent"] = max(state.get("bent", 0) - 1, 0)
    if "chance" in meters:
        state["chance"] = True
    if "repeat2" in meters:
        state["repeats"] = [*state["repeats"], meters["repeat2"]][-KEPT:]


def passes(state: State, who: str) -> bool:
    """Whether a step without a value is let pass: failures come and go, and it is one of few in a row.

    who: the key of the state under which such steps are counted; what observes a step sets it to 0.
    """
    state[who] = state.get(who, 0) + 1
    return bool(state.get("chance", False)) and state[who] <= PATIENT


def noise_sd(state: State) -> float:
    """The standard deviation of a value of f whose point is evaluated again, from the last repeated values."""
    return math.sqrt(mean(state["repeats"])) if state["repeats"] else 0.0


def repeats_wanted(state: State, step: int, again: int = 32) -> int:
    """How often f(x) is to be evaluated: twice at first, while the values differ, where one-sided slopes are bad, and
    once in `again` steps."""
    seen: list[Any] = state["repeats"]
    return 2 if len(seen) < 2 or any(seen) or state.get("bent") or step % again == 0 else 1
