"""Diagnostics against what is known in closed form, or by autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import digest

from zograd import diagnostics
from zograd.estimators import Central
from zograd.laws import Gaussian

D = 20
RNG = np.random.default_rng(4)
ROOT = RNG.normal(size=(D, D))
H = ROOT @ ROOT.T / D
B = RNG.normal(size=D)
X = RNG.normal(size=D)


def bowl(x: np.ndarray) -> float:
    return float(0.5 * x @ H @ x + B @ x)


def test_trace_is_that_of_the_hessian() -> None:
    """Within 4 standard errors for signs and normals; the stated error is that of the law."""
    off = np.linalg.norm(H) ** 2
    for law, variance in ((None, 2 * (off - np.sum(np.diag(H) ** 2))), (Gaussian(), 2 * off)):
        n = 400
        m = diagnostics.trace(diagnostics.problem(bowl, X), 0.1, n=n, **({} if law is None else {"law": law}))
        assert abs(m.value - np.trace(H)) <= 4 * m.error
        assert m.error == pytest.approx(math.sqrt(variance / n), rel=0.15)
        assert m.evaluations == 2 * n + 2


def test_largest_eigenvalue_from_values_and_from_gradients() -> None:
    top = np.linalg.eigvalsh(H).max()
    p = diagnostics.problem(bowl, X)
    assert diagnostics.largest_eigenvalue(p, diagnostics.values_hvp(p)) == pytest.approx(top, rel=1e-4)
    w = torch.from_numpy(X.copy())
    h, b = torch.from_numpy(H), torch.from_numpy(B)

    def closure() -> torch.Tensor:
        return 0.5 * w @ h @ w + b @ w

    before = digest({"w": w})
    q = diagnostics.problem(closure, [w])
    assert diagnostics.largest_eigenvalue(q, diagnostics.gradient_hvp(closure, q)) == pytest.approx(top, rel=1e-4)
    assert digest({"w": w}) == before
    assert not w.requires_grad


def test_largest_eigenvalue_of_two_dimensions_and_of_negative_curvature() -> None:
    """Algebraically the largest: a large negative eigenvalue does not win."""
    for lam in (np.array([2.0, -5.0]), np.array([1.0, -9.0, 0.5, -3.0, 0.1])):
        p = diagnostics.problem(lambda x, lam=lam: float(0.5 * x @ (lam * x)), np.ones(lam.size))
        assert diagnostics.largest_eigenvalue(p, diagnostics.values_hvp(p)) == pytest.approx(lam.max(), rel=1e-4)


def test_flatness_is_the_penalty_of_the_radius() -> None:
    """f_mu(x) - f(x) = (mu^2 / 2) tr H: the implied trace is the same at every mu of a quadratic."""
    rows = diagnostics.flatness(diagnostics.problem(bowl, X), (0.01, 0.1, 1.0), n=64)
    for row in rows:
        assert row["penalty"] == pytest.approx(0.5 * row["mu"] ** 2 * row["trace"], rel=1e-12)
        assert abs(row["penalty"] - 0.5 * row["mu"] ** 2 * np.trace(H)) <= 4 * row["error"]
        assert row["trace"] == pytest.approx(rows[0]["trace"], rel=1e-6)


def test_zeroth_order_descent_goes_to_flat_minima() -> None:
    """f = (y z - 1)^2 / 2, B = (y^2 - z^2) / 2: dE[B]/dt = -2 mu^2 E[B], so B falls by e^-1 = 0.368 in t = 1/(2 mu^2).

    arXiv 2506.05454, Example 1: the two-point estimate is unbiased for f_mu, whose gradient flow this is.
    """
    from zograd import Method, Run, Store
    from zograd.rules import SGD

    mu, lr = 0.5, 0.004
    ratios = []
    for seed in range(12):
        x = torch.tensor([1.5, 0.5], dtype=torch.float64)
        run = Run(Store({"x": x}), Method(Central(8), Gaussian(), SGD(), mu=mu, lr=lr), seed)
        out, leaf = torch.empty(2, dtype=torch.float64), run.store.leaves[0]
        for _ in range(round(1 / (2 * mu**2) / lr)):
            points = [run.store.point_(out, leaf, q.at).tolist() for q in run.ask()]
            run.tell([0.5 * (y * z - 1) ** 2 for y, z in points])
        ratios.append(float(x[0] ** 2 - x[1] ** 2) / 2.0)
    error = np.std(ratios) / math.sqrt(len(ratios))
    assert abs(np.mean(ratios) - math.exp(-1)) <= 0.01
    assert error < 0.005


@pytest.mark.parametrize("sigma", [1e-3, 1e-6, 1e-9])
def test_noise_floor_finds_the_noise_and_the_radii_that_follow(sigma: float) -> None:
    """sigma within 35 %, and the central radius makes a better difference than one 30 times smaller or larger."""
    rng = np.random.default_rng(1)

    def f(x: np.ndarray) -> float:
        return bowl(x) + float(np.sum(np.cos(x))) + sigma * rng.normal()

    p = diagnostics.problem(f, X)
    found = diagnostics.noise_floor(p)
    assert found.sigma == pytest.approx(sigma, rel=0.35)
    g = H @ X + B - np.sin(X)
    (v,) = p.directions(Gaussian(), 1, 9)
    rows = np.concatenate([b.v[0].numpy().copy() for b in p.store.blocks(v)])

    def error(mu: float) -> float:
        ds = [np.diff(p.values([-mu * v, mu * v]))[0] / (2 * mu) for _ in range(40)]
        return float(np.sqrt(np.mean((np.array(ds) - g @ rows) ** 2)))

    best = error(found.mu_central)
    assert best < error(30 * found.mu_central)
    assert best < error(found.mu_central / 30)


def test_rounding_is_noise_too() -> None:
    """float32 values of a float64 function: the floor is the rounding of float32."""
    p = diagnostics.problem(lambda x: float(np.float32(bowl(x) + 10.0)), X)
    value = abs(np.float32(bowl(X) + 10.0))
    found = diagnostics.noise_floor(p, 1e-9)
    assert 0.05 * np.spacing(value) <= found.sigma <= np.spacing(value)


def test_signal_to_noise_is_the_slope_over_the_noise() -> None:
    """sqrt(E (f+ - f-)^2 / (2 sigma^2) - 1) = sqrt(2) mu |g| / sigma."""
    rng, sigma, mu, g = np.random.default_rng(2), 1e-3, 1e-3, np.linspace(-1, 1, D)
    p = diagnostics.problem(lambda x: float(g @ x) + sigma * rng.normal(), np.zeros(D))
    m = diagnostics.signal_to_noise(p, mu, sigma=sigma, n=2000)
    assert abs(m.value - math.sqrt(2) * mu * np.linalg.norm(g) / sigma) <= 4 * m.error
    flat = diagnostics.problem(lambda x: sigma * rng.normal(), np.zeros(D))
    assert diagnostics.signal_to_noise(flat, mu, sigma=sigma, n=2000).value < 0.5


def test_gradient_cosine_is_that_of_theory() -> None:
    """E cos ~ E|cos| of one direction: sqrt(2 / (pi d)) for q = 1; near 1 for q >> d; 0 for an unused tensor."""
    w = torch.from_numpy(RNG.normal(size=(4, 5)))
    x = torch.from_numpy(RNG.normal(size=(30, 4)))

    def closure() -> torch.Tensor:
        return torch.tanh(x @ w).square().mean()

    p = diagnostics.problem(closure, {"w": w})
    one = diagnostics.gradient_cosine(closure, p, law=Gaussian(), n=600)
    assert abs(one.value - math.sqrt(2 / (math.pi * 20))) <= 4 * one.error + 0.01
    many = diagnostics.gradient_cosine(closure, p, Central(2000), n=2)
    assert many.value > 0.98
    assert not w.requires_grad


def test_bad_input_is_named() -> None:
    p = diagnostics.problem(lambda x: math.nan, np.ones(3))
    with pytest.raises(ValueError, match="the loss is nan at probe 0"):
        diagnostics.trace(p)
    with pytest.raises(ValueError, match="sigma must be > 0"):
        diagnostics.signal_to_noise(p, sigma=0.0)
    with pytest.raises(ValueError, match="points >= 6"):
        diagnostics.noise_floor(p, points=3)
