"""CMA-ES of the package pycma, with restarts of doubled populations."""

from __future__ import annotations

import importlib
import importlib.util
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from zograd.api.strategies.base import Problem, Routine, Trace, points
from zograd.api.variables import Flat
from zograd.errors import needs

SEPARABLE = 200
"""Variables above which the covariance is diagonal."""


@dataclass(frozen=True)
class CMA:
    """`cma.CMAEvolutionStrategy` of the package pycma (Hansen), restarted with a doubled population when it stops.

    sigma: the first standard deviation, in units of x; None: `Problem.radius`. separable: a diagonal covariance
    (Ros and Hansen 2008); None: above 200 variables. A restart begins at x0 again (Auger and Hansen 2005, IPOP), the
    first at the recommended point. Values that are not finite rank last. Bounds are pycma's.

    Where values repeat, the recommended point is the best one seen, otherwise the mean of the population.
    Memory: O(d^2), separable O(population d).
    """

    sigma: float | None = None
    separable: bool | None = None
    restarts: int = 10**9

    @property
    def name(self) -> str:
        return "CMA-ES (pycma)"

    def __call__(self, trace: Trace) -> Routine:
        cma = module()
        problem = trace.problem
        separable = problem.dim > SEPARABLE if self.separable is None else self.separable
        trace.began(f"separable {self.name}" if separable else self.name)
        rng = np.random.default_rng(problem.seed)
        sigma = self.sigma or problem.radius
        repeats = trace.noise == 0
        start = np.array(trace.position(), dtype=np.float64)
        best_x, best = start, trace.fun if repeats and trace.fun is not None else math.inf
        population = None
        message = ""
        for restart in range(self.restarts + 1):
            x0 = start if restart == 0 else np.asarray(problem.x0, dtype=np.float64)
            es = cma.CMAEvolutionStrategy(x0, sigma, _options(problem, rng, separable, population))
            population = 2 * int(es.popsize)
            if not repeats:
                trace.position = partial(_mean, es, problem)
            while not es.stop():
                asked = [np.asarray(x) for x in es.ask()]
                values = np.array((yield points([_given(x, problem) for x in asked])))
                finite = values[np.isfinite(values)]
                k = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
                if repeats and finite.size and -math.inf < values[k] < best:
                    best_x, best = asked[k], float(values[k])
                    trace.position, trace.fun = partial(_given, best_x, problem), best
                worst = float(finite.max()) if finite.size else 0.0
                es.tell(asked, np.where(np.isfinite(values), values, worst + abs(worst) + 1.0).tolist())
                trace.counted(values.tolist())
            message = f"CMA-ES stopped: {', '.join(es.stop())}"
        return message


def module() -> Any:
    """The package cma; ImportError with what to install."""
    try:
        return importlib.import_module("cma")
    except ImportError:
        raise needs("CMA-ES", "cma", "blackbox") from None


def available() -> bool:
    """Whether the package cma is installed."""
    return importlib.util.find_spec("cma") is not None


def _given(x: Flat, problem: Problem) -> Flat:
    """A point as f gets it."""
    return problem.inside(x.astype(problem.x0.dtype))


def _mean(es: Any, problem: Problem) -> Flat:
    """The mean of the population."""
    return _given(np.asarray(es.result.xfavorite), problem)


def _options(problem: Problem, rng: np.random.Generator, separable: bool, population: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "verbose": -9, "seed": math.nan, "CMA_diagonal": separable,
        "randn": lambda *shape: rng.standard_normal(shape), "tolfun": 1e-13, "maxiter": math.inf,
    }  # fmt: skip
    if population is not None:
        options["popsize"] = population
    if problem.lower is not None and problem.upper is not None:
        options["bounds"] = [problem.lower.astype(np.float64).tolist(), problem.upper.astype(np.float64).tolist()]
    return options
