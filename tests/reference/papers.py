"""Every method of the menu as its paper writes it: dense NumPy vectors, one formula a line, no seeds and no blocks.

Each function takes f, the start x0 and `directions`, an iterable that gives the matrix V of each step (one direction a
row), and yields the iterate after each step. Nothing here is fast, shared or clever: it is what the library is held to.
Weight decay is decoupled everywhere: x is first multiplied by (1 - lr weight_decay).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Loss = Callable[[Array], float]
Directions = Iterable[Array]


def two_point(f: Loss, x: Array, V: Array, mu: float) -> Array:
    """g = (1/n) sum_j (f(x + mu v_j) - f(x - mu v_j)) / (2 mu) v_j  (Spall 1992; MeZO, Definition 1)."""
    D = [(f(x + mu * v) - f(x - mu * v)) / (2 * mu) for v in V]
    return np.mean([c * v for c, v in zip(D, V, strict=True)], axis=0)


def zo_sgd(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, weight_decay: float = 0.0
) -> Iterator[Array]:
    """x <- x - lr g  (Nesterov and Spokoiny 2017; MeZO, Algorithm 1)."""
    x = x0
    for V in directions:
        g = two_point(f, x, V, mu)
        x = (1 - lr * weight_decay) * x - lr * g
        yield x


mezo = zo_sgd  # the same recurrence with Gaussian directions


def heavy_ball(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, beta: float = 0.9, weight_decay: float = 0.0
) -> Iterator[Array]:
    """m <- beta m + g, x <- x - lr m  (Polyak 1964)."""
    x, m = x0, np.zeros_like(x0)
    for V in directions:
        m = beta * m + two_point(f, x, V, mu)
        x = (1 - lr * weight_decay) * x - lr * m
        yield x


def heavy_ball_from_scalars(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    beta: float = 0.9,
    window: int | None = None,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """m_t = sum_{k < K} beta^k g_{t-k}, x <- x - lr m_t  (MeZO, section 3.3); K is the smallest with beta^K <= 1e-3."""
    K = window or int(np.ceil(np.log(1e-3) / np.log(beta)))
    x, past = x0, []
    for V in directions:
        past.insert(0, two_point(f, x, V, mu))
        m = sum((beta**k * g for k, g in enumerate(past[:K])), np.zeros_like(x0))
        x = (1 - lr * weight_decay) * x - lr * m
        yield x


def zo_adam(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Kingma and Ba (2015), Algorithm 1, on the two-point estimate."""
    x, m, s = x0, np.zeros_like(x0), np.zeros_like(x0)
    for t, V in enumerate(directions, start=1):
        g = two_point(f, x, V, mu)
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * g**2
        m_hat, s_hat = m / (1 - beta1**t), s / (1 - beta2**t)
        x = (1 - lr * weight_decay) * x - lr * m_hat / (np.sqrt(s_hat) + eps)
        yield x


MATRICES = ((4, 3), (2, 4))
"""The leaves of `zo_adafactor`."""


def zo_adafactor(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, decay: float = 0.8, weight_decay: float = 0.0
) -> Iterator[Array]:
    """Shazeer and Stern (2018), Algorithm 4, on the two-point estimate, for each matrix on its own."""
    x, r, c = x0, [np.zeros((n, 1)) for n, _ in MATRICES], [np.zeros((1, m)) for _, m in MATRICES]
    for t, V in enumerate(directions, start=1):
        g, b = two_point(f, x, V, mu), 1 - t**-decay
        moves = []
        for k, part in enumerate(np.split(g, [12])):
            G = part.reshape(MATRICES[k])
            r[k] = b * r[k] + (1 - b) * (np.mean(G**2, axis=1, keepdims=True) + 1e-30)
            c[k] = b * c[k] + (1 - b) * (np.mean(G**2, axis=0, keepdims=True) + 1e-30)
            U = G / np.sqrt(r[k] * c[k] / np.mean(r[k]))
            moves.append((U / max(1.0, np.sqrt(np.mean(U**2)))).ravel())
        x = (1 - lr * weight_decay) * x - lr * np.concatenate(moves)
        yield x


def zo_sign(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, weight_decay: float = 0.0
) -> Iterator[Array]:
    """x <- x - lr sign(g)  (ZO-signSGD, Liu et al. 2019, Algorithm 1)."""
    x = x0
    for V in directions:
        x = (1 - lr * weight_decay) * x - lr * np.sign(two_point(f, x, V, mu))
        yield x


def fzoo(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, weight_decay: float = 0.0
) -> Iterator[Array]:
    """x <- x - lr (1/N) sum_i (l_i - l_0) / sigma u_i, sigma the population standard deviation of l_1 .. l_N (FZOO)."""
    x = x0
    for U in directions:
        l0, losses = f(x), np.array([f(x + mu * u) for u in U])
        x = (1 - lr * weight_decay) * x - lr * np.mean(((losses - l0) / losses.std())[:, None] * U, axis=0)
        yield x


def rank(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    weights: str = "linear",
    top: int = 0,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """x <- x - lr sum_k w_k v_(k), v_(1) the best; w rises with k from negative to positive, sum w = 0, sum |w| = 1."""
    x = x0
    for V in directions:
        n = len(V)
        best_first = V[np.argsort([f(x + mu * v) for v in V], kind="stable")]
        if weights == "linear":
            w = np.linspace(-1.0, 1.0, n)
        elif weights == "log":
            better = [np.log(k) - np.log((n + 1) / 2) for k in range(1, n // 2 + 1)]
            w = np.array(better + [0.0] * (n % 2) + [-b for b in reversed(better)])
        else:
            w = np.array([-1.0] * top + [0.0] * (n - 2 * top) + [1.0] * top)
        x = (1 - lr * weight_decay) * x - lr * (w / np.abs(w).sum()) @ best_first
        yield x


def frank_wolfe(
    f: Loss, x0: Array, directions: Directions, *, set: Any, lr: float = 1.0, mu: float, rho: float = 1.0
) -> Iterator[Array]:
    """m <- (1 - rho_t) m + rho_t g, x <- x + gamma_t (s - x), s = argmin_{|s|_1 <= r} <m, s>  (Mokhtari et al.)."""
    x, m = x0, np.zeros_like(x0)
    for t, V in enumerate(directions):
        rho_t = 1.0 if t == 0 else rho * (t + 1) ** (-2 / 3)
        m = (1 - rho_t) * m + rho_t * two_point(f, x, V, mu)
        k = np.argmax(np.abs(m))
        s = np.zeros_like(x)
        s[k] = -set.radius * np.sign(m[k])
        x = x + lr * 2 / (t + 2) * (s - x)
        yield x
