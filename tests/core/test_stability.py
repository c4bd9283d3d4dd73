"""The edge of stability: the closed form against the spectrum of the second-moment map and against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from zograd import Method, Run, Store
from zograd.estimators import Central
from zograd.laws import Gaussian, Rademacher, Sphere
from zograd.learning_rate import MOMENTS, critical_lr, lr_bounds, moments, second_moment_map, second_moment_radius
from zograd.rules import SGD, Momentum

HARMONIC = 1 / np.arange(1, 31)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("q", [1, 4, 16])
@pytest.mark.parametrize("law", MOMENTS)
def test_the_spectral_radius_is_one_at_the_critical_learning_rate(law: str, q: int, beta: float) -> None:
    """1 +- 1e-9 at eta*, below 1 under it and above 1 over it: algorithms for q directions, all laws, and momentum."""
    eta = critical_lr(HARMONIC, q=q, law=law, beta=beta)
    assert second_moment_radius(HARMONIC, eta, q=q, law=law, beta=beta) == pytest.approx(1.0, abs=1e-9)
    assert second_moment_radius(HARMONIC, 0.98 * eta, q=q, law=law, beta=beta) < 1 - 1e-6
    assert second_moment_radius(HARMONIC, 1.02 * eta, q=q, law=law, beta=beta) > 1 + 1e-6


@pytest.mark.parametrize("beta", [0.0, 0.9])
@pytest.mark.parametrize("q", [1, 4, 16])
def test_the_bounds_hold_and_are_attained(q: int, beta: float) -> None:
    """lower <= eta* <= upper for Gaussian directions; a single eigenvalue attains the lower one."""
    for lam in (HARMONIC, np.ones(7), np.array([5.0, 1e-3, 1e-3]), np.logspace(0, -6, 50)):
        low, high = lr_bounds(lam.sum(), lam.max(), q=q, beta=beta)
        assert low * (1 - 1e-12) <= critical_lr(lam, q=q, beta=beta) <= high
    low, _ = lr_bounds(3.0, 3.0, q=q, beta=beta)
    assert critical_lr([3.0], q=q, beta=beta) == pytest.approx(low, rel=1e-12)


def test_limits_of_the_law() -> None:
    """q -> infinity gives gradient descent's 2 / lambda_max; aligned directions give exactly 2 / tr H."""
    assert critical_lr(HARMONIC, q=10**7) == pytest.approx(2.0, rel=1e-4)
    for law in ("dap", "rademacher"):
        assert critical_lr(HARMONIC, law=law) == pytest.approx(2 / HARMONIC.sum(), rel=1e-12)
    assert critical_lr(HARMONIC, q=30, law="orthogonal") == pytest.approx(2.0, rel=1e-12)  # d orthogonal ones: exact
    assert critical_lr(HARMONIC, q=1, law="orthogonal") == pytest.approx(critical_lr(HARMONIC, q=1, law="sphere"))


def test_the_map_has_the_formula_of_the_paper() -> None:
    """arXiv 2604.14669: S+ = S - eta (HS + SH) + eta^2 (tr(H^2 S) I + 2 HSH), on the diagonal."""
    eta, lam = 0.3, np.array([1.0, 0.5, 0.2])
    s = np.array([0.7, 1.1, 0.4])
    paper = s - 2 * eta * lam * s + eta**2 * (np.sum(lam**2 * s) + 2 * lam**2 * s)
    np.testing.assert_allclose(second_moment_map(lam, eta) @ s, paper, rtol=1e-14)


@pytest.mark.parametrize("law", ["gaussian", "sphere", "rademacher", "orthogonal"])
@pytest.mark.parametrize("q", [1, 3])
def test_moments_are_those_of_the_directions(law: str, q: int) -> None:
    """E[(g^_i)^2] = a |g|^2 + (1 + c) g_i^2, by simulation within 1.5 %."""
    rng, d, n = np.random.default_rng(5), 6, 200_000
    g = np.array([1.0, -0.5, 0.3, 0.0, 2.0, 0.7])
    z = rng.normal(size=(n, q, d))
    if law == "sphere":
        z *= np.sqrt(d) / np.linalg.norm(z, axis=2, keepdims=True)
    elif law == "rademacher":
        z = np.sign(z)
    elif law == "orthogonal":
        z = np.sqrt(d) * np.swapaxes(np.linalg.qr(np.swapaxes(z, 1, 2))[0], 1, 2)
    estimate = np.einsum("nqd,d,nqe->ne", z, g, z) / q
    a, c = moments(law, d, q)
    expected = a * (g @ g) + (1 + c) * g**2
    np.testing.assert_allclose((estimate**2).mean(0), expected, rtol=0.015)


