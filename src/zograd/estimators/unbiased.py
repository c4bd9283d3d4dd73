"""Unbiased derivatives from differences: a telescoping series of radii, of which one random term is evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.sums import mean
from zograd.core.vector import Array, Vector, combination
from zograd.estimators.base import Estimator
from zograd.estimators.differences import positive_count


class Radii(Protocol):
    """Radii mu_k = mu tail(k), with tail(1) = 1 falling to 0; level k then has probability ~ mu_k - mu_{k+1}."""

    def tail(self, k: int) -> float:
        """P(N >= k) of the law of levels N = 1, 2, ..."""


@dataclass(frozen=True, slots=True)
class Geometric:
    """mu_k = mu c^(k - 1), p_k = (1 - c) c^(k - 1)."""

    c: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.c < 1:
            raise ValueError(f"the ratio c of geometric radii must lie in (0, 1), got {self.c}")

    def tail(self, k: int) -> float:
        return float(self.c ** (k - 1))


@dataclass(frozen=True, slots=True)
class Zipf:
    """p_k = k^-s / zeta(s), mu_k = mu (1 - sum_{j < k} p_j): the first level more often, so fewer evaluations."""

    s: float = 3.0

    def __post_init__(self) -> None:
        if not self.s > 1:
            raise ValueError(f"the exponent s of Zipf radii must be > 1, got {self.s}")

    def tail(self, k: int) -> float:
        return zeta_tail(self.s, k) / zeta_tail(self.s, 1)


def zeta_tail(s: float, k: int) -> float:
    """sum_{j >= k} j^-s by Euler and Maclaurin behind the term 20; relative error below 1e-14 for s > 1."""
    a = max(k, 20)
    corrections = a ** (1 - s) / (s - 1) + a**-s / 2 + s * a ** (-s - 1) / 12
    corrections -= s * (s + 1) * (s + 2) * a ** (-s - 3) / 720
    corrections += s * (s + 1) * (s + 2) * (s + 3) * (s + 4) * a ** (-s - 5) / 30240
    return float(math.fsum(j**-s for j in range(k, a)) + corrections)


def deepest_level(mu: float, radii: Radii, noise: float, scale: float = 1.0) -> int:
    """The largest number of levels with mu_{levels + 1} >= sqrt(noise) scale, at least 1.

    noise: relative error of a loss value, such as 2^-24 where it is computed in float32. scale: over which f changes
    by its own size. Below that radius a difference of two losses is mostly rounding.
    """
    if mu * radii.tail(2) < math.sqrt(noise) * scale:
        return 1
    levels = 1
    while levels < 1000 and mu * radii.tail(levels + 2) >= math.sqrt(noise) * scale:
        levels += 1
    return levels


Points: TypeAlias = Literal[1, 2, 3, 4]


@dataclass(frozen=True, slots=True)
class Unbiased(Estimator[None]):
    """g = (1/n) sum_j P_k(v_j) v_j with E[P_k] = D(mu_{L+1}): no bias but that of the smallest radius, at any mu.

    With D(m) = (f(x + m v) - f(x)) / m, radii mu_1 = mu > mu_2 > ... > mu_{L+1} (`radii`), L = `levels`, and a random
    level m in 1 .. L of probability p_m = (mu_m - mu_{m+1}) / (mu_1 - mu_{L+1}):

        k = 4:  D(mu_1) + (D(mu_{m+1}) - D(mu_m)) / p_m
        k = 3:  2 times one of D(mu_1) and (D(mu_{m+1}) - D(mu_m)) / p_m, by a fair coin
        k = 2:  3 times one of the three quotients
        k = 1:  4 times one of the four terms in which f occurs, at x, mu_1, mu_m, mu_{m+1}

    These p_m minimise sum_m (mu_{m+1} - mu_m)^2 / p_m. Ma and Huang, arXiv 2510.19953, who print k = 3, 2, 1 without
    the factors: then E[P_3] = grad f / 2. Use k = 4. k = 3 has total variance (2 d - 1)|grad f|^2 against d - 1 for
    k = 4; k = 2 and k = 1 have variances that grow without bound with `levels`, and are here to be seen.

    Costs at most 1 + 3 n evaluations for k = 4 (1 + 2 n when every level is 1), 1 + 2 n, 1 + n, and n.
    Loss noise of deviation s adds s^2 sum 1 / (p_m mu_m^2): with noisy losses truncate by `deepest_level`, or better
    take `Central` or `Richardson`.
    """

    n: int = 1
    k: Points = 4
    radii: Radii = Geometric()
    levels: int = 8

    several_radii: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive_count(self.n)
        if self.k not in (1, 2, 3, 4):
            raise ValueError(f"k is the number of points of the estimator P_k, one of 1, 2, 3, 4; got {self.k}")
        if self.levels < 1 or self.levels != int(self.levels):
            raise ValueError(f"levels must be an integer >= 1, got {self.levels}")

    @property
    def evaluations(self) -> int:
        return self.n * max(self.k - 1, 1) + (self.k > 1)

    @property
    def fewest_evaluations(self) -> int:
        return {4: 2 * self.n + 1, 3: self.n + 1, 2: self.n + 1, 1: 1}[self.k]

    def chances(self, mu: float) -> tuple[Array, Array]:
        """The radii mu_1 .. mu_{L+1} and the probabilities p_1 .. p_L."""
        m = mu * np.array([self.radii.tail(k) for k in range(1, self.levels + 2)])
        return m, -np.diff(m) / (m[0] - m[-1])

    def _terms(self, ask: Ask) -> list[tuple[float, float]]:
        """P_k of one direction as pairs (radius, coefficient): sum of coefficient f(x + radius v); radius 0 is x."""
        mu, p = self.chances(ask.mu)
        u = ask.rng.random()
        m = min(int(np.searchsorted(np.cumsum(p), u, side="right")), self.levels - 1)

        def quotient(radius: float, weight: float) -> list[tuple[float, float]]:
            return [(radius, weight / radius), (0.0, -weight / radius)]

        first = quotient(mu[0], 1.0)
        narrow, wide = quotient(mu[m + 1], 1 / p[m]), quotient(mu[m], -1 / p[m])
        match self.k:
            case 4:
                return first + narrow + wide
            case 3:
                chosen = (first, narrow + wide)[ask.rng.integers(2)]
            case 2:
                chosen = (first, narrow, wide)[ask.rng.integers(3)]
            case _:
                base = (0.0, first[1][1] + narrow[1][1] + wide[1][1])
                chosen = ([base], first[:1], narrow[:1], wide[:1])[ask.rng.integers(4)]
        return [(radius, {3: 2, 2: 3, 1: 4}[self.k] * c) for radius, c in chosen]

    def __call__(self, ask: Ask) -> Routine[None]:
        v = [ask.draw(j) for j in range(self.n)]
        terms = [self._terms(ask) for _ in v]
        points = list(dict.fromkeys((j if r else 0, r) for j, t in enumerate(terms) for r, _ in t))  # x once for all
        f = yield [Query(r * v[j] if r else Vector()) for j, r in points]
        at = dict(zip(points, f, strict=True))
        loss = at.get((0, 0.0), mean(f))
        base = loss if self.k > 1 else 0.0  # the coefficients sum to 0 then: subtracting loses no digits
        slopes = [sum(c * (at[j if r else 0, r] - base) for r, c in t) for j, t in enumerate(terms)]
        return Estimate(combination(np.array(slopes) / self.n, v), loss, f, None)
