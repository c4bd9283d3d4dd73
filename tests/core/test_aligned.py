"""Directionally aligned perturbations: laws (a) to (f) of the guide, what the pilot gains and what it does not."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from small_problems import dense, loss_of, tensors

from zograd import AskTell, methods
from zograd.core.query import Ask
from zograd.core.run import Method, Run
from zograd.core.vector import Noise, Slot, Vector
from zograd.estimators import Aligned, Central
from zograd.estimators.aligned import align
from zograd.laws import Draw, Gaussian, Rademacher, Sphere
from zograd.noise import Kind
from zograd.oracles import sequential
from zograd.rules import SGD
from zograd.stores import Store

D = 12
G = np.cos(np.arange(D)) * np.linspace(0.3, 1.5, D)
G /= np.linalg.norm(G)


VARIANTS = {"sphere": (Sphere(), False), "gaussian": (Gaussian(), False), "fixed": (Gaussian(), True)}
by_variant = pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=pytest.mark.slow) if v == "sphere" else v for v in VARIANTS]
)
WRONG = np.linspace(1, -0.2, D)  # cosine 0.2 to 0.6 with G: neither aligned nor orthogonal
N = 4_000


def with_slots(**slots: np.ndarray) -> Store:
    d = len(next(iter(slots.values())))
    store = Store({"x": torch.zeros(d, dtype=torch.float64)})
    store.require(dict.fromkeys(slots, 0.0))
    for name, value in slots.items():
        store.leaves[0].slots[name].copy_(torch.from_numpy(value))
    return store


def elements(store: Store, vector: Vector) -> np.ndarray:
    return np.concatenate([b.v[0].numpy().copy() for b in store.blocks(vector)])


@cache
def aligned(variant: str, exact: bool, count: int = N, seed: int = 1) -> np.ndarray:
    """Directions aligned with a guide (the gradient or `WRONG`) held in a slot, one a row."""
    law, fixed_norm = VARIANTS[variant]
    guide = G if exact else WRONG
    d = len(guide)
    store = with_slots(guide=guide)
    u = Vector(((Slot("guide"), 1.0 / np.linalg.norm(guide)),))
    rows = np.empty((count, d))
    for t in range(count):
        draw = Draw(seed, t, 0, ((d,),), store.gram)
        ask = Ask(t, d, 1.0, lambda j, draw=draw: law(draw), store.gram, draw.key)
        side = 1.0 if ask.rng.random() < 0.5 else -1.0
        v = align(ask, ask.draw(0), u, side, fixed_norm)
        rows[t] = elements(store, v)
    return rows


@by_variant
def test_a_white_for_any_guide(variant: str) -> None:
    """(a) E[v v^T] = I, entries within 4.5 standard errors."""
    v = aligned(variant, False)
    mean = v.T @ v / N
    error = np.sqrt(((v**2).T @ v**2 / N - mean**2) / N)
    assert np.all(np.abs(mean - np.eye(D)) <= 4.5 * error + 1e-12)


@by_variant
def test_b_an_exact_guide_takes_all_variance_along_the_gradient(variant: str) -> None:
    """(b) <g, v> = +-|g| to rounding, so <estimate, g> = |g|^2 always."""
    v = aligned(variant, True)
    np.testing.assert_allclose(np.abs(v @ G), 1.0, rtol=1e-12)
    estimates = (v @ G)[:, None] * v
    assert np.ptp(estimates @ G) < 1e-12


@by_variant
def test_c_and_d_variances(variant: str) -> None:
    """(c) |g|^2 - g_i^2 for coordinate i with an exact guide; (d) d - 1 in total, for fixed norms with any guide."""
    v = aligned(variant, True)
    squares = ((v @ G)[:, None] * v - G) ** 2
    assert np.all(np.abs(squares.mean(0) - (1 - G**2)) <= 4.5 * squares.std(0) / math.sqrt(N))
    c = WRONG @ G / np.linalg.norm(WRONG)
    v = aligned(variant, False)
    total = (((v @ G)[:, None] * v - G) ** 2).sum(1)
    if variant == "fixed":
        np.testing.assert_allclose((v**2).sum(1), D, rtol=1e-12)
        stated = D - 1
    elif variant == "gaussian":
        stated = c**2 * (D - 1) + (1 - c**2) * (D + 1)
    else:
        return  # the projected sphere has neither a fixed norm nor independent elements
    assert abs(total.mean() - stated) <= 4.5 * total.std() / math.sqrt(N)


def drive(estimator: Aligned, f, x: np.ndarray, law, step: int, mu: float, store: Store):
    """One estimate at x."""
    first = Draw(3, step, 0, (x.shape,), store.gram)
    ask = Ask(step, x.size, mu, lambda j: law(first.number(j)), store.gram, first.key)
    routine = estimator(ask)
    queries = next(routine)
    while True:
        try:
            queries = routine.send([f(x + elements(store, q.at)) for q in queries])
        except StopIteration as stop:
            return stop.value


@pytest.mark.parametrize("central", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one-sided", "central"])
def test_e_the_pilot_guide_leaves_no_bias(central: bool) -> None:
    """(e) E[estimate] = grad f on a quadratic, since the guide is frozen before the second half is drawn."""
    a = np.diag(np.linspace(0.5, 2, 6))
    x = np.linspace(-1, 1, 6)
    store, g = Store({"x": torch.zeros(6, dtype=torch.float64)}), a @ x
    estimator = Aligned(4, central=central)
    estimates = []
    for t in range(900):
        e = drive(estimator, lambda y: float(y @ a @ y / 2), x, Sphere(), t, 0.1, store)
        estimates.append(elements(store, e.vector))
    mean, error = np.mean(estimates, axis=0), np.std(estimates, axis=0) / 30
    assert np.all(np.abs(mean - g) <= 4 * error)


def test_f_critical_step_with_an_exact_guide_is_2_over_the_trace() -> None:
    """(f) On f = x^T H x / 2, E f(x - lr v v^T H x) falls below lr = 2 / tr H and rises above, for any H."""
    h = np.geomspace(0.1, 3.0, D)
    x = G / h  # H x = G, the guide
    v = aligned("fixed", True)
    for factor in (0.9, 1.1):
        lr = factor * 2 / h.sum()
        after = x - lr * (v @ G)[:, None] * v
        change = (after**2 @ h - x**2 @ h) / 2
        error = change.std() / math.sqrt(len(v))
        assert abs(change.mean() - lr * (factor - 1)) <= 4.5 * error < 0.1 * lr


# ---- the pilot at equal evaluations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "b"), [(16, 8), pytest.param(16, 32, marks=pytest.mark.slow)])
def test_two_stages_have_the_error_of_plain_directions(d: int, b: int) -> None:
    """Total MSE within 6 % of (d - 1)/b; the second stage alone, as released, has twice that."""
    g = np.cos(np.arange(d))
    g /= np.linalg.norm(g)
    store, both, second = Store({"x": torch.zeros(d, dtype=torch.float64)}), [], []
    for t in range(900 if b == 8 else 200):
        e = drive(Aligned(b), lambda y: float(g @ y), np.zeros(d), Sphere(), t, 1e-3, store)
        both.append(np.sum((elements(store, e.vector) - g) ** 2))
        slopes = (np.array(e.losses[1 : 1 + b // 2]) - e.losses[0]) / 1e-3
        z = [elements(store, Sphere()(Draw(3, t, j, ((d,),), store.gram))) for j in range(b // 2)]
        second.append(np.sum((2 * elements(store, e.vector) - slopes @ z / (b // 2) - g) ** 2))
    assert np.mean(both) == pytest.approx((d - 1) / b, rel=0.06)
    assert np.mean(second) == pytest.approx(2 * (d - 1) / b, rel=0.1)


def product_function(x: np.ndarray) -> float:
    """prod_i (1 + x_i) with x_0 = 0 and the others -1 + ... : its gradient at `product_point` has one element."""
    return float(x[0] * np.prod(1.0 + x[1:]))


def test_tau_mse_of_the_product_function_is_zero_for_exact_dap_and_for_rademacher() -> None:
    """x_0 = 0 makes the gradient 1-sparse. MSE over the coordinates |g_i| >= tau: exact guide and Rademacher are at
    machine zero (both have variance |g|^2 - g_i^2 = 0 there), sphere and Gaussian are not.
    """
    d, mu, n = 16, 1e-6, 100
    x = np.concatenate([[0.0], 0.1 * np.cos(np.arange(1, d))])
    g = np.zeros(d)
    g[0] = np.prod(1.0 + x[1:])
    big = np.abs(g) >= 1e-4
    store = with_slots(guide=g)
    laws = {"rademacher": Rademacher(), "sphere": Sphere(), "gaussian": Gaussian()}
    tau_mse = {}
    for name, law in laws.items():
        run = Run(Store({"x": torch.from_numpy(x.copy())}), Method(Central(1), law, SGD(), mu=mu, lr=0.0), 4)
        errors = []
        for _ in range(n):
            plus, _ = run.ask()
            v = dense(plus.at, (d,)) / mu
            slope = (product_function(x + mu * v) - product_function(x - mu * v)) / (2 * mu)
            run.tell([product_function(x + mu * v), product_function(x - mu * v)])
            assert isinstance(plus.at.terms[0][0], Noise)
            if (
                name == "rademacher"
            ):  # released: `elif kind == "uniform" or "optimal"` is always true, and runs the sphere
                assert plus.at.terms[0][0].kind is Kind.SIGN
                assert set(np.unique(np.round(v, 9))) == {-1.0, 1.0}
            errors.append(np.mean((slope * v - g)[big] ** 2))
        tau_mse[name] = np.mean(errors)
    errors = []
    for t in range(n):
        e = drive(Aligned(1, guide="user", central=True), product_function, x, Sphere(), t, mu, store)
        errors.append(np.mean((elements(store, e.vector) - g)[big] ** 2))
    tau_mse["dap"] = np.mean(errors)
    assert tau_mse["rademacher"] < 1e-17
    assert tau_mse["dap"] < 1e-17
    assert min(tau_mse["sphere"], tau_mse["gaussian"]) > 1e-1


@pytest.mark.parametrize("law", [Rademacher(), Gaussian(), Sphere()], ids=lambda law: type(law).__name__)
def test_every_law_reaches_the_probes_of_dap(law) -> None:
    """The first stage probes along the very law that was asked for."""
    method = methods.dap(n=4, mu=0.5, law=law, fixed_norm=not isinstance(law, Rademacher))
    run = Run(Store({"x": torch.zeros(9, dtype=torch.float64)}), method, seed=6)
    base, *probes = run.ask()
    assert not base.at
    for j, probe in enumerate(probes):
        v = law(Draw(6, 0, j, ((9,),), run.store.gram))
        np.testing.assert_array_equal(dense(probe.at, (9,)), 0.5 * dense(v, (9,)))


# ---- details ---------------------------------------------------------------------------------------------------------


def test_a_pilot_of_zero_falls_back_to_plain_directions() -> None:
    """A loss that does not change gives no guide: the second half is the law's, and nothing moves."""
    run = Run(Store({"x": torch.zeros(9, dtype=torch.float64)}), methods.dap(n=4, lr=1.0), seed=6)
    run.tell([2.0] * len(run.ask()))
    assert all(len(q.at.terms) == 1 for q in run.ask())
    record = run.tell([2.0] * len(run.ask()))
    assert record is not None
    assert record.moved == 0.0
    assert dict(record.meters) == {"cosine": 0.0}


