"""A run of a method on a problem, measured on its way; and the learning rate that is best on another seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zograd.core.run import Method, Run
from zograd.problems.problem import ComparedProblem

Numbers = npt.NDArray[np.float64]
QUARTILES = ("lower quartile", "median", "upper quartile")
"""The rows of `Compared.quartiles`."""


@dataclass(frozen=True)
class Course:
    """What `course` measured: evaluations spent, from 0, and what the judge of the problem said there, by its names."""

    evaluations: Numbers
    measured: Mapping[str, Numbers]

    @property
    def values(self) -> Numbers:
        """The clean value at each mark; it may be NaN or infinite where the run diverged."""
        return self.measured["value"]

    def at(self, evaluations: Sequence[float] | Numbers, name: str = "value") -> Numbers:
        """A measurement between the marks, by straight lines; after the last mark, what was measured there."""
        return np.interp(np.asarray(evaluations, dtype=np.float64), self.evaluations, self.measured[name])


def course(problem: ComparedProblem, method: Method[Any], budget: int, *, seed: int = 0, marks: int = 10) -> Course:
    """Run `method` on `problem` for at most `budget` evaluations; judge it at the start and about `marks` times later.

    The run ends where one more step may not fit into the budget, or where the clean value is no longer finite. Costs
    the evaluations of the run, and marks + 1 judgements. Raises ValueError where the budget has no room for a step.

    >>> import zograd as zo
    >>> from zograd.problems.small import method_problem
    >>> found = course(method_problem("quadratic-100"), zo.methods.zo_sgd(lr=1e-3, mu=1e-3), 200, marks=4)
    >>> found.evaluations.tolist()
    [0.0, 50.0, 100.0, 150.0, 200.0]
    >>> bool(found.values[-1] < found.values[0])
    True
    """
    session = problem.begin(method.space, seed, False)
    run = Run(session.store, method, seed)
    if run.most_evaluations > budget:
        raise ValueError(
            f"budget={budget}: a step takes up to {run.most_evaluations} evaluations; pass at least as many"
        )
    spent, said = [0], [session.judge()]
    while run.evaluations + run.most_evaluations <= budget and math.isfinite(said[-1]["value"]):
        run.step(session.oracle)
        if run.evaluations >= spent[-1] + budget / marks or run.evaluations + run.most_evaluations > budget:
            spent.append(run.evaluations)
            said.append(session.judge())
    return Course(
        np.array(spent, dtype=np.float64), {k: np.array([m[k] for m in said], dtype=np.float64) for k in said[0]}
    )


def tuned(
    problem: ComparedProblem, make: Callable[[float], Method[Any]], rates: Sequence[float], budget: int, *, seed: int
) -> float:
    """The learning rate of `rates` whose run of `budget` evaluations ends with the least value.

    make: rate -> method. A run that ends with a value that is not finite counts as the worst; if all do, the least rate
    is taken. Costs len(rates) runs. Take a seed that the runs to be compared do not have.

    >>> import zograd as zo
    >>> from zograd.problems.small import method_problem
    >>> problem = method_problem("quadratic-100")
    >>> tuned(problem, lambda lr: zo.methods.zo_sgd(lr=lr, mu=1e-3), (1e-4, 1e-3, 1.0), 200, seed=1)
    0.001
    """
    if not rates:
        raise ValueError("rates is empty; pass at least one learning rate")
    ends = {lr: float(course(problem, make(lr), budget, seed=seed, marks=1).values[-1]) for lr in sorted(rates)}
    return min(ends, key=lambda lr: ends[lr] if math.isfinite(ends[lr]) else math.inf)


@dataclass(frozen=True)
class Compared:
    """A method with the rate that another seed chose, and its runs on several seeds, as `compared` made them."""

    rate: float
    courses: Sequence[Course]

    def quartiles(self, evaluations: Sequence[float] | Numbers, name: str = "value") -> Numbers:
        """(3, evaluations): the lower quartile, the median and the upper quartile over the seeds of a measurement."""
        found: Numbers = np.percentile([c.at(evaluations, name) for c in self.courses], (25, 50, 75), axis=0)
        return found


def compared(
    problem: ComparedProblem,
    make: Callable[[float], Method[Any]],
    rates: Sequence[float],
    budget: int,
    *,
    seed: int,
    seeds: int,
    least: int = 0,
) -> Compared:
    """The runs of a method on seeds seed, seed + 1, ..., at the rate that is best on seed + 1000.

    make: rate -> method. That rate is the one of `rates` whose run of a fifth of the budget, or of `least` evaluations
    where that is more, ends with the least value. Costs len(rates) such runs, and seeds runs of the budget.
    """
    rate = tuned(problem, make, rates, max(budget // 5, least), seed=seed + 1000)
    return Compared(rate, [course(problem, make(rate), budget, seed=seed + s, marks=12) for s in range(seeds)])
