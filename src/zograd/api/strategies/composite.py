"""f + r with a penalty r that a proximal map takes exactly: which method, and when it has ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from zograd.api.ending import End, Ending
from zograd.api.strategies.auto import Auto
from zograd.api.strategies.base import Points, Routine, Strategy, Trace, Values, points
from zograd.api.strategies.nested import nested
from zograd.api.strategies.of_menu import OfMenu
from zograd.api.variables import Flat, Variables
from zograd.core.sums import Sum
from zograd.methods import fd_fista, zo_prox
from zograd.methods.proximal import MOST
from zograd.sets import Penalty

STILL = 1e-10
"""A relative gain below which f + r stands still."""

STEPS = 10
"""Steps between two looks at f + r, at one evaluation each."""

LOOKS = 3
"""Looks in a row that have to show no gain, for an accelerated method falls by waves."""

DIRECTIONS = 8
"""Directions in a step of `zo_prox`."""


@dataclass(frozen=True)
class UntilStill(OfMenu):
    """A method of the menu on values that repeat, until f + r at x has not fallen in `LOOKS` times `STEPS` steps.

    penalty: r; None: it is 0.
    """

    penalty: Any = None

    def ending(self, trace: Trace) -> Callable[[], Generator[Points, Values, End | None]]:
        value = valued(self.penalty, trace.problem.variables) if self.penalty is not None else lambda x: 0.0
        what = "f" if self.penalty is None else "f + penalty"
        best, looks = math.inf, 0

        def ended() -> Generator[Points, Values, End | None]:
            nonlocal best, looks
            if trace.steps % STEPS or trace.left < 1:
                return None
            x = trace.position().copy()
            f = (yield points([x]))[0] + value(x)
            gained = best - f > STILL * abs(f)
            best, looks = min(best, f), 0 if gained else looks + 1
            if looks < LOOKS:
                return None
            trace.stationary = True
            return End(Ending.ITSELF, f"{what} has not fallen in {LOOKS * STEPS} steps")

        return ended


@dataclass(frozen=True)
class AutoPenalized(Auto):
    """The rule of `Auto` for f + r. f alone is evaluated, and its steps are followed by the proximal map of r.

    Values repeat, d <= 1000 and the budget is at least 4 (d + 1): `fd_fista`, FISTA on forward differences. Otherwise
    `zo_prox`, two-point steps with a rate and a radius that are measured.
    """

    penalty: Any = None

    def without_noise(self, trace: Trace, a_variable: str) -> Routine:
        d = trace.problem.dim
        if d > MOST or trace.problem.budget < 4 * (d + 1):
            trace.reason = f"values repeat, and {a_variable}, too few for finite differences"
            return (yield from proximal(self.penalty)(trace))
        trace.reason = f"values repeat, {a_variable}, and the penalty has a proximal map"
        return (yield from self.checked(trace, accelerated(self.penalty)))

    def in_noise(self, trace: Trace, why: str) -> Routine:
        trace.reason = f"{why}, and the penalty has a proximal map"
        return (yield from proximal(self.penalty)(trace))


@dataclass(frozen=True)
class AutoInSet(Auto):
    """The rule of `Auto` for a convex set that f is never called outside of.

    Values repeat, d <= 1000 and the budget is at least 4 (d + 1): `Inside`. Otherwise, and where all values of that are
    the same, the other method.
    """

    set: Any
    other: Strategy

    def without_noise(self, trace: Trace, a_variable: str) -> Routine:
        d = trace.problem.dim
        if d > MOST or trace.problem.budget < 4 * (d + 1):
            trace.reason = f"values repeat, and {a_variable}, too few for finite differences"
            return (yield from self.other(trace))
        trace.reason = f"values repeat, {a_variable}, and the set has a projection"
        end = yield from self.checked(trace, Inside(self.set))
        if end.kind is not Ending.ITSELF or trace.stationary is not None or trace.noise > 0:
            return end
        trace.reason += "; f is the same within its radius"
        return (yield from self.other(trace))

    def in_noise(self, trace: Trace, why: str) -> Routine:
        trace.reason = why
        trace.fun = None
        return (yield from self.other(trace))


@dataclass(frozen=True)
class Inside:
    """`fd_fista` with a set, until it stands still, on y -> f(q(y)) in place of f.

    q(y) = P(c + (1 - s)(y - c)), with c and r the center and radius of a ball inside of the set and s = mu / (mu + r).
    For y in the set all of its differences fall into the set, since (1 - s) y + s c + (1 - s) mu u with |u| = 1 is a
    convex combination of y and c + r u. The projection P is for the one point of the first step that is farther away.
    The recommended point is y itself, which is in the set; it minimises f(q(y)), and is off by about s |y - c|. Where
    all values were the same, `Trace.stationary` is None at the end.
    """

    set: Any

    @property
    def name(self) -> str:
        return "fd_fista"

    def __call__(self, trace: Trace) -> Routine:
        problem = trace.problem
        dtype, shape = problem.x0.dtype, problem.variables.shapes[0]
        mu = 2.0**-20 if dtype == np.float64 else 2.0**-10
        ball = self.set.ball(problem.dim)
        center = ball.center if isinstance(ball.center, float) else ball.center.numpy()
        mu = min(mu, ball.radius / 100)
        s = mu / (mu + ball.radius)

        def at(y: Flat) -> Flat:
            x = torch.from_numpy(center + (1.0 - s) * (y.astype(np.float64) - center)).view(shape)
            return np.asarray(self.set.project_(x).view(-1).numpy().astype(dtype))

        seen: set[float] = set()

        def told(_: Points, values: Values) -> Values:
            if len(seen) < 2:
                seen.update(values)
            return values

        inner = Trace(problem, trace.left, trace.position, noise=trace.noise)
        strategy = UntilStill(fd_fista(self.set, mu=mu, inside=True))
        trace.began(self.name)
        trace.position, trace.fun = lambda: inner.position(), None
        end = yield from nested(strategy, inner, trace, asked=partial(_mapped, at), told=told)
        trace.stationary = inner.stationary if len(seen) > 1 else None
        return end


def _mapped(at: Callable[[Flat], Flat], request: Points) -> Points:
    return Points(lambda i: at(request.make(i)), len(request), request.rows)


def accelerated(penalty: Any) -> OfMenu:
    """`fd_fista` until it stands still."""
    return UntilStill(fd_fista(penalty), penalty=penalty)


def proximal(penalty: Any) -> OfMenu:
    """`zo_prox` with a rate and a radius that are measured."""
    return OfMenu(zo_prox(penalty, lr="auto", mu="auto", n=DIRECTIONS, central="auto"))


def valued(penalty: Any, variables: Variables) -> Callable[[Flat], float]:
    """r as a function of the flat x: the sum over the arrays of x0, each as the rows of a matrix where r is of rows."""

    def value(x: Flat) -> float:
        total, start = Sum(), 0
        for shape, size in zip(variables.shapes, variables.sizes, strict=True):
            part = torch.from_numpy(np.ascontiguousarray(x[start : start + size]))
            rows = shape[0] if len(shape) > 1 else size
            penalty.add_value(total, part.view(rows, -1) if penalty.unit == "row" else part)
            start += size
        return float(total.value)

    return value


def penalized(penalty: Any, method: Any) -> Strategy:
    """The strategy for f + penalty. TypeError or ValueError says what else to pass."""
    name = type(penalty).__name__
    if isinstance(penalty, type):
        raise TypeError(f"penalty={penalty.__name__} is a class; make one of it, such as sets.L1(0.01)")
    if not isinstance(penalty, Penalty):
        raise TypeError(
            f"penalty={name}(...) is none whose value zograd knows; pass sets.L1(weight) or sets.GroupL2(weight). A "
            f"set goes into constraints=, and a map of your own into method=methods.zo_prox(map)"
        )
    prox: Any = penalty
    if method == "auto":
        return AutoPenalized(prox)
    if method == "fd_fista":
        return accelerated(prox)
    if method == "zo_prox":
        return proximal(prox)
    given = repr(method) if isinstance(method, str) else getattr(method, "name", type(method).__name__)
    raise TypeError(
        f"penalty= goes with method 'auto', 'fd_fista' or 'zo_prox', and not with {given}; a method that is made has "
        f"its penalty inside: methods.zo_prox({name}(...), lr='auto')"
    )
