"""Problems on which methods are compared: quadratics, statistics, noise, ordinal feedback, constraints.

Every problem is a frozen description: a dimension, a start, a radius that suits its scale, the value that a method sees
(noisy, or of a batch, or only its rank) and the clean value that judges the method. Data come with scikit-learn.
`begin` opens a problem for one run. Problems with a language model are in `llm/problems.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from zograd.core.vector import Array
from zograd.problems.problem import Problem, Rows, project_l1


def quadratic(
    name: str, eigenvalues: Array, *, rotate: bool = True, fast: bool = False, seed: int = 0, **more: Any
) -> Problem:
    """x^T H x / 2 with these eigenvalues, randomly rotated, from a start with equal components along all eigenvectors.

    fast: rotates in O(d log d), by `_spread`. Above d = 2000, where a matrix would not fit, this is always used.
    """
    d = eigenvalues.size
    rng = np.random.default_rng(seed)
    if not rotate:
        return Problem(name, "a", lambda x: float(0.5 * x @ (eigenvalues * x)), np.ones(d), **more)
    if not fast and d <= 2000:
        q = np.linalg.qr(rng.normal(size=(d, d)))[0]
        h = (q * eigenvalues) @ q.T
        return Problem(name, "a", lambda x: float(0.5 * x @ (h @ x)), q @ np.ones(d), **more)
    signs, lam = rng.choice([-1.0, 1.0], (2, d)), rng.permutation(eigenvalues)

    def value(x: Array) -> float:
        y = _spread(signs[0] * x)
        return float(0.5 * y @ (lam * y))

    return Problem(name, "a", value, signs[0] * _spread(signs[1]), **more)


def _spread(x: Array) -> Array:
    """The orthonormal Hartley transform, its own inverse. With random signs before it and eigenvalues in random
    order after it, H has a nearly constant diagonal and small other elements, as after a uniformly random rotation.
    """
    z = np.fft.fft(x)
    return np.asarray((z.real - z.imag) / math.sqrt(x.size))


@cache
def _table(name: str) -> tuple[Array, npt.NDArray[np.intp]]:
    try:
        from sklearn import datasets
    except ImportError:
        raise ImportError("these problems need scikit-learn: pip install 'zograd[bench]'") from None
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = x / 16.0 if name == "digits" else (x - x.mean(0)) / x.std(0)
    return np.asarray(np.c_[x, np.ones(len(x))]), y.astype(np.intp)


def logistic(name: str = "logistic-cancer", *, l2: float = 1e-3, batch: int = 0, **more: Any) -> Problem:
    """Logistic regression on breast cancer (569 x 30, standardised, with intercept) with an l2 term."""
    x, y = _table("breast_cancer")
    signs = 2.0 * y - 1.0

    def part(w: Array, rows: Rows) -> float:
        return float(np.logaddexp(0.0, -signs[rows] * (x[rows] @ w)).mean() + 0.5 * l2 * (w @ w))

    every = np.arange(len(y))
    low = part(_logistic_minimum(x, np.asarray(signs, dtype=np.float64), l2), every)
    more = {"terms": len(y), "batch": batch, "part": part, "minimum": low, **more}
    return Problem(name, "b", lambda w: part(w, every), np.zeros(x.shape[1]), **more)


def _logistic_minimum(x: Array, signs: Array, l2: float) -> Array:
    """argmin of the mean logistic loss with an l2 term, by Newton's method from 0 with halved steps."""
    w = np.zeros(x.shape[1])

    def f(w: Array) -> float:
        return float(np.logaddexp(0.0, -signs * (x @ w)).mean() + 0.5 * l2 * (w @ w))

    for _ in range(100):
        p = 1 / (1 + np.exp(signs * (x @ w)))
        g = -x.T @ (signs * p) / len(x) + l2 * w
        h = (x.T * (p * (1 - p))) @ x / len(x) + l2 * np.eye(len(w))
        step = np.linalg.solve(h, g)
        if g @ step < 1e-24:
            break
        size = 1.0
        while f(w - size * step) > f(w) - 0.25 * size * (g @ step) and size > 1e-10:
            size /= 2
        w = w - size * step
    return w


def softmax_digits(name: str = "softmax-digits", *, batch: int = 64, **more: Any) -> Problem:
    """Softmax regression on the 8 x 8 digits (1,797 x 64), 650 parameters."""
    x, y = _table("digits")

    def part(w: Array, rows: Rows) -> float:
        return _cross_entropy(x[rows] @ w.reshape(65, 10), y[rows])

    every = np.arange(len(y))
    more = {"terms": len(y), "batch": batch, "part": part, "shapes": ((65, 10),), **more}
    return Problem(name, "b", lambda w: part(w, every), np.zeros(650), **more)


def mlp_digits(name: str = "mlp-digits", *, hidden: int = 32, batch: int = 128, seed: int = 0, **more: Any) -> Problem:
    """A tanh network with one hidden layer on the digits; 65 hidden + 10 (hidden + 1) parameters."""
    x, y = _table("digits")
    cut = 65 * hidden

    def part(w: Array, rows: Rows) -> float:
        h = np.tanh(x[rows] @ w[:cut].reshape(65, hidden))
        return _cross_entropy(h @ w[cut:-10].reshape(hidden, 10) + w[-10:], y[rows])

    rng = np.random.default_rng(seed)
    x0 = np.r_[rng.normal(size=cut) / 5, rng.normal(size=10 * hidden) / 5, np.zeros(10)]
    every = np.arange(len(y))
    shapes = ((65, hidden), (hidden, 10), (10,))
    more = {"terms": len(y), "batch": batch, "part": part, "shapes": shapes, **more}
    return Problem(name, "b", lambda w: part(w, every), x0, **more)


