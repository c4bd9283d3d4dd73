"""L-BFGS-B of SciPy on gradients by finite differences, with the radius of the noise floor."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from zograd.api.ending import End, Ending
from zograd.api.strategies.base import Points, Routine, Trace, Values, points, uneven
from zograd.api.strategies.inverted import inverted
from zograd.api.strategies.ladder import RESOLVED, Ladder
from zograd.api.strategies.nested import nested
from zograd.api.variables import Flat, Variables

Differences: TypeAlias = Literal["forward", "central", "both"]
Asker: TypeAlias = Callable[[Points], Values]

MANY = 50
"""Pairs of steps and gradients that SciPy remembers up to 1,000 variables; above, its own 10."""

ALIKE = 1e-4
"""The share of the largest curvature above which another one is served by the same steps."""

SMALLEST = 1e-307
"""A normal number below which differences of values have lost their digits."""

FEW = 2
"""Iterations in a row without progress after which SciPy is stopped."""


CLEAR = 3.0
"""Standard deviations by which two values of a rough f have to differ."""

FINER = 2.0**-17
"""The smallest relative radius in float32 at the end, where f may be small, and its rounding with it."""


@dataclass(frozen=True)
class LBFGS:
    """SciPy's L-BFGS-B until it ends by itself, first on forward differences and then on central ones.

    The gradient of f at x costs d evaluations (2d central), all in one request. The radius balances noise and curvature
    (Moré and Wild 2012, "Estimating derivatives of noisy functions"):

        h_i = max(2 sqrt(noise / c), 2^-26 |x_i|),    c = |v^T H v| / |v|^2,    v a random direction.

    noise: the standard deviation of a value, at least the rounding of a number of its size. Where values on the ladder
    are the number f(x), f is a staircase, and q / sqrt(12) is noise, q the smallest difference of two values that were
    seen (Moré and Wild 2011, "Estimating computational noise": equal values are no slope). c is measured at the start
    on a ladder of radii, in some 4 to 20 evaluations (`zograd.api.strategies.ladder`), and with it the noise of values
    that repeat, but are rough, as those of a solver with a tolerance. Central differences take h^(2/3) times the cube
    root of the ladder's radius.
    Where bounds are wider than others by a factor of 1,000, variables are in units of their bounds' width.
    Where both have ended, the curvature along each variable, which central differences show, tells whether a soft one
    is still far from its minimum, while the stiff ones fill the mean c. Then it begins again with variables in units
    of their own, sqrt(P / c_i), P the drop that the slopes promise.
    The line search refuses a trial point that is worse than the last iterate whatever its gradient, so there one more
    evaluation, along the search line, takes the gradient's place. A value that is not finite counts as a wall.

    Memory: 100 vectors of d numbers in float64 (20 above 1,000 variables), and the points of a request one at a time.
    """

    differences: Differences = "both"
    rescales: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"L-BFGS-B (SciPy) on {self.differences.replace('both', 'forward, then central')} differences"

    def __call__(self, trace: Trace) -> Routine:
        trace.began(self.name)
        if (widths := trace.problem.widths) is not None and trace.problem.x0.dtype == np.float64:
            return (yield from self.rescaled(trace, trace.problem.x0.astype(np.float64), widths, self))
        search = _Search(trace)
        if (why := (yield from search.begin())) is not None:
            return End(Ending.ITSELF, why)
        end = End(Ending.ITSELF)
        for kind in ("forward", "central"):
            if self.differences in (kind, "both"):
                end = yield from search.solve(central=kind == "central")
        if self.differences == "both" and search.single and not search.coarse:
            search.least = FINER
            end = yield from search.solve(central=True)
        if self.differences == "both" and self.rescales and trace.stationary and not search.coarse:
            units = yield from search.units()
            if units is not None:
                trace.stationary = False
                end = End(Ending.ITSELF, "no lower point near x, but the slopes of soft variables promise one")
                if not search.single:
                    end = yield from self.rescaled(trace, search.x, units, _Rescaled())
        return end

    def rescaled(self, trace: Trace, x: Flat, units: Flat, again: LBFGS) -> Routine:
        """Begin again at x on z -> f(x + units z), from z = 0."""
        problem, zero = trace.problem, np.zeros_like(x)
        low, high = problem.lower, problem.upper
        inner = Trace(
            replace(
                problem,
                variables=Variables(zero),
                lower=None if low is None else (low - x) / units,
                upper=None if high is None else (high - x) / units,
            ),
            trace.left, lambda: zero, trace.fun, trace.values_at_start if trace.fun is None else [trace.fun],
            trace.noise,
        )  # fmt: skip

        def at(z: Flat) -> Flat:
            return problem.inside((x + units * z).astype(problem.x0.dtype))

        def asked(request: Points) -> Points:
            trace.fun = inner.fun
            return Points(lambda i: at(request.make(i)), len(request), request.rows)

        trace.position = lambda: at(inner.position())
        end = yield from nested(again, inner, trace, asked=asked)
        trace.fun, trace.stationary = inner.fun, inner.stationary
        return end


class _Rescaled(LBFGS):
    """The second round."""

    rescales: ClassVar[bool] = False


class _Search:
    """What both kinds of differences share: the lowest point so far, its value, the radius."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.problem = trace, trace.problem
        self.dtype = self.problem.x0.dtype
        self.single = self.dtype != np.float64
        self.x = np.array(trace.position(), dtype=np.float64)
        self.f = self.start = math.inf
        self.radius, self.curvature = 0.0, 0.0
        self.least = 2.0**-11 if self.single else 2.0**-26
        """The smallest radius of a variable, relative to it."""
        self.grid = 0.0
        """The width of the steps of a staircase."""
        self.rough = 0.0
        """The standard deviation of a roughness that repeats."""
        self.ripples = False
        """Whether f may be a smooth ripple on something else, near the start."""
        self.slope: Flat | None = None
        self.bends: Flat | None = None
        """The curvature along each variable where the last central differences resolve it, NaN elsewhere."""
        trace.position = lambda: self.x.astype(self.dtype)

    def given(self, x: Flat) -> Flat:
        """A point as f gets it: in the dtype of x0, within the bounds."""
        return self.problem.inside(x.astype(self.dtype))

    @property
    def coarse(self) -> float:
        """How far apart values have to be to tell more than the form of steps or of a roughness; 0 for a smooth f."""
        return max(self.grid, CLEAR * self.rough)

    @property
    def noise(self) -> float:
        """The uncertainty of a value at the lowest point."""
        measured = self.trace.noise if math.isfinite(self.trace.noise) else 0.0
        rounding = (2.0**-23 if self.single else 2.0**-52) * abs(self.f)
        return max(measured, self.grid / math.sqrt(12), self.rough, rounding, SMALLEST)

    def begin(self) -> Generator[Points, Values, str | None]:
        """f at the start, and the curvature along a random direction; why there is none, if so."""
        known = [f for f in self.trace.values_at_start if math.isfinite(f)]
        self.f = self.start = float(np.mean(known)) if known else (yield points([self.given(self.x)]))[0]
        if not math.isfinite(self.f):
            return f"f is {self.f} at x0; start where it is finite"
        self.trace.fun = self.f
        ladder = Ladder(self)
        yield from ladder()
        if not ladder.changed:
            return f"f did not change within {ladder.radius:.3g} of x0; scale x so that f feels such a change"
        self.radius, self.curvature, self.rough = ladder.radius, ladder.curvature, ladder.rough
        self.ripples, self.trace.rough = ladder.ripples, ladder.sure
        return None

    def centred(self, v: Flat) -> tuple[Flat, Flat]:
        """(y, w): the point nearest to x with y + w and y - w within the bounds; w is v where they leave room."""
        low, high = self.problem.lower, self.problem.upper
        if low is None or high is None or bool(np.all((self.x - abs(v) >= low) & (self.x + abs(v) <= high))):
            return self.x, v
        low, high = low.astype(np.float64), high.astype(np.float64)
        r = np.minimum(abs(v), (high - low) / 2)
        return np.clip(self.x, low + r, high - r), np.copysign(r, v)

    def stairs(self, seen: list[float]) -> float:
        """The smallest difference of values, where one of them is f(x) again and differences are no rounding."""
        if self.f not in seen:
            return 0.0
        values = np.unique([self.f, *(f for f in seen if math.isfinite(f))])
        width = float(np.min(np.diff(values), initial=math.inf))
        return width if 1e-6 * abs(self.f) < width < math.inf else 0.0

    def steps(self, x: Flat, *, central: bool) -> Flat:
        """h_i at x."""
        h = self.radius
        if self.curvature > 0:
            h = min(h, 2 * math.sqrt(self.noise / self.curvature))
        h = max(h, 1e-9 * self.radius)
        if central:
            h = h ** (2 / 3) * self.radius ** (1 / 3)
        return np.maximum(h, (self.least ** (2 / 3) if central else self.least) * np.abs(x))

    def gradient(self, ask: Asker, x: Flat, f: float, *, central: bool) -> Flat:
        """The gradient at x by differences; sides that leave the bounds or are not finite take the other one."""
        h = self.steps(x, central=central)
        d = x.size
        low, high = self.problem.lower, self.problem.upper
        if high is not None and low is not None:
            h = np.where((x + h > high) & (x - low > high - x), -h, h)
            h = np.where(high == low, 0.0, h)

        def at(i: int) -> Flat:
            y = x.copy()
            y[i % d] += h[i] if i < d else -h[i - d]
            return self.given(y)

        here = self.given(x)
        values = np.array(ask(Points(at, 2 * d if central else d)), dtype=np.float64)
        plus = values[:d]
        minus = values[d:] if central else np.full(d, f)
        up = self.given(x + h).astype(np.float64) - here
        down = self.given(x - h).astype(np.float64) - here if central else np.zeros(d)
        if central:
            with np.errstate(all="ignore"):
                second = plus - 2 * f + minus
                even = (np.abs(up + down) <= 0.01 * np.abs(up)) & (second >= RESOLVED * self.noise)
                self.bends = np.where(even, second / up**2, math.nan)
        bad_up, bad_down = ~np.isfinite(plus), ~np.isfinite(minus)
        plus, up = np.where(bad_up, f, plus), np.where(bad_up, 0.0, up)
        minus, down = np.where(bad_down, f, minus), np.where(bad_down, 0.0, down)
        width = up - down
        with np.errstate(divide="ignore", invalid="ignore"):
            g: Flat = np.where(width != 0, (plus - minus) / width, 0.0)
        return g

    def solve(self, *, central: bool) -> Routine:
        """Run SciPy from the lowest point."""
        from scipy.optimize import Bounds, minimize

        bounds = None
        if self.problem.lower is not None and self.problem.upper is not None:
            bounds = Bounds(self.problem.lower.astype(np.float64), self.problem.upper.astype(np.float64))
        idle, last, unit = 0, self.f, 1.0
        asked: list[float] = []

        def work(ask: Asker) -> Any:
            def counted(request: Points) -> Values:
                values = ask(request)
                asked.extend(values)
                return values

            def fun(x: Flat) -> tuple[float, Flat]:
                nonlocal unit
                f, g = value(x)
                if self.slope is g and unit == 1.0:
                    unit = _unit(g)
                return f * unit, g * unit

            def value(x: Flat) -> tuple[float, Flat]:
                first = self.slope is None or np.array_equal(x, self.x)
                f = self.f if first else counted(points([self.given(x)]))[0]
                if not first and not -math.inf < f < self.f + self.noise:
                    return self.refused(counted, x, f)
                g = self.gradient(counted, x, f, central=central)
                self.slope = g
                if f <= self.f:
                    self.x, self.f, self.trace.fun = np.array(x), f, f
                return f, g

            def after(intermediate_result: Any) -> None:
                nonlocal idle, last
                self.trace.counted(asked)
                asked.clear()
                floor = max(4 * self.noise, 2.0**-52 * (self.start - self.f))
                now = intermediate_result.fun / unit
                idle = idle + 1 if last - now <= floor else 0
                last = now
                if not self.coarse and not self.ripples:  # the budget may end before the next step
                    self.trace.stationary = self.at_rest()
                if idle >= FEW:
                    raise StopIteration

            options = {
                "maxiter": 10**9,
                "maxfun": 10**9,
                "ftol": 0.0,
                "gtol": 0.0,
                "maxls": 20,
                "maxcor": MANY if self.x.size <= 1000 else 10,
            }
            with np.errstate(over="ignore", invalid="ignore"):
                return minimize(
                    fun, self.x.copy(), jac=True, method="L-BFGS-B", bounds=bounds, callback=after, options=options
                )

        self.slope = None
        yield from inverted(work)
        if asked:
            self.trace.counted(asked)
        if self.coarse:
            self.trace.stationary = False
            return End(Ending.ITSELF, f"no lower point near x, as far as values show that lie {self.coarse:.2g} apart")
        if self.ripples:
            self.trace.stationary = False
            return End(Ending.ITSELF, "no lower point near x, which may be that of a ripple on f")
        self.trace.stationary = self.at_rest()
        return End(Ending.ITSELF, "no lower point near x: a local minimum, as far as finite differences show")

    def units(self) -> Generator[Points, Values, Flat | None]:
        """Units of the variables in which to begin again; None where no slope promises more than is known of f.

        Variables along which nothing is resolved are moved together, ever farther, and then one by one where the
        curvature that shows is not that of the others. 2 evaluations where they are alike.
        """
        if self.slope is None or self.bends is None:
            return None
        g, c = self.slope.copy(), self.bends.copy()
        low, high = self.problem.lower, self.problem.upper
        free = np.ones(g.size, dtype=bool)
        if low is not None and high is not None:
            free = (self.x > low) & (self.x < high)
        unseen = free & np.isnan(c)
        stiff = max(float(np.max(c[free & ~unseen], initial=0.0)), self.curvature)
        direction = uneven(self.problem.seed, g.size)
        r, farthest = self.radius, 1e10 * max(1.0, float(np.max(np.abs(self.x))))
        while np.any(unseen) and r <= farthest:
            v = np.where(unseen, r * direction, 0.0)
            if self.centred(v)[0] is not self.x:
                break
            plus, minus = yield points([self.given(self.x + v), self.given(self.x - v)])
            second = plus - 2 * self.f + minus
            if not math.isfinite(second):
                break
            if second >= RESOLVED * self.noise:
                group = second / float(v @ v)
                if group > ALIKE * stiff:
                    c[unseen] = group
                    break
                yield from self.one_by_one(unseen, r, g, c)
            r *= 30
        known = free & (c > 0)
        with np.errstate(over="ignore"):
            promised = float(np.sum(g[known] ** 2 / (2 * c[known]))) if np.any(known) else 0.0
        if not max(1e-6 * (self.start - self.f), 100 * self.noise) < promised < math.inf:
            return None
        if float(np.min(c[known])) > ALIKE * stiff:
            return None
        units = np.maximum(1.0, np.abs(self.x))
        units[known] = np.sqrt(promised / c[known])
        return units

    def one_by_one(self, unseen: Flat, r: float, g: Flat, c: Flat) -> Generator[Points, Values, None]:
        """Slopes and curvatures of unseen variables at the radius r, which are no longer unseen then."""
        which = np.flatnonzero(unseen)
        n = which.size

        def at(i: int) -> Flat:
            y = self.x.copy()
            y[which[i % n]] += r if i < n else -r
            return self.given(y)

        values = np.array((yield Points(at, 2 * n)), dtype=np.float64)
        plus, minus = values[:n], values[n:]
        with np.errstate(all="ignore"):
            second = plus - 2 * self.f + minus
            seen = np.isfinite(second) & (second >= RESOLVED * self.noise)
        c[which[seen]], g[which[seen]] = second[seen] / r**2, (plus - minus)[seen] / (2 * r)
        unseen[which[seen]] = False

    def refused(self, ask: Asker, x: Flat, f: float) -> tuple[float, Flat]:
        """(value, gradient) at a trial point that the line search will refuse: only the slope along its line counts."""
        p = x - self.x
        length2 = float(p @ p)
        if not math.isfinite(f):
            wall = 10 * max(abs(self.f), self.start - self.f, 1e-300)
            return self.f + wall, p * (2 * wall / length2)
        t = float(np.max(self.steps(x, central=False))) / math.sqrt(length2)
        (beyond,) = ask(points([self.given(x - t * p)]))
        along = (f - beyond) / t if math.isfinite(beyond) else 2 * (f - self.f)
        return f, p * (along / length2)

    def at_rest(self) -> bool:
        """Whether moving along the gradient promises less than a millionth of what was gained, or than the noise."""
        if self.slope is None or not np.any(self.slope):  # f may be constant around x, such as a rounded one
            return self.f < self.start
        g = self.slope
        if self.problem.lower is not None and self.problem.upper is not None:
            g = np.where((self.x <= self.problem.lower) & (g > 0) | (self.x >= self.problem.upper) & (g < 0), 0.0, g)
        with np.errstate(over="ignore"):
            promised = float(g @ (g / (2 * max(self.curvature, SMALLEST))))
        return promised <= max(1e-6 * (self.start - self.f), 100 * self.noise)


def _unit(g: Flat) -> float:
    """A power of two that brings slopes into the range in which their squares are numbers; 1 where they are."""
    size = float(np.max(np.abs(g), initial=0.0))
    exponent = math.frexp(size)[1]
    return 1.0 if abs(exponent) < 64 or not 0 < size < math.inf else math.ldexp(1.0, max(min(-exponent, 1000), -1000))
