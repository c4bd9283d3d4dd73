"""CMA-ES of the package pycma, with restarts of doubled populations."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from zograd.api.ending import End, Ending
from zograd.api.strategies.base import Problem, Routine, Trace, points
from zograd.api.variables import Flat
from zograd.errors import needs

SEPARABLE = 200
"""Variables above which the covariance is diagonal."""

RECENT = 5
"""Populations whose values tell how low a run is, where values differ."""

FAILED = 20
"""Populations in a row without a finite value, after which the search ends."""

AWAY = ("tolupsigma", "tolconditioncov")
"""What pycma calls it where its steps only grow, or its covariance is singular to its numbers: it has not settled."""

ENDLESS = 1e30
"""A median of a population below minus this, in units of f(x0) where that is larger, falls without end."""

USUAL = (1e-3, 1e100)
"""First standard deviations for which x is taken as it is: pycma ends where its own is below 1e-11, and cannot square
numbers above 1e150."""


@dataclass(frozen=True)
class CMA:
    """`cma.CMAEvolutionStrategy` of the package pycma (Hansen), restarted with a doubled population when it stops.

    sigma: the first standard deviation, in units of x; None: `Problem.radius`. Where some bounds are a thousand times
    wider than others, it is shared out by their widths. separable: a diagonal covariance
    (Ros and Hansen 2008); None: above 200 variables. The first run begins at the recommended point, a restart (Auger
    and Hansen 2005, IPOP) anywhere in the bounds, or without bounds around x0, each time four times as far. A run
    without a finite value is begun again with as many points.
    Values that are not finite rank last; after 20 populations without any other it ends. It ends without success where
    f falls without end (`ENDLESS`), where squares of x are no numbers any more, and where pycma stops on the way
    (`AWAY`).

    Where values repeat, the recommended point is the best one seen. Otherwise it is the mean of the population; that of
    a restart only where its last five populations have a lower median than those at the end of the runs before.
    Memory: O(d^2), separable O(population d).
    """

    sigma: float | None = None
    separable: bool | None = None
    restarts: int = 10**9

    def __post_init__(self) -> None:
        number = isinstance(self.sigma, int | float | np.integer | np.floating) and not isinstance(self.sigma, bool)
        if self.sigma is not None and not (number and 0 < self.sigma < math.inf):
            raise ValueError(f"sigma={self.sigma!r} must be a number > 0, the first standard deviation in units of x")

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
        unit = _unit(sigma)
        space, sigma = _Free(problem, unit), sigma / unit
        least = -ENDLESS * max([1.0, *(abs(f) for f in trace.values_at_start if math.isfinite(f))])
        start = space.narrow(trace.position())
        best = trace.fun if repeats and trace.fun is not None else math.inf
        population = None
        settled: tuple[float, Callable[[], Flat]] | None = None
        end, failed = End(Ending.ITSELF), 0
        for restart in range(self.restarts + 1):
            x0, wide = (start, sigma) if restart == 0 else space.elsewhere(rng, sigma, restart)
            es = cma.CMAEvolutionStrategy(x0, wide, _options(space, rng, separable, population))
            level, recent = math.inf, deque[float](maxlen=RECENT)
            failing = True
            while not es.stop():
                try:
                    asked = [np.asarray(x) for x in es.ask()]
                except OVERFLOWS:
                    return TOO_LARGE
                values = np.array((yield points([space.widen(x) for x in asked])))
                finite = values[np.isfinite(values)]
                failed = 0 if finite.size else failed + 1
                failing = failing and not finite.size
                if finite.size and not repeats:
                    recent.append(float(np.median(finite)))
                    level = float(np.median(recent))
                    lower = settled is None or level < settled[0]
                    trace.position = partial(_mean, es, space) if lower or settled is None else settled[1]
                k = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
                if repeats and finite.size and -math.inf < values[k] < best:
                    best = float(values[k])
                    trace.position, trace.fun = partial(space.widen, asked[k]), best
                worst = float(finite.max()) if finite.size else 0.0
                trace.counted(values.tolist())
                if finite.size and np.median(finite) < least:
                    return End(Ending.UNSETTLED, f"CMA-ES stopped: half of a population is beyond {-least:.0e}")
                try:
                    es.tell(asked, np.where(np.isfinite(values), values, worst + abs(worst) + 1.0).tolist())
                except OVERFLOWS:
                    return TOO_LARGE
                if failed >= FAILED:
                    why = f"{FAILED} populations in a row had no finite value; start where f is finite around x0"
                    return End(Ending.FAILURES, why)
            population = int(es.popsize) * (1 if failing else 2)
            if settled is None or level < settled[0]:
                settled = level, trace.position
            away = any(why in AWAY for why in es.stop())
            if not repeats and not failed and not away:
                trace.stationary = True  # it ended by itself; a restart begins high
            kind = Ending.UNSETTLED if away else Ending.ITSELF
            end = End(kind, f"CMA-ES stopped: {', '.join(es.stop())}")
            if failing and not trace.stationary:  # what it takes for a plateau are failures
                end = End(
                    Ending.FAILURES,
                    "CMA-ES stopped: its populations had no finite value; start where f is finite around x0",
                )
        return end


def module() -> Any:
    """The package cma; ImportError with what to install."""
    try:
        return importlib.import_module("cma")
    except ImportError:
        raise needs("CMA-ES", "cma", "blackbox") from None


def available() -> bool:
    """Whether the package cma is installed."""
    return importlib.util.find_spec("cma") is not None


OVERFLOWS = (AssertionError, ArithmeticError, np.linalg.LinAlgError)
"""What pycma and NumPy raise where squares are no numbers any more."""

TOO_LARGE = End(Ending.UNSETTLED, "x or f became too large for CMA-ES; pass bounds, or scale x")


class _Free:
    """The variables that are not fixed by their bounds, in float64, in units of `unit`, a power of two."""

    def __init__(self, problem: Problem, unit: float) -> None:
        self.problem, self.unit = problem, unit
        x0 = problem.x0
        lower = np.full(x0.size, -np.inf) if problem.lower is None else problem.lower.astype(np.float64)
        upper = np.full(x0.size, np.inf) if problem.upper is None else problem.upper.astype(np.float64)
        self.free = lower < upper
        self.lower, self.upper = lower / unit, upper / unit

    def narrow(self, x: Flat) -> Flat:
        """The free variables of a point."""
        found: Flat = x[self.free].astype(np.float64) / self.unit
        return found

    def elsewhere(self, rng: np.random.Generator, sigma: float, restart: int) -> tuple[Flat, float]:
        """(start, standard deviation) of a restart: anywhere in the bounds, or ever farther from x0 without bounds."""
        lower, upper = self.lower[self.free], self.upper[self.free]
        if np.all(np.isfinite(upper - lower)):
            return rng.uniform(lower, upper), sigma
        wide = sigma * 4.0 ** min(restart, 5)
        return np.clip(self.narrow(self.problem.x0) + 2 * wide * rng.standard_normal(lower.size), lower, upper), wide

    def widen(self, y: Flat) -> Flat:
        """The point with these free variables, in the dtype of x0, within the bounds."""
        x = self.problem.x0.copy()
        x[self.free] = y * self.unit
        return self.problem.inside(x)


def _mean(es: Any, space: _Free) -> Flat:
    """The mean of the population."""
    return space.widen(np.asarray(es.result.xfavorite))


def _unit(sigma: float) -> float:
    """The unit of x in which pycma works: 1, but the power of two near an unusual standard deviation."""
    return 1.0 if USUAL[0] <= sigma <= USUAL[1] else math.ldexp(1.0, math.frexp(sigma)[1] - 1)


def _options(space: _Free, rng: np.random.Generator, separable: bool, population: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "verbose": -9, "seed": math.nan, "CMA_diagonal": separable,
        "randn": lambda *shape: rng.standard_normal(shape), "tolfun": 1e-13, "maxiter": math.inf,
        "tolfacupx": math.inf,
    }  # fmt: skip
    if population is not None:
        options["popsize"] = population
    lower, upper = space.lower[space.free], space.upper[space.free]
    if (widths := space.problem.widths) is not None:
        options["CMA_stds"] = (widths[space.free] / np.mean(widths[space.free])).tolist()
    if np.any(np.isfinite(lower)) or np.any(np.isfinite(upper)):
        options["bounds"] = [lower.tolist(), upper.tolist()]
        if lower.size == 1:  # where it cuts the standard deviation of a single variable, pycma 4.5 raises
            options["maxstd_boundrange"] = math.inf
    return options
