"""A strategy of flat space on a manifold, in the coordinates that a retraction gives."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from zograd.api.ending import End, Ending
from zograd.api.strategies.base import Points, Routine, Strategy, Trace, Values
from zograd.api.strategies.lbfgs import LBFGS
from zograd.api.strategies.nested import nested
from zograd.api.strategies.of_menu import OfMenu
from zograd.api.variables import Flat, Variables
from zograd.core.method import Method
from zograd.spaces import Space

CHARTS = 50
"""Rounds at most that end inside of their coordinates."""

ENOUGH = 1e-3
"""The share of the whole gain below which such a round is the last."""

WIDER = 8.0
"""How many times farther coordinates reach after a round that ended at their limit."""

IDLE = 3
"""So many rounds in a row that end at their limit without a lower value end the search as one inside of it does."""

SHORTER = 100.0
"""How many times shorter moves may be than at x0 in a conformal metric, where a wall shortens all of them."""


@dataclass(frozen=True)
class Charted:
    """The strategy on z -> f(Retr_x(lift(z))), from z = 0; lift makes a tangent vector of any z. Every point is on the
    manifold. Where the retraction takes any z (`Space.ambient`), it is f(Retr_x(z)): a tangent vector to a frame far
    away is long, and the nearest frame of a matrix is as far as the matrix.

    x is x0 first, and |z_i| <= 1. Where the strategy ends, it begins again at the point that it found, with new
    coordinates, until a round gains less than a thousandth of all that was gained. A round that ends at the limit of
    its coordinates, or where the space shortens moves, has found no minimum: another one follows, with wider
    coordinates. In a conformal metric a single wall shortens the moves along all variables: an end beside one is no
    success.
    """

    strategy: Strategy
    space: Space

    @property
    def name(self) -> str:
        return f"{self.strategy.name}, in coordinates of {type(self.space).__name__}"

    def __call__(self, trace: Trace) -> Routine:
        trace.began(self.name)
        start = known = trace.fun
        side, rounds, idle = 1.0, 0, 0
        free = self.reach(trace)
        while True:
            end, held = yield from self.chart(trace, side)
            settled = trace.stationary
            if held:  # beyond the limit f may be lower
                trace.stationary = False
            if end.kind is not Ending.ITSELF or start is None or known is None or trace.fun is None:
                return end
            gain, known = known - trace.fun, trace.fun
            if held:
                side, idle = side * WIDER, 0 if gain > 0 else idle + 1
                if idle < IDLE:
                    continue
                trace.stationary = settled
            else:
                rounds += 1
                if gain > ENOUGH * (start - known) and rounds < CHARTS:
                    continue
            return self.ended(end, free, trace)

    def ended(self, end: End, free: float, trace: Trace) -> End:
        """The end of the search; of one beside a wall in a conformal metric what that means. free: reach at x0."""
        if getattr(self.space, "metric", "") != "conformal":
            return end
        times = free / max(self.reach(trace), 1e-300)
        if times <= SHORTER:
            return end
        trace.stationary = False
        return End(
            Ending.UNSETTLED,
            f"moves at x are {times:.2g} times shorter than at x0, since in the conformal metric a wall shortens all "
            f"of them; take the default metric of {type(self.space).__name__}, or start elsewhere",
        )

    def reach(self, trace: Trace) -> float:
        """How far a small move from the recommended point leads."""
        x0 = np.array(trace.position(), copy=True)
        z = 1e-3 * np.cos(np.arange(x0.size) + 1.0).astype(x0.dtype)
        return float(np.abs(self.at(x0, z, trace) - x0).max(initial=0.0))

    def at(self, x0: Flat, z: Flat, trace: Trace) -> Flat:
        """The point with the coordinates z at x0."""
        shape = trace.problem.variables.shapes[0]
        if self.space.unit == "row":  # as the store gives it
            shape = (-1, shape[-1] if shape else 1)
        x, v = torch.from_numpy(x0.copy()).view(shape), torch.from_numpy(z.copy()).view(shape)
        moved = self.space.move_(x, v if self.space.ambient else self.space.lift_(v, x, {}))
        found: Flat = moved.reshape(-1).numpy()
        return found

    def chart(self, trace: Trace, side: float) -> Generator[Points, Values, tuple[End, bool]]:
        """The strategy in the coordinates at the recommended point, |z_i| <= side; and whether these held it back."""
        x0 = np.array(trace.position(), copy=True)
        limit = np.full_like(x0, side)
        problem = replace(trace.problem, variables=Variables(np.zeros_like(x0)), lower=-limit, upper=limit)
        values_here = trace.values_at_start if trace.fun is None else [trace.fun]
        inner = Trace(problem, trace.left, lambda: np.zeros_like(x0), trace.fun, values_here, trace.noise)

        def at(z: Flat) -> Flat:
            return self.at(x0, z, trace)

        def asked(request: Points) -> Points:
            trace.fun = inner.fun
            return Points(lambda i: at(request.make(i)), len(request), request.rows)

        trace.position = lambda: at(inner.position())
        end = yield from nested(self.strategy, inner, trace, asked=asked)
        trace.fun, trace.stationary = inner.fun, inner.stationary
        z = inner.position()
        moved = float(np.abs(at(z) - x0).max(initial=0.0))
        last = float(np.abs(at(z) - at(0.99 * z)).max(initial=0.0))
        return end, moved > 0 and (bool(np.abs(z).max() >= (1 - 1e-6) * side) or last <= 1e-6 * moved)


@dataclass(frozen=True)
class AutoOnSpace:
    """The rule of `Auto` on a manifold: L-BFGS-B in coordinates where values repeat and the budget is at least
    4 (d + 1) evaluations; otherwise, and for several leaves and spaces with slots or without a retraction
    (`Landing`), the two-point method."""

    method: Method[Any]

    @property
    def name(self) -> str:
        return "auto"

    def __call__(self, trace: Trace) -> Routine:
        problem, start = trace.problem, trace.values_at_start
        two_point = OfMenu(self.method)
        two_point.run_at(problem.x0, problem)  # ValueError where x0 is not on the manifold
        space = self.method.space
        repeats = len(start) > 1 and min(start) == max(start) and all(map(math.isfinite, start))
        simple = len(problem.variables.shapes) == 1 and not space.slots and space.retracts
        if not (repeats and simple and problem.budget >= 4 * (problem.dim + 1)) or problem.shared:
            trace.reason = "values differ at x0, the budget is below 4 (d + 1), or the space has no coordinates"
            return (yield from two_point(trace))
        trace.noise, trace.fun = 0.0, start[0]
        trace.reason = "values repeat, and the budget allows finite differences"
        return (yield from Charted(LBFGS(), space)(trace))
