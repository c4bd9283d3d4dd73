"""Curvature of batches against dense eigenvalues, random matrices, and the gradient-free product."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zograd import diagnostics
from zograd.diagnostics import batches

TERMS, D = 60, 6
RNG = np.random.default_rng(5)
A = RNG.standard_normal((TERMS, D)) * np.array([3.0, 1, 1, 0.5, 0.5, 0.1])


def regression(dtype: torch.dtype = torch.float64):
    """Terms (a_i w)^2 / 2, whose batches have the Hessian A_B^T A_B / B."""
    w, a = torch.ones(D, dtype=dtype), torch.from_numpy(A)
    return w, lambda rows: 0.5 * (a[rows] @ w).square().mean()


def test_batches_have_the_eigenvalues_and_traces_of_dense_matrices() -> None:
    w, loss = regression()
    found = diagnostics.batch_curvature(loss, [w], TERMS, (5, 20, TERMS), repeats=4, n=400, seed=3)
    rng = np.random.default_rng(3)
    for size, top, total in zip(found.sizes, found.largest, found.traces, strict=True):
        hessians = []
        for _ in range(4):
            rows = np.sort(rng.choice(TERMS, size, replace=False))
            hessians.append(A[rows].T @ A[rows] / size)
        tops = [np.linalg.eigvalsh(h)[-1] for h in hessians]
        assert top.value == pytest.approx(np.mean(tops), rel=2e-3)
        assert top.error == pytest.approx(np.std(tops, ddof=1) / 2, rel=0.05, abs=1e-3)
        assert total.value == pytest.approx(np.mean([np.trace(h) for h in hessians]), rel=0.1)
        assert total.evaluations == 4 * 802
    assert w.tolist() == [1.0] * D


def test_products_from_values_give_the_same() -> None:
    w, loss = regression()
    by_gradients = diagnostics.batch_curvature(loss, {"w": w}, TERMS, (10, TERMS), repeats=2)
    by_values = diagnostics.batch_curvature(
        loss, {"w": w}, TERMS, (10, TERMS), repeats=2, product=lambda closure, p: diagnostics.values_hvp(p)
    )
    assert [m.value for m in by_values.largest] == pytest.approx([m.value for m in by_gradients.largest], rel=1e-3)


@pytest.mark.parametrize("noise", [0.5, 1.5, 2.5])
def test_random_matrices_have_the_edge_of_the_spiked_model(noise: float) -> None:
    rng = np.random.default_rng(0)
    tops = []
    for _ in range(6):
        g = rng.standard_normal((300, 300))
        h = noise * (g + g.T) / math.sqrt(600)
        u = rng.standard_normal(300)
        tops.append(np.linalg.eigvalsh(h + 2.0 * np.outer(u, u) / (u @ u))[-1])
    assert np.mean(tops) == pytest.approx(diagnostics.spiked_edge(2.0, noise), rel=0.03)


@pytest.mark.parametrize(("lam", "noise"), [(2.0, 4.0), (0.5, 6.0), (3.0, 0.5)])
def test_the_fit_recovers_what_made_the_values(lam: float, noise: float) -> None:
    sizes = (4, 16, 64, 500)
    values = [diagnostics.spiked_edge(lam, noise * math.sqrt(1 / b - 1 / 500)) for b in sizes]
    assert batches._fit(sizes, values, 500) == pytest.approx((lam, noise, 0.0), rel=1e-4, abs=1e-5)


def test_rates_follow_the_edge() -> None:
    m = diagnostics.Measurement(1.0, 0.1, 1)
    found = diagnostics.BatchCurvature((4, 100), (m, m), (m, m), 100, lam=2.0, noise=2.0, misfit=0.0)
    assert found.largest_lr(100) == 1.0
    s2 = 4 * (1 / 4 - 1 / 100)
    assert found.largest_lr(4) == pytest.approx(2 / (2 + s2 / 2))


def test_sizes_that_show_nothing_are_refused() -> None:
    w, loss = regression()
    for sizes in ((10,), (0, 10), (10, TERMS + 1), (10, 10)):
        with pytest.raises(ValueError, match="at least two different sizes"):
            diagnostics.batch_curvature(loss, [w], TERMS, sizes)
    with pytest.raises(ValueError, match="no standard error"):
        diagnostics.batch_curvature(loss, [w], TERMS, (5, 10), repeats=1)
