"""`lr="auto"`: the learning rate from the curvature that the probes see, below the edge of stability.

A central pair and the value between them give v^T H v, whose mean over directions is tr H. So a step that evaluates
f(x + mu v), f(x - mu v) anyway measures the trace of the Hessian with one more evaluation, now and then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from zograd.schedules import Schedule
from zograd.vector import Ask, Estimate, Estimator, Query, Routine

A = TypeVar("A")


@dataclass(frozen=True)
class Measured(Generic[A]):
    """The inner estimator, with curvature and slope measured from its own pairs.

    On measuring steps (the first `warm`, then one in `every`) f(x) is evaluated as well where the inner estimator does
    not, and f(x - mu v) for one direction where it has no pairs. Meters, of steps that measure:
        trace       mean over the pairs of v^T H v = (f(x + mu v) - 2 f(x) + f(x - mu v)) / mu^2, unbiased for tr H
        curvature2  mean of its square
        slope2      mean of ((f(x + mu v) - f(x - mu v)) / 2 mu)^2, unbiased for |grad f|^2
    The estimate itself is the inner one's, bit for bit. Costs up to 2 evaluations more on measuring steps.
    """

    inner: Estimator[A]
    every: int = 4
    warm: int = 8

    @property
    def evaluations(self) -> int:
        return self.inner.evaluations + 2

    @property
    def n(self) -> int:
        return int(getattr(self.inner, "n", 1))

    @property
    def aux(self) -> Any:
        return getattr(self.inner, "aux", None)

    @property
    def slots(self) -> Mapping[str, float]:
        return getattr(self.inner, "slots", {})

    def __call__(self, ask: Ask) -> Routine[A]:
        routine = self.inner(ask)
        queries = list(next(routine))
        measures = ask.moves < self.warm or ask.step % self.every == 0
        extra, center, pairs = self._complete(queries) if measures else ([], 0, [])
        f = yield [*queries, *extra]
        meters = _curvature(np.array(f), center, pairs, ask.mu) if measures else {}
        answers: Sequence[float] = f[: len(queries)]
        while True:
            try:
                queries = list(routine.send(answers))
            except StopIteration as stop:
                estimate: Estimate[A] = stop.value
                return replace(estimate, meters={**meters, **estimate.meters})
            answers = yield queries

    def _complete(self, queries: list[Query]) -> tuple[list[Query], int, list[tuple[int, int]]]:
        """(points to add, position of f(x), positions of the pairs)."""
        extra: list[Query] = []
        position = {query: i for i, query in enumerate(queries)}
        pairs = [
            (i, j) for query, i in position.items() if (j := position.get(replace(query, at=-query.at), -1)) > i and query.at
        ]
        if not pairs:
            i = next(i for i, query in enumerate(queries) if query.at)
            pairs = [(i, len(queries))]
            extra.append(replace(queries[i], at=-queries[i].at))
        here = replace(queries[pairs[0][0]], at=type(queries[0].at)())
        center = position.get(here, len(queries) + len(extra))
        if center >= len(queries):
            extra.append(here)
        return extra, center, pairs


def _curvature(f: np.ndarray[Any, Any], center: int, pairs: list[tuple[int, int]], mu: float) -> dict[str, float]:
    plus, minus = f[[i for i, _ in pairs]], f[[j for _, j in pairs]]
    second = (plus - 2 * f[center] + minus) / mu**2
    slope = (plus - minus) / (2 * mu)
    return {
        "trace": float(np.mean(second)),
        "curvature2": float(np.mean(second**2)),
        "slope2": float(np.mean(slope**2)),
    }


@dataclass(frozen=True)
class AutoRate:
    """lr_t = safety * eta_cap * shape(t), with eta_cap the lower bound of the edge of stability for Gaussian directions:

        eta_cap = 2q (1 - beta) / (T + (q + 1) L),   T ~ tr H,   L = sqrt(max(E[(v^T H v)^2] - T^2, 0) / 2) >= lambda_max,

    both from the last `window` measurements. The second is the standard deviation of v^T H v, sqrt(2) |H|_F for
    Gaussian directions. A trace that is not twice its standard error above 0 is replaced by that bound, so that noise
    makes steps smaller. While the loss stands above where it began, the rate is halved (`patience` steps at a time).

    shape: a `Schedule` with peak 1 (constant, linear, cosine). limit: never a larger lr than this.
    """

    safety: float = 0.7
    shape: Schedule = Schedule(1.0)
    window: int = 24
    patience: int = 5
    limit: float = math.inf

    @property
    def peak(self) -> float:
        return math.inf

    def initial(self) -> dict[str, Any]:
        return {"seen": [], "scale": 1.0, "first": [], "recent": [], "since": 0}

    def observe(self, state: dict[str, Any], loss: float, meters: Mapping[str, float]) -> None:
        """Take in what one step showed (also when a tape is replayed)."""
        if "trace" in meters:
            seen = [*state["seen"], (meters["trace"], meters["curvature2"])]
            state["seen"] = seen[-self.window :]
        if len(state["first"]) < self.patience:
            state["first"] = [*state["first"], loss]
        state["recent"] = [*state["recent"], loss][-self.patience :]
        state["since"] += 1
        if state["since"] >= 2 * self.patience:
            first = np.array(state["first"])
            above = float(np.median(state["recent"])) - float(np.max(first))
            if above > 0.0:
                state["scale"], state["since"] = state["scale"] / 2, 0
            else:
                state["scale"] = min(1.0, state["scale"] * 1.05)

    def rate(self, state: dict[str, Any], step: int, q: int, beta: float) -> float:
        """The learning rate of this step; 0 as long as nothing was measured."""
        if not state["seen"]:
            return 0.0
        trace, largest = self.curvature(state, q)
        if trace <= 0:
            return 0.0
        cap = 2 * q * (1 - beta) / (trace + (q + 1) * largest)
        return float(min(self.limit, self.safety * state["scale"] * cap * self.shape(step)))

    def curvature(self, state: dict[str, Any], q: int) -> tuple[float, float]:
        """(T, L) from the measurements so far."""
        seen = np.array(state["seen"])
        t = seen[:, 0]
        trace = float(t.mean())
        spread = float(np.sqrt(max(float(seen[:, 1].mean()) - trace**2, 0.0)))
        error = spread / math.sqrt(q * len(t))
        floor = max(trace, 2 * error)
        return floor, min(spread / math.sqrt(2), floor)
