"""One call of `minimize` at work: requests, what ends the run, and the result."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zograd.api.batches import Exhausted
from zograd.api.checkpoint import Kind
from zograd.api.constraints import Rows
from zograd.api.ending import REACHED, End, Ending, Status, concluded
from zograd.api.objective import Objective, Overtime, Stopped
from zograd.api.result import Progress, Result, calling
from zograd.api.search import Search
from zograd.api.strategies import Problem, points
from zograd.api.variables import Flat
from zograd.api.verdict import Wording, failure, unbegun, unfinished
from zograd.api.verdict_constrained import shortfall
from zograd.estimators import Central, Forward, ForwardOrCentral
from zograd.estimators.base import Wrapper
from zograd.estimators.curved import Curved
from zograd.estimators.differences import OneSided, Richardson

TWO_POINT = (Central, Forward, ForwardOrCentral, OneSided, Richardson, Curved)
"""Estimators that subtract values of one step."""

AGAIN = 2
"""Evaluations that f at the result takes more where it fails and the budget has any left: it may fail by chance."""

ROUNDING = 1e-9
"""Relative difference of two values up to which it may be that of sums taken in another order."""


@dataclass
class Minimization:
    """The run of one call. budget: evaluations at most. sign: -1 where f is maximized.

    repeats: evaluations at x0; where steps have batches or seeds of their own, one in each of the first draws, in
    which the result is evaluated too.
    """

    objective: Objective
    problem: Problem
    strategy: Any
    budget: int
    repeats: int
    callback: Callable[..., object] | None
    target: float | None
    sign: float

    def __post_init__(self) -> None:
        self.call = None if self.callback is None else calling(self.callback)
        self.goal = None if self.target is None else self.sign * self.target
        self.stopped: End | None = None
        self.exception: Exception | None = None
        self.warned = False
        self.at_end: list[float] = []

    def run(self) -> Result:
        problem = self.problem
        whole = max(problem.terms, 1)
        at_start: list[float] | None = []
        if self.repeats:
            at_start = self.values(points([problem.x0] * self.repeats), self.draws, Kind.START)
        budget = self.budget - (self.repeats + len(self.draws)) * whole
        search = Search(self.strategy, problem, budget, at_start or ())
        finite = [f for f in at_start or () if math.isfinite(f)]
        if (
            self.stopped is None
            and self.goal is not None
            and finite
            and self.objective.at(problem.x0, _mean(finite)) <= self.goal
        ):
            rows = self.objective.rows
            if rows is None or rows.hold(min(finite)):
                self.stopped = End(Ending.START)
        try:
            while self.stopped is None and (request := search.ask()) is not None:
                if self.late:
                    self.stopped = End(Ending.TIME)
                    break
                self.warn(search)
                seen = search.trace.steps
                if (values := self.values(request, (seen + 1,))) is None:
                    break
                search.tell(values)
                if search.trace.steps > seen:
                    self.after_step(search)
        except KeyboardInterrupt:
            self.interrupt()
        if search.ended is None:
            search.stop(self.stopped or End(Ending.ITSELF))
        return self.result(search)

    @property
    def draws(self) -> range:
        """In which f is evaluated at x0 and at the result."""
        return range(max(self.repeats, 1) if self.problem.shared else 1)

    def values(self, request: Any, draws: Sequence[int] = (0,), kind: Kind = Kind.REQUEST) -> list[float] | None:
        """The values of a request; None where they end the run."""
        try:
            return self.objective.values(request, draws, kind)
        except KeyboardInterrupt:
            self.interrupt()
        except Overtime as cut:
            self.stopped = End(Ending.TIME)
            return list(cut.values) if kind is Kind.START else None
        except Exhausted as why:
            self.stopped = End(Ending.DATA, str(why))
        except Stopped as why:
            self.stopped, self.exception = End(Ending.ERROR, str(why)), why.error
        return None

    def interrupt(self) -> None:
        self.stopped = End(Ending.INTERRUPT)

    @property
    def halted(self) -> bool:
        """Whether f may not be called again: it was interrupted, it raised, or the workers are broken."""
        return self.stopped is not None and self.stopped.kind in (Ending.INTERRUPT, Ending.ERROR)

    def warn(self, search: Search) -> None:
        """Say once that a two-point method subtracts values of different batches."""
        start, method = search.trace.values_at_start, search.trace.method
        if self.warned or method is None or self.problem.shared or self.problem.terms:
            return
        if len(start) < 2 or min(start) == max(start):
            self.warned = True  # there will be nothing to warn of
            return
        estimator = method.estimator
        while isinstance(estimator, Wrapper):
            estimator = estimator.inner
        finite = sorted(f for f in start if math.isfinite(f))
        differ = len(finite) > 1 and finite[-1] - finite[0] > ROUNDING * max(abs(finite[0]), abs(finite[-1]))
        if differ and isinstance(estimator, TWO_POINT):
            self.warned = True
            other = "" if self.objective.penalty else '. If f is noisy by nature, method="cma" bears more noise'
            warnings.warn(
                f"f(x0) gave {self.sign * start[0]:.6g}, and then another value (all {len(start)} lie in a range of "
                f"{finite[-1] - finite[0]:.3g}). {method.name} "
                f"subtracts values of one step: where f draws a batch, pass data= and take it as f(x, batch); where it "
                f"draws random numbers, pass common_random=True and take f(x, seed=...). Then the values of a step "
                f"share them{other}",
                UserWarning,
                stacklevel=4,
            )

    def after_step(self, search: Search) -> None:
        """Whether to go on, after a step."""
        objective = self.objective
        if self.goal is not None and objective.best[0] <= self.goal and self.reached(search, self.goal):
            self.stopped = End(Ending.TARGET)
        elif objective.given:
            return
        elif self.late:
            self.stopped = End(Ending.TIME)
        elif self.call is not None:
            record = search.tape[-1]
            progress = Progress(
                x=self.problem.variables.shaped(self.problem.inside(search.x_copy)),
                fun=self.sign * self.objective.at(search.trace.position(), record.loss),
                nit=len(search.tape), nfev=objective.nfev, best_fun=self.sign * objective.best[0], record=record,
            )  # fmt: skip
            try:
                stops = bool(self.call(progress))
            except StopIteration:
                stops = True
            if stops:
                self.stopped = End(Ending.CALLBACK)

    @property
    def late(self) -> bool:
        """Whether the time is up, and no value is held that a run before this one was told."""
        return not self.objective.held and time.monotonic() >= self.objective.ends

    def repeat(self, search: Search) -> bool:
        """Whether values repeat, as far as is known."""
        start = search.trace.values_at_start
        return not self.problem.shared and (search.trace.noise == 0 or (len(start) > 1 and min(start) == max(start)))

    def reached(self, search: Search, goal: float) -> bool:
        """Whether a value at the target is no luck: where values differ, the mean of a step has to reach it."""
        return self.repeat(search) or self.objective.at(search.trace.position(), search.tape[-1].loss) <= goal

    def final(self, search: Search) -> tuple[Any, float]:
        """(x, value): the recommended point, and f there, which may not be finite."""
        trace, objective = search.trace, self.objective
        x, f0 = self.problem.inside(search.x), _mean(trace.values_at_start)
        known = trace.noise == 0 and not self.problem.shared
        best, best_x = objective.best
        if (
            known
            and trace.method is None
            and best_x is not None
            and best < (math.inf if trace.fun is None else trace.fun)
        ):
            return best_x, best
        if known and trace.fun is not None:
            return x, trace.fun
        failed = trace.values_at_start and math.isnan(f0) and np.array_equal(x, self.problem.x0)
        asked = not self.halted and not failed
        if asked and (value := self.at_result(x, search.trace.left // max(self.problem.terms, 1))) is not None:
            return x, value
        last = next((r.loss for r in reversed(search.tape) if math.isfinite(r.loss)), math.nan)
        return x, last if search.tape else f0

    def at_result(self, x: Flat, left: int) -> float | None:
        """f at the result, evaluated again where it fails and the budget has some left; None where f ends the run.

        The mean over the draws of x0, where steps have batches or seeds of their own.
        """
        if self.problem.shared:
            self.at_end = self.values(points([x] * len(self.draws)), self.draws, Kind.FINAL) or []
            return _mean(self.at_end) if self.at_end else None
        value = math.nan
        for _ in range(1 + min(AGAIN, left)):
            if (values := self.values(points([x]), kind=Kind.FINAL)) is None:
                return None
            if math.isfinite(value := values[0]):
                break
        return value

    def result(self, search: Search) -> Result:
        trace, objective = search.trace, self.objective
        start = trace.values_at_start
        if objective.rows is not None:
            return self.constrained(search, objective.rows)
        x, final = self.final(search)
        if objective.penalty is not None:
            start, final = [objective.at(self.problem.x0, f) for f in start], objective.at(x, final)
        end, ended = self.end(search), final
        moved = not np.array_equal(x, self.problem.x0)
        if not math.isfinite(final) and objective.best[1] is not None:
            final, x = objective.best[0], objective.best[1]
        why = None
        if (end.kind not in REACHED or not math.isfinite(final)) and not self.halted:
            words = Wording(self.sign, end)
            ends = [objective.at(x, f) for f in self.at_end] if len(self.at_end) == len(start) else []
            known = objective.draws.all_of(len(ends))
            why = failure(trace.method, search.tape, start, final, ends, known, moved=moved, words=words)
            if end.used_up and not len(search.tape) and math.isfinite(final):
                why = unbegun(self.budget, words)
            if ended is not final:
                why = End(
                    Ending.SHORT,
                    f"f is {self.sign * ended} where {trace.strategies[-1]} ended; x is the {words.best} point seen "
                    f"instead, "
                    f"f={self.sign * final:.6g}; pass a smaller lr or mu",
                )
            if why is None and end.used_up and not trace.stationary:
                noise = self.noise(trace)
                noise = noise if math.isfinite(noise) else 0.0
                f0, f = _mean(trace.values_at_start), final - objective.at(x, 0.0)  # without the penalty
                why = unfinished(trace.method, search.tape, f0, f, noise, words=words)
            if end.kind is Ending.FAILURES and ended is final:
                why = None  # it says so itself
        message, status = concluded(end, why)
        if status != Status.SUCCESS and not self.halted and objective.nfail:
            message += (
                f" ({objective.nfail} of {objective.nfev} evaluations failed, the last: {objective.last_failure})"
            )
        return self.found(search, x, final, message, status)

    def end(self, search: Search) -> End:
        """Why the run ended: from outside, or the strategy."""
        return self.stopped or search.ended or End(Ending.ITSELF)

    def constrained(self, search: Search, rows: Rows) -> Result:
        """The result with constraints."""
        standing, x = search.trace.standing, self.problem.inside(search.x)
        value: Any = None
        error = None
        if standing is not None:
            x, value, error = standing.x, standing.value, standing.error
        if value is None:
            told = None if self.halted else self.values(points([x]), kind=Kind.FINAL)
            value = rows.failed() if told is None else told[0]
            best, best_x = self.objective.best
            if told is None and best_x is not None:  # f may not be called again: the best point at which all rows hold
                x, value = best_x, best
        end, why = self.end(search), None
        if not (self.halted or (end.kind in REACHED and rows.hold(value))):
            start = [v for v in search.trace.values_at_start if math.isfinite(v)]
            moved = not np.array_equal(x, self.problem.x0)
            words = Wording(self.sign, end)
            steps = len(search.tape)
            why = shortfall(rows, start, value, error, standing, end, steps=steps, moved=moved, words=words)
            if end.used_up and not steps and math.isfinite(value):
                why = unbegun(self.budget, words)
        result = self.found(search, x, float(value), *concluded(end, why))
        result.constraints = value.c
        result.maxcv = float(np.max(rows.excess(value.c)))
        result.multipliers = None if standing is None else standing.multipliers
        return result

    def found(self, search: Search, x: Flat, final: float, message: str, status: Status) -> Result:
        """What the run came to."""
        trace, objective, variables = search.trace, self.objective, self.problem.variables
        best, best_x = objective.best
        return Result(
            x=variables.shaped(x), fun=self.sign * final, success=status == Status.SUCCESS, status=int(status),
            message=message, nfev=objective.nfev, nfail=objective.nfail, nit=len(search.tape),
            strategy=", then ".join(trace.strategies), reason=trace.reason, noise=self.noise(trace), mu=trace.mu,
            lr=trace.lr, best_x=None if best_x is None else variables.shaped(best_x), best_fun=self.sign * best,
            seed=self.problem.seed, exception=self.exception, tape=search.tape,
        )  # fmt: skip

    def noise(self, trace: Any) -> float:
        start = [f for f in trace.values_at_start if math.isfinite(f)]
        if self.problem.shared or not start:
            return math.nan
        if math.isfinite(trace.noise) or len(start) < 2:
            return float(trace.noise)
        return float(np.std(start, ddof=1))


def _mean(values: Any) -> float:
    """The mean of the values at x0; NaN where one is, or where there is none."""
    return float(np.mean(values)) if values else math.nan
