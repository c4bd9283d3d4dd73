"""A race to bars: how many evaluations a solver needs until a value is reached, over several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class Done(Exception):
    """The budget is used, or all bars are reached."""


@dataclass
class Course:
    """A function that counts its evaluations, and the bars that are reached by them.

    f: what a solver sees. bars: name -> value. judge: the clean value of an iterate where f is noisy or lacks a term
    (`watch` applies it); None: every value of f counts. every: evaluations between two judgements, at least.
    """

    f: Callable[[Any], float]
    bars: dict[str, float]
    budget: int
    judge: Callable[[Any], float] | None = None
    every: int = 25
    n: int = 0
    reached: dict[str, int] = field(default_factory=dict)
    _judged: int = 0

    def __call__(self, x: Any) -> float:
        if self.n >= self.budget or self.over:
            raise Done
        self.n += 1
        value = float(self.f(x))
        if self.judge is None:
            self.note(value)
        return value

    @property
    def over(self) -> bool:
        return len(self.reached) == len(self.bars)

    def watch(self, x: Any) -> None:
        """The iterate of a solver, after a step."""
        if self.judge is not None and self.n >= self._judged + self.every:
            self._judged = self.n
            self.note(self.judge(x))

    def note(self, value: float) -> None:
        for bar, wanted in self.bars.items():
            if value <= wanted:
                self.reached.setdefault(bar, self.n)


Solver = Callable[[Course, Any, int], None]
"""(course, x0, seed); it may end by `Done`."""


def run(solver: Solver, course: Course, x0: Any, seed: int) -> dict[str, float]:
    """Evaluations to each bar; infinity for those that were not reached."""
    with suppress(Done), np.errstate(all="ignore"):
        solver(course, x0, seed)
    return {bar: float(course.reached.get(bar, math.inf)) for bar in course.bars}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and largest, and how many are finite; None stands for infinity."""
    ends = (statistics.median(values), min(values), max(values))
    median, least, largest = (v if math.isfinite(v) else None for v in ends)
    return {
        "median": median, "least": least, "largest": largest,
        "reached": sum(map(math.isfinite, values)), "seeds": len(values),
    }  # fmt: skip


def shown(row: dict[str, Any]) -> str:
    """A row as a line of a table."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    spread = f"{number(row['least'])} to {number(row['largest'])}"
    counted = f"{row['reached']} of {row['seeds']}"
    head = f"{row['part']:14s} {row['solver']:14s} {row['bar']:22s}"
    return f"{head} {number(row['median']):>9s}   {spread:24s} {counted}"


# ---- solvers ---------------------------------------------------------------------------------------------------------


def minimize(method: Any = "auto", **settings: Any) -> Solver:
    """`zo.minimize` with its defaults, or with a method."""

    def solve(course: Course, x0: Any, seed: int) -> None:
        import zograd as zo

        zo.minimize(course, x0, method, budget=course.budget, seed=seed, callback=lambda x: course.watch(x), **settings)

    return solve


def pycma(separable: bool) -> Solver:
    """CMA-ES of the package cma, from the spread that `zo.minimize` starts with."""

    def solve(course: Course, x0: Any, seed: int) -> None:
        import cma

        sigma = 0.3 * max(1.0, float(np.sqrt(np.mean(np.square(x0)))))
        es = cma.CMAEvolutionStrategy(np.ravel(x0), sigma, {"verbose": -9, "seed": seed + 1, "CMA_diagonal": separable})
        while not es.stop():
            points = es.ask()
            es.tell(points, [course(np.reshape(x, np.shape(x0))) for x in points])
            course.watch(np.reshape(es.result.xfavorite, np.shape(x0)))

    return solve


def scipy(method: str = "L-BFGS-B") -> Solver:
    """A method of SciPy, once, with its defaults but for the budget."""
    most = {"L-BFGS-B": "maxfun", "Nelder-Mead": "maxfev", "COBYQA": "maxfev"}[method]

    def solve(course: Course, x0: Any, seed: int) -> None:
        from scipy.optimize import minimize as of_scipy

        shape = np.shape(x0)
        of_scipy(
            lambda x: course(np.reshape(x, shape)), np.ravel(x0), method=method,
            options={"maxiter": 10**6, most: course.budget + 1},
            callback=lambda x: course.watch(np.reshape(x, shape)),
        )  # fmt: skip

    return solve
