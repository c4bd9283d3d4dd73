"""The methods of `methods/estimators.py` as their papers write them; the conventions are those of `papers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from papers import Array, Directions, Loss


def spsa15(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    alpha: float = 0.1,
    floor: float = 1.0,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """w_i = 1 / max(floor, |c_i|^alpha), x <- x - lr (1/n) sum_i w_i D_i z_i  (Chaubard et al., Eq. 3 to 5)."""
    x = x0
    for Z in directions:
        g = np.zeros_like(x)
        for z in Z:
            c = (f(x + mu * z) - 2 * f(x) + f(x - mu * z)) / mu**2
            D = (f(x + mu * z) - f(x - mu * z)) / (2 * mu)
            g += D * z / max(floor, abs(c) ** alpha) / len(Z)
        x = (1 - lr * weight_decay) * x - lr * g
        yield x


def zo_richardson(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, weight_decay: float = 0.0
) -> Iterator[Array]:
    """D = (4 D(mu/2) - D(mu)) / 3, x <- x - lr (1/n) sum D v."""
    x = x0
    for V in directions:
        D = [
            (
                8 * (f(x + mu / 2 * v) - f(x - mu / 2 * v))  # the five-point formula in steps of mu / 2
                - (f(x + mu * v) - f(x - mu * v))
            )
            / (6 * mu)
            for v in V
        ]
        x = (1 - lr * weight_decay) * x - lr * np.mean([c * v for c, v in zip(D, V, strict=True)], axis=0)
        yield x


def zo_clip(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, clip: float, weight_decay: float = 0.0
) -> Iterator[Array]:
    """d' = clip(d, -C, C), x <- x - lr d' z  (QZO, section 3)."""
    x = x0
    for Z in directions:
        d = np.array([(f(x + mu * z) - f(x - mu * z)) / (2 * mu) for z in Z])
        x = (1 - lr * weight_decay) * x - lr * np.where(np.abs(d) > clip, clip * np.sign(d), d) @ Z / len(Z)
        yield x


def _radii(radii: Any, mu: float, levels: int) -> tuple[Array, Array]:
    """mu_1 .. mu_{L+1} with mu_n = mu_1 P(N >= n), and p_n in proportion to mu_n - mu_{n+1}  (section 3.2)."""
    if hasattr(radii, "c"):
        p = (1 - radii.c) * radii.c ** np.arange(10_000.0)
    else:
        p = np.arange(1.0, 1e6) ** -radii.s
        p /= p.sum()
    m = mu * (1 - np.concatenate([[0.0], np.cumsum(p)]))[: levels + 1]
    return m, (m[:-1] - m[1:]) / (m[0] - m[-1])


def p4(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    radii: Any,
    levels: int,
    rng: Callable[[int], np.random.Generator],
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """P4 = D(mu_1) + (D(mu_{m+1}) - D(mu_m)) / p_m, m ~ p  (Ma and Huang, Eq. 6), the series cut behind `levels`."""
    x = x0
    m, p = _radii(radii, mu, levels)
    for t, V in enumerate(directions):
        draw, g = rng(t), np.zeros_like(x)
        for v in V:
            D = [(f(x + r * v) - f(x)) / r for r in m]
            k = int(np.sum(draw.random() >= np.cumsum(p)))
            g += (D[0] + (D[k + 1] - D[k]) / p[k]) * v / len(V)
        x = (1 - lr * weight_decay) * x - lr * g
        yield x


def p3(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    radii: Any,
    levels: int,
    rng: Callable[[int], np.random.Generator],
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """P3 = 2 U D(mu_1) + 2 (1 - U) (D(mu_{m+1}) - D(mu_m)) / p_m, U a fair coin: Eq. 7 with its missing factor 2."""
    x = x0
    m, p = _radii(radii, mu, levels)
    for t, V in enumerate(directions):
        draw, g = rng(t), np.zeros_like(x)
        for v in V:
            D = [(f(x + r * v) - f(x)) / r for r in m]
            k = int(np.sum(draw.random() >= np.cumsum(p)))
            U = 1 - draw.integers(2)
            g += 2 * (U * D[0] + (1 - U) * (D[k + 1] - D[k]) / p[k]) * v / len(V)
        x = (1 - lr * weight_decay) * x - lr * g
        yield x


def zo_recentred(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    memory: str,
    beta: float = 0.9,
    every: int = 100,
    pilot: int = 0,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """g = h + (1/n) sum (D - v.h) v; h an average of estimates, one from time to time, or a tracker."""
    x, h = x0, np.zeros_like(x0)
    for t, V in enumerate(directions):
        V, pilots = (V[: len(V) - pilot], V[len(V) - pilot :]) if memory == "snapshot" else (V, V[:0])
        D = np.array([(f(x + mu * v) - f(x - mu * v)) / (2 * mu) for v in V])
        if memory == "snapshot" and t % every == 0:
            h = np.mean([(f(x + mu * v) - f(x - mu * v)) / (2 * mu) * v for v in pilots], axis=0)
        correction = np.mean([(d - v @ h) * v for d, v in zip(D, V, strict=True)], axis=0)
        g = h + correction
        if memory == "momentum":
            h = beta * h + (1 - beta) * D @ V / len(V)
        if memory == "tracker":
            h = h + correction / (x.size + 2)
        x = (1 - lr * weight_decay) * x - lr * g
        yield x


SumOf = Callable[..., float]


def slope(f: SumOf, x: Array, v: Array, mu: float, rows: Any = None) -> float:
    return (f(x + mu * v, rows) - f(x - mu * v, rows)) / (2 * mu)


def zo_svrg(
    f: SumOf,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    batch: int,
    full: Any,
    rng: Callable[[int], np.random.Generator],
    every: int = 0,
    p: float = 0.0,
    terms: int = 6,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """g = (1/n) sum (D_v f_B(x) - D_v f_B(w)) v + G; w <- x, G <- grad f(w) every q steps (or with probability p)."""
    x, w, G = x0, x0, np.zeros_like(x0)
    for t, V in enumerate(directions):
        V, pilots = V[: len(V) - full.n], V[len(V) - full.n :]
        draw = rng(t)
        if t % every == 0 if every else (draw.random() < p or t == 0):
            w = x
            G = np.mean([slope(f, w, v, mu) * v for v in pilots], axis=0)
            g = G
        else:
            B = draw.choice(terms, batch, replace=False)
            g = np.mean([(slope(f, x, v, mu, B) - slope(f, w, v, mu, B)) * v for v in V], axis=0) + G
        x = (1 - lr * weight_decay) * x - lr * g
        yield x


def zpdvr(
    f: SumOf,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    rng: Callable[[int], np.random.Generator],
    batch: int = 1,
    p: float | None = None,
    terms: int = 6,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """h <- h + (D_u f(w) - u.h) u / (d + 2), G_w = h + (D_u' f(w) - u'.h) u', g = (D_u f_i(x) - D_u f_i(w)) u + G_w."""
    x, w, h, G = x0, x0, np.zeros_like(x0), np.zeros_like(x0)
    for t, (u, fresh) in enumerate(directions):
        draw = rng(t)
        if draw.random() < (p or 1 / terms) or t == 0:
            w = x
            h = h + (slope(f, w, u, mu) - u @ h) * u / (x.size + 2)
            G = h + (slope(f, w, fresh, mu) - fresh @ h) * fresh
            g = G
        else:
            i = draw.choice(terms, batch, replace=False)
            g = (slope(f, x, u, mu, i) - slope(f, w, u, mu, i)) * u + G
        x = (1 - lr * weight_decay) * x - lr * g
        yield x


