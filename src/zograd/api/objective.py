"""f as strategies need it: called in the form of x0, counted, and with the best point kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from zograd.api.constraints import Evaluated, Rows
from zograd.api.strategies import Points, Problem
from zograd.api.variables import Flat
from zograd.distributed.executors import gather
from zograd.oracles import as_number

KEPT = 100_000
"""Variables up to which a copy of the best point is kept."""


class Objective:
    """Calls f(x, *args), with a finite sum f(x, rows, *args), and keeps count.

    rows: constraints; then values are `Evaluated`, and `best` is the lowest one at which all of them hold.
    sign: -1 where f is to be maximized; values are those of sign * f. nfev: evaluations so far, in terms of a finite
    sum. nfail: those that were not finite. best: (value, x) of the lowest finite value seen; x is None above `KEPT`
    variables.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        problem: Problem,
        args: Sequence[Any],
        *,
        sign: float,
        executor: Executor | None,
        rows: Rows | None = None,
    ) -> None:
        self.rows = rows
        if rows is not None:
            f = rows.around(f)
        self.f, self.problem, self.args, self.sign, self.executor = f, problem, tuple(args), sign, executor
        self.nfev = self.nfail = 0
        self.best: tuple[float, Flat | None] = (math.inf, None)

    def values(self, points: Points) -> list[float]:
        """A value for each point."""
        rows = points.rows or [None] * len(points)
        calls = (self.arguments(x, r) for x, r in zip(points, rows, strict=True))
        values = self.called(calls)
        self.nfev += points.cost(self.problem.terms)
        for i, value in enumerate(values):
            if not math.isfinite(value):
                self.nfail += 1
            elif value < self.best[0] and rows[i] is None and (self.rows is None or self.rows.hold(value)):
                self.best = (value, points.make(i) if self.problem.dim <= KEPT else None)
        return values

    def arguments(self, x: Flat, rows: Sequence[int] | None) -> tuple[Any, ...]:
        """What f is called with."""
        terms, shaped = self.problem.terms, self.problem.variables.shaped(self.problem.inside(x))
        if not terms:
            return (shaped, *self.args)
        return (shaped, np.arange(terms) if rows is None else np.array(rows, dtype=np.intp), *self.args)

    def called(self, calls: Iterable[tuple[Any, ...]]) -> list[float]:
        if self.executor is None:
            return [self.number(self.f(*call)) for call in calls]
        return [self.number(value) for value in gather([self.executor.submit(self.f, *call) for call in calls])]

    def number(self, value: Any) -> float:
        """What f returned, with the sign of a minimization."""
        if self.rows is None:
            return self.sign * as_number(value)
        return Evaluated(self.sign * value[0], value[1])