@pytest.mark.parametrize(
    ("law", "name", "q", "beta"),
    [
        (Rademacher(), "rademacher", 1, 0.5),
        pytest.param(Gaussian(), "gaussian", 4, 0.0, marks=pytest.mark.slow),
        pytest.param(Sphere(), "sphere", 2, 0.0, marks=pytest.mark.slow),
    ],
)
def test_runs_of_the_library_grow_and_shrink_as_the_map_says(law, name: str, q: int, beta: float) -> None:
    """E|x_t|^2 of real runs follows the map within sampling error, on both sides of the edge."""
    import torch

    lam = np.array([1.0, 0.5, 0.25, 0.1])
    for share in (0.6, 1.2):
        eta = share * critical_lr(lam, q=q, law=name, beta=beta)
        steps, runs = 4, 1200
        method = Method(Central(q), law, Momentum(beta) if beta else SGD(), mu=1e-3, lr=eta)
        found = np.zeros(4)
        squares = np.zeros(4)
        for seed in range(runs):
            x = torch.ones(4, dtype=torch.float64)
            run = Run(Store({"x": x}), method, seed)
            for _ in range(steps):
                out = torch.empty(4, dtype=torch.float64)
                leaf = run.store.leaves[0]
                points = [run.store.point_(out, leaf, query.at).numpy().copy() for query in run.ask()]
                run.tell([0.5 * float(p @ (lam * p)) for p in points])
            found += x.numpy() ** 2
            squares += x.numpy() ** 4
        mean = found / runs
        error = np.sqrt(squares / runs - mean**2) / np.sqrt(runs)
        m = second_moment_map(lam, eta, q=q, law=name, beta=beta)
        state = np.ones(4) if beta == 0 else np.r_[np.ones(4), np.zeros(8)]
        expected = (np.linalg.matrix_power(m, steps) @ state)[:4]
        assert np.all(np.abs(mean - expected) <= 4.5 * error)
        assert (second_moment_radius(lam, eta, q=q, law=name, beta=beta) > 1) == (share > 1)


def preconditioned_map(lam: np.ndarray, p: np.ndarray, eta: float, beta: float) -> np.ndarray:
    """Second moments (x x, x m, m m) of m <- beta m + (1 - beta) g^, x <- x - eta m / p; Gaussian, q = 1."""
    d = lam.size
    m = np.zeros((3 * d, 3 * d))
    noise = np.tile(lam**2, (d, 1)) + np.diag(lam**2)  # E[(g^_i - g_i)^2] = sum_j lam_j^2 s_j + lam_i^2 s_i
    for i in range(d):
        e = np.eye(d)[i]
        # x' = a x - b m - k xi,  m' = beta m + c x + (1 - beta) xi,  with xi of variance `noise` in s
        c, k = (1 - beta) * lam[i], eta * (1 - beta) / p[i]
        a, b = 1 - k * lam[i], eta * beta / p[i]
        m[i] = np.r_[a * a * e + k * k * noise[i], -2 * a * b * e, b * b * e]
        m[d + i] = np.r_[a * c * e - k * (1 - beta) * noise[i], (a * beta - b * c) * e, -b * beta * e]
        m[2 * d + i] = np.r_[c * c * e + (1 - beta) ** 2 * noise[i], 2 * beta * c * e, beta**2 * e]
    return m


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_adam_with_frozen_second_moments_has_its_edge(beta: float) -> None:
    """The map, written from the recurrence with P, has spectral radius 1 at eta*, and the sum of the paper is 1."""
    p = np.logspace(-1, 1, 12)
    lam = 1 / np.arange(1, 13)
    eta = critical_lr(lam / p, beta=beta, averaged=True)
    assert np.sum(eta * lam / p / (2 * (1 - eta * lam / p / (1 + beta)))) == pytest.approx(1.0, abs=1e-9)
    for share in (0.98, 1.0, 1.02):
        radius = np.abs(np.linalg.eigvals(preconditioned_map(lam, p, share * eta, beta))).max()
        assert radius == pytest.approx(1.0, abs=1e-9) if share == 1.0 else (radius > 1) == (share > 1)
    low, high = lr_bounds(float(np.sum(lam / p)), float(np.max(lam / p)), beta=beta, averaged=True)
    assert low <= eta <= high


def test_simulated_adam_with_frozen_second_moments_follows_the_map() -> None:
    """E[x^2] over 40,000 runs of 8 steps follows the map, on both sides of the edge."""
    rng, lam, p, beta = np.random.default_rng(0), np.array([1.0, 0.4, 0.1]), np.array([2.0, 0.5, 1.0]), 0.5
    eta = critical_lr(lam / p, beta=beta, averaged=True)
    for share in (0.9, 1.1):
        matrix = preconditioned_map(lam, p, share * eta, beta)
        x, m = np.ones((40_000, 3)), np.zeros((40_000, 3))
        for _ in range(8):
            v = rng.standard_normal(x.shape)
            g = v * np.sum(v * lam * x, axis=1, keepdims=True)
            m = beta * m + (1 - beta) * g
            x = x - share * eta * m / p
        expected = (np.linalg.matrix_power(matrix, 8) @ np.r_[np.ones(3), np.zeros(6)])[:3]
        error = (x**2).std(0) / 200
        assert np.all(np.abs((x**2).mean(0) - expected) < 5 * error)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="no moments are known for the law 'cauchy'; use one of gaussian"):
        critical_lr(HARMONIC, law="cauchy")
    with pytest.raises(ValueError, match="q >= 1"):
        critical_lr(HARMONIC, q=0)
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\)"):
        critical_lr(HARMONIC, beta=1.0)
    with pytest.raises(ValueError, match="finite numbers >= 0"):
        critical_lr([-1.0, 2.0])
    with pytest.raises(ValueError, match="cannot be orthogonal in 3 dimensions"):
        critical_lr([1.0, 2.0, 3.0], q=4, law="orthogonal")
    with pytest.raises(ValueError, match="must be positive"):
        lr_bounds(0.0, 1.0)
