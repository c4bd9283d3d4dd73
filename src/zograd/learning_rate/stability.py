"""The edge of stability of zeroth-order descent: above which learning rate E[x^2] grows, in closed form.

On the quadratic x^T H x / 2 the two-point estimate is exact along its directions, g^ = (1/q) sum_j (v_j . Hx) v_j, and

    E[g^ g^T] = a |g|^2 I + (1 + c) g g^T   (isotropic laws),   g = Hx,

with a and c of the law in `Moments`. In the eigenbasis of H the second moments s_i = E[x_i^2] follow a linear map, so
mean-square stability is a spectral radius below 1, and the critical learning rate eta* solves

    a sum_i eta lambda_i (1 + beta) / (2 (1 - beta^2) - eta lambda_i ((1 - beta) + c (1 + beta))) = 1,

for heavy ball m <- beta m + g^, x <- x - eta m. With beta = 0 and Gaussian directions this is
(1/q) sum_i eta lambda_i / (2 - (1 + 1/q) eta lambda_i) = 1, so that, unlike with exact gradients, the trace of H limits
the step: 2q / (tr H + (q + 1) lambda_max) <= eta* <= 2q / tr H, and momentum shrinks it.

Sources: arXiv 2604.14669 (Gaussian, q = 1, momentum); q directions, other laws and their combination with momentum are
our derivation, held to the spectral radius of the map in `tests/core/test_stability.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Moments(NamedTuple):
    """E[g^ g^T] = a |g|^2 I + (1 + c) g g^T, read coordinate by coordinate in the eigenbasis of H."""

    a: float
    c: float


def _gaussian(d: int, q: int) -> Moments:
    return Moments(1 / q, 1 / q)


def _sphere(d: int, q: int) -> Moments:
    k = d / (d + 2)
    return Moments(k / q, (2 * k - 1) / q)


def _aligned(d: int, q: int) -> Moments:
    return Moments(1 / q, -1 / q)


def _orthogonal(d: int, q: int) -> Moments:
    if q > d:
        raise ValueError(f"q={q} directions cannot be orthogonal in {d} dimensions; use q <= {d}")
    if d == 1:
        return Moments(0.0, 0.0)
    a = d * (d - q) / (q * (d + 2) * (d - 1))
    return Moments(a, d / q - 1 - d * a)


MOMENTS: dict[str, Callable[[int, int], Moments]] = {
    "gaussian": _gaussian,
    "sphere": _sphere,
    "orthogonal": _orthogonal,
    "rademacher": _aligned,
    "dap": _aligned,
}
"""Law -> (dimension, number of directions q) -> Moments.

