"""`lr="auto"`: the learning rate from the curvature that the probes see, below the edge of stability.

A central pair and the value between them give v^T H v, whose mean over directions is tr H. So a step that evaluates
f(x + mu v), f(x - mu v) anyway measures the trace of the Hessian with one more evaluation, now and then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.schedules import Schedule, as_schedule
from zograd.core.sums import mean
from zograd.core.vector import Vector
from zograd.estimators.base import Estimator, Wrapper
from zograd.learning_rate.backtracking import Backtracking
from zograd.learning_rate.controller import Controller, State

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.rules.base import Rule

A = TypeVar("A")

ROUNDING = 8 * 2.0**-52
"""Relative size of a second difference that is the rounding of its values."""

LEVEL = Schedule(1.0)


@dataclass(frozen=True)
class Measured(Wrapper[A]):
    """The inner estimator, with curvature and slope measured from its own pairs.

    On measuring steps (the first `warm`, then one in `every`) f(x) is evaluated as well where the inner estimator does
    not, and f(x - mu v) for one direction where it has no pairs; an estimator that has both measures always. Meters:
        slope2      mean over the pairs of ((f(x + mu v) - f(x - mu v)) / 2 mu)^2, unbiased for |grad f|^2; here and
                    below mu is the radius of the pair
        trace       mean of v^T H v = (f(x + mu v) - 2 f(x) + f(x - mu v)) / mu^2, unbiased for tr H
        curvature2  mean of its square
    The estimate itself is the inner one's, bit for bit. Costs up to 2 evaluations more on measuring steps.

    rule: one that moves by P^-1 g. Then the meters are those of the variables P^(1/2) x, in which it moves by the
    estimate: v is P^(-1/2) v in all three, so their means are g^T P^-1 g and tr(P^-1 H). These are points of their own,
    as far from x as the others: 2n + 1 evaluations more on measuring steps, and none before the first move.
    """

    inner: Estimator[A]
    every: int = 4
    warm: int = 8
    rule: Any = None

    @property
    def more(self) -> int:
        """Evaluations that a measuring step adds at most."""
        return 2 if self.rule is None else 2 * self.inner.n + 1

    @property
    def evaluations(self) -> int:
        return self.inner.evaluations + self.more

    @property
    def fewest_evaluations(self) -> int:
        return self.inner.fewest_evaluations

    def most_evaluations(self, terms: int) -> int:
        return self.inner.most_evaluations(terms) + self.more * max(terms, 1)

    @property
    def slots(self) -> Mapping[str, float]:
        return self.inner.slots

    def __call__(self, ask: Ask) -> Routine[A]:
        routine = self.inner(ask)
        queries = list(next(routine))
        measures = ask.moves < self.warm or ask.step % self.every == 0
        if self.rule is not None:
            return (yield from self._weighed(ask, routine, queries, measures and ask.moves > 0))
        pairs = _pairs(queries)
        extra, center, completed = _complete(ask, queries, pairs)
        if extra and not measures:
            extra, center, completed = [], -1, pairs
        f = yield [*queries, *extra]
        meters = _meters(f, center, completed, radii(ask, self.inner, [*queries, *extra]))
        estimate = yield from _rest(routine, f[: len(queries)])
        return replace(estimate, meters={**meters, **estimate.meters})

    def _weighed(self, ask: Ask, routine: Routine[A], queries: list[Query], measures: bool) -> Routine[A]:
        """The rest of a step, with meters from pairs along P^(-1/2) v where it measures."""
        drawn = [self.rule.weigh(ask.draw(j), ask.moves) for j in range(self.inner.n)] if measures else []
        radii = [ask.mu * math.sqrt(ask.dim) / ask.norm(v) for v in drawn]
        extra = [Query(sign * r * v) for v, r in zip(drawn, radii, strict=True) for sign in (1.0, -1.0)]
        here = Query()
        extra += [here] if drawn and here not in queries else []
        f = yield [*queries, *extra]
        asked = [*queries, *extra]
        meters: dict[str, float] = {}
        if drawn:
            f0 = f[asked.index(here)]
            sides = f[len(queries) : len(queries) + 2 * len(drawn)]
            pairs = list(zip(sides[::2], sides[1::2], radii, strict=True))
            second = [_second(up, f0, down) / (r * r) for up, down, r in pairs]
            meters = {
                "slope2": mean([((up - down) / (2 * r)) ** 2 for up, down, r in pairs]),
                "trace": mean(second),
                "curvature2": mean([c * c for c in second]),
            }
        estimate = yield from _rest(routine, f[: len(queries)])
        return replace(estimate, meters={**meters, **estimate.meters})


def _rest(routine: Routine[A], answers: Sequence[float]) -> Routine[A]:
    """The rest of an estimator that has asked its first questions, from the answers to them."""
    while True:
        try:
            queries = routine.send(answers)
        except StopIteration as stop:
            estimate: Estimate[A] = stop.value
            return estimate
        answers = yield queries


def _pairs(queries: Sequence[Query]) -> list[tuple[int, int]]:
    """Positions of the queries that lie opposite to each other."""
    position = {query: i for i, query in enumerate(queries)}
    found = []
    for query, i in position.items():
        j = position.get(Query(-query.at, query.rows), -1)
        if query.at and j > i:
            found.append((i, j))
    return found


def _complete(
    ask: Ask, queries: list[Query], pairs: list[tuple[int, int]]
) -> tuple[list[Query], int, list[tuple[int, int]]]:
    """(points to add, position of f(x), positions of the pairs) that give a pair and the value between."""
    asked = list(queries)
    if not pairs:
        i = next((i for i, query in enumerate(asked) if query.at), len(asked))
        if i == len(asked):  # x alone is asked for
            asked.append(Query(ask.mu * ask.draw(0), queries[0].rows))
        pairs = [(i, len(asked))]
        asked.append(replace(asked[i], at=-asked[i].at))
    here = Query(Vector(), asked[pairs[0][0]].rows)
    if here not in queries:
        asked.append(here)
    return asked[len(queries) :], asked.index(here), pairs


def radii(ask: Ask, estimator: Estimator[Any], queries: Sequence[Query]) -> list[float]:
    """The r of each query x + r v; of an estimator with several, by its coefficients over those of its directions v."""
    if not estimator.several_radii:
        return [ask.mu] * len(queries)
    units = {e: abs(c) for j in range(estimator.n) for e, c in ask.draw(j).terms}
    return [max((abs(c) / units[e] for e, c in query.at.terms if e in units), default=0.0) for query in queries]


def _second(up: float, here: float, down: float) -> float:
    """The second difference of three values; 0 where it is their rounding, whose inverse would be a rate."""
    difference = up - 2 * here + down
    return 0.0 if abs(difference) <= ROUNDING * max(abs(up), abs(here), abs(down)) else difference


def _meters(f: Sequence[float], center: int, pairs: list[tuple[int, int]], r: Sequence[float]) -> dict[str, float]:
    if not pairs:
        return {}
    slopes = [(f[i] - f[j]) / (2 * r[i]) for i, j in pairs]
    meters = {"slope2": mean([slope * slope for slope in slopes])}
    if center >= 0:
        second = [_second(f[i], f[center], f[j]) / (r[i] * r[i]) for i, j in pairs]
        meters |= {"trace": mean(second), "curvature2": mean([c * c for c in second])}
    return meters


LEAST = 2.0**-10
"""The least signal: with none at all a run would never find out that its loss falls again."""


@dataclass(frozen=True)
class AutoRate(Controller):
    """lr_t = safety * signal * eta_cap * shape(t), with eta_cap the lower bound of the edge of stability (Gaussian):

        eta_cap = 2q (1 - beta) / (T + (q + 1) L),   T ~ tr H,   L ~ sqrt(Var(v^T H v) / 2) >= lambda_max,

    T (never below twice its standard error: noise makes steps smaller) and L from the last `window` measurements.
    The variance bounds lambda_max for Gaussian v. For signs it is 2 sum_{i != j} H_ij^2, which does not see the
    diagonal: with several directions, where single coordinates are far steeper than the others, steps are too long (the
    run says that f rose). Take law=Gaussian() there, or `TrustRate()`, which takes such steps back.

    signal, in (0, 1], is the share of the measured slope |g|^2 that belongs to the loss itself and not to the noise of
    its values or batches. A step at a share c of eta_cap lowers a quadratic by (signal - c) lr |g|^2 in the mean, so
    the slope of the loss over sum_t lr_t |g_t|^2, by least squares, is c - signal; it is read whenever its standard
    error falls below `resolution`, and moves `signal` by a factor 2 at most. At a noise floor the loss stands still,
    so the rate shrinks until it falls again. Losses three standard deviations (and a thousandth) above the first ones
    halve the rate, and are the first ones from then on.

    With a penalty that the rule measures (`Proximal`), the loss in all this is f + r.

    With Adam all this is said of the variables P^(1/2) x, P = sqrt(s^) + eps as it stands: T ~ tr(P^-1 H). Its averaged
    momentum has its edge above that without any, which is used. The first step, before there is a P, moves nothing.

    shape: a `Schedule` with peak 1, or another function of the step. limit: never a larger lr than this. rule: the one
    whose P it is, which a method fills in. The state is a few numbers.
    """

    safety: float = 0.7
    shape: Callable[[int], float] = LEVEL
    window: int = 24
    patience: int = 10
    resolution: float = 0.1
    limit: float = math.inf
    rule: Any = None

    def __post_init__(self) -> None:
        if not 0 < self.safety < 1:
            raise ValueError(f"safety is a share of the largest stable learning rate, in (0, 1); got {self.safety}")

    measures: ClassVar[bool] = True
    standstill: ClassVar[str] = (
        "lr='auto' needs positive curvature and found none (f is linear, concave or has kinks here); pass a number "
        "for lr"
    )

    @property
    def peak(self) -> float:
        return self.limit

    def wrap(self, estimator: Estimator[A]) -> Estimator[A]:
        if estimator.shifts:
            inner: Any = estimator
            return replace(inner, inner=self.wrap(inner.inner))  # type: ignore[no-any-return]
        return estimator if isinstance(estimator, Measured) else Measured(estimator, rule=self.rule)

    def suited(self, rule: Rule[Any]) -> Controller:
        return replace(self, rule=rule if rule.preconditions else None)

    def misfit(self, method: Method[Any]) -> str | None:
        if not method.estimator.estimates_gradient:
            return (
                f"lr='auto' needs an estimate with the length of the gradient, which "
                f"{type(method.estimator).__name__} does not give; give it a number"
            )
        if not method.estimator.replays:
            return (
                f"lr='auto' measures the curvature along random directions, and {type(method.estimator).__name__} has "
                f"a gradient without any; give it a number"
            )
        if method.rule.momentum is None and not method.rule.preconditions:
            return (
                f"lr='auto' knows the edge of stability of moves along the estimate (SGD, momentum) and of Adam, and "
                f"{type(method.rule).__name__} makes another move; give it a number"
            )
        return None

    def share(self, state: State) -> float:
        return self.safety * float(state["signal"])

    def initial(self) -> State:
        return {"seen": [], "slopes": [], "signal": 1.0, "first": [], "recent": [], "wait": 0, "fit": [0.0] * 7}

    def observe(self, state: State, loss: float, meters: Mapping[str, float]) -> None:
        if "curvature2" in meters:
            state["seen"] = [*state["seen"], (meters["trace"], meters["curvature2"])][-self.window :]
        if "slope2" in meters:
            state["slopes"] = [*state["slopes"], meters["slope2"]][-self.window :]
        value = loss + meters.get("penalty", 0.0)  # the rule adds its penalty once the step is taken
        if len(state["first"]) < self.patience:
            state["first"] = [*state["first"], value]
        state["recent"] = [*state["recent"], value][-self.patience :]
        state["fit"] = _add(state["fit"], value)

    def moved(self, state: State, lr: float) -> None:
        """Progress expected and made, and signs of divergence."""
        slope2 = mean(state["slopes"]) if state["slopes"] else 0.0
        fit = list(state["fit"])
        fit[6] += lr * slope2
        state["fit"] = fit
        state["wait"] = max(state["wait"] - 1, 0)
        if len(state["first"]) == self.patience and state["wait"] == 0:
            edge = _edge(tuple(state["first"]))
            if median(state["recent"]) > edge + 1e-3 * abs(edge):
                state["signal"] = max(state["signal"] / 2, LEAST)
                state["wait"], state["fit"] = self.patience, [0.0] * 7
                state["first"] = list(state["recent"])  # a level that has risen for good must not halve for ever
                return
        slope, error = _slope(fit)
        if error < self.resolution:
            found = self.safety * state["signal"] - slope
            state["signal"] = min(max(found, state["signal"] / 2, LEAST), 2 * state["signal"], 1.0)
            state["fit"] = [0.0] * 7

    def rate(self, state: State, step: int, q: int = 1, beta: float = 0.0, unit: float = 1.0) -> float:
        """The learning rate of a step; 0 as long as nothing was measured."""
        if not state["seen"]:
            return 0.0
        trace, largest = self.curvature(state, q)
        if trace <= 0:
            return 0.0
        cap = 2 * q * (1 - beta) / (trace + (q + 1) * largest)
        return float(min(self.limit, self.safety * state["signal"] * cap * self.shape(step))) * unit

    def curvature(self, state: State, q: int) -> tuple[float, float]:
        """(T, L) from the measurements so far."""
        seen = state["seen"]
        trace = mean([trace for trace, _ in seen])
        spread = math.sqrt(max(mean([curvature2 for _, curvature2 in seen]) - trace * trace, 0.0))
        error = spread / math.sqrt(q * len(seen))
        trace = max(trace, 2 * error)
        return trace, min(spread / math.sqrt(2) + trace / len(seen), trace)


@lru_cache(maxsize=64)  # a run asks for the same one at each step
def _edge(first: tuple[float, ...]) -> float:
    """Three standard deviations above the mean of the first losses."""
    return float(np.mean(first) + 3 * np.std(first))


def _add(fit: list[float], y: float) -> list[float]:
    """Sums of the least-squares line of y over the running total x = fit[6]."""
    n, sx, sxx, sy, syy, sxy, x = fit
    return [n + 1, sx + x, sxx + x * x, sy + y, syy + y * y, sxy + x * y, x]


def _slope(fit: list[float], least: int = 20) -> tuple[float, float]:
    """(slope, its standard error) of the line; infinite error for fewer than `least` points."""
    n, sx, sxx, sy, syy, sxy, _ = fit
    across = sxx - sx * sx / n if n else 0.0
    if n < least or across <= 0:
        return 0.0, math.inf
    slope = (sxy - sx * sy / n) / across
    residual = max((syy - sy * sy / n) - slope * slope * across, 0.0) / (n - 2)
    return slope, math.sqrt(residual / across)


def as_controller(value: Controller | float | str, automatic: str | float = "edge") -> Controller:
    """What a method is given as its lr: a number is a constant schedule, "auto" what its rule says (`automatic`)."""
    if value == "auto":
        if automatic == "edge":
            return AutoRate()
        value = Backtracking() if automatic == "backtracking" else automatic
    return value if isinstance(value, Controller) else as_schedule(value)
