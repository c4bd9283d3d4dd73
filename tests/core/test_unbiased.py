"""P1 to P4: means and variances as finite sums over levels, coins and sign vectors; no sampling, but in one test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from zograd import methods
from zograd.core.query import Ask
from zograd.core.vector import Vector
from zograd.estimators import Central, Forward, Geometric, Unbiased, Zipf, deepest_level
from zograd.estimators.unbiased import zeta_tail

D = 4
SIGNS = np.array(list(itertools.product((1.0, -1.0), repeat=D)))
X = np.array([0.3, -0.7, 0.5, 0.9])
G = np.array([1.0, -2.0, 0.5, 0.25])


def linear(x: np.ndarray) -> float:
    return float(G @ x)


def curved(x: np.ndarray) -> float:
    return float(np.sum(np.exp(x)) + x[0] * x[1] * x[2] + np.sin(x[3] * x[0]))


class Dice:
    """A generator that gives what it is told: the level by a number in (0, 1), the coin by its face."""

    def __init__(self, u: float, face: int) -> None:
        self.u, self.face = u, face

    def random(self) -> float:
        return self.u

    def integers(self, sides: int) -> int:
        assert self.face < sides
        return self.face


def slope(estimator: Unbiased, f: Callable[[np.ndarray], float], v: np.ndarray, mu: float, dice: Dice) -> float:
    """P_k along v with these dice, and the estimate is P_k v."""
    ask = Ask(0, D, mu, lambda j: Vector(((tuple(v), 1.0),)), lambda vectors: np.zeros((0, 0)), 0)
    ask.__dict__["rng"] = dice
    routine = estimator(ask)
    queries = next(routine)
    with pytest.raises(StopIteration) as stop:
        routine.send([f(X + sum((c * np.array(e) for e, c in q.at.terms), np.zeros(D))) for q in queries])
    ((_, c),) = stop.value.value.vector.terms
    return float(c)


def outcomes(estimator: Unbiased, f: Callable[[np.ndarray], float], v: np.ndarray, mu: float):
    """Every value that P_k can take along v, with its probability."""
    _, p = estimator.chances(mu)
    edges = np.append(0.0, np.cumsum(p))
    faces = {4: 1, 3: 2, 2: 3, 1: 4}[estimator.k]
    for m, face in itertools.product(range(len(p)), range(faces)):
        yield p[m] / faces, slope(estimator, f, v, mu, Dice((edges[m] + edges[m + 1]) / 2, face))


def mean(estimator, f, v, mu) -> float:
    return sum(w * value for w, value in outcomes(estimator, f, v, mu))


def moment(estimator, f, v, mu) -> float:
    return sum(w * value**2 for w, value in outcomes(estimator, f, v, mu))


RADII = [Geometric(0.5), Geometric(0.25), Zipf(3.0), Zipf(2.0)]


@pytest.mark.parametrize("radii", RADII, ids=repr)
@pytest.mark.parametrize("levels", [1, 3, 8])
@pytest.mark.parametrize("k", [4, 3, 2, 1])
def test_the_truncated_mean_is_the_quotient_of_the_smallest_radius(k, levels: int, radii) -> None:
    """E[P_k] = (f(x + mu_{L+1} v) - f(x)) / mu_{L+1} for every k, which the printed P3, P2, P1 miss by 2, 3 and 4."""
    mu, v = 0.5, SIGNS[6]
    estimator = Unbiased(1, k, radii, levels)
    m, _ = estimator.chances(mu)
    exact = (curved(X + m[-1] * v) - curved(X)) / m[-1]
    assert mean(estimator, curved, v, mu) == pytest.approx(exact, rel=1e-8)
    printed = mean(estimator, curved, v, mu) / {4: 1, 3: 2, 2: 3, 1: 4}[k]
    assert (printed == pytest.approx(exact, rel=1e-3)) == (k == 4)


@pytest.mark.parametrize("radii", RADII, ids=repr)
def test_the_probabilities_are_optimal(radii) -> None:
    """rho = sum (mu_{n+1} - mu_n)^2 / p_n is (mu_1 - mu_{L+1})^2, its minimum, which tends to mu_1^2."""
    for levels in (1, 5, 40):
        m, p = Unbiased(1, 4, radii, levels).chances(0.5)
        assert p.sum() == pytest.approx(1, abs=1e-14)
        assert m[0] == 0.5
        assert np.all(np.diff(m) < 0)
        rho = np.sum(np.diff(m) ** 2 / p)
        assert rho == pytest.approx((m[0] - m[-1]) ** 2, rel=1e-12)
        other = np.full(levels, 1 / levels)
        assert np.sum(np.diff(m) ** 2 / other) >= rho * (1 - 1e-12)
    if isinstance(radii, Geometric):
        assert rho == pytest.approx(0.25, abs=1e-12)


def test_the_laws_of_levels_are_the_named_ones() -> None:
    """P(N = n) = tail(n) - tail(n + 1): (1 - c) c^(n - 1), and n^-s / zeta(s)."""
    zeta3 = 1.2020569031595942
    for n in (1, 2, 7, 25, 60):
        assert Geometric(0.3).tail(n) - Geometric(0.3).tail(n + 1) == pytest.approx(0.7 * 0.3 ** (n - 1), rel=1e-9)
        assert Zipf(3.0).tail(n) - Zipf(3.0).tail(n + 1) == pytest.approx(n**-3 / zeta3, rel=1e-9)
    assert zeta_tail(2.0, 1) == pytest.approx(math.pi**2 / 6, rel=1e-14)
    assert zeta_tail(4.0, 1) == pytest.approx(math.pi**4 / 90, rel=1e-14)
    assert zeta_tail(3.0, 5) == pytest.approx(zeta3 - sum(j**-3 for j in range(1, 5)), rel=1e-12)


@pytest.mark.parametrize(("k", "factor"), [(4, D - 1), (3, 2 * D - 1)])
def test_variance_of_p4_and_of_the_corrected_p3(k, factor: int) -> None:
    """E|P v - grad f|^2 over all signs, levels and coins: (d - 1)|grad f|^2 for P4, (2 d - 1)|grad f|^2 for P3, where
    the bound in print, that of P4 plus O(mu^2), misses d |grad f|^2."""
    estimator = Unbiased(1, k, Geometric(0.5), 6)
    total = np.mean([moment(estimator, linear, v, 0.5) for v in SIGNS]) * D - G @ G
    assert total == pytest.approx(factor * (G @ G), rel=1e-9)
    g = np.exp(X) + np.array([X[1] * X[2], X[0] * X[2], X[0] * X[1], 0.0])
    g[[0, 3]] += np.cos(X[3] * X[0]) * X[[3, 0]]
    total = np.mean([moment(estimator, curved, v, 1e-4) for v in SIGNS]) * D - g @ g
    assert total == pytest.approx(factor * (g @ g), rel=1e-2)


def test_p2_and_p1_have_no_variance_to_speak_of() -> None:
    """Their second moments grow with every level, those of P4 and P3 do not."""
    v, mu = SIGNS[6], 0.5

    def growth(k) -> np.ndarray:
        found = [moment(Unbiased(1, k, Geometric(0.5), levels), curved, v, mu) for levels in (4, 8, 12, 16)]
        return np.array(found[1:]) / np.array(found[:-1])

    assert np.all(growth(4) == pytest.approx(1, abs=0.15))
    assert np.all(growth(3) == pytest.approx(1, abs=0.15))
    assert np.all(growth(2) > 8)
    assert np.all(growth(1) > 100)


@pytest.mark.parametrize(("radii", "stated"), [(Geometric(0.5), 3.50), (Zipf(3.0), 3.17)], ids=repr)
def test_the_mean_cost_of_p4(radii, stated: float) -> None:
    """3 evaluations at level 1, where two points coincide, 4 elsewhere."""
    estimator = Unbiased(1, 4, radii, 30)
    _, p = estimator.chances(0.5)
    assert 4 - p[0] == pytest.approx(stated, abs=0.005)
    costs = []
    for u in (0.01, 0.99):
        ask = Ask(0, D, 0.5, lambda j: Vector((("v", 1.0),)), lambda v: np.zeros((0, 0)), 0)
        ask.__dict__["rng"] = Dice(u, 0)
        costs.append(len(next(estimator(ask))))
    assert costs == [3, 4] == [estimator.fewest_evaluations, estimator.evaluations]


# ---- at a radius where differences are biased ------------------------------------------------------------------------


def test_p4_is_unbiased_where_central_differences_are_a_third_off() -> None:
    """f = exp(<w, x>), d = 10, mu = 0.5, 30,000 directions on the sphere: P4 and P3 within 3 standard errors of the
    gradient along w, one-sided and central differences 34 % above it."""
    rng, d, n, mu = np.random.default_rng(5), 10, 30_000, 0.5
    w = rng.normal(size=d)
    w *= 1.6 / np.linalg.norm(w)
    v = rng.normal(size=(n, d))
    v *= math.sqrt(d) / np.linalg.norm(v, axis=1, keepdims=True)
    along = v @ w

    def projections(estimator) -> np.ndarray:
        """<g_j, w> / <grad f, w> for each direction, at x = 0 where grad f = w."""
        ask = Ask(0, d, mu, lambda j: Vector(((j, 1.0),)), lambda vectors: np.zeros((0, 0)), 11)
        routine = estimator(ask)
        queries = next(routine)
        with pytest.raises(StopIteration) as stop:
            routine.send([math.exp(sum(c * along[j] for j, c in q.at.terms)) for q in queries])
        terms = stop.value.value.vector.terms
        return np.array([c * n * along[j] for j, c in terms]) / (w @ w)

    for k in (4, 3):
        found = projections(Unbiased(n, k, Geometric(0.5), 16))
        assert abs(found.mean() - 1) <= 3 * found.std() / math.sqrt(n)
    for biased in (Central(n), Forward(n)):
        found = projections(biased)
        assert found.mean() == pytest.approx(1.34, abs=0.05)
        assert found.mean() - 1 > 20 * found.std() / math.sqrt(n)


def test_where_the_series_ends() -> None:
    """mu_{L+1} >= sqrt(noise) scale > mu_{L+2}; the menu stops there for float32 losses at its mu."""
    mu, noise = 0.5, 2.0**-52
    for radii in RADII:
        levels = deepest_level(mu, radii, noise, scale=0.5)
        assert mu * radii.tail(levels + 1) >= math.sqrt(noise) * 0.5
        assert levels == 1000 or mu * radii.tail(levels + 2) < math.sqrt(noise) * 0.5
    assert deepest_level(mu, Geometric(0.5), noise) == 25
    assert deepest_level(1e-6, Geometric(0.5), 2.0**-24) == 1, "never less than one"
    for name in ("p4", "p3"):
        defaults = methods.describe(name)["defaults"]
        assert defaults["levels"] == deepest_level(defaults["mu"], Geometric(0.5), 2.0**-24)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="one of 1, 2, 3, 4; got 5"):
        Unbiased(k=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="levels must be an integer >= 1, got 0"):
        Unbiased(levels=0)
    with pytest.raises(ValueError, match=r"lie in \(0, 1\), got 1"):
        Geometric(1.0)
    with pytest.raises(ValueError, match="must be > 1, got 1"):
        Zipf(1.0)
