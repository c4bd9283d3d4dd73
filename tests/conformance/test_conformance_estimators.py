"""Estimators: the number of losses they ask for, the order of their bias in mu, what they measure alongside.

The generators are driven by hand, with directions that the test chooses: over all 2^d sign vectors the expectation is
a finite sum, so bias is measured without sampling error.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from small_problems import CASES, ESTIMATORS, dense, loss_of, smooth, start

from zograd import methods
from zograd.core.query import Ask, Estimate
from zograd.core.run import Run
from zograd.core.vector import Address, Slot, Vector, combination
from zograd.estimators import (
    SVRG,
    Central,
    Coordinates,
    Curved,
    Forward,
    ForwardOrCentral,
    LooplessSVRG,
    Mirrored,
    OneSided,
    Preference,
    ProbeWeighted,
    Ranked,
    Recentred,
    Richardson,
    Unbiased,
)
from zograd.estimators.elementwise import Power, Product
from zograd.estimators.vertices import Sides
from zograd.laws import Draw, Rademacher, Unit
from zograd.laws.masked import Ones
from zograd.oracles import sequential
from zograd.stores import Store

D = 4
SIGNS = np.array(list(itertools.product((1.0, -1.0), repeat=D)))


@dataclass(frozen=True)
class Row:
    """A basis vector given by its elements: Vectors are open to any hashable name that can write itself."""

    elements: tuple[float, ...]
    reads = ()

    def add_(self, out: torch.Tensor, coef: float, at: Address, slots: Mapping[str, torch.Tensor]) -> None:
        out.add_(torch.tensor(self.elements[at.start : at.start + out.numel()], dtype=out.dtype), alpha=coef)


def written(v: Vector, x: np.ndarray) -> np.ndarray:
    """The elements of v at the iterate x; the other slots hold 0, as before the first step."""
    total = np.zeros(x.size)
    for e, c in v.terms:
        if isinstance(e, Row):
            total += c * np.array(e.elements)
        elif isinstance(e, Unit):
            total[e.element] += c
        elif isinstance(e, Sides):  # both bounds are 0
            total -= c * x
        elif isinstance(e, Product):
            total += c * written(Vector(e.terms), x) * written(Vector(((e.by, 1.0),)), x)
        elif isinstance(e, Power):
            total += c * (np.abs(x if e.slot == "x" else 0.0 * x) + e.floor) ** e.exponent
        elif isinstance(e, Ones):
            total += c
        else:
            total += c * (x if e.name == "x" else 0.0)
    return total


def estimate(estimator, f, x: np.ndarray, rows: np.ndarray, mu: float) -> Estimate:
    """Drive the generator with the directions `rows` (again from the first when they are used up) and the loss f.

    The vector that comes back has the slots that the step assigns replaced by what they are assigned.
    """

    def gram(vectors):
        w = np.stack([written(v, x) for v in vectors])
        return w @ w.T

    def draw(j: int) -> Vector:
        return Vector(((Row(tuple(rows[j % len(rows)])), 1.0),))

    routine = estimator(Ask(0, x.size, mu, draw, gram, 1, shapes=((x.size,),)))
    queries = next(routine)
    while True:
        try:
            queries = routine.send([f(x + written(q.at, x)) for q in queries])
        except StopIteration as stop:
            e = stop.value
            parts = [
                e.writes.get(b.name, Vector(((b, 1.0),))) if isinstance(b, Slot) else Vector(((b, 1.0),))
                for b, _ in e.vector.terms
            ]
            return replace(e, vector=combination([c for _, c in e.vector.terms], parts))


def expectation(estimator, f, x: np.ndarray, mu: float) -> np.ndarray:
    """E[g] over Rademacher directions, exactly. The estimators here are averages over directions, so n - 1 of them may
    be held at any values while one runs over all signs."""
    n = estimator.n
    means = []
    for v in SIGNS:
        rows = np.stack([v, *[np.roll(v, k) * (-1.0) ** k for k in range(1, n)]])
        means.append(written(estimate(estimator, f, x, rows, mu).vector, x))
    return np.mean(means, axis=0)


X = np.array([0.3, -0.7, 0.5, 0.9])
A = np.array([[2.0, 0.3, -0.1, 0.4], [0.3, 1.0, 0.2, 0.0], [-0.1, 0.2, 3.0, 0.5], [0.4, 0.0, 0.5, 0.7]])
B = np.array([1.0, -2.0, 0.5, 0.25])


def quadratic(x: np.ndarray) -> float:
    return float(0.5 * x @ A @ x + B @ x + 7.0)


def curved(x: np.ndarray) -> float:
    """Third derivatives that do not vanish, in mixed directions too."""
    return float(np.sum(np.exp(x)) + x[0] * x[1] * x[2] + np.sin(x[3] * x[0]))


def slope_of(f, x: np.ndarray) -> np.ndarray:
    h = 1e-5
    return np.array([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(x.size)])


SECOND_ORDER = (
    *(Central(1), Central(3), Central(1, clip=1e9), Forward(1), Forward(2), OneSided(2), OneSided(4), Curved(1)),
    *(ForwardOrCentral(1), ForwardOrCentral(3)),
    *(ProbeWeighted(2, alpha=0.0), Recentred(1), Recentred(2, "tracker"), SVRG(1), LooplessSVRG(1)),
)
DIFFERENCES = (*SECOND_ORDER, Richardson(1), Richardson(2))
by_difference = pytest.mark.parametrize("estimator", DIFFERENCES, ids=repr)
by_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)


# ---- cost ------------------------------------------------------------------------------------------------------------


@by_estimator
def test_asks_for_as_many_losses_as_it_says(estimator) -> None:
    counted = []
    e = estimate(estimator, lambda x: counted.append(1) or curved(x), X, SIGNS[[3, 5, 1, 8, 14]], 1e-3)
    assert fewest(estimator) <= len(counted) == len(e.losses) <= estimator.evaluations


def fewest(estimator) -> int:
    """Evaluations of the cheapest step: where steps differ, the estimator says so."""
    return estimator.fewest_evaluations


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_the_menu_counts_its_evaluations(case) -> None:
    """`describe` and `Method.evaluations` are the number of times a loss is called in a step, or the most of them."""
    weights, counted = case.tensors(torch.float64), []
    f = loss_of(weights)
    method = methods.make(case.name, **methods.MENU[case.name].example)
    run = Run(Store(weights, space=method.space), method, 0)
    if method.rule.misplaced(run.store):  # the set of the example is a ball around 0
        for w in weights.values():
            w.detach().mul_(1e-3)
    for _ in range(3):
        before = len(counted)
        record = run.step(sequential(lambda: counted.append(1) or f()))
        assert record.evaluations == len(counted) - before
        assert fewest(method.estimator) <= record.evaluations <= method.evaluations
    assert method.evaluations == methods.describe(case.name)["evaluations_per_step"]
    assert run.evaluations == len(counted)


TOO_FEW = [
    *((Central, 1), (Forward, 1), (OneSided, 2), (Ranked, 2), (Curved, 1), (ProbeWeighted, 1), (Richardson, 1)),
    *((Unbiased, 1), (Recentred, 1), (SVRG, 1), (LooplessSVRG, 1), (Preference, 1), (Mirrored, 1), (Coordinates, 1)),
]


@pytest.mark.parametrize(("make", "least"), TOO_FEW)
def test_too_few_directions_are_refused(make, least: int) -> None:
    make(least)
    with pytest.raises(ValueError, match=f"n >= {least} directions, got n={least - 1}"):
        make(least - 1)


# ---- bias ------------------------------------------------------------------------------------------------------------


@by_difference
def test_no_bias_on_quadratics(estimator) -> None:
    """E[g] = grad f for every mu, however large: even orders cancel over v and -v, and there is no third."""
    for mu in (1e-3, 0.1, 2.0):
        np.testing.assert_allclose(expectation(estimator, quadratic, X, mu), A @ X + B, rtol=0, atol=1e-13 / mu + 1e-12)


def order_of_bias(estimator) -> float:
    """The slope of log |E[g] - grad f| against log mu."""
    g = expectation(Richardson(1), curved, X, 0.01)  # its own bias is 1e-9, far below those measured
    radii = np.array([0.4, 0.2, 0.1, 0.05])
    biases = [np.linalg.norm(expectation(estimator, curved, X, mu) - g) for mu in radii]
    return float(np.polyfit(np.log(radii), np.log(biases), 1)[0])


@pytest.mark.parametrize("estimator", SECOND_ORDER, ids=repr)
def test_bias_is_of_second_order_in_mu(estimator) -> None:
    assert order_of_bias(estimator) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("n", [1, 2])
def test_richardson_is_of_fourth_order_in_mu(n: int) -> None:
    assert order_of_bias(Richardson(n)) == pytest.approx(4.0, abs=0.1)


def test_one_sided_curvature_adds_variance_but_central_has_none() -> None:
    """Along one direction of a quadratic: central is exact, one-sided is off by mu v^T A v / 2."""
    v, mu = SIGNS[5], 0.25
    assert written(estimate(Central(1), quadratic, X, v[None], mu).vector, X) == pytest.approx(v * ((A @ X + B) @ v))
    off = written(estimate(Forward(1), quadratic, X, v[None], mu).vector, X) - v * ((A @ X + B) @ v)
    assert off == pytest.approx(v * mu * (v @ A @ v) / 2)


# ---- what they show and measure --------------------------------------------------------------------------------------


@by_estimator
def test_the_loss_shown_is_the_base_point_or_the_mean(estimator) -> None:
    """f(x) where it is evaluated, otherwise the mean of all losses; a wrapper shows what the estimator inside shows."""
    shown_by = getattr(estimator, "inner", estimator)
    asked = []
    alone = estimate(shown_by, lambda x: asked.append(x) or curved(x), X, SIGNS[[1, 6, 9, 14, 3]], 1e-2)
    at_x = any(np.array_equal(x, X) for x in asked)
    found = estimate(estimator, curved, X, SIGNS[[1, 6, 9, 14, 3]], 1e-2)
    shown = found.loss
    if estimator.shifts and not at_x:  # the mean, around another point
        assert shown == pytest.approx(np.mean(found.losses), rel=1e-15)
        return
    assert shown == pytest.approx(curved(X) if at_x else np.mean(alone.losses), rel=1e-15)


@pytest.mark.parametrize(("n", "stated"), [(4, 0.80), (8, 0.90), (32, 0.98)])
def test_the_spread_measures_the_slope(n: int, stated: float) -> None:
    """E[slope] / |grad f| = E sqrt(chi^2_{n-1} / n) within 3 standard errors; the docstring gives two digits of it."""
    from math import lgamma

    law_of_large_d = np.sqrt(2 / n) * np.exp(lgamma(n / 2) - lgamma((n - 1) / 2))
    assert law_of_large_d == pytest.approx(stated, abs=0.006)
    d, trials = 400, 1500
    g = np.cos(np.arange(d))
    rng = np.random.default_rng(8)
    slopes = []
    for _ in range(trials):
        rows = rng.choice((-1.0, 1.0), size=(n, d))
        losses = iter([0.0, *(1e-3 * (rows @ g))])  # f = <g, .> at x = 0 and mu = 1e-3
        routine = OneSided(n)(Ask(0, d, 1e-3, lambda j, rows=rows: Vector(((j, 1.0),)), lambda v: np.zeros((0, 0)), 0))
        queries = next(routine)
        with pytest.raises(StopIteration) as stop:
            routine.send([next(losses) for _ in queries])
        slopes.append(stop.value.value.aux.slope / np.linalg.norm(g))
    error = np.std(slopes) / np.sqrt(trials)
    assert abs(np.mean(slopes) - law_of_large_d) <= 3 * error + 1.0 / d  # 1/d: sums of d signs are not quite normal


def test_ranked_weights_are_linear_sum_to_one_in_size_and_average_ties() -> None:
    """sum |w| = 1, sum w = 0, the best direction has the most negative weight, tied losses share their weights."""

    def weights(losses: list[float]) -> np.ndarray:
        n = len(losses)
        routine = Ranked(n)(Ask(0, n, 1.0, lambda j: Vector(((j, 1.0),)), lambda v: np.zeros((0, 0)), 0))
        next(routine)
        with pytest.raises(StopIteration) as stop:
            routine.send(losses)
        return np.array([c for _, c in stop.value.value.vector.terms])

    np.testing.assert_allclose(weights([3.0, 1.0, 2.0, 9.0]), np.array([1, -3, -1, 3]) / 8)
    np.testing.assert_allclose(weights([1.0, 1.0, 5.0, 9.0]), np.array([-2, -2, 1, 3]) / 8)
    np.testing.assert_array_equal(weights([4.0] * 6), np.zeros(6))
    for n in range(2, 12):
        w = weights(list(np.random.default_rng(n).permutation(n).astype(float)))
        assert np.abs(w).sum() == pytest.approx(1.0)
        assert w.sum() == pytest.approx(0.0, abs=1e-15)


def test_ranks_lose_little_against_values() -> None:
    """Mean cosine with the gradient within 4 % of that of the values, as the docstring says (linear f, d = 200)."""
    rng, d, n = np.random.default_rng(3), 200, 16
    g = rng.normal(size=d)
    pairs = []
    for _ in range(600):
        rows = rng.choice((-1.0, 1.0), size=(n, d))
        order = rows @ g
        w = np.argsort(np.argsort(order)) * 2.0 - (n - 1)
        by_rank, by_value = w @ rows, (order - order.mean()) @ rows
        pairs.append([v @ g / np.linalg.norm(v) / np.linalg.norm(g) for v in (by_rank, by_value)])
    ranked, valued = np.mean(pairs, axis=0)
    assert ranked == pytest.approx(valued, rel=0.04)


# ---- invariances -----------------------------------------------------------------------------------------------------


def iterates(method, f, steps: int = 40, seed: int = 2) -> np.ndarray:
    from zograd import AskTell

    loop, path = AskTell(start(method), method, seed=seed), []
    for _ in range(steps):
        while loop.tell([f(x) for x in loop.ask()]) is None:
            pass
        path.append(loop.x)
    return np.stack(path)


INCREASING = {
    "exp": np.exp,
    "cube": lambda y: y**3,
    "arctan": np.arctan,
    "affine": lambda y: 1e6 * y - 3e8,
}


ORDINAL = [
    *(methods.rank(lr=0.05, n=6, weights=weights) for weights in ("linear", "log", "top")),
    methods.preference(lr=0.05, n=3),
]


@pytest.mark.parametrize("method", ORDINAL, ids=lambda m: f"{m.name}-{getattr(m.estimator, 'weights', 'pairs')}")
@pytest.mark.parametrize("name", INCREASING)
def test_rank_sees_only_the_order_of_the_losses(name: str, method) -> None:
    """Bit-identical iterates when every loss passes through an increasing function."""
    np.testing.assert_array_equal(
        iterates(method, smooth), iterates(method, lambda x: float(INCREASING[name](smooth(x))))
    )


NORMALISED = [methods.fzoo(lr=0.05, n=4), methods.mirrored_es(lr=0.05, n=4)]
by_normalised = pytest.mark.parametrize("method", NORMALISED, ids=lambda m: m.name)


@by_normalised
@pytest.mark.parametrize("scale", [0.25, 2.0, 2.0**30])
def test_normalised_methods_are_exactly_unchanged_by_a_power_of_two(scale: float, method) -> None:
    np.testing.assert_array_equal(iterates(method, smooth), iterates(method, lambda x: scale * smooth(x)))


@by_normalised
@pytest.mark.parametrize(("a", "b"), [(3.0, 0.0), (1.0, 100.0), (0.07, -5.0)])
def test_normalised_methods_are_unchanged_by_an_affine_map_to_rounding(a: float, b: float, method) -> None:
    np.testing.assert_allclose(
        iterates(method, smooth), iterates(method, lambda x: a * smooth(x) + b), rtol=0, atol=1e-8 * max(1, abs(b / a))
    )


def test_zo_sign_is_exactly_unchanged_by_a_power_of_two() -> None:
    method = methods.zo_sign(lr=0.01, n=3)
    np.testing.assert_array_equal(iterates(method, smooth), iterates(method, lambda x: 8.0 * smooth(x)))


@pytest.mark.parametrize("case", [c for c in CASES if not c.pulls], ids=lambda c: c.id)
def test_a_constant_loss_moves_nothing(case) -> None:
    """No differences, no direction: weights stay bit-identical."""
    np.testing.assert_array_equal(iterates(case.method(), lambda x: 1.5, 5), np.stack([start(case.method())] * 5))


def test_rademacher_directions_are_the_ones_the_run_draws() -> None:
    """The law, the reference noise and the queries of a run name the same numbers."""
    run = Run(Store({"x": torch.zeros(9, dtype=torch.float64)}), methods.zo_sgd(mu=0.5), seed=6)
    (plus, minus) = run.ask()
    v = dense(Rademacher()(Draw(6, 0, 0, ((9,),), run.store.gram)), (9,))
    np.testing.assert_array_equal(dense(plus.at, (9,)), 0.5 * v)
    np.testing.assert_array_equal(dense(minus.at, (9,)), -0.5 * v)
