"""The methods of `methods/rules.py` as their papers write them; see `papers.py` for the form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Loss = Callable[[Array], float]
Directions = Iterable[Array]


def two_point(f: Loss, x: Array, V: Array, mu: float) -> Array:
    """g = (1/n) sum_j (f(x + mu v_j) - f(x - mu v_j)) / (2 mu) v_j."""
    return np.mean([(f(x + mu * v) - f(x - mu * v)) / (2 * mu) * v for v in V], axis=0)


def zo_lion(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
    gradient_of_K: Callable[[Array], Array] = np.sign,
) -> Iterator[Array]:
    """c = b1 m + (1 - b1) g, x <- x - lr (dK(c) + w x), m <- b2 m + (1 - b2) g  (Lion-K, Eq. 2; K = l1: Lion)."""
    x, m = x0, np.zeros_like(x0)
    for V in directions:
        g = two_point(f, x, V, mu)
        c = beta1 * m + (1 - beta1) * g
        x = x - lr * (gradient_of_K(c) + weight_decay * x)
        m = beta2 * m + (1 - beta2) * g
        yield x


def zo_lion_l2(f: Loss, x0: Array, directions: Directions, **settings: Any) -> Iterator[Array]:
    """The same with K(c) = sqrt(d) |c|_2."""
    return zo_lion(f, x0, directions, gradient_of_K=lambda c: np.sqrt(c.size) * c / np.linalg.norm(c), **settings)


def adamezo(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    window: int = 10,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """AdaMeZO (Cai et al. 2026): both moments from the last estimates alone, with weights that sum to 1."""
    x, past = x0, []
    for V in directions:
        past = [two_point(f, x, V, mu), *past[: window - 1]]
        k = np.arange(len(past))
        m = np.average(past, axis=0, weights=beta1**k)
        s = np.average(np.square(past), axis=0, weights=beta2**k)
        x = (1 - lr * weight_decay) * x - lr * m / (np.sqrt(s) + eps)
        yield x


def zo_adamm(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    beta1: float = 0.9,
    beta2: float = 0.3,
    start: float = 1e-5,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """ZO-AdaMM (Chen et al. 2019), Algorithm 1, without constraints: no bias correction, v_0 = v^_0 = start."""
    x, m, v, v_hat = x0, np.zeros_like(x0), np.full_like(x0, start), np.full_like(x0, start)
    for V in directions:
        g = two_point(f, x, V, mu)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        v_hat = np.maximum(v_hat, v)
        x = (1 - lr * weight_decay) * x - lr * m / np.sqrt(v_hat)
        yield x


def zo_sign_scalar(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, weight_decay: float = 0.0
) -> Iterator[Array]:
    """x <- x - lr sign(f(x + mu z) - f(x - mu z)) z, averaged over the directions  (ZO-Bench)."""
    x = x0
    for V in directions:
        step = np.mean([np.sign(f(x + mu * z) - f(x - mu * z)) * z for z in V], axis=0)
        x = (1 - lr * weight_decay) * x - lr * step
        yield x


def zo_optimistic(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, weight_decay: float = 0.0
) -> Iterator[Array]:
    """x <- x - lr (2 g_t - g_{t-1}), g_{-1} = 0."""
    x, last = x0, np.zeros_like(x0)
    for V in directions:
        g = two_point(f, x, V, mu)
        x = (1 - lr * weight_decay) * x - lr * (2 * g - last)
        last = g
        yield x


ROWS = 4
"""The comparison cuts x into a matrix of 4 x 3 and a vector of 8, whose elements are rows of their own."""


def matrix_and_vector(x: Array) -> tuple[Array, Array]:
    return x[:12].reshape(ROWS, 3), x[12:].reshape(8, 1)


def proximal_map(r: Any, y: Array, t: float) -> Array:
    """argmin_z |z - y|^2 / 2 + t r(z), as the textbooks write it (Parikh and Boyd 2014, section 6.5)."""
    name = type(r).__name__
    if name == "L1":
        return np.sign(y) * np.maximum(np.abs(y) - t * r.weight, 0)
    if name == "GroupL2":
        parts = matrix_and_vector(y)
        norms = [np.maximum(np.linalg.norm(Y, axis=1, keepdims=True), 1e-300) for Y in parts]
        return np.concatenate(
            [(Y * np.maximum(1 - t * r.weight / n, 0)).ravel() for Y, n in zip(parts, norms, strict=True)]
        )
    if name == "Nuclear":
        factors = [np.linalg.svd(Y, full_matrices=False) for Y in matrix_and_vector(y)]
        return np.concatenate([(U @ np.diag(np.maximum(s - t * r.weight, 0)) @ Vt).ravel() for U, s, Vt in factors])
    if name == "L2Ball":
        return y * min(1, r.radius / np.linalg.norm(y))
    low, high = (-r.radius, r.radius) if name == "LInfBall" else (r.low, r.high)
    return np.minimum(np.maximum(y, low), high)


def zo_prox(
    f: Loss, x0: Array, directions: Directions, *, prox: Any, lr: float, mu: float, weight_decay: float = 0.0
) -> Iterator[Array]:
    """x <- prox_{lr r}((1 - lr w) x - lr g)."""
    x = x0
    for V in directions:
        x = proximal_map(prox, (1 - lr * weight_decay) * x - lr * two_point(f, x, V, mu), lr)
        yield x


def minimizer(C: Any, m: Array) -> Array:
    """argmin_{s in C} <m, s>."""
    name = type(C).__name__
    if name == "L1Ball":
        k = int(np.argmax(np.abs(m)))
        return -C.radius * np.sign(m[k]) * np.eye(m.size)[k]
    if name == "L2Ball":
        return -C.radius * m / np.linalg.norm(m)
    if name == "LInfBall":
        return -C.radius * np.sign(m)
    assert name == "NuclearBall"
    factors = [np.linalg.svd(M, full_matrices=False) for M in matrix_and_vector(m)]
    top = int(np.argmax([s[0] for _, s, _ in factors]))
    vertices = [-C.radius * np.outer(U[:, 0], Vt[0]) * (k == top) for k, (U, _, Vt) in enumerate(factors)]
    return np.concatenate([v.ravel() for v in vertices])


def frank_wolfe(
    f: Loss, x0: Array, directions: Directions, *, set: Any, lr: float = 1.0, mu: float, rho: float = 1.0
) -> Iterator[Array]:
    """m <- (1 - rho_t) m + rho_t g, x <- x + gamma_t (s - x), gamma_t = lr 2 / (t + 2)  (Mokhtari et al.)."""
    x, m = x0, np.zeros_like(x0)
    for t, V in enumerate(directions):
        rho_t = 1.0 if t == 0 else rho * (t + 1) ** (-2 / 3)
        m = (1 - rho_t) * m + rho_t * two_point(f, x, V, mu)
        x = x + lr * 2 / (t + 2) * (minimizer(set, m) - x)
        yield x


def hizoo(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    alpha: float = 1e-8,
    low: float = 1e-2,
    high: float = 1e6,
    published: bool = False,
    pooled: Callable[[Array], Array] = lambda H: H,
) -> Iterator[Array]:
    """HiZOO, Algorithm 1: H_ii is estimated by h c (z^2 - 1) / 2; released code: by h |c| z^2 / 2."""
    x, h = x0, np.ones_like(x0)
    for Z in directions:
        u = Z / np.sqrt(h)
        plus, minus = np.array([f(x + mu * v) for v in u]), np.array([f(x - mu * v) for v in u])
        D, c = (plus - minus) / (2 * mu), ((plus - 2 * f(x) + minus) / mu**2)[:, None]
        H = h * np.mean(np.abs(c) * Z**2 / 2 if published else c * (Z**2 - 1) / 2, axis=0)
        H = pooled(H)
        new = np.clip((1 - alpha) * h + alpha * H, low, high)
        x = x - lr * np.mean([D_j * z / np.sqrt(new if published else h) for D_j, z in zip(D, Z, strict=True)], axis=0)
        h = new
        yield x


def hizoo_row(f: Loss, x0: Array, directions: Directions, **settings: Any) -> Iterator[Array]:
    """The same with the mean of H_ii over each row; h is equal along a row then."""

    def pooled(H: Array) -> Array:
        first, second = np.split(H, [12])
        return np.concatenate([np.repeat(first.reshape(ROWS, -1).mean(1), 12 // ROWS), second])

    return hizoo(f, x0, directions, pooled=pooled, **settings)


def zo_adamu(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    start: int = 1024,
    stop: int = 16_000,
    end: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """ZO-AdaMU, Eq. 3 to 7, with one mixture for the probe and the move."""

    def anneal(t: int, phi: float) -> float:
        if t < start:
            return 1.0
        return end if t >= stop else (0.5 + 0.5 * np.cos(np.pi * (t - start) / (stop - start))) ** phi

    x, mean = x0, np.zeros_like(x0)
    for t, (first, second) in enumerate(directions):
        a, b1, b2 = anneal(t, 1.0), anneal(t, 0.1), anneal(t, 1.5)
        z0, zm = np.sqrt(a) * first, mean + np.sqrt(1 - a) * second
        u = b1 * z0 + (1 - b1) * zm
        D = (f(x + mu * u) - f(x - mu * u)) / (2 * mu)
        v = b2 * z0**2 + (1 - b2) * zm**2
        x = (1 - lr * weight_decay) * x - lr * D * u / np.sqrt(v + eps)
        mean = np.sign(D) * u
        yield x


def zo_saddle(f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, ascend: Any) -> Iterator[Array]:
    """z <- z - lr (2 F_t - F_{t-1}), F = (g_x, -g_y), F_{-1} = 0; y are the last 8 elements (leaf "b")."""
    assert ascend == ("[!a]*",)
    sign = np.where(np.arange(x0.size) < 12, 1.0, -1.0)
    x, last = x0, np.zeros_like(x0)
    for V in directions:
        field = sign * two_point(f, x, V, mu)
        x = x - lr * (2 * field - last)
        last = field
        yield x


def cbo(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    mu: float,
    alpha: float = 1.0,
    lam: float = 1.0,
    sigma: float = 1.0,
    dt: float = 0.1,
    componentwise: bool = True,
) -> Iterator[Array]:
    """x_i <- x_i - lam dt (x_i - c) + sigma sqrt(dt) |x_i - c| xi_i  (Pinnau et al. 2017); yields the consensus c."""
    particles: Any = None
    away: Any = None
    for V in directions:
        if particles is None:
            particles = x0 + mu * V
        else:
            size = away if componentwise else np.linalg.norm(away, axis=1)[:, None]
            particles = particles - lam * dt * away + sigma * np.sqrt(dt) * size * V
        w = np.exp(-alpha * np.array([f(p) for p in particles]))
        c = w @ particles / w.sum()
        away = particles - c
        yield c


def frank_wolfe_vr(
    f: Callable[..., float],
    x0: Array,
    directions: Directions,
    *,
    set: Any,
    lr: float = 1.0,
    mu: float,
    rng: Callable[[int], np.random.Generator],
    batch: int = 8,
    p: float | None = None,
    terms: int = 6,
) -> Iterator[Array]:
    """s = argmin_{s in C} <g, s>, x <- x + 2/(t+2) (s - x) with the recursion of ZPDVR for g; f(x, rows)."""

    def D(x: Array, u: Array, rows: Any = None) -> float:
        return (f(x + mu * u, rows) - f(x - mu * u, rows)) / (2 * mu)

    x, w, h, G = x0, x0, np.zeros_like(x0), np.zeros_like(x0)
    for t, (u, fresh) in enumerate(directions):
        draw = rng(t)
        if draw.random() < (p or 1 / terms) or t == 0:
            w = x
            h = h + (D(w, u) - u @ h) * u / (x.size + 2)
            g = G = h + (D(w, fresh) - fresh @ h) * fresh
        else:
            rows = draw.choice(terms, batch, replace=False)
            g = (D(x, u, rows) - D(w, u, rows)) * u + G
        x = x + lr * 2 / (t + 2) * (minimizer(set, g) - x)
        yield x


def page(
    f: Callable[..., float], mu: float, rng: Callable[[int], np.random.Generator], batch: int, p: float | None,
    terms: int, full: Callable[[Array, Array], Array], ahead: int,
) -> Callable[[int, Array, Array], Array]:  # fmt: skip
    """g <- full(x, rest of V) with probability p or at t = 0, else g + mean_j (D f_B(x) - D f_B(x')) v_j (PAGE).

    The first `ahead` directions are those of increments. p is batch / (terms + batch) where it is None.
    """
    p = batch / (terms + batch) if p is None else p
    held: dict[str, Array] = {}

    def estimate(t: int, x: Array, V: Array) -> Array:
        draw = rng(t)
        if draw.random() < p or t == 0:
            held["g"] = full(x, V[ahead:])
        else:
            B, old = draw.choice(terms, batch, replace=False), held["x"]
            D = lambda at, v: (f(at + mu * v, B) - f(at - mu * v, B)) / (2 * mu)  # noqa: E731
            held["g"] = held["g"] + np.mean([(D(x, v) - D(old, v)) * v for v in V[:ahead]], axis=0)
        held["x"] = x
        return held["g"]

    return estimate


def frank_wolfe_page(
    f: Callable[..., float],
    x0: Array,
    directions: Directions,
    *,
    set: Any,
    lr: float = 1.0,
    mu: float,
    rng: Callable[[int], np.random.Generator],
    batch: int = 8,
    p: float | None = None,
    refine: int = 1,
    terms: int = 6,
) -> Iterator[Array]:
    """PAGE whose full gradient is h <- h + sum_j (D_uj f - uj.h) uj / (refine + d + 1), then Frank-Wolfe's step."""
    h = np.zeros_like(x0)

    def tracked(x: Array, U: Array) -> Array:
        nonlocal h
        slopes = [(f(x + mu * u) - f(x - mu * u)) / (2 * mu) for u in U]
        h = h + np.sum([(D - u @ h) * u for D, u in zip(slopes, U, strict=True)], axis=0) / (refine + x.size + 1)
        return h

    x, estimate = x0, page(f, mu, rng, batch, p, terms, tracked, 1)
    for t, V in enumerate(directions):
        x = x + lr * 2 / (t + 2) * (minimizer(set, estimate(t, x, V)) - x)
        yield x


def zo_halpern(
    f: Callable[..., float],
    x0: Array,
    directions: Directions,
    *,
    lr: float,
    mu: float,
    rng: Callable[[int], np.random.Generator],
    batch: int = 1,
    p: float | None = None,
    full: Any,
    weight: float = 2.0,
    offset: float = 4.0,
    terms: int = 6,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """x <- b_k x_0 + (1 - b_k)((1 - lr w) x - lr g), b_k = weight / (k + offset), g of PAGE."""
    x, estimate = x0, page(f, mu, rng, batch, p, terms, lambda x, V: two_point(f, x, V, mu), 2)
    for t, V in enumerate(directions):
        assert len(V) == 2 + full.n
        b = weight / (t + offset)
        x = b * x0 + (1 - b) * ((1 - lr * weight_decay) * x - lr * estimate(t, x, V))
        yield x


def optimistic_mirror(
    f: Loss,
    x0: Array,
    directions: Directions,
    *,
    map: Any,
    lr: float = 1.0,
    mu: float,
    diameter: float = 1.0,
    floor: float = 1.0,
) -> Iterator[Array]:
    """y <- argmin <g_t, z> + D(z, y) / eta_t, x <- argmin <g_t, z> + D(z, y) / eta_{t+1}, M_t = g_{t-1}."""
    radius = map.set.radius if hasattr(map, "set") else None

    def moved(y: Array, g: Array) -> Array:
        if radius is not None:  # the projection onto the Euclidean ball
            z = y - lr * g
            return z * min(1.0, radius / np.linalg.norm(z))
        parts = [a * np.exp(-lr * b) for a, b in zip(np.split(y, [12]), np.split(g, [12]), strict=True)]
        return np.concatenate([map.total * part / part.sum() for part in parts])

    x, y, hint, wrong = x0, x0, np.zeros_like(x0), 0.0
    for V in directions:
        g = two_point(f, x, V, mu)
        y = moved(y, g * diameter / np.sqrt(floor + wrong))
        wrong += float((g - hint) @ (g - hint))
        x = moved(y, g * diameter / np.sqrt(floor + wrong))
        hint = g
        yield x
