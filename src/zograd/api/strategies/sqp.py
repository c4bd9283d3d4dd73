"""SciPy's SLSQP on differences of f and of all constraints, which come from the same evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from zograd.api.constraints import Evaluated, Rows
from zograd.api.strategies.base import Points, Problem, Trace, Values, points, rms
from zograd.api.strategies.inverted import inverted
from zograd.api.variables import Flat

NAME = "SLSQP (SciPy) on forward differences"

STATIONARY = 1e-4
"""|grad f + sum lam grad c| over |grad f| at a point that counts as a minimum."""

ACTIVE = 1e-6
"""A scaled row above minus this may have a multiplier."""


class _NotFinite(Exception):
    """A trial point has no values; the line search of SLSQP cannot go back."""


@dataclass
class Finish:
    """Where SLSQP ended. residual: relative size of the gradient of the Lagrangian; multipliers: of scaled rows."""

    x: Flat
    value: Evaluated
    multipliers: Flat
    residual: float
    resolved: bool
    """Whether the slopes of f there are more than the rounding of f."""
    rest: Flat
    """The gradient of the Lagrangian along each variable, in units of f / unit."""
    most: Flat
    """The largest sum of the sizes of its parts that was seen along each variable."""


class SQP:
    """Sequential quadratic programming (Kraft 1988) with f / unit and c / scale, from `start`.

    An iteration costs one evaluation, and d more for all slopes, in one request. The step of a difference is
    2^-26 max(|x_i|, length), length the root mean square of x0, at least 1.
    """

    def __init__(self, problem: Problem, rows: Rows, unit: float, seen: Callable[[Flat, Evaluated], None]) -> None:
        self.problem, self.rows, self.unit, self.seen = problem, rows, unit, seen
        self.length = max(1.0, rms(problem.x0))
        self.x: Flat = np.empty(0)
        self.value = Evaluated(math.nan)
        self.slope: Flat | None = None
        self.largest: Flat = np.zeros((1 + len(rows.kinds), problem.dim))
        """The largest sizes of all slopes so far."""
        self.resolved = True

    def __call__(self, trace: Trace, x: Flat, value: Evaluated) -> Generator[Points, Values, Finish | None]:
        """None where a trial point had no finite values."""
        from scipy.optimize import Bounds, minimize

        problem, rows = self.problem, self.rows
        trace.began(NAME)
        self.x, self.value, self.slope = x.astype(np.float64), value, None
        asked: list[float] = []
        bounds = None
        if problem.lower is not None and problem.upper is not None:
            bounds = Bounds(problem.lower.astype(np.float64), problem.upper.astype(np.float64))

        def work(ask: Callable[[Points], Values]) -> None:
            def counted(request: Points) -> Values:
                values = ask(request)
                asked.extend(values)
                return values

            def at(z: Flat) -> Evaluated:
                if not np.array_equal(z, self.x):
                    (found,) = counted(points([self.given(z)]))
                    if not isinstance(found, Evaluated) or not math.isfinite(found):
                        raise _NotFinite
                    self.x, self.value, self.slope = np.array(z), found, None
                    self.seen(self.given(z), found)
                return self.value

            def slopes(z: Flat) -> Flat:
                at(z)
                if self.slope is None:
                    self.slope = self.differences(counted)
                return self.slope

            def part(which: Flat, sign: float) -> dict[str, Any]:
                return {
                    "type": "eq" if sign > 0 else "ineq",
                    "fun": lambda z: sign * (at(z).c / rows.scale)[which],
                    "jac": lambda z: sign * slopes(z)[1:][which],
                }

            def after(_: Flat) -> None:
                trace.counted(asked)
                asked.clear()

            kinds = [(rows.one_sided, -1.0), (~rows.one_sided, 1.0)]
            minimize(
                lambda z: float(at(z)) / self.unit, self.x.copy(), jac=lambda z: slopes(z)[0], method="SLSQP",
                bounds=bounds, constraints=[part(which, sign) for which, sign in kinds if np.any(which)],
                callback=after, options={"ftol": 1e-10, "maxiter": 500},
            )  # fmt: skip
            slopes(self.x)

        try:
            yield from inverted(work)
        except _NotFinite:
            return None
        finally:
            if asked:
                trace.counted(asked)
        assert self.slope is not None
        lam, rest = self.multipliers(self.slope)
        residual = float(np.linalg.norm(rest)) / max(float(np.linalg.norm(self.slope[0])), 1e-6)
        most = self.largest[0] + np.abs(lam) @ self.largest[1:]
        return Finish(self.given(self.x), self.value, lam, residual, self.resolved, rest, most)

    def given(self, x: Flat) -> Flat:
        """A point as f gets it."""
        return self.problem.inside(x.astype(self.problem.x0.dtype))

    def differences(self, ask: Callable[[Points], Values]) -> Flat:
        """(1 + rows, d): the slopes of f / unit and of c / scale at x; the other side where one is not finite."""
        d, here = self.x.size, self.given(self.x)
        single = here.dtype != np.float64
        h = (2.0**-11 if single else 2.0**-26) * np.maximum(np.abs(self.x), self.length)
        if self.problem.upper is not None and self.problem.lower is not None:
            h = np.where(self.x + h > self.problem.upper, -h, h)
            h = np.where(self.problem.lower == self.problem.upper, 0.0, h)

        def end(i: int) -> Flat:
            y = self.x.copy()
            y[i] += h[i]
            return self.given(y)

        values = list(ask(Points(end, d)))
        failed = [i for i in range(d) if not math.isfinite(values[i])]
        if failed:
            h[failed] *= -1
            for i, value in zip(failed, ask(Points(lambda k: end(failed[k]), len(failed))), strict=True):
                values[i] = value
        rounding = 8 * (2.0**-23 if single else 2.0**-52) * abs(float(self.value))
        self.resolved = any(abs(float(f) - float(self.value)) > rounding for f in values)
        slope = np.zeros((1 + len(self.rows.kinds), d))
        for i, value in enumerate(values):
            y = end(i)
            width = float(y[i]) - float(here[i])
            if not isinstance(value, Evaluated) or not math.isfinite(value):
                raise _NotFinite
            if width:
                slope[0, i] = (float(value) - float(self.value)) / width / self.unit
                slope[1:, i] = (value.c - self.value.c) / width / self.rows.scale
        self.largest = np.maximum(self.largest, np.abs(slope))
        return slope

    def multipliers(self, slope: Flat) -> tuple[Flat, Flat]:
        """lam of the scaled rows by least squares of grad f + sum lam grad c, and what is left of it.

        Inactive rows have none, those of inequalities are not negative, and bounds that x lies on take their share.
        """
        from scipy.optimize import lsq_linear

        rows, d = self.rows, self.x.size
        c = self.value.c / rows.scale
        active = ~rows.one_sided | (c > -ACTIVE)
        columns, least = [slope[1:][active].T], [np.where(rows.one_sided[active], 0.0, -math.inf)]
        low, high = self.problem.lower, self.problem.upper
        if low is not None and high is not None:
            axes = np.eye(d)
            for on, sign in ((self.x <= low, -1.0), (self.x >= high, 1.0)):
                columns.append(sign * axes[:, on])
                least.append(np.zeros(int(np.sum(on))))
        matrix, bound = np.concatenate(columns, axis=1), np.concatenate(least)
        found = np.zeros(len(rows.kinds))
        rest = slope[0]
        if bound.size:
            lam = lsq_linear(matrix, -slope[0], (bound, np.full(bound.size, math.inf))).x
            rest = slope[0] + matrix @ lam
            found[active] = lam[: int(np.sum(active))]
        return found, rest
