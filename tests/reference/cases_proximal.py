"""FISTA with a backtracking search, and queries inside of a set: the recurrences in NumPy, and their cases."""

import numpy as np
from problems import Case

from zograd.sets import L1, L1Ball, L2Ball


def soft(y, t):
    """argmin_z |z - y|^2 / 2 + t |z|_1."""
    return np.sign(y) * np.maximum(np.abs(y) - t, 0.0)


def fd_fista(f, x0, directions, *, prox, mu, coordinates, lr="auto"):
    """Beck and Teboulle 2009, section 4, with the gradient restart of O'Donoghue and Candes 2015; a trial a yield."""
    d, x, y, rate = len(x0), x0, x0, lr
    center = previous = g = t = following = None
    for step, _ in enumerate(directions):
        again = False
        if lr == "auto" and step:
            move = x - center
            D, allowed = f(x) - f(center) - g @ move, move @ move / (2 * rate)
            if max(abs(D), allowed) > 1e-11 * (abs(f(x)) + abs(f(center))):
                again = allowed + mu * np.sqrt(d) * np.linalg.norm(move) / (2 * rate) < D
                rate = min(rate / 2, move @ move / (2 * D)) if again else 2 * rate
        if not again:
            t = following if step else 1.0
            center, previous, g = y, x, np.zeros(d)
            for i in coordinates(step):
                g[i] = (f(y + mu * np.eye(d)[i]) - f(y)) / mu
        if lr == "auto" and step == 0:
            h, length = np.sqrt(mu), np.linalg.norm(g)
            rate = h**2 / (2 * (f(y - h * g / length) - f(y) + h * length))
        x = soft(center - rate * g, rate * prox.weight)
        following = (1 + np.sqrt(1 + 4 * t * t)) / 2
        y = x + (t - 1) / following * (x - previous)
        if (center - x) @ (x - previous) > 0:
            y, following = x, 1.0
        yield x


def inward(x, V, mu, radius):
    """((1 - s) x, mu) with s = mu |v| / radius, mu made smaller where s > 1/128."""
    longest = max(np.linalg.norm(v) for v in V)
    if mu * longest > radius / 128:
        mu = radius / 128 / (longest * (1 + 1e-9))
    return x * (1 - (1 + 1e-9) * mu * longest / radius), mu


def two_point(f, x, V, mu):
    """(1/n) sum_j (f(x + mu v_j) - f(x - mu v_j)) / (2 mu) v_j."""
    return np.mean([(f(x + mu * v) - f(x - mu * v)) / (2 * mu) * v for v in V], axis=0)


def zo_prox_inside(f, x0, directions, *, prox, lr, mu, weight_decay=0.0):
    """x <- P((1 - lr w) x - lr g(x')), x' a little towards the centre of the ball (the idea of Flaxman et al. 2005)."""
    x = x0
    for V in directions:
        y = (1 - lr * weight_decay) * x - lr * two_point(f, *args(x, V, mu, prox.radius))
        x = y * min(1, prox.radius / np.linalg.norm(y))
        yield x


def args(x, V, mu, radius):
    there, mu = inward(x, V, mu, radius)
    return there, V, mu


def frank_wolfe_inside(f, x0, directions, *, set, mu, lr=1.0):
    """Averaged Frank-Wolfe on the l1 ball (Mokhtari et al. 2020), its estimate at x'; a ball of radius R / sqrt(d)."""
    x, m = x0, np.zeros_like(x0)
    for t, V in enumerate(directions):
        rho = (t + 1) ** (-2 / 3)
        m = (1 - rho) * m + rho * two_point(f, *args(x, V, mu, set.radius / np.sqrt(len(x))))
        k = np.argmax(np.abs(m))
        s = np.zeros_like(x)
        s[k] = -set.radius * np.sign(m[k])
        x = x + lr * 2 / (t + 2) * (s - x)
        yield x


FEW = {"mu": 2.0**-5, "count": 16}
OURS = ("count", "n", "queries")
CASES = [
    Case("fd_fista", fd_fista, {"prox": L1(0.05), **FEW}, pulls=True, ours=OURS),
    Case("fd_fista", fd_fista, {"prox": L1(0.05), "lr": 0.1, **FEW}, "fixed", pulls=True, ours=OURS),
    Case("zo_prox", zo_prox_inside, {"lr": 1e-2, "prox": L2Ball(0.4), "queries": "feasible", "n": 2}, "inside",
         pulls=True, ours=OURS),
    Case("frank_wolfe", frank_wolfe_inside, {"set": L1Ball(4.0), "n": 2, "queries": "feasible"}, "inside",
         pulls=True, ours=OURS),
]  # fmt: skip
