"""Nesterov's momentum: the recurrence of the paper in NumPy, and its case."""

import numpy as np
from problems import Case


def zo_nesterov(f, x0, directions, *, lr, mu, beta=0.9):
    """m <- beta m + g, x <- x - lr (g + beta m)  (Sutskever et al. 2013, Eq. 3 and 4, at the point ahead)."""
    x, m = x0, np.zeros_like(x0)
    for V in directions:
        g = np.mean([(f(x + mu * v) - f(x - mu * v)) / (2 * mu) * v for v in V], axis=0)
        m = beta * m + g
        x = x - lr * (g + beta * m)
        yield x


CASES = [Case("zo_nesterov", zo_nesterov, {"lr": 1e-3, "n": 2})]
