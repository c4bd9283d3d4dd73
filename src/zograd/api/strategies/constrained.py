"""Constraints in front of any strategy: it minimizes a Lagrangian whose multipliers follow the measured violation."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from zograd.api.constraints import FEASIBLE, Evaluated, Rows
from zograd.api.ending import End, Ending
from zograd.api.strategies.auto import FEW_VARIABLES, REPEATS, Auto, evolution
from zograd.api.strategies.base import Points, Routine, Strategy, Trace, Values, points, rms
from zograd.api.strategies.lagrangian import LEAST, Evaluation, Lagrangian, Standing
from zograd.api.strategies.lbfgs import LBFGS
from zograd.api.strategies.nested import nested
from zograd.api.strategies.of_menu import OfMenu
from zograd.api.strategies.sqp import SQP, STATIONARY, Finish
from zograd.api.strategies.tracking import Tracking
from zograd.api.strategies.units import GROSS, LITTLE, SETTLED, SPREAD, at_rest, at_start, in_units, powers, softer
from zograd.api.variables import Flat
from zograd.control import Augmented, Dual
from zograd.methods.defaults import black_box

AIM = 1e-9
"""Relative violation at which the outer loop may end."""

OUTER = 60
"""Minimizations of a Lagrangian, at most."""

AIM_SQP = 1e-8
"""Relative violation at which SLSQP counts as converged."""

NEAR = 1e-2
"""Relative violation above which other units are of no help to SLSQP, as where constraints contradict each other."""

QUADRATIC = 200
"""Variables up to which SLSQP is tried first; its quadratic programs take d^3."""

CHANGES = 3
"""Times that the units of the variables may change."""

DIFFER = End(Ending.ITSELF, "values that were equal at x0 differ elsewhere")
ROUGH = End(Ending.ITSELF, "values are too rough for differences")
CONVERGED = End(Ending.ITSELF, "multipliers and point have converged")

DIRECTIONS = 4
"""Along which slopes are measured; up to so many variables, along each of them."""


@dataclass(frozen=True)
class Constrained:
    """Minimize f subject to rows c <= 0 and c = 0, by any strategy for problems without them.

    Where values repeat, SLSQP on finite differences comes first, up to 200 variables (`SQP`); its end counts where the
    gradient of the Lagrangian vanishes. Otherwise L-BFGS-B on finite differences minimizes the augmented Lagrangian
    (`zograd.control.Augmented`) for fixed multipliers, to a tolerance that shrinks with the violation; then they move.
    A point is evaluated once, and its f and c give L for all multipliers. Rows are divided by their slopes at x0,
    measured at up to 4 points. Rows that have to stay feasible, and those beyond which f turned out to be undefined,
    get a logarithmic barrier -t sum log(-c) instead, with a t that falls to 1e-7 (Fiacco and McCormick 1968).

    Where values do not repeat, or another strategy is asked for, that strategy runs once (again where it ends early),
    and the multipliers move after every 20 requests, and 4 (d + 1) evaluations at least, by the means of c in them, as
    Atamna, Auger and Hansen 2016 do for CMA-ES. At the end, at most 64 evaluations measure f and c at the result. Where
    that is not feasible, steps by the measured slopes of c go back (`zograd.api.strategies.lagrangian.back`): three
    have evaluations that are kept for them, and up to 20 are made where some are left.

    Where bounds are wider than others by a factor of 1,000, variables are in units of their bounds' width. Where
    differences end although some variables promise more, as a soft one beside a stiff one, or although the violation
    is worth more, all begins again in units that are measured there (`zograd.api.strategies.units`). Where values
    repeat, but are too rough for differences, they count as noisy.

    inner: the strategy; `Auto`: by its rule. dual: None is `Augmented(rho=10)` in units of the slope of f. units: of
    the variables, those of x0 where it is None; changes: how often they may still change.
    """

    inner: Strategy
    rows: Rows
    dual: Dual | None = None
    units: Flat | None = field(default=None, compare=False)
    changes: int = CHANGES

    @property
    def name(self) -> str:
        return "augmented Lagrangian"

    def __call__(self, trace: Trace) -> Routine:
        self.rows.units = self.units
        search = ConstrainedSearch(self, trace)
        why = yield from search.begin()
        if why is not None:
            return End(Ending.ITSELF, why)
        d = trace.problem.dim
        automatic = isinstance(self.inner, Auto)
        if self.units is None and (automatic or isinstance(self.inner, LBFGS)) and search.units is not None:
            start = Evaluation(trace.problem.x0.copy(), search.first)
            return (yield from self.again(trace, start, search.units, trace.values_at_start))
        by_differences = search.repeats and trace.left >= 4 * (d + 1)
        if (automatic and by_differences) or isinstance(self.inner, LBFGS):
            trace.reason = "values repeat" if automatic else ""
            if automatic and d <= QUADRATIC and not np.any(self.rows.guarded):
                end = yield from search.quadratic()
                if end is not None:
                    return end
            end = yield from search.outer_loop()
            if search.repeats or not automatic:
                return end
        inner = self.inner
        if automatic:
            few = d <= FEW_VARIABLES and not search.repeats
            inner = evolution(replace(trace.problem, thorough=False)) if few else OfMenu(black_box("zo_sgd", d))
            why = "values are rough" if search.rough else "values differ"
            trace.reason = "values repeat, and the budget is small" if search.repeats else why
        search.begin_tracking()
        return (yield from Tracking(search)(inner))

    def again(self, trace: Trace, start: Evaluation, units: Flat, values: Sequence[float]) -> Routine:
        """Begin again at a point in other units."""
        whole = units if self.units is None else units * self.units
        strategy = replace(self, units=whole, changes=self.changes - 1)
        return (yield from in_units(strategy, trace, start, units, values))


class ConstrainedSearch:
    """One run of `Constrained`."""

    def __init__(self, owner: Constrained, trace: Trace) -> None:
        self.owner, self.rows, self.trace, self.problem = owner, owner.rows, trace, trace.problem
        self.repeats = True
        self.units: Flat | None = None
        """In which to begin, where the variables' own are not alike, or far from 1."""
        self.best: Evaluation | None = None
        self.strictly: Evaluation | None = None
        """The lowest value with all rows of the first kind below zero."""
        self.rough = False
        """Whether values repeat, but are too rough for differences; then they count as noisy."""
        self.failed: list[Flat] = []
        self.history: list[Flat] = []
        self.merit = Lagrangian(self.rows, owner.dual or Augmented(), 1.0, self.rows.guarded.copy())

    def begin(self) -> Generator[Points, Values, str | None]:
        """f(x0) for its noise, and the slopes of f and c there; why there is no start, if so."""
        trace, x0 = self.trace, self.problem.x0
        values = list(trace.values_at_start)
        wanted = (REPEATS if isinstance(self.owner.inner, Auto) else 1) - len(values)
        if wanted > 0:
            values += yield points([x0] * min(wanted, max(trace.left, 1)))
        first = values[0]
        if not isinstance(first, Evaluated):
            raise TypeError("a search with constraints has to be told values with constraint values: Evaluated(f, c)")
        if len(first.c) != len(self.rows.kinds):
            raise ValueError(f"c has {len(first.c)} values, but there are {len(self.rows.kinds)} constraints")
        trace.values_at_start = values
        here = [v for v in values if isinstance(v, Evaluated) and math.isfinite(v)]
        if not here:
            guarded = np.flatnonzero(self.rows.guarded & ~(first.c < 0))
            if guarded.size:
                k = int(guarded[0])
                return f"{self.rows.names[k]} has keep_feasible, but is {first.c[k]:.3g} at x0; start where it is < 0"
            return "f or a constraint is not finite at x0; start where they are"
        self.mean(here)
        outside = np.flatnonzero(self.rows.guarded & (here[0].c >= 0))
        if outside.size:
            k = int(outside[0])
            return f"{self.rows.names[k]} has keep_feasible, but is {here[0].c[k]:.3g} at x0; start where it is < 0"
        start = Evaluation(x0.copy(), here[0])
        self.first = here[0]
        unit = yield from self.slopes(start)
        dual = self.owner.dual or Augmented(rho=10.0, grow=10.0)
        self.merit = Lagrangian(self.rows, dual, unit, self.rows.guarded.copy())
        self.seen(start)
        return None

    def begin_tracking(self) -> None:
        """Zero multipliers, and a penalty that stays, for a search in which L never is at its minimum."""
        merit = self.merit
        dual = self.owner.dual or Augmented(rho=10.0, grow=1.0)
        self.merit = Lagrangian(self.rows, dual, merit.unit, self.rows.guarded.copy())

    def mean(self, here: list[Evaluated]) -> None:
        """Whether values repeat, and their noise."""
        shared = self.problem.shared  # those of x0 have one batch, and those of other steps another one
        self.repeats = not shared and all(v == here[0] and np.array_equal(v.c, here[0].c) for v in here)
        self.trace.noise = (
            float(np.std([float(v) for v in here], ddof=1)) if len(here) > 1 and not self.repeats else 0.0
        )
        if shared:
            self.trace.noise = math.nan
        self.trace.fun = float(np.mean([float(v) for v in here]))

    def slopes(self, start: Evaluation) -> Generator[Points, Values, float]:
        """Scales of the rows and of f, from a few points about x0.

        Where values repeat, the points are near. A slope that vanishes, as of |x|^2 at 0, is measured farther out.
        """
        problem = self.problem
        length = max(1.0, rms(start.x))
        least = 1e-3 * np.abs(np.append(start.value.c, float(start.value)))
        axes = problem.dim <= DIRECTIONS
        far = problem.radius / (1.0 if axes else math.sqrt(problem.dim))
        slope = length * (yield from self.around(start, 1e-4 * length if self.repeats else far))
        widths = problem.widths
        self.units = None if widths is None else powers(widths)
        if self.units is None and self.repeats:
            here = np.append(start.value.c, float(start.value))
            self.units = at_start(problem, here, slope, sized=bool(np.any(self.rows.guarded)))
        if self.repeats and np.any(slope < least):
            again = length * (yield from self.around(start, far))
            slope = np.where(slope < least, np.maximum(slope, again), slope)
        if np.any(self.rows.linear):
            a, _ = self.rows.matrix
            slope[:-1][self.rows.linear] = np.linalg.norm(a, axis=1) * length
        slope = np.maximum(slope, least)
        slope = np.where(slope > 0, slope, 1.0)
        self.rows.scale = slope[:-1]
        return float(slope[-1])

    def around(self, start: Evaluation, r: float) -> Generator[Points, Values, Flat]:
        """|grad| of the rows and of f, from points at the distance r along an axis, or r sqrt(d) along random ones."""
        problem = self.problem
        d, x0 = problem.dim, start.x.astype(np.float64)
        axes = d <= DIRECTIONS
        v = np.eye(d) if axes else np.random.default_rng(problem.seed).standard_normal((DIRECTIONS, d))
        low, high = problem.lower, problem.upper
        if low is not None and high is not None:
            v = np.where((x0 + r * v > high) | (x0 + r * v < low), -v, v)
        ends = [problem.inside((x0 + r * u).astype(problem.x0.dtype)) for u in v]
        values = (yield points(ends)) if self.trace.left > len(ends) else []
        found = []
        for end, value in zip(ends, values, strict=False):
            step = float(np.linalg.norm(end - x0)) / (1.0 if axes else math.sqrt(d))
            if isinstance(value, Evaluated) and math.isfinite(value) and step > 0:
                self.seen(Evaluation(end, value))
                found.append(np.abs(np.append(value.c - start.value.c, float(value) - float(start.value))) / step)
        many = np.square(found) if found else np.zeros((1, len(self.rows.kinds) + 1))
        size: Flat = np.sqrt(np.sum(many, axis=0) if axes else np.mean(many, axis=0))
        return size

    def seen(self, point: Evaluation) -> None:
        """Keep a point where it is better than those so far: feasible ones by f, others by their violation."""
        if not self.repeats:
            return
        value = point.value
        strict = bool(np.all(value.c[self.rows.one_sided] < 0))
        if strict and (self.strictly is None or value < self.strictly.value):
            self.strictly = point
        if self.best is None or self.better(value, self.best.value):
            self.recommend(point)

    def beaten(self, here: Evaluation) -> bool:
        """Whether a feasible point is known that is clearly lower."""
        if self.best is None or self.rows.violation(self.best.value) > FEASIBLE / 10:
            return False
        pull = 1 + float(np.max(np.abs(self.merit.multipliers(None) * self.rows.scale), initial=0.0)) / self.merit.unit
        return bool(self.best.value < here.value - 1e-6 * self.merit.unit * pull)

    def better(self, one: Evaluated, other: Evaluated) -> bool:
        """Whether an evaluation beats another: feasible ones by f, others by their violation."""

        def rank(value: Evaluated) -> tuple[float, float]:
            excess = self.rows.violation(value)
            return (0.0 if excess <= FEASIBLE / 10 else excess, float(value))

        return rank(one) < rank(other)

    def recommend(self, point: Evaluation, *, settled: bool = False) -> None:
        """The point of the result from now on."""
        self.best = point
        trace = self.trace
        trace.position, trace.fun = (lambda: point.x), float(point.value)
        trace.standing = Standing(point.x, point.value, self.multipliers(point.value.c), settled=settled)
        trace.stationary = settled

    def multipliers(self, c: Flat | None) -> Flat:
        """The multipliers of now; with one search, their mean over the last half of the periods."""
        found = self.merit.multipliers(c)
        if self.history:
            late = np.mean(self.history[len(self.history) // 2 :], axis=0)
            found = np.where(self.merit.guard, found, late)
        return found

    def quadratic(self) -> Generator[Points, Values, End | None]:
        """SLSQP; None where it did not end at a minimum, or values turned out to differ."""
        trace, merit, start = self.trace, self.merit, self.best
        assert start is not None
        search = SQP(self.problem, self.rows, merit.unit, lambda x, value: self.seen(Evaluation(x, value)))
        end = yield from search(trace, start.x, start.value)
        if end is None:
            trace.reason += "; f or a constraint is not finite at some points"
            return None
        here = Evaluation(end.x, end.value)
        self.seen(here)
        if (yield from self.differs(here)):
            return None
        weights = end.multipliers / self.rows.scale * merit.unit
        minimum = (
            end.residual <= STATIONARY
            and self.rows.violation(end.value) <= AIM_SQP
            and not self.beaten(here)
            and (end.resolved or (yield from at_rest(self.problem, trace, here, weights)))
        )
        known = end.most[end.most > 0]
        unlike = known.size > 0 and np.max(known) > SPREAD * np.min(known)
        if minimum or (unlike and self.rows.violation(end.value) <= NEAR):
            units = yield from self.softer(here, end, weights)
            if units is not None and self.owner.changes > 0:
                best = self.best or here
                return (yield from self.owner.again(trace, best, units, [best.value] * REPEATS))
            minimum = minimum and units is None
        if not minimum:
            return None
        if self.first < end.value and self.rows.violation(self.first) <= AIM_SQP:  # it began at the minimum
            here = Evaluation(self.problem.x0.copy(), self.first)
        merit.state["multipliers"] = end.multipliers.tolist()
        self.recommend(here, settled=True)
        return CONVERGED

    def softer(self, here: Evaluation, end: Finish, weights: Flat) -> Generator[Points, Values, Flat | None]:
        """Units for another round, where some variables promise more of the Lagrangian than f has changed so far."""
        unit = self.merit.unit
        change = self.change(here)
        price = float(np.abs(weights) @ self.rows.excess(here.value.c))
        most = unit * end.most
        which = np.flatnonzero(np.abs(unit * end.rest) > SETTLED * most)
        return (yield from softer(self.problem, here, weights, price, which, most, change, LITTLE))

    def change(self, here: Evaluation) -> float:
        """By how much f has changed since x0, or f where it is more, as at a minimum in which a search begins."""
        return max(abs(float(self.first) - float(here.value)), abs(float(here.value)))

    def gross(self, here: Evaluation) -> Generator[Points, Values, Flat | None]:
        """The same at the end of the outer loop, from all variables, and for what is far from a minimum."""
        every = np.arange(self.problem.dim)
        weights = self.multipliers(None)
        return (yield from softer(self.problem, here, weights, 0.0, every, None, self.change(here), GROSS))

    def differs(self, here: Evaluation) -> Generator[Points, Values, bool]:
        """Whether a second evaluation of a point gives other values; then they do not repeat."""
        if self.trace.left < 2:
            return False
        (again,) = yield points([here.x])
        self.repeats = bool(again == here.value and np.array_equal(getattr(again, "c", ()), here.value.c))
        if not self.repeats:
            self.trace.noise = abs(float(again) - float(here.value)) / math.sqrt(2)
        return not self.repeats

    def outer_loop(self) -> Routine:
        """Minimize L for fixed multipliers, move them, until both have come to rest."""
        trace, merit = self.trace, self.merit
        if not self.repeats:
            return DIFFER
        trace.began(f"{self.owner.name} by {LBFGS('forward').name}")
        assert self.best is not None
        here = self.best
        if np.any(merit.guard):
            here = self.strictly or here
        excess, finest, idle = math.inf, 0, 0
        for outer in range(OUTER):
            tolerance = merit.unit * max(0.1 * min(1e-2 * 0.1**outer, excess**2), 1e-15)
            if np.any(merit.guard):
                tolerance = max(tolerance, 1e-3 * merit.t * merit.unit)
            method = LBFGS("forward" if outer < 3 or excess > 1e-4 else "central")
            there = yield from self.minimized(method, here, tolerance)
            if self.rough:
                self.repeats = False
                return ROUGH
            if there is None:
                return End(Ending.BUDGET)
            if self.blocked():
                assert self.strictly is not None
                here = self.strictly
                merit = self.merit
                excess = math.inf
                continue
            here = there
            now = self.rows.violation(here.value)
            moved = merit.observe(here.value.c)
            barrier = bool(np.any(merit.guard))
            if ((now <= AIM and moved <= 1e-5) or finest >= 5) and (not barrier or merit.t <= LEAST):
                units = None if barrier else (yield from self.gross(here))
                if units is not None and self.owner.changes > 0:
                    best = self.best or here
                    return (yield from self.owner.again(trace, best, units, [best.value] * REPEATS))
                if self.beaten(here) or units is not None:
                    return End(Ending.ITSELF, "the Lagrangian has no minimum as low as a feasible point that was seen")
                if now <= FEASIBLE:
                    self.recommend(here, settled=True)
                    return CONVERGED
                return End(Ending.ITSELF, "the violation does not fall any more")
            idle = idle + 1 if now > 0.5 * excess else 0
            finest = finest + 1 if (idle > 3 and now <= FEASIBLE) or idle > 12 else 0
            excess = min(now, excess)
            if barrier:
                merit.t = max(merit.t / 10, LEAST)
            if outer in (1, 4) and (yield from self.differs(here)):
                return DIFFER
        if self.rows.violation(here.value) <= FEASIBLE:
            self.recommend(here)
        return End(Ending.ITSELF, f"{OUTER} minimizations of the Lagrangian did not settle the multipliers")

    def blocked(self) -> bool:
        """Whether f is undefined beyond rows that have no barrier yet; then they get one."""
        merit, rows = self.merit, self.rows
        if not self.failed or self.strictly is None:
            return False
        beyond = np.zeros(len(rows.kinds), dtype=bool)
        for c in self.failed:
            beyond |= ~(c <= 0) & rows.one_sided
        self.failed.clear()
        if not np.any(beyond & ~merit.guard):
            return False
        self.merit = Lagrangian(rows, merit.dual, merit.unit, merit.guard | beyond)
        self.trace.reason += f"; f is not finite beyond {rows.names[int(np.argmax(beyond))]}, which got a barrier"
        return True

    def minimized(
        self, strategy: Strategy, start: Evaluation, tolerance: float
    ) -> Generator[Points, Values, Evaluation | None]:
        """The lowest point of L from `start`; None when the budget is used."""
        trace, merit = self.trace, self.merit
        best, lowest = start, merit(start.value)
        inner = Trace(self.problem, trace.left, lambda: start.x, lowest, [lowest], 0.0)
        steps: list[float] = []

        def told(request: Points, values: Values) -> Values:
            nonlocal best, lowest
            answers = [merit(v) for v in values]
            for i, value in enumerate(values):
                if isinstance(value, Evaluated) and math.isnan(value) and len(self.failed) < 100:
                    self.failed.append(value.c)
                if answers[i] < lowest:
                    best, lowest = self.point(request, i, value), answers[i]
                self.consider(request, i, value)
            return answers

        def over() -> End | None:
            steps.extend([lowest] * (inner.steps - len(steps)))
            return CONVERGED if len(steps) > 2 and steps[-3] - steps[-1] <= tolerance else None

        end = yield from nested(strategy, inner, trace, told=told, over=over)
        self.rough |= inner.rough
        return None if end.kind is Ending.BUDGET else best

    def point(self, request: Points, i: int, value: Any) -> Evaluation:
        return Evaluation(self.problem.inside(request.make(i)), value)

    def consider(self, request: Points, i: int, value: float) -> None:
        """`seen`, but the point is made only where it is better."""
        if not (self.repeats and isinstance(value, Evaluated) and math.isfinite(value)):
            return
        better = self.best is None or self.better(value, self.best.value)
        strict = (self.strictly is None or value < self.strictly.value) and bool(
            np.all(value.c[self.rows.one_sided] < 0)
        )
        if better or strict:
            self.seen(self.point(request, i, value))
