"""Random tangents at a point where the metric is a given matrix, by the right way and by the published one."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np

from zograd.core.vector import Array


def tangents(A: Array, n: int, rng: np.random.Generator, how: Literal["root", "rejection"] = "root") -> Array:
    """n random tangents, rows v of length sqrt(d) in the metric v^T A v.

    how:
    - "root": v = sqrt(d) A^(-1/2) s, s uniform on the Euclidean unit sphere. E[v v^T] = A^-1, which is all that
      unbiased estimates need. This is what the spaces do.
    - "rejection": Proposition 2.8 of Riemannian ZO (arXiv 2601.08039): the same v, kept with probability
      sqrt(v^T A^2 v) / max, which makes them uniform in Euclidean surface area of the ellipsoid v^T A v = d. That is
      *not* isotropic in the metric: the estimates are biased, by -19 to 36 % for A = diag(1, 4, 25, 100). For
      comparison only, with a warning. The published bound lambda_max keeps 5 % of the draws there; the largest value
      sqrt(lambda_max), taken here, keeps 53 % of them and gives the same law.

    Raises ValueError when A is not symmetric positive definite. Memory: n d numbers.
    """
    A = np.asarray(A, dtype=np.float64)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or not np.allclose(A, A.T):
        raise ValueError(f"a metric is a symmetric matrix, got shape {A.shape}")
    eigenvalues, Q = np.linalg.eigh(A)
    if not eigenvalues[0] > 0:
        raise ValueError(f"a metric is positive definite, got the eigenvalue {eigenvalues[0]:g}")
    if how not in ("root", "rejection"):
        raise ValueError(f"tangents are drawn by 'root' or 'rejection', got {how!r}")
    d = len(A)
    if how == "root":
        return np.asarray(np.sqrt(d) * sphere(rng, n, d) @ (Q * eigenvalues**-0.5 @ Q.T))
    warnings.warn(
        "tangents kept by rejection are not isotropic in the metric, so that gradient estimates from them are biased; "
        "use how='root'",
        stacklevel=2,
    )
    kept: list[Array] = []
    while sum(map(len, kept)) < n:
        s = sphere(rng, n, d)
        keep = rng.random(n) < np.sqrt(s**2 @ eigenvalues / eigenvalues[-1])  # v^T A^2 v = d s^T Lambda s
        kept.append(s[keep])
    return np.asarray(np.sqrt(d) * np.concatenate(kept)[:n] @ (Q * eigenvalues**-0.5).T)


def sphere(rng: np.random.Generator, n: int, d: int) -> Array:
    """n points, uniform on the unit sphere."""
    s = rng.standard_normal((n, d))
    return np.asarray(s / np.linalg.norm(s, axis=1, keepdims=True))
