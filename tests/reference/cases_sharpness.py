"""Descent from an ascent point with a preconditioner: the recurrences in NumPy, and their cases."""

import numpy as np
from problems import Case


def two_point(f, x, V, mu):
    """(1/n) sum_j (f(x + mu v_j) - f(x - mu v_j)) / (2 mu) v_j."""
    return np.mean([(f(x + mu * v) - f(x - mu * v)) / (2 * mu) * v for v in V], axis=0)


def zo_asam(f, x0, directions, *, lr, mu, rho=0.5, floor=0.01, weight_decay=0.0):
    """x <- x - lr g(x + rho D^2 g(x) / |D g(x)|), D = |x| + floor  (Kwon et al. 2021)."""
    x = x0
    for V in directions:
        first, second = V[: len(V) // 2], V[len(V) // 2 :]
        g, D = two_point(f, x, first, mu), np.abs(x) + floor
        y = x + rho * D**2 * g / np.linalg.norm(D * g)
        x = (1 - lr * weight_decay) * x - lr * two_point(f, y, second, mu)
        yield x


def infosam(f, x0, directions, *, lr, mu, rho=0.05, beta=0.9, eps=1e-8, weight_decay=0.0):
    """x <- x - lr g(x + rho D^2 g / |D^2 g|), D^-2 = v + eps, v a running variance of g about its running mean."""
    x, m, v = x0, np.zeros_like(x0), np.zeros_like(x0)
    for V in directions:
        first, second = V[: len(V) // 2], V[len(V) // 2 :]
        g = two_point(f, x, first, mu)
        ascent = g / (v + eps)
        y = x + rho * ascent / np.linalg.norm(ascent)
        v, m = beta * v + (1 - beta) * (g - m) ** 2, beta * m + (1 - beta) * g
        x = (1 - lr * weight_decay) * x - lr * two_point(f, y, second, mu)
        yield x


CASES = [
    Case("zo_asam", zo_asam, {"lr": 1e-2, "n": 2}, draws=4),
    Case("infosam", infosam, {"lr": 1e-2, "n": 2, "eps": 1e-2}, draws=4),
]
