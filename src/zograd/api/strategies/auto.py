"""`method="auto"`: which strategy, from whether values repeat, the number of variables and the budget."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from zograd.api.ending import End, Ending
from zograd.api.strategies.base import Points, Problem, Routine, Strategy, Trace, Values, points
from zograd.api.strategies.cma import CMA, available
from zograd.api.strategies.lbfgs import LBFGS
from zograd.api.strategies.of_menu import OfMenu
from zograd.methods.defaults import black_box, pairs

REPEATS = 4
"""Values at x0, from which the noise is read."""

SMALL = 30
"""Evaluations below which x0 is evaluated twice, so that there are some left for steps."""

A_PAIR = 40
"""Evaluations of the budget for each direction of a step: few steps of many directions end higher."""

SHORT = 50
"""Evaluations a variable below which the covariance of all pairs is not learned, and the search stays near x0."""

SHARED = 4
"""Directions a step where all of them see one batch: more would not average its noise."""

OF_BATCHES = 10
"""Variables from which two-point steps on batches end lower than CMA-ES: their two values have the same batch, so that
its noise leaves the slope of the batch as it is, where a population is ranked by the batch."""

FEW_VARIABLES = 1000
"""Up to which an evolution strategy is taken in noise."""


@dataclass(frozen=True)
class Auto:
    """The rule, in order; the measurements behind it are on the page "Choose a method".

    1. f(x0) is evaluated four times, twice if the budget is below 30. Equal values repeat; they are tested again during
       the run, after 2 (d + 1) evaluations and then after each doubling, since a start can be free of a noise that is
       elsewhere.
    2. Values repeat and the budget is at least 4 (d + 1): L-BFGS-B on finite differences until it ends. Then, if a
       budget was given, or the point where it ended is no minimum by its own measure, CMA-ES with the rest, from the
       best point.
    3. They repeat, and the budget is smaller: the two-point method of the menu, on forward differences, with a
       direction for each 40 evaluations of the budget, at most 8 (4 below 50 variables, 1 above 100,000).
    4. Steps have batches of their own, d >= 10: the two-point method, of four pairs.
    5. They do not repeat, or steps have batches or seeds of their own, d <= 1000: CMA-ES, separable above 200
       variables. With fewer than 50 evaluations a variable it is separable, too, and within bounds it begins with a
       quarter of the spread.
    6. Otherwise: the two-point method, whose radius follows the noise.

    Where pycma is not installed, `cr_fm_nes` of the menu takes the place of CMA-ES; with bounds, which it does not
    take, the two-point method does.
    """

    @property
    def name(self) -> str:
        return "auto"

    def __call__(self, trace: Trace) -> Routine:
        problem = trace.problem
        values = trace.values_at_start
        wanted = 1 if problem.shared else repeats_at_start(problem.budget)
        if len(values) < wanted and trace.left > 1:
            values += yield points([problem.x0] * min(wanted - len(values), trace.left))
        if not values:
            return End(Ending.BUDGET)
        finite = [f for f in values if math.isfinite(f)]
        trace.noise = float(np.std(finite, ddof=1)) if len(finite) > 1 and max(finite) > min(finite) else 0.0
        if finite:
            trace.fun = float(np.mean(finite))
        d, budget = problem.dim, problem.budget
        share = budget / d
        a_variable = f"{budget:,} evaluations are {f'{share:,.0f}' if share >= 10 else f'{share:.2g}'} a variable"
        if not finite:
            trace.reason = "f is not finite at x0"
            return End(Ending.ITSELF, "f is not finite at x0; start where it is finite")
        if problem.shared:
            trace.noise = math.nan
            return (yield from self.in_noise(trace, "values of different steps have different batches or seeds"))
        if trace.noise > 0:
            return (yield from self.in_noise(trace, "values differ at x0"))
        return (yield from self.without_noise(trace, a_variable))

    def without_noise(self, trace: Trace, a_variable: str) -> Routine:
        """The rule where values repeat. a_variable: the budget in words."""
        problem = trace.problem
        d = problem.dim
        if problem.budget < 4 * (d + 1):
            trace.reason = f"values repeat, and {a_variable}, too few for finite differences"
            n = max(1, min(pairs(d), problem.budget // A_PAIR))
            return (yield from self.checked(trace, OfMenu(black_box("zo_sgd", d, n=n))))
        trace.reason = f"values repeat, and {a_variable}"
        end = yield from self.checked(trace, LBFGS())
        flat = trace.stationary is None
        if trace.noise > 0 or flat or trace.left < d or (trace.stationary and not problem.thorough):
            return end
        trace.reason += "; what is left of the budget looks for a lower minimum"
        return (yield from evolution(problem)(trace))

    def in_noise(self, trace: Trace, why: str) -> Routine:
        """The rule where values differ."""
        d = trace.problem.dim
        trace.fun = None
        several = trace.problem.batches and d >= OF_BATCHES
        if d <= FEW_VARIABLES and not several:
            trace.reason = f"{why}, and {d:,} variables are few"
            return (yield from evolution(trace.problem)(trace))
        trace.reason = f"{why}, and {d:,} variables are {f'{OF_BATCHES} or more' if several else 'many'}"
        few = {"n": SHARED} if trace.problem.shared else {}
        return (yield from OfMenu(black_box("zo_sgd", d, **few))(trace))

    def checked(self, trace: Trace, strategy: Strategy) -> Routine:
        """A strategy for values that repeat, and the rule of noise as soon as they do not."""
        routine = strategy(trace)
        spent, check = 0, 2 * (trace.problem.dim + 1)
        try:
            request = next(routine)
            while True:
                values = yield request
                spent += len(values)
                request = routine.send(values)
                if spent >= check and trace.left > REPEATS + request.cost(trace.problem.terms):
                    check *= 2
                    noise = yield from self.differs(trace)
                    if noise > 0:
                        routine.close()
                        trace.noise = noise
                        return (yield from self.in_noise(trace, "values that were equal at x0 differ elsewhere"))
        except StopIteration as stop:
            found: End = stop.value
            return found

    def differs(self, trace: Trace) -> Generator[Points, Values, float]:
        """The noise at the recommended point: two values, and two more if they differ."""
        here = np.array(trace.position(), copy=True)
        values = list((yield points([here, here])))
        if values[0] == values[1]:
            return 0.0
        values += yield points([here, here])
        finite = [f for f in values if math.isfinite(f)]
        return float(np.std(finite, ddof=1)) if len(finite) > 1 else 0.0


def repeats_at_start(budget: int) -> int:
    """How often x0 is evaluated for the noise."""
    return REPEATS if budget >= SMALL else REPEATS // 2


def evolution(problem: Problem) -> Strategy:
    """CMA-ES, without restarts where the first minimum is enough, or what the menu has in its place."""
    if available():
        short = problem.budget < SHORT * problem.dim
        near = problem.radius / 4 if short and problem.lower is not None else None
        return CMA(near, True if short else None, restarts=10**9 if problem.thorough else 0)
    return OfMenu(black_box("cr_fm_nes" if problem.lower is None else "zo_sgd", problem.dim))
