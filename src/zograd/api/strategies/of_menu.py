"""A method of the menu as a strategy."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zograd.api.ending import End, Ending
from zograd.api.strategies.base import Points, Problem, Routine, Trace, Values
from zograd.api.variables import ArrayStore, Flat
from zograd.core.method import Method
from zograd.core.query import Query
from zograd.core.run import Run
from zograd.learning_rate import TrustRate
from zograd.rules import Proximal
from zograd.sets import Box


@dataclass(frozen=True)
class OfMenu:
    """Steps of a `Method` until the budget ends, or `max_failures` steps in a row were refused.

    The recommended point is the iterate. Within bounds each step is projected onto them, and a point outside is moved
    to the nearest bound before f sees it. Raises ValueError where a run cannot start at x0.
    """

    method: Method[Any]
    max_failures: int = 20

    @property
    def name(self) -> str:
        return self.method.name

    def __call__(self, trace: Trace) -> Routine:
        run = self.run_at(trace.position(), trace.problem)
        store: Any = run.store
        trace.began(self.name)
        trace.method = self.method
        trace.position, trace.fun = (lambda: store.flat), None
        most, ended = run.most_evaluations, self.ending(trace)
        try:
            while True:
                if trace.left < most:
                    return End(Ending.BUDGET)
                record = None
                while record is None:
                    record = run.tell((yield _points(store, run.ask())))
                if not record.refused:
                    trace.lr, trace.mu = record.rates[0].lr, record.mu
                trace.control = run.control
                trace.step(record)
                if (end := (yield from ended())) is not None:
                    return end
                if run.refused_in_a_row >= self.max_failures:
                    return End(
                        Ending.FAILURES,
                        f"{self.max_failures} steps in a row had a non-finite value, the last {record.loss} at step "
                        f"{record.step}; start where f is finite around x0, or pass a smaller lr or mu",
                    )
        finally:
            store.let_go()

    def ending(self, trace: Trace) -> Callable[[], Generator[Points, Values, End | None]]:
        """What is asked after each step: why the search is over before its budget is. It may evaluate points."""
        return _goes_on

    def run_at(self, x: Flat, problem: Problem) -> Run[Any]:
        """A run that starts at x."""
        method = self.within(problem)
        store = problem.variables.store(method.space, x)
        if (why := method.rule.misplaced(store)) is not None:
            raise ValueError(f"x0 {why}")
        if problem.shared and isinstance(method.controller, TrustRate):
            method = replace(method, lr=replace(method.controller, batches=True))
        return Run(store, method, problem.seed, terms=problem.terms)

    def within(self, problem: Problem) -> Method[Any]:
        """The method, whose steps are projected onto the bounds where there are any. ValueError: they cannot be."""
        if problem.lower is None or problem.upper is None:
            return self.method
        if not self.method.space.flat:
            name = type(self.method.space).__name__
            raise ValueError(
                f"bounds= and the space {name} do not go together: steps along {name} would leave the bounds; pass "
                f"bounds as constraints=LinearConstraint(np.eye(d), low, high), or leave one of them out"
            )
        if not self.method.rule.linear:
            raise ValueError(
                f"bounds need steps along the estimate, which {self.name} does not take; use 'auto', 'lbfgs', 'cma' or "
                f"'zo_sgd', or a set: methods.zo_prox(sets.Box(low, high))"
            )
        return replace(self.method, rule=Proximal(Box(problem.lower, problem.upper)))


def _goes_on() -> Generator[Points, Values, End | None]:
    yield from ()
    return None


def _points(store: ArrayStore, queries: Sequence[Query]) -> Points:
    """The points of queries, made when they are read, before the next request: together where that costs less."""
    together: list[Flat | None] = []

    def make(i: int) -> Flat:
        if not together:
            together.append(store.points([query.at for query in queries]))
        matrix = together[0]
        x: Flat = store.point(queries[i].at).reshape(-1) if matrix is None else matrix[i].copy()
        return x

    rows = [query.rows for query in queries]
    return Points(make, len(queries), rows if any(rows) else None)
