"""The relaxation of linear systems against sweeps written out by element, and against Young's formula."""

from __future__ import annotations

import numpy as np
import pytest

from zograd.problems import solvers


def sweeps(a: np.ndarray, b: np.ndarray, omega: float, tolerance: float) -> int:
    """Successive over-relaxation as textbooks write it: one unknown after the other."""
    x = np.zeros_like(b)
    for k in range(1000):
        if np.linalg.norm(b - a @ x) <= tolerance * np.linalg.norm(b):
            return k
        for i in range(len(b)):
            x[i] = (1 - omega) * x[i] + omega / a[i, i] * (b[i] - a[i] @ x + a[i, i] * x[i])
    raise AssertionError("no convergence")


@pytest.mark.parametrize(("omega", "shift"), [(1.0, 0.0), (1.5, -0.05), (1.8, 0.3)])
def test_relaxation_counts_the_sweeps(omega: float, shift: float) -> None:
    a = solvers.laplacian(6) + shift * np.eye(36)
    b = np.random.default_rng(0).standard_normal(36)
    assert solvers.iterations(a, b, omega) == sweeps(a, b, omega, 1e-8)


def test_the_laplacian_has_its_eigenvalues() -> None:
    sines = 4 * np.sin(np.arange(1, 8) * np.pi / 16) ** 2
    assert np.linalg.eigvalsh(solvers.laplacian(7)) == pytest.approx(np.sort(np.add.outer(sines, sines).ravel()))


def test_the_best_omega_is_that_of_young() -> None:
    """omega* = 2 / (1 + sqrt(1 - r^2)), r the spectral radius of Jacobi: 1 - least eigenvalue of A / diagonal."""
    table = solvers.relaxation()
    assert table.iterations.shape == (12, 20)
    for shift, counts in zip(table.shifts, table.iterations, strict=True):
        r = 4 * np.cos(np.pi / 11) / (4 + shift)
        young = 2 / (1 + np.sqrt(1 - r * r))
        assert abs(table.omegas[counts.argmin()] - young) < 0.1
        late = table.omegas > young + 0.1
        rates = np.log(1e-8) / np.log(table.omegas[late] - 1)  # beyond omega* the spectral radius is omega - 1
        assert counts[late] == pytest.approx(rates, rel=0.35)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"omega in \(0, 2\)"):
        solvers.iterations(np.eye(2), np.ones(2), 2.0)
    with pytest.raises(ValueError, match="side from 2 to 18"):
        solvers.relaxation(side=19)