rademacher: H diagonal in the coordinates of the signs; with H in general position it behaves as the sphere.
dap: aligned directions with an exact guide. orthogonal: q mutually orthogonal ones (Haar).
"""


def moments(law: str, d: int, q: int) -> Moments:
    """The moments of a law by name; ValueError names the known ones."""
    if law not in MOMENTS:
        raise ValueError(f"no moments are known for the law {law!r}; use one of {', '.join(MOMENTS)}")
    if q < 1:
        raise ValueError(f"an estimate needs q >= 1 directions, got q={q}")
    return MOMENTS[law](d, q)


def critical_lr(
    eigenvalues: npt.ArrayLike, *, q: int = 1, law: str = "gaussian", beta: float = 0.0, averaged: bool = False
) -> float:
    """eta*: heavy ball with zeroth-order estimates is mean-square stable on this Hessian exactly for lr < eta*.

    eigenvalues: of H, non-negative, not all 0. q: directions averaged a step. law: a name of `MOMENTS`.
    beta: momentum, m <- beta m + g. averaged: m <- beta m + (1 - beta) g, as in Adam, whose edge is 1 / (1 - beta)
    times as high; for Gaussian directions, q = 1, it is where sum_i eta l_i / (2 (1 - eta l_i / (1 + beta))) = 1.

    For steps x <- x - eta P^-1 m with a fixed preconditioner P (Adam after its second moments have settled: P is
    diag(sqrt(v) + eps)) pass the eigenvalues of P^-1 H. That is exact where P and H commute, which the paper assumes.
    Solved by bisection to rounding, in O(d) a step. Raises ValueError.

        >>> critical_lr([1.0, 0.5, 0.1], beta=0.9, averaged=True) / critical_lr([1.0, 0.5, 0.1], beta=0.9)
        10.0...
    """
    lam = _spectrum(eigenvalues)
    if not 0 <= beta < 1:
        raise ValueError(f"beta must lie in [0, 1), got {beta}")
    a, c = moments(law, lam.size, q)
    b = (1 - beta) + c * (1 + beta)

    def excess(eta: float) -> float:
        rest = 2 * (1 - beta**2) - b * eta * lam
        return float(a * np.sum(eta * lam * (1 + beta) / rest)) - 1.0

    if b > 0:  # the sum grows from 0 to infinity at the pole of the largest eigenvalue
        low, high = 0.0, 2 * (1 - beta**2) / (b * float(lam.max()))
    else:
        low, high = 0.0, 2 * (1 - beta) / (a * float(lam.sum()))
        while excess(high) < 0:
            high *= 2
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return low / (1 - beta) if averaged else low


def lr_bounds(
    trace: float, largest: float, *, q: int = 1, beta: float = 0.0, averaged: bool = False
) -> tuple[float, float]:
    """(below which every Hessian with this trace and largest eigenvalue is stable, above which none is), Gaussian.

    averaged: for moments that are averages, as in `critical_lr`; then both are 1 / (1 - beta) times as high.

    beta = 0: 2q / (tr + (q + 1) lambda_max) and 2q / tr. q = 1: 2 (1 - beta) / (tr + 2 lambda_max / (1 + beta)) and
    2 (1 - beta) / tr. Both combined: 2q (1 - beta) / (tr + (q (1 - beta) + 1 + beta) lambda_max / (1 + beta)), which is
    eta* when all other eigenvalues are infinitely small.
    """
    if not (trace > 0 and largest > 0):
        raise ValueError(f"trace and largest eigenvalue must be positive, got {trace} and {largest}")
    spread = (q * (1 - beta) + 1 + beta) / (1 + beta)
    edge = 2.0 * q * (1.0 if averaged else 1 - beta)
    return float(edge / (trace + spread * largest)), float(edge / trace)


def second_moment_map(
    eigenvalues: npt.ArrayLike, lr: float, *, q: int = 1, law: str = "gaussian", beta: float = 0.0
) -> Array:
    """The matrix that takes the second moments of one step to those of the next, in the eigenbasis of H.

    beta = 0: [d, d] on E[x_i^2]. beta > 0: [3d, 3d] on (E[x_i^2], E[x_i m_i], E[m_i^2]).
    """
    lam = _spectrum(eigenvalues)
    d = lam.size
    a, c = moments(law, d, q)
    noise = a * np.tile(lam**2, (d, 1)) + c * np.diag(lam**2)  # E[xi_i^2] = a sum_j lam_j^2 s_j + c lam_i^2 s_i
    if beta == 0.0:
        return np.diag((1 - lr * lam) ** 2) + lr**2 * noise
    eye, off = np.eye(d), np.diag(lam)
    # m' = beta m + lam x + xi,  x' = x - lr m' = (1 - lr lam) x - lr beta m - lr xi
    p = np.diag(1 - lr * lam)
    xx = [p @ p + lr**2 * noise, -2 * lr * beta * p, lr**2 * beta**2 * eye]
    xm = [p @ off - lr * noise, beta * (p - lr * off), -lr * beta**2 * eye]
    mm = [off @ off + noise, 2 * beta * off, beta**2 * eye]
    return np.block([xx, xm, mm])


def second_moment_radius(
    eigenvalues: npt.ArrayLike, lr: float, *, q: int = 1, law: str = "gaussian", beta: float = 0.0
) -> float:
    """Spectral radius of `second_moment_map`: 1 at the critical learning rate, below 1 where E|x|^2 falls."""
    return float(np.abs(np.linalg.eigvals(second_moment_map(eigenvalues, lr, q=q, law=law, beta=beta))).max())


def _spectrum(eigenvalues: npt.ArrayLike) -> Array:
    lam = np.atleast_1d(np.asarray(eigenvalues, dtype=np.float64))
    if lam.ndim != 1 or not np.all(np.isfinite(lam)) or lam.min() < 0 or lam.max() <= 0:
        raise ValueError("eigenvalues must be a list of finite numbers >= 0, at least one of them > 0")
    return lam