def _cross_entropy(logits: Array, y: npt.NDArray[np.intp]) -> float:
    top = logits - logits.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(top).sum(1)) - top[np.arange(len(y)), y]))


def rosenbrock(name: str = "rosenbrock", d: int = 10, **more: Any) -> Problem:
    """sum_i 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2 from (-1.2, 1, -1.2, 1, ...)."""

    if d < 2:
        raise ValueError(f"rosenbrock needs d >= 2 variables, got {d}")

    def value(x: Array) -> float:
        return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))

    return Problem(name, "a", value, np.tile([-1.2, 1.0], (d + 1) // 2)[:d], **more)


def noisy(problem: Problem, name: str, noise: Callable[[np.random.Generator], float], mu: float) -> Problem:
    """The same f; each value has independent noise."""
    return replace(problem, name=name, kind="c", noise=noise, mu=mu)


def ordinal(problem: Problem, name: str, mu: float) -> Problem:
    """The same f, but each list of queries is answered by ranks 0, 1, ...; equal values have equal ranks."""
    return replace(problem, name=name, kind="d", order=True, mu=mu)


def sparse_logistic(name: str = "sparse-logistic", *, n: int = 400, d: int = 100, radius: float = 10.0) -> Problem:
    """Logistic regression over an l1 ball; ten true coefficients are not 0."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(n, d))
    truth = np.zeros(d)
    truth[rng.choice(d, 10, replace=False)] = rng.choice([-2.0, 2.0], 10)
    signs = np.where(rng.random(n) < 1 / (1 + np.exp(-x @ truth)), 1.0, -1.0)

    def part(w: Array, rows: Rows) -> float:
        return float(np.logaddexp(0.0, -signs[rows] * (x[rows] @ w)).mean())

    every = np.arange(n)
    low = part(_constrained_minimum(x, signs, radius), every)
    return Problem(name, "e", lambda w: part(w, every), np.zeros(d), terms=n, part=part, radius=radius, minimum=low)


def _constrained_minimum(x: Array, signs: Array, radius: float, steps: int = 5000) -> Array:
    """argmin of the mean logistic loss over the l1 ball, by accelerated projected gradient with restarts."""
    rate = 4 * len(x) / float(np.linalg.norm(x, 2)) ** 2
    w = ahead = np.zeros(x.shape[1])
    t = 1.0
    for _ in range(steps):
        g = -x.T @ (signs / (1 + np.exp(signs * (x @ ahead)))) / len(x)
        new = project_l1(ahead - rate * g, radius)
        if (ahead - new) @ (new - w) > 0:
            t = 1.0
        t_new = (1 + math.sqrt(1 + 4 * t * t)) / 2
        ahead, w, t = new + (t - 1) / t_new * (new - w), new, t_new
    return w


def auto_problems() -> list[Problem]:
    """The ten problems on which lr="auto" is compared with a grid."""
    harmonic = quadratic("quadratic-100", 1 / np.arange(1.0, 101.0))
    return [
        harmonic,
        quadratic("quadratic-1000", 1 / np.arange(1.0, 1001.0)),
        quadratic("quadratic-geometric", np.logspace(0, -3, 100)),
        quadratic("quadratic-axes", 1 / np.arange(1.0, 201.0), rotate=False),
        rosenbrock(),
        logistic(),
        softmax_digits(mu=1e-2),
        mlp_digits(mu=1e-2),
        noisy(harmonic, "quadratic-noisy", lambda r: 1e-3 * float(r.normal()), 0.1),
        noisy(harmonic, "quadratic-heavy-tail", lambda r: 1e-3 * float(r.standard_t(1.5)), 0.1),
    ]


@cache
def method_problem(name: str) -> Problem:
    """A problem of the comparison of methods by its name."""
    return METHOD_PROBLEMS[name]()


def _wide(d: int, rows: int) -> Problem:
    """A quadratic with eigenvalues 1 .. 1e-3, geometrically spaced; x is a matrix, so that low-rank methods apply."""
    return quadratic(f"quadratic-{d}", np.logspace(0, -3, d), fast=d > 100, shapes=((rows, d // rows),))


def _small() -> Problem:
    return quadratic("quadratic", np.logspace(0, -2, 100), shapes=((10, 10),))


METHOD_PROBLEMS: dict[str, Callable[[], Problem]] = {
    "quadratic-100": lambda: _wide(100, 10),
    "quadratic-1000": lambda: _wide(1000, 25),
    "quadratic-10000": lambda: _wide(10_000, 100),
    "logistic-cancer": logistic,
    "softmax-digits": lambda: softmax_digits(mu=1e-2),
    "mlp-digits": lambda: mlp_digits(mu=1e-2),
    "quadratic-noisy": lambda: noisy(_small(), "quadratic-noisy", lambda r: 1e-2 * float(r.normal()), 0.1),
    "quadratic-heavy-tail": lambda: noisy(
        _small(), "quadratic-heavy-tail", lambda r: 1e-2 * float(r.standard_t(1.5)), 0.1
    ),
    "quadratic-ranks": lambda: ordinal(_small(), "quadratic-ranks", 1e-2),
    "logistic-ranks": lambda: ordinal(logistic(), "logistic-ranks", 1e-2),
    "sparse-logistic": sparse_logistic,
}
"""The problems of groups (a) to (e)."""