def preference(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, weight_decay: float = 0.0
) -> Iterator[Array]:
    """x <- x - lr (1/2n) sum sign(f(x + mu u) - f(x + mu w)) (u - w) over n pairs of directions."""
    x = x0
    for V in directions:
        pairs = [(np.sign(f(x + mu * u) - f(x + mu * w)), u - w) for u, w in zip(V[::2], V[1::2], strict=True)]
        x = (1 - lr * weight_decay) * x - lr * np.mean([s * away for s, away in pairs], axis=0) / 2
        yield x


def mirrored_es(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, floor: float = 1e-8, weight_decay: float = 0.0
) -> Iterator[Array]:
    """x <- x - lr (1/N) sum_i A_i e_i over the population e = (v, -v), A z-scored  (Salimans et al.; Qiu et al.)."""
    x = x0
    for V in directions:
        population = np.concatenate([V, -V])
        F = np.array([f(x + mu * e) for e in population])
        A = (F - F.mean()) / max(F.std(), floor)
        x = (1 - lr * weight_decay) * x - lr * A @ population / len(population)
        yield x


def cge(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    coordinates: Callable[[int], list[int]],
    central: bool = False,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """g_i = (f(x + mu e_i) - f(x)) / mu for i in S, x <- x - lr g."""
    x, e = x0, np.eye(x0.size)
    for t, _ in enumerate(directions):
        g = np.zeros_like(x)
        for i in coordinates(t):
            if central:
                g[i] = (f(x + mu * e[i]) - f(x - mu * e[i])) / (2 * mu)
            else:
                g[i] = (f(x + mu * e[i]) - f(x)) / mu
        x = (1 - lr * weight_decay) * x - lr * g
        yield x


def deepzero(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    coordinates: Callable[[int], list[int]],
    beta: float = 0.9,
    weight_decay: float = 5e-4,
) -> Iterator[Array]:
    """m <- beta m + g with g_i = (f(x + mu e_i) - f(x)) / mu on S and 0 elsewhere, x <- x - lr m  (DeepZero)."""
    x, m = x0, np.zeros_like(x0)
    for t, _ in enumerate(directions):
        g = np.zeros_like(x)
        for i in coordinates(t):
            g[i] = (f(x + mu * np.eye(x.size)[i]) - f(x)) / mu
        m = beta * m + g
        x = (1 - lr * weight_decay) * x - lr * m
        yield x


def zo_conservative(f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float) -> Iterator[Array]:
    """x <- argmin f over {x - lr g, x, x + lr g}."""
    x = x0
    for V in directions:
        g = np.mean([(f(x + mu * v) - f(x - mu * v)) / (2 * mu) * v for v in V], axis=0)
        x = min((x - lr * g, x, x + lr * g), key=f)
        yield x


def zo_sam(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, rho: float = 0.05, weight_decay: float = 0.0
) -> Iterator[Array]:
    """x <- x - lr g(x + rho g(x) / |g(x)|), the two estimates from different directions  (Foret et al., Eq. 2, 3)."""
    x = x0
    for V in directions:
        first, second = V[: len(V) // 2], V[len(V) // 2 :]
        g = np.mean([(f(x + mu * v) - f(x - mu * v)) / (2 * mu) * v for v in first], axis=0)
        y = x + rho * g / np.linalg.norm(g)
        g = np.mean([(f(y + mu * v) - f(y - mu * v)) / (2 * mu) * v for v in second], axis=0)
        x = (1 - lr * weight_decay) * x - lr * g
        yield x