def test_one_base_evaluation_serves_both_stages() -> None:
    for central, rounds in ((False, (5, 4)), (True, (8, 8))):
        run = Run(Store({"x": torch.zeros(9, dtype=torch.float64)}), methods.dap(n=8, central=central), seed=6)
        asked = []
        record = None
        while record is None:
            asked.append(len(run.ask()))
            record = run.tell([float(k) for k in range(asked[-1])])
        assert tuple(asked) == rounds
        assert sum(asked) == record.evaluations == methods.dap(n=8, central=central).evaluations


def test_the_meter_is_the_cosine_between_the_stages() -> None:
    d, b = 8, 32
    g = np.linspace(1, 2, d)
    store = Store({"x": torch.zeros(d, dtype=torch.float64)})
    cosines = [
        drive(Aligned(b), lambda y: float(g @ y), np.zeros(d), Sphere(), t, 1e-3, store).meters["cosine"]
        for t in range(40)
    ]
    assert 0.5 < np.mean(cosines) <= 1.0


def test_the_momentum_guide_is_what_the_slot_holds_and_the_step_is_the_estimate() -> None:
    """guide <- beta guide + (1 - beta) g, and x moves by g itself, though its Vector is read with the new guide."""
    weights = tensors(torch.float64, (6, 5))
    method = methods.dap(n=3, guide="momentum", lr=1e-2, beta=0.8)
    run = Run(Store(weights), method, 2)
    x, loss, m = weights["w0"], loss_of(weights), np.zeros(30)
    for _ in range(12):
        before = x.clone()
        record = run.step(sequential(loss))
        g = (before - x).numpy().ravel() / 1e-2
        m = 0.8 * m + 0.2 * g
        np.testing.assert_allclose(run.store.leaves[0].slots["guide"].numpy(), m, atol=1e-9 * np.abs(m).max())
    assert record.meters[0][0] == "cosine"


def test_a_guide_that_would_vanish_starts_anew() -> None:
    """g = h + k m with beta + (1 - beta) k near 0: the new guide is g."""
    e = Noise(Kind.SIGN, 1)
    g = Vector(((e, 2.0), (Slot("guide"), -9.0)))
    vector, write = Aligned(3, guide="momentum", beta=0.9)._follow(g)
    assert vector == Vector(((Slot("guide"), 1.0),))
    assert write == g


def test_a_user_guide_makes_the_first_step_aligned() -> None:
    f = np.linspace(-1, 1, 10)
    loop = AskTell(np.zeros(10), methods.dap(n=2, guide="user", lr=1.0, mu=1e-3, central=True), seed=0)
    loop.run.store.leaves[0].slots["guide"].copy_(torch.from_numpy(f))
    loop.tell([float(f @ x) for x in loop.ask()])
    assert -loop.x @ f == pytest.approx(f @ f, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n": 2}, "needs n >= 4 directions, got n=2"),
        ({"n": 5}, "n must be even, got 5"),
        ({"guide": "gradient"}, "unknown guide 'gradient'; use 'pilot', 'momentum' or 'user'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Aligned(**settings)
