"""Settings of numerical solvers that are known only by the cost of a run: the relaxation of linear systems."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from zograd.core.vector import Array

MOST = 5000
"""Iterations after which `iterations` gives up."""


@dataclass(frozen=True, eq=False)
class Relaxation:
    """Iterations of successive over-relaxation on a family of systems, one entry for each solve that was run.

    shifts: (systems,), c of A_c = L + c I. omegas: (arms,), the relaxation parameters.
    iterations: (systems, arms), what `iterations` counted on A_c with omega.
    """

    shifts: Array
    omegas: Array
    iterations: npt.NDArray[np.intp]


def laplacian(side: int) -> Array:
    """The matrix of the 5-point Laplacian on side x side inner points of a square, with 4 on its diagonal."""
    line = 2 * np.eye(side) - np.eye(side, k=1) - np.eye(side, k=-1)
    eye = np.eye(side)
    return np.asarray(np.kron(line, eye) + np.kron(eye, line))


def iterations(a: Array, b: Array, omega: float, tolerance: float = 1e-8, most: int = MOST) -> int:
    """Iterations of successive over-relaxation from 0 until |b - A x| <= tolerance |b|; at most `most`.

    x <- x + (D / omega + E)^-1 (b - A x), D the diagonal of A and E its part below the diagonal. For a positive
    definite A it converges for omega in (0, 2). O(d^2) an iteration. Raises ValueError for other omegas.

        >>> a = laplacian(4)
        >>> [iterations(a, np.ones(16), omega) for omega in (1.0, 1.25, 1.9)]
        [45, 20, 180]
    """
    from scipy.linalg import solve_triangular

    if not 0 < omega < 2:
        raise ValueError(f"omega={omega}; successive over-relaxation converges for omega in (0, 2)")
    lower = np.tril(a, -1) + np.diag(np.diag(a) / omega)
    x, enough = np.zeros_like(b), tolerance * float(np.linalg.norm(b))
    for k in range(most):
        residual = b - a @ x
        if float(np.linalg.norm(residual)) <= enough:
            return k
        x = x + solve_triangular(lower, residual, lower=True, check_finite=False)
    return most


@cache
def relaxation(side: int = 10, systems: int = 12, arms: int = 20, seed: int = 0) -> Relaxation:
    """Every pair of a system and an omega, solved once: (L + c I) x = b to a relative residual of 1e-8.

    L is the Laplacian of side x side points, c has `systems` equal steps in [-0.05, 0.5] and omega `arms` in
    [1, 1.95]; b is normal and the same for all. The least eigenvalue of L is 8 sin^2(pi / (2 side + 2)), which must be
    above 0.05: side <= 18. About a second for the defaults, then kept.
    """
    if not 2 <= side <= 18:
        raise ValueError(f"side={side}; the shifted matrices are positive definite for side from 2 to 18")
    shifts, omegas = np.linspace(-0.05, 0.5, systems), np.linspace(1.0, 1.95, arms)
    a, b = laplacian(side), np.random.default_rng(seed).standard_normal(side * side)
    counts = [[iterations(a + c * np.eye(side * side), b, omega) for omega in omegas.tolist()] for c in shifts]
    return Relaxation(shifts, omegas, np.array(counts, dtype=np.intp))
