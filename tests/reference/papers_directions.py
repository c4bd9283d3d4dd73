"""The methods of `methods/directions.py` as their papers write them; the matrices of directions come from outside.

A direction is one dense vector, the leaves end to end. Where a paper works with matrices, its first leaf is 4 x 3 and
the second a vector of 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from bases import gaussian, orthonormal
from papers import Array, Directions, Loss, two_point, zo_sgd

from zograd.core.keys import Shared
from zograd.laws import Draw

zo_orthogonal = zo_sgd  # the same recurrence; what differs is the law of the rows of V
zo_dct = lozo = subzero = tezo = eggroll_unshaped = zo_sgd

M, N = 4, 3
SHAPES = ((M, N), (8,))


def parts(v: Array) -> tuple[Array, Array]:
    return v[: M * N].reshape(M, N), v[M * N :]


def whole(matrix: Array, vector: Array) -> Array:
    return np.concatenate([matrix.ravel(), vector])


def lozo_m(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    seed: int,
    rank: int,
    refresh: int,
    beta: float = 0.9,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """N <- b N + (1 - b) sum_j c_j U_j, X <- X - lr N V^T / sqrt(r); N <- N V_old^T V_new / n on a new V (LOZO-M).

    The directions are Z_j = U_j V^T / sqrt(r), so U_j = sqrt(r) Z_j V (V^T V)^-1. V is Gaussian.
    """
    x, m, n_t, v_old = x0, np.zeros(x0.size - M * N), 0.0, None
    for t, Z in enumerate(directions):
        v = gaussian(Draw(seed, t, 0, SHAPES, None).shared(Shared.RIGHT, refresh), 0, N, rank)
        if v_old is not None and not np.array_equal(v, v_old):
            n_t = n_t @ v_old.T @ v / N
        v_old = v
        matrix, vector = parts(two_point(f, x, Z, mu))
        n_t = beta * n_t + (1 - beta) * np.sqrt(rank) * matrix @ v @ np.linalg.inv(v.T @ v)
        m = beta * m + (1 - beta) * vector
        x = (1 - lr * weight_decay) * x - lr * whole(n_t @ v.T / np.sqrt(rank), m)
        yield x


def eggroll(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, weight_decay: float = 0.0
) -> Iterator[Array]:
    """x <- x - lr 1/(2n) sum_i (F_i+ - F_i-) / std(F) E_i over n antithetic pairs: z-scored fitness (EGGROLL)."""
    x = x0
    for E in directions:
        plus, minus = (np.array([f(x + side * mu * e) for e in E]) for side in (1, -1))
        weights = (plus - minus) / np.std([*plus, *minus]) / (2 * len(E))
        x = (1 - lr * weight_decay) * x - lr * weights @ E
        yield x


def newton_schulz(g: Array, steps: int = 5) -> Array:
    """X <- a X + b (X X^T) X + c (X X^T)^2 X from X = G / |G|_F (Muon, Jordan et al. 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / np.linalg.norm(g)
    for _ in range(steps):
        x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
    return x


def zo_muon(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    seed: int,
    rank: int,
    refresh: int,
    plain: float = 1e-4,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """X <- X - lr P msign(P^T G), G the forward-difference estimate along Z_j = sqrt(m/r) P Psi_j (ZO-Muon)."""
    x = x0
    for t, Z in enumerate(directions):
        f0 = f(x)
        matrix, vector = parts(np.mean([(f(x + mu * z) - f0) / mu * z for z in Z], axis=0))
        p = orthonormal(Draw(seed, t, 0, SHAPES, None).shared(Shared.LEFT, refresh), 0, M, rank)
        x = (1 - lr * weight_decay) * x - lr * whole(p @ newton_schulz(p.T @ matrix), plain * vector)
        yield x


def masked(f: Loss, x: Array, V: Array, mu: float, mask: Array) -> Array:
    """The two-point estimate along the rows of V with 0 outside of the mask."""
    return two_point(f, x, V * mask, mu)


def sparse_mezo(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, sparsity: float = 0.75
) -> Iterator[Array]:
    """x <- x - lr g, g along m z with m = [|x| <= h], h of each leaf: a fraction `sparsity` of x0 is above."""
    leaves = np.split(np.abs(x0), [M * N])
    h = np.concatenate([np.full(a.size, np.sort(a)[round((1 - sparsity) * a.size) - 1]) for a in leaves])
    x = x0
    for V in directions:
        x = x - lr * masked(f, x, V, mu, np.abs(x) <= h)
        yield x


def senszoq(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, scores: Callable[[Any], Any], density: float
) -> Iterator[Array]:
    """x <- x - lr g, g along m z with m the `density` d coordinates of the highest scores."""
    leaves = [SimpleNamespace(index=k, numel=n, shape=(n,)) for k, n in enumerate((M * N, x0.size - M * N))]
    values = np.concatenate([scores(leaf).numpy() for leaf in leaves])
    mask = np.zeros(x0.size)
    mask[np.argsort(-values)[: round(density * x0.size)]] = 1
    x = x0
    for V in directions:
        x = x - lr * masked(f, x, V, mu, mask)
        yield x


def dap(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    rng: Callable[[int], np.random.Generator],
    guide: str = "pilot",
    fixed_norm: bool = True,
    central: bool = False,
    beta: float = 0.9,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """v = (I - u u^T) z + xi u, of norm sqrt(d) when fixed; u from the first half of them or a momentum (DAP).

    The momentum starts anew where it would nearly vanish: w is the coefficient of the old one in the new.
    """
    x, m, d = x0, np.zeros_like(x0), x0.size

    def slope(x, v):
        return (f(x + mu * v) - f(x - mu * v)) / (2 * mu) if central else (f(x + mu * v) - f(x)) / mu

    def aligned(z, u, xi):
        across = z - (u @ z) * u
        return (np.sqrt(d - 1) * across / np.linalg.norm(across) if fixed_norm else across) + xi * u

    for t, Z in enumerate(directions):
        half = len(Z) // 2 if guide == "pilot" else 0
        sides = np.where(rng(t).random(len(Z)) < 0.5, -1.0, 1.0)
        first = [slope(x, z) * z for z in Z[:half]]
        towards = np.mean(first, axis=0) if half else m
        if np.linalg.norm(towards) == 0:
            v = Z[half:]
        else:
            u = towards / np.linalg.norm(towards)
            v = np.stack([aligned(z, u, xi) for z, xi in zip(Z[half:], sides[half:], strict=True)])
        c = np.array([slope(x, vj) for vj in v])
        g = c @ v / len(v)
        if half:
            g = (np.mean(first, axis=0) + g) / 2
        if guide == "momentum":
            # v = (a part without m) + k_j m: the old momentum enters g through its own direction
            k = 0.0
            if np.linalg.norm(m) > 0:
                stretch = [np.sqrt(d - 1) / np.linalg.norm(z - (u @ z) * u) if fixed_norm else 1.0 for z in Z]
                k = np.mean([cj * (xi - s * (u @ z)) for cj, xi, s, z in zip(c, sides, stretch, Z, strict=True)])
                k /= np.linalg.norm(m)
            m = g if abs(beta + (1 - beta) * k) < 0.1 else beta * m + (1 - beta) * g
        x = (1 - lr * weight_decay) * x - lr * g
        yield x
