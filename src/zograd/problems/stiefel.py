"""The leading eigenspace as a problem on orthonormal frames."""

from __future__ import annotations

import numpy as np

from zograd.core.vector import Array
from zograd.problems.base import GeometryProblem, View, half_decades
from zograd.spaces import Stiefel


def orthogonality(x: Array) -> float:
    """max |X^T X - I|."""
    return float(np.abs(x.T @ x - np.eye(x.shape[1])).max())


def polar(x: Array) -> Array:
    """The nearest orthonormal frame: U V^T of the singular value decomposition."""
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return np.asarray(u @ v)


def trace(n: int = 50, p: int = 5, seed: int = 0) -> GeometryProblem:
    """min -tr(X^T A X) over X^T X = I_p: minus the sum of the p largest eigenvalues, here 1, 1/2, 1/3, ...

    Flat methods see the same formula off the manifold, where it has no minimum; with projection, at the nearest frame.
    """
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    eigenvalues = 1 / np.arange(1.0, n + 1)
    a = (q * eigenvalues) @ q.T
    start = np.linalg.qr(rng.normal(size=(n, p)))[0]

    def f(x: Array) -> float:
        return -float(np.sum(x * (a @ x)))

    def inside(x: Array) -> bool:
        return orthogonality(x) <= 1e-12

    return GeometryProblem(
        "stiefel-trace",
        f"Leading eigenspace on the Stiefel manifold, n = {n}, p = {p}",
        f"f = -tr(X^T A X) over X^T X = I, X of {n} x {p}, eigenvalues 1/i in random rotation, from a random frame; "
        f"inside: |X^T X - I| <= 1e-12 for each element",
        View(start, f, inside, mu=1e-3, rates=half_decades(1e-3, 10.0), space=Stiefel()),
        View(start, f, inside, mu=1e-3, rates=half_decades(1e-3, 10.0), project=polar),
        minimum=-float(eigenvalues[:p].sum()),
        budget=3000,
        measure=lambda view, x: {"orthogonality": orthogonality(x)},
    )
