"""Finite differences along random directions: g = (1/n) sum_j D_j v_j, D_j the difference quotient along v_j."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.sums import mean
from zograd.core.vector import Array, Vector, combination
from zograd.estimators.base import Estimator


def positive_count(n: int, least: int = 1) -> None:
    if n < least or n != int(n):
        raise ValueError(f"an estimator needs n >= {least} directions, got n={n}")


def pairs(v: Iterable[Vector], mu: float) -> list[Query]:
    """x + mu v_1, x - mu v_1, x + mu v_2, ..."""
    return [Query(side * mu * vj) for vj in v for side in (1.0, -1.0)]


def slopes(f: Sequence[float], mu: float) -> Array:
    """D_j = (f(x + mu v_j) - f(x - mu v_j)) / (2 mu) from the losses at `pairs`."""
    return np.array(_slopes(f, mu))


def _slopes(f: Sequence[float], mu: float) -> list[float]:
    """`slopes` as a list: of a few numbers, an array costs more than what is done with it."""
    return [(plus - minus) / (2 * mu) for plus, minus in zip(f[::2], f[1::2], strict=True)]


@dataclass(frozen=True, slots=True)
class Central(Estimator[None]):
    """g = (1/n) sum_j D_j v_j with D_j = (f(x + mu v_j) - f(x - mu v_j)) / (2 mu).

    Costs 2 n evaluations. Bias O(mu^2), zero on quadratics. Variance (d - 1)/n |g|^2 for laws of fixed norm. A pair
    with a value that is not finite is left out, and the mean is over the others. SPSA (Spall 1992), MeZO (Malladi et
    al. 2023, Definition 1).

    clip: C bounds each slope, D_j <- min(max(D_j, -C), C): the directional-derivative clipping of QZO (arXiv
    2505.13430). Not unbiased, as the paper says, but shrunk: E[g] = (2 Phi(C/|grad f|) - 1) grad f for Gaussian
    directions, so the direction is exact and the length saturates.
    """

    n: int = 1
    clip: float | None = None

    takes_failures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive_count(self.n)
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip bounds the slopes and must be > 0, got {self.clip}; use None not to clip")

    @property
    def evaluations(self) -> int:
        return 2 * self.n

    def __call__(self, ask: Ask) -> Routine[None]:
        v = [ask.draw(j) for j in range(self.n)]
        f = yield pairs(v, ask.mu)
        if not all(map(math.isfinite, f)):
            alive = [j for j in range(self.n) if math.isfinite(f[2 * j]) and math.isfinite(f[2 * j + 1])]
            f, v = [f[i] for j in alive for i in (2 * j, 2 * j + 1)], [v[j] for j in alive]
            if not alive:
                return Estimate(Vector(), math.nan, [], None)
        D = _slopes(f, ask.mu)
        if self.clip is not None:
            D = [min(max(Dj, -self.clip), self.clip) for Dj in D]
        return Estimate(combination([Dj / len(v) for Dj in D], v), mean(f), f, None)


@dataclass(frozen=True, slots=True)
class Richardson(Estimator[None]):
    """g = (1/n) sum_j (4 D_j(mu/2) - D_j(mu)) / 3 v_j, D_j(m) = (f(x + m v_j) - f(x - m v_j)) / (2 m).

    Costs 4 n evaluations. The bias of D(m) is a series in m^2 whose first term cancels: O(mu^4), zero on polynomials
    of degree 4. Noise of deviation s in f enters with deviation 1.90 s / mu, against 0.71 s / mu for `Central`.
    Worth it where mu has to be large: noisy losses with a strong third derivative. Richardson (1911).
    """

    n: int = 1

    several_radii: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive_count(self.n)

    @property
    def evaluations(self) -> int:
        return 4 * self.n

    def __call__(self, ask: Ask) -> Routine[None]:
        v = [ask.draw(j) for j in range(self.n)]
        f = yield [Query(side * m * vj) for vj in v for m in (ask.mu, ask.mu / 2) for side in (1.0, -1.0)]
        plus, minus, plus_half, minus_half = np.array(f).reshape(self.n, 4).T
        wide, narrow = (plus - minus) / (2 * ask.mu), (plus_half - minus_half) / ask.mu
        g = combination((4 * narrow - wide) / (3 * self.n), v)
        return Estimate(g, mean(f), f, None)


@dataclass(frozen=True, slots=True)
class Forward(Estimator[None]):
    """g = (1/n) sum_j (f(x + mu v_j) - f(x)) / mu v_j.

    Costs n + 1 evaluations. Bias O(mu^2) for symmetric laws (odd moments vanish); the curvature term mu v^T H v / 2
    adds variance, so mu matters more than in `Central`. A direction whose value is not finite is left out, and the mean
    is over the others; without f(x) there is no estimate.
    """

    n: int = 1

    one_sided: ClassVar[bool] = True
    takes_failures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive_count(self.n)

    @property
    def evaluations(self) -> int:
        return self.n + 1

    def __call__(self, ask: Ask) -> Routine[None]:
        v = [ask.draw(j) for j in range(self.n)]
        f0, *f = yield [Query(), *(Query(ask.mu * vj) for vj in v)]
        if not all(map(math.isfinite, (f0, *f))):
            alive = [j for j in range(self.n) if math.isfinite(f[j])]
            if not (alive and math.isfinite(f0)):
                return Estimate(Vector(), math.nan, [math.nan], None)
            f, v = [f[j] for j in alive], [v[j] for j in alive]
        g = combination((np.array(f) - f0) / (ask.mu * len(v)), v)
        return Estimate(g, f0, [f0, *f], None)


@dataclass(frozen=True, slots=True)
class ForwardOrCentral(Estimator[None]):
    """`Forward(n)` while f repeats, `Central(n)` while it is noisy, as measured by `lr="auto"` or `mu="auto"`.

    At the same number of evaluations, forward differences have nearly twice as many directions, so half the variance
    of `Central` where f has no noise. Noise of deviation s enters a slope with sqrt(2) s / mu in place of
    s / (sqrt(2) mu), so twice the variance of `Central` where noise dominates. Costs n + 1 or 2 n evaluations. One
    direction is taken to both sides, since that costs no more.

    It takes differences to both sides where f(x) is to be evaluated twice (`Ask.repeats`): in the first steps, when
    values of f(x) have differed, where curvature or kinks are most of a one-sided slope, and now and then. Without a
    controller that measures, it is `Forward`.
    """

    n: int = 4

    one_sided: ClassVar[bool] = True
    takes_failures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive_count(self.n)

    @property
    def evaluations(self) -> int:
        return 2 * self.n

    @property
    def fewest_evaluations(self) -> int:
        return min(self.n + 1, 2 * self.n)

    def __call__(self, ask: Ask) -> Routine[None]:
        chosen = Central(self.n) if self.n == 1 or ask.repeats > 1 else Forward(self.n)
        return (yield from chosen(ask))


class Spread(NamedTuple):
    """slope = std_j(f(x + mu v_j)) / mu (population standard deviation), near |grad f| for Rademacher directions."""

    slope: float


@dataclass(frozen=True, slots=True)
class OneSided(Estimator[Spread]):
    """The estimate of `Forward`, with the spread of the n losses measured alongside: the batched estimator of FZOO.

    g = (1/n) sum_j (f_j - f0) / mu v_j  and  slope = std(f_1..f_n) / mu, with
    E[slope] = |grad f| E sqrt(chi^2_{n-1} / n) to first order: 0.80, 0.90, 0.98 of |grad f| for n = 4, 8, 32.
    Costs n + 1 evaluations; n >= 2, since one loss has no spread. A loss that is not finite is left out, where two
    others are. FZOO (arXiv 2506.09034), Eq. 3 and Prop. 3.2.
    """

    n: int = 8

    one_sided: ClassVar[bool] = True
    takes_failures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive_count(self.n, 2)

    @property
    def evaluations(self) -> int:
        return self.n + 1

    @property
    def aux(self) -> type[Spread]:
        return Spread

    def __call__(self, ask: Ask) -> Routine[Spread]:
        e = yield from Forward(self.n)(ask)
        if len(e.losses) < 3:  # f(x) and one more
            return Estimate(Vector(), math.nan, [math.nan], Spread(math.nan))
        slope = float(np.std(e.losses[1:])) / ask.mu
        return Estimate(e.vector, e.loss, e.losses, Spread(slope))
