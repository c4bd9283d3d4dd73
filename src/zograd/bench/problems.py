"""Problems on which methods are compared: quadratics, statistics, noise, ordinal feedback, constraints.

Every problem is a frozen recipe: a dimension, a start, a radius that suits its scale, the value that a method sees
(noisy, or of a batch, or only its order) and the clean value by which it is judged. Data come with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from zograd.oracles import Oracle
from zograd.stores.base import Store
from zograd.vector import Array, Query

Clean = Callable[[Array], float]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Problem:
    """f, with what a method may see of it.

    value: the clean f(x). x0: the start. mu: a radius at which differences are about the slope.
    terms, batch, part: for a finite sum, part(x, rows) is the mean of the terms `rows`; a step sees `batch` of them
        (0: all). noise(rng): added to each value on its own. order: only the ranks of a step's values are told.
    kind: one letter of the table in docs/methods.md. radius: of the l1 ball that constrains x, 0 for none.
    """

    name: str
    kind: str
    value: Clean
    x0: Array = field(repr=False)
    mu: float = 1e-3
    terms: int = 0
    batch: int = 0
    part: Callable[[Array, Rows], float] | None = field(default=None, repr=False)
    noise: Callable[[np.random.Generator], float] | None = field(default=None, repr=False)
    order: bool = False
    radius: float = 0.0

    @property
    def dim(self) -> int:
        return int(self.x0.size)

    def oracle(self, seed: int) -> Oracle:
        """What a run asks: all queries of a step see the same batch; noise is drawn anew for each value."""
        rng = np.random.default_rng([seed, 1])

        def evaluate(store: Any, queries: Sequence[Query], key: int) -> list[float]:
            points = [store.point(query.at) for query in queries]
            with np.errstate(all="ignore"):
                if self.part is not None and self.batch:
                    shared = np.random.default_rng([seed, key]).integers(0, self.terms, self.batch)
                    chosen = [shared if q.rows is None else np.array(q.rows, dtype=np.intp) for q in queries]
                    f = [self.part(x, rows) for x, rows in zip(points, chosen, strict=True)]
                elif self.part is not None:
                    every = np.arange(self.terms)
                    chosen = [every if q.rows is None else np.array(q.rows, dtype=np.intp) for q in queries]
                    f = [self.part(x, rows) for x, rows in zip(points, chosen, strict=True)]
                else:
                    f = [self.value(x) for x in points]
            if self.noise is not None:
                f = [v + self.noise(rng) for v in f]
            if self.order and np.all(np.isfinite(f)):
                f = [float(r) for r in np.unique(f, return_inverse=True)[1]]
            return [float(v) for v in f]

        return evaluate


def quadratic(name: str, eigenvalues: Array, *, rotate: bool = True, seed: int = 0, **more: Any) -> Problem:
    """x^T H x / 2 with these eigenvalues, in a random rotation, from a start with equal shares of all eigenvectors."""
    d = eigenvalues.size
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0] if rotate and d <= 2000 else None
    if q is not None:
        h = (q * eigenvalues) @ q.T
        return Problem(name, "a", lambda x: float(0.5 * x @ (h @ x)), q @ np.ones(d), **more)
    if not rotate:
        return Problem(name, "a", lambda x: float(0.5 * x @ (eigenvalues * x)), np.ones(d), **more)
    # Three Householder reflections stand in for a dense rotation that would not fit in memory.
    w = np.random.default_rng(seed).normal(size=(3, d))
    w /= np.linalg.norm(w, axis=1, keepdims=True)

    def turn(x: Array, reflections: Array) -> Array:
        for u in reflections:
            x = x - 2 * (u @ x) * u
        return x

    def value(x: Array) -> float:
        y = turn(x, w)
        return float(0.5 * y @ (eigenvalues * y))

    return Problem(name, "a", value, turn(np.ones(d), w[::-1]), **more)


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
    return Problem(
        name, "b", lambda w: part(w, every), np.zeros(x.shape[1]), terms=len(y), batch=batch, part=part, **more
    )


def softmax_digits(name: str = "softmax-digits", *, batch: int = 64, **more: Any) -> Problem:
    """Softmax regression on the 8 x 8 digits (1,797 x 64), 650 parameters."""
    x, y = _table("digits")

    def part(w: Array, rows: Rows) -> float:
        return _cross_entropy(x[rows] @ w.reshape(65, 10), y[rows])

    every = np.arange(len(y))
    return Problem(name, "b", lambda w: part(w, every), np.zeros(650), terms=len(y), batch=batch, part=part, **more)


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
    return Problem(name, "b", lambda w: part(w, every), x0, terms=len(y), batch=batch, part=part, **more)


def _cross_entropy(logits: Array, y: npt.NDArray[np.intp]) -> float:
    top = logits - logits.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(top).sum(1)) - top[np.arange(len(y)), y]))


def rosenbrock(name: str = "rosenbrock", d: int = 10, **more: Any) -> Problem:
    """sum_i 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2 from (-1.2, 1, -1.2, 1, ...)."""

    def value(x: Array) -> float:
        return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))

    return Problem(name, "a", value, np.tile([-1.2, 1.0], d // 2), **more)


def noisy(problem: Problem, name: str, noise: Callable[[np.random.Generator], float], mu: float) -> Problem:
    """The same f, each value with noise of its own."""
    from dataclasses import replace

    return replace(problem, name=name, kind="c", noise=noise, mu=mu)


def sparse_logistic(name: str = "sparse-logistic", *, n: int = 400, d: int = 100, radius: float = 10.0) -> Problem:
    """Logistic regression over an l1 ball, with a truth of ten coefficients."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(n, d))
    truth = np.zeros(d)
    truth[rng.choice(d, 10, replace=False)] = rng.choice([-2.0, 2.0], 10)
    signs = np.where(rng.random(n) < 1 / (1 + np.exp(-x @ truth)), 1.0, -1.0)

    def part(w: Array, rows: Rows) -> float:
        return float(np.logaddexp(0.0, -signs[rows] * (x[rows] @ w)).mean())

    every = np.arange(n)
    return Problem(name, "e", lambda w: part(w, every), np.zeros(d), terms=n, part=part, radius=radius)


def auto_problems() -> list[Problem]:
    """The ten problems on which lr="auto" is held against a grid."""
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


def as_store(problem: Problem) -> Store:
    """The start of a problem as the store of a run."""
    from zograd.faces.minimize import ArrayStore
    from zograd.spaces import Euclidean

    return ArrayStore(problem.x0, Euclidean())
