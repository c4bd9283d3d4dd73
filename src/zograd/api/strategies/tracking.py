"""One search from start to end whose multipliers move on the way, for values that differ and for any method."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from zograd.api.constraints import Evaluated
from zograd.api.ending import End, Ending
from zograd.api.strategies.base import Points, Routine, Strategy, Trace, Values, points
from zograd.api.strategies.lagrangian import LEAST, Standing, back, nearest
from zograd.api.strategies.nested import nested
from zograd.api.variables import Flat

if TYPE_CHECKING:
    from zograd.api.strategies.constrained import ConstrainedSearch

PERIOD = 20
"""Requests between two updates of the multipliers, at least; and 4 (d + 1) evaluations, so that x can follow."""

MEASURED = 64
"""Evaluations at the result, at most, where values do not repeat."""

ROUNDS = 3
"""Steps back to where the constraints hold for which evaluations are reserved, each measured as often."""

MOST_ROUNDS = 20
"""Steps back where evaluations are left."""

RUNS = 4
"""Times that the inner strategy is begun again where it ends before half of the budget."""

NUMBERS = 1_000_000
"""Numbers of the last points that are kept, from which the slopes of noisy constraints are read: 400 points or more."""

KEPT = 10_000
"""Variables up to which points are kept for that."""


class Tracking:
    """The inner strategy asks, the multipliers follow the mean violation of each period, and the end is measured."""

    def __init__(self, search: ConstrainedSearch) -> None:
        self.search, self.trace, self.problem, self.rows = search, search.trace, search.problem, search.rows
        self.near: deque[tuple[Flat, Flat]] = deque(maxlen=min(max(NUMBERS // self.problem.dim, 400), 10_000))

    def __call__(self, strategy: Strategy) -> Routine:
        """One search, begun again where it ended early; its multipliers move after every period."""
        trace, search = self.trace, self.search
        trace.began(search.owner.name)
        each = 1 if search.repeats else MEASURED
        reserve = min((1 + ROUNDS) * each, max(trace.left // 10, 1))
        trace.fun, trace.stationary = None, None
        end, start = End(Ending.BUDGET), [search.merit(v) for v in trace.values_at_start]
        for _ in range(RUNS):
            end = yield from self.searched(strategy, start, reserve)
            if trace.left < 0.5 * self.problem.budget or end.kind is Ending.BUDGET:
                break
            start = []
        yield from self.measured(each)
        self.compared()
        return end

    def compared(self) -> None:
        """Where values repeat, the best point that was seen, unless the result is better."""
        search, trace = self.search, self.trace
        here, best = trace.standing and trace.standing.value, search.best
        if search.repeats and best is not None and (here is None or search.better(best.value, here)):
            search.recommend(best)
            trace.stationary = trace.standing.settled = None

    def searched(self, strategy: Strategy, start: list[float], reserve: int) -> Routine:
        """One run of the inner strategy."""
        trace, merit = self.trace, self.search.merit
        inner = Trace(self.problem, trace.left - reserve, trace.position, values_at_start=start)
        if len(start) > 1 and not self.search.repeats and not self.problem.shared:
            inner.noise = float(np.std(start, ddof=1))
        sums, number, requests = np.zeros(len(self.rows.kinds)), 0, 0

        def asked(request: Points) -> Points:
            trace.strategies[1:], trace.position = inner.strategies, inner.position
            trace.standing = Standing(trace.position(), None, self.search.multipliers(None))
            return request

        def told(request: Points, values: Values) -> Values:
            nonlocal sums, number, requests
            answers = [merit(v) for v in values]
            for i, value in enumerate(values):
                self.search.consider(request, i, value)
                if isinstance(value, Evaluated) and math.isfinite(value):
                    sums, number = sums + value.c, number + 1
                    if self.problem.dim <= KEPT:
                        self.near.append((self.problem.inside(request.make(i)), value.c))
            requests += 1
            if requests >= PERIOD and number >= 4 * (self.problem.dim + 1):
                merit.observe(sums / number)
                self.search.history.append(merit.multipliers(None))
                merit.t = max(merit.t * 0.8, LEAST)
                sums, number, requests = np.zeros_like(sums), 0, 0
            return answers

        return (yield from nested(strategy, inner, trace, asked=asked, told=told, reserve=reserve))

    def measured(self, each: int) -> Generator[Points, Values, None]:
        """f and c at the result, as means; where a row is violated, at a point nearby where it is not."""
        problem, rows, trace = self.problem, self.rows, self.trace
        x = nearest(rows, problem, np.array(trace.position(), copy=True))
        most = max(min(each, trace.left // (1 + ROUNDS)), min(1, trace.left))
        for k in range(1 + MOST_ROUNDS):
            n = min(most, trace.left)
            values = [v for v in (yield points([x] * n)) if isinstance(v, Evaluated) and math.isfinite(v)] if n else []
            trace.position, trace.standing = partial(np.copy, x), Standing(x, None, self.search.multipliers(None))
            if not values:
                return
            f, c = float(np.mean([float(v) for v in values])), np.array([v.c for v in values])
            error = np.std(c, axis=0, ddof=1) / math.sqrt(n) if len(values) > 1 else None
            if self.search.repeats:
                error = np.zeros(c.shape[1])
            mean = Evaluated(f, np.mean(c, axis=0))
            trace.fun, trace.standing = f, Standing(x, mean, self.search.multipliers(mean.c), error)
            if error is None or rows.hold(mean) or (k >= ROUNDS and rows.why_violated(mean.c, error) is None):
                return
            if k == MOST_ROUNDS or trace.left < 1:
                return
            x = back(rows, problem, x, mean.c, error, self.near)
