"""A method of the menu as a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zograd.api.strategies.base import Points, Problem, Routine, Trace
from zograd.api.variables import ArrayStore, Flat
from zograd.core.method import Method
from zograd.core.query import Query
from zograd.core.run import Run


@dataclass(frozen=True)
class OfMenu:
    """Steps of a `Method` until the budget ends, or `max_failures` steps in a row were refused.

    The recommended point is the iterate. Raises ValueError where a run cannot start at x0.
    """

    method: Method[Any]
    max_failures: int = 20

    @property
    def name(self) -> str:
        return self.method.name

    def __call__(self, trace: Trace) -> Routine:
        return self.steps(trace, self.run(trace))

    def run(self, trace: Trace) -> Run[Any]:
        """The run at x0, which starts at the recommended point."""
        return self.run_at(trace.position(), trace.problem)

    def run_at(self, x: Flat, problem: Problem) -> Run[Any]:
        """A run that starts at x."""
        store = problem.variables.store(self.method.space)
        store.flat[:] = x
        if (why := self.method.rule.misplaced(store)) is not None:
            raise ValueError(f"x0 {why}")
        return Run(store, self.method, problem.seed, terms=problem.terms)

    def steps(self, trace: Trace, run: Run[Any]) -> Routine:
        """Go on with a run."""
        store: Any = run.store
        trace.began(self.name)
        trace.method = self.method
        trace.position, trace.fun = (lambda: store.flat), None
        while run.refused_in_a_row < self.max_failures:
            if trace.left < run.most_evaluations:
                return "budget used"
            record = None
            while record is None:
                record = run.tell((yield _points(store, run.ask())))
            if not record.refused:
                trace.lr, trace.mu = record.rates[0].lr, record.mu
            trace.control = run.control
            trace.step(record)
        return (
            f"{self.max_failures} steps in a row had a non-finite value, the last {record.loss} at step {record.step}"
        )


def _points(store: ArrayStore, queries: Sequence[Query]) -> Points:
    """The points of queries, made when they are read."""

    def make(i: int) -> Flat:
        x: Flat = store.point(queries[i].at)
        return x.reshape(-1)

    return Points(make, len(queries), [q.rows for q in queries] if any(q.rows for q in queries) else None)
