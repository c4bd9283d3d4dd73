"""A strategy at work: it asks for points, is told their values, and never asks for more than the budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zograd.api.ending import End, Ending
from zograd.api.strategies import Points, Problem, Routine, Strategy, Trace
from zograd.api.variables import Flat
from zograd.core.records import Records


def _no_search(trace: Trace) -> Routine:
    """What is left to do where bounds fix all variables."""
    yield from ()
    return End(Ending.START, "all variables are fixed by their bounds: x0 is the only point")


class Search:
    """What `minimize` and `AskTell` share.

    budget: evaluations that may be asked for. tape: a record for each step. ended: why, None as long as it goes on.
    The strategy starts here, and raises what it raises about x0.
    """

    def __init__(
        self, strategy: Strategy, problem: Problem, budget: int, values_at_start: Sequence[float] = ()
    ) -> None:
        x0 = problem.x0
        self.problem = problem
        self.tape = Records()
        self.ended: End | None = None
        self.trace = Trace(problem, budget, lambda: x0, values_at_start=list(values_at_start))
        if len(values_at_start) > 1 and min(values_at_start) == max(values_at_start) and not problem.shared:
            self.trace.noise = 0.0
        self.trace.on_step = self.tape.append
        self._routine = (_no_search if problem.fixed else strategy)(self.trace)
        self._points: Points | None = None
        self._cost = 0
        self.evaluations = 0
        self._advance(None)

    def ask(self) -> Points | None:
        """The points whose values are wanted, the same until they are told; None when the search has ended."""
        return self._points

    def tell(self, values: Sequence[float]) -> None:
        """The values of `ask`, in its order; NaN or infinity is a failed evaluation."""
        if self._points is None:
            raise RuntimeError("tell() after the end: there are no points whose values could be told")
        self.evaluations += self._cost
        self.trace.left -= self._cost
        self._advance(values)

    def _advance(self, values: Sequence[float] | None) -> None:
        try:
            wanted = self._routine.send(values)  # type: ignore[arg-type]
        except StopIteration as stop:
            self._points, self.ended = None, stop.value
            return
        self._points = wanted
        self._cost = wanted.cost(self.problem.terms)
        if self._cost > self.trace.left:
            self.stop(End(Ending.BUDGET))

    def stop(self, end: End) -> None:
        """End the search from outside."""
        self._points, self.ended = None, end
        self._routine.close()

    @property
    def message(self) -> str | None:
        """Why it ended, None as long as it goes on."""
        return None if self.ended is None else self.ended.message

    @property
    def x(self) -> Flat:
        """The recommended point: a copy, or, when the search has ended, the array that nobody else holds any more."""
        x = self.trace.position()
        return x.copy() if self.ended is None or np.may_share_memory(x, self.problem.x0) else x

    @property
    def x_copy(self) -> Flat:
        """The recommended point, which the caller may change: the search may have ended with its last step."""
        return np.array(self.trace.position(), copy=True)
