"""The Lagrangian of an evaluation for the multipliers of now, and steps back to where constraints hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zograd.api.constraints import Evaluated, Rows
from zograd.api.strategies.base import Problem
from zograd.api.variables import Flat
from zograd.control import Dual

LEAST = 1e-7
"""Weight t of a barrier at the end, in units of the slope of f."""


@dataclass
class Standing:
    """What a run with constraints has come to: the recommended point with its values, and the multipliers.

    value: None until it is measured. error: standard errors of the constraint values there, None where they repeat.
    settled: whether multipliers and point have converged; None where nothing tells that.
    """

    x: Flat
    value: Evaluated | None
    multipliers: Flat
    error: Flat | None = None
    settled: bool | None = None


@dataclass
class Evaluation:
    """An evaluated point."""

    x: Flat
    value: Evaluated


@dataclass
class Lagrangian:
    """L of an evaluation, for the multipliers of now. unit: what a unit of f is; t: of the barrier on `guard`."""

    rows: Rows
    dual: Dual
    unit: float
    guard: Flat
    t: float = 0.1
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = self.dual.initial([k for k, g in zip(self.rows.kinds, self.guard, strict=True) if not g])

    def scaled(self, c: Flat) -> Flat:
        found: Flat = c / self.rows.scale
        return found

    def __call__(self, value: float) -> float:
        """NaN for a failed evaluation, and outside of a barrier."""
        if not isinstance(value, Evaluated) or not math.isfinite(value):
            return math.nan
        c = self.scaled(value.c)
        inside = c[self.guard]
        if np.any(inside >= 0):
            return math.nan
        found = self.dual.lagrangian(self.state, float(value) / self.unit, c[~self.guard])
        return self.unit * (found - self.t * float(np.sum(np.log(-inside))))

    def observe(self, c: Flat) -> float:
        """Move the multipliers; the largest change, relative to their size."""
        before = np.asarray(self.state["multipliers"])
        self.dual.observe(self.state, self.scaled(c)[~self.guard])
        after = np.asarray(self.state["multipliers"])
        return float(np.max(np.abs(after - before) / (1 + np.abs(after)), initial=0.0))

    def multipliers(self, c: Flat | None) -> Flat:
        """In units of f over those of c."""
        found = np.zeros(len(self.rows.kinds))
        found[~self.guard] = self.state["multipliers"]
        if c is not None and np.any(self.guard):
            found[self.guard] = self.t / np.maximum(-self.scaled(c)[self.guard], 1e-300)
        return found * self.unit / self.rows.scale


FITTED = 100
"""Points for each slope of a row, at least, where there are as many."""

PROJECTED = 1000
"""Variables up to which the nearest point of linear rows is computed."""


def back(rows: Rows, problem: Problem, x: Flat, c: Flat, error: Flat, seen: Sequence[tuple[Flat, Flat]]) -> Flat:
    """The nearest point to x at which the violated rows would hold by one standard error, were they linear.

    c, error: means and standard errors at x. seen: (point, c) of evaluations; the least squares fit of the nearest
    quarter of them gives the slopes J of the rows, and the step is -J^+ (c + error) on the violated ones. The last ones
    alone lie closer together than the noise of c lets slopes be read.
    """
    excess = rows.excess(c) - np.where(rows.linear, 0.0, error)
    violated = (excess > 0) & ~rows.linear
    if not np.any(violated) or len(seen) < 2:
        return nearest(rows, problem, x)
    points = np.array([p for p, _ in seen], dtype=np.float64)
    quarter = max(len(seen) // 4, min(len(seen), FITTED * (x.size + 1)))
    near = np.argsort(np.sum((points - x) ** 2, axis=1), kind="stable")[:quarter]
    points, values = points[near], np.array([v for _, v in seen])[near][:, violated]
    slopes = np.linalg.lstsq(points - points.mean(axis=0), values - values.mean(axis=0), rcond=1e-6)[0].T
    aim = np.where(rows.one_sided, c + error, c)[violated]
    step = np.linalg.lstsq(slopes, -aim, rcond=1e-6)[0]
    return nearest(rows, problem, problem.inside((x + step).astype(x.dtype)))


def nearest(rows: Rows, problem: Problem, x: Flat) -> Flat:
    """The nearest point to x at which the linear rows and the bounds hold: a quadratic program, by SciPy's SLSQP."""
    if not np.any(rows.linear) or problem.dim > PROJECTED:
        return x
    from scipy.optimize import Bounds, minimize

    a, b = rows.matrix
    one_sided = rows.one_sided[rows.linear]
    y = x.astype(np.float64)
    if np.max(np.where(one_sided, a @ y - b, np.abs(a @ y - b))) <= 0:
        return x
    kinds: list[tuple[str, Flat, float]] = [("ineq", one_sided, -1.0), ("eq", ~one_sided, 1.0)]
    found = minimize(
        lambda z: 0.5 * float((z - y) @ (z - y)), y, jac=lambda z: z - y, method="SLSQP",
        bounds=None if problem.lower is None else Bounds(problem.lower, problem.upper),
        constraints=[
            {"type": k, "fun": _line(s * a[i], s * b[i]), "jac": _slope(s * a[i])} for k, i, s in kinds if i.any()
        ],
        options={"maxiter": 100, "ftol": 1e-15},
    )  # fmt: skip
    nearer: Flat = found.x.astype(x.dtype)
    return problem.inside(nearer)


def _line(a: Flat, b: Flat) -> Callable[[Flat], Flat]:
    return lambda z: a @ z - b


def _slope(a: Flat) -> Callable[[Flat], Flat]:
    return lambda z: a
