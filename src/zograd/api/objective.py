"""f as strategies need it: called in the form of x0, counted, and with the best point kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from zograd.api.batches import Draws
from zograd.api.checkpoint import Checkpoint, Kind
from zograd.api.constraints import Evaluated, Rows
from zograd.api.strategies import Points, Problem
from zograd.api.variables import Flat
from zograd.api.workers import Call, Evaluator, Failure
from zograd.methods.defaults import LARGE


class Stopped(Exception):
    """An evaluation that ends the run; the message says why. error: what was raised."""

    def __init__(self, message: str, error: Exception) -> None:
        super().__init__(message)
        self.error = error


class Overtime(Exception):
    """The time was up within a request. values: those that were there."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__("the time is up")
        self.values = values


class _Ends(Exception):
    """A failure after which no further value is wanted."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


class Objective:
    """Calls f(x, *args), with a finite sum f(x, rows, *args), with data f(x, batch, *args), and keeps count.

    penalty: r, where f + r is minimized: `values` are those of f, `best` has r added.
    rows: constraints; then values are `Evaluated`, and `best` is the lowest one at which all of them hold.
    sign: -1 where f is to be maximized; values are those of sign * f. on_error: what an exception of f does, see
    `minimize`. ends: when the time is up, of `time.monotonic`. nfev: evaluations so far, terms of a finite sum. nfail:
    those that were not finite. last_failure: what the last one was. best: (value, x) of the lowest finite value seen; x
    is None above `LARGE` variables.
    """

    def __init__(
        self,
        evaluate: Evaluator,
        problem: Problem,
        draws: Draws,
        *,
        sign: float,
        on_error: str,
        checkpoint: Checkpoint | None,
        rows: Rows | None = None,
        penalty: Callable[[Flat], float] | None = None,
        ends: float = math.inf,
    ) -> None:
        self.rows, self.penalty = rows, penalty
        if checkpoint is not None and rows is not None:
            checkpoint.width = 1 + rows.one_sided.size
        self.ends = ends
        self.evaluate, self.problem, self.draws, self.sign = evaluate, problem, draws, sign
        self.on_error, self.checkpoint = on_error, checkpoint
        self.nfev = self.nfail = 0
        self.last_failure = ""
        self.given = False
        """Whether the last values came from the checkpoint, not from f."""
        self.best: tuple[float, Flat | None] = (math.inf, None)

    @property
    def held(self) -> bool:
        """Whether the checkpoint has values that are still to be given."""
        return self.checkpoint is not None and self.checkpoint.replaying

    def values(self, points: Points, draws: Sequence[int], kind: Kind = Kind.REQUEST) -> list[float]:
        """A value for each point; NaN or infinity is a failed evaluation.

        draws: whose batch and seed it has, one for each point, or one for all of them.

        Raises what f raises where `on_error` says so, and otherwise `Stopped`; `Overtime` where the time is up before
        the last one. The value at the result is taken in any case.
        """
        shared = _Shared(self.draws, draws)
        told = None if self.checkpoint is None else self.checkpoint.given(kind, points)
        self.given = told is not None
        if told is None:
            failure = self.last_failure
            values = self.evaluated(points, shared, math.inf if kind == Kind.FINAL else self.ends)
            note = "" if self.last_failure == failure else self.last_failure
            if self.checkpoint is not None:
                self.checkpoint.append(kind, points, self.flat(values), note)
        else:
            values = self.unflat(told.values)
            self.last_failure = told.note or self.last_failure
            self.evaluate.skip(len(points))
        for i, value in enumerate(values):
            self.seen(points, i, value)
        self.nfev += points.cost(self.problem.terms)
        return values

    def flat(self, values: Sequence[Any]) -> list[float]:
        """Values and those of the constraints, as one list of numbers."""
        return list(values) if self.rows is None else self.rows.flat(values)

    def unflat(self, numbers: Sequence[float]) -> list[float]:
        """The inverse of `flat`."""
        return list(numbers) if self.rows is None else self.rows.unflat(numbers)

    def seen(self, points: Points, i: int, value: float) -> None:
        """Keep the best point, and count failures."""
        if not math.isfinite(value):
            self.nfail += 1
            return
        if self.penalty is not None:
            value = self.at(points.make(i), value)
        if self.lowest(value) and (points.rows is None or points.rows[i] is None):
            self.best = (value, points.make(i) if self.problem.dim <= LARGE else None)

    def at(self, x: Flat, value: float) -> float:
        """What is minimized at x, where f has this value: with the penalty, where there is one."""
        return value if self.penalty is None else value + self.penalty(x)

    def lowest(self, value: float) -> bool:
        """Whether a value is the lowest one so far, among those at which the constraints hold."""
        return value < self.best[0] and (self.rows is None or self.rows.hold(value))

    def evaluated(self, points: Points, shared: _Shared, ends: float) -> list[float]:
        """The values of f, now, until the time is up."""
        values: list[float] = []
        results = self.evaluate(self.calls(points, shared))
        try:
            for found in results:
                values.append(self.value(found, begun=self.nfev > 0 or len(values) > 0))
                if len(values) < len(points) and time.monotonic() >= ends:
                    raise Overtime(values)
        except _Ends as ends:
            self.stop(points, values, ends.failure)
        except (KeyboardInterrupt, Overtime):
            self.count(points, values)
            raise
        finally:
            results.close()
        return values

    def value(self, found: float | Failure, *, begun: bool) -> float:
        """A value, NaN for a failed evaluation. begun: whether f has been evaluated before."""
        if not isinstance(found, Failure):
            if not math.isfinite(found):
                self.last_failure = f"f returned {found}"
            return Evaluated(self.sign * found, found.c) if isinstance(found, Evaluated) else self.sign * found
        if found.broken or not (found.lost or self.on_error == "nan"):
            if not found.broken and (self.on_error == "raise" or not begun):
                raise found.error
            raise _Ends(found)
        self.last_failure = _said(found.error)
        return math.nan if self.rows is None else self.rows.failed()

    def count(self, points: Points, values: Sequence[float], failed: int = 0) -> None:
        """Count part of a request, of which no strategy is told."""
        for i, value in enumerate(values):
            self.seen(points, i, value)
        self.nfail += failed
        self.nfev += points.cost(self.problem.terms) * (len(values) + failed) // len(points)

    def stop(self, points: Points, values: Sequence[float], found: Failure) -> NoReturn:
        """End the run with what is there."""
        lost = len(points) - len(values) if found.broken else 1
        self.count(points, values, lost)
        self.last_failure = _said(found.error)
        if found.broken:
            message = (
                f"the workers are broken for ever, and {lost} evaluations were lost ({self.last_failure}); make a new "
                f"pool"
            )
        else:
            message = f"f raised {self.last_failure}, at evaluation {self.nfev}"
        raise Stopped(message, found.error) from found.error

    def calls(self, points: Points, shared: _Shared) -> Iterator[Call]:
        """What f is called with, one point after the other; none is held here while the next one is made."""
        terms, variables = self.problem.terms, self.problem.variables
        for i in range(len(points)):
            rest, named = shared.of(i)
            if terms:
                rows = points.rows[i] if points.rows is not None else None
                rest = (np.arange(terms) if rows is None else np.array(rows, dtype=np.intp),)
            yield (variables.shaped(self.problem.inside(points.make(i))), *rest), named


class _Shared:
    """The batch and the seed of each point. One that all points have is drawn at once, others when they are wanted."""

    def __init__(self, source: Draws, draws: Sequence[int]) -> None:
        self.source, self.draws = source, draws
        self.one = source.at(draws[0]) if len(draws) == 1 else None

    def of(self, i: int) -> Call:
        """What f gets behind point i, and by name."""
        return self.source.at(self.draws[i]) if self.one is None else self.one


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
