"""Problems on which methods are compared: quadratics, statistics, noise, ordinal feedback, constraints.

Every problem is a frozen recipe: a dimension, a start, a radius that suits its scale, the value that a method sees
(noisy, or of a batch, or only its order) and the clean value by which it is judged. Data come with scikit-learn.
`begin` opens it for one run. The problems with a language model are in `benchmarks/language.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zograd.core.vector import Array, Query, Vector
from zograd.oracles import Oracle
from zograd.sets.base import Unit
from zograd.spaces import Euclidean, Space
from zograd.stores import Store

Clean = Callable[[Array], float]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Session:
    """A problem opened for one run: where x lives, what answers queries, and what judges the result.

    start: the value of the first x. judge(): "value", the clean f(x) - min f, and whatever else is known of x.
    project(): x into the constraint set.
    """

    store: Store
    oracle: Oracle
    start: float
    judge: Callable[[], dict[str, float]]
    project: Callable[[], None] | None = None


class Workload(Protocol):
    """What the comparison of methods needs to know of a problem; `Problem` and `bench.language.LoraTask` are two."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def mu(self) -> float: ...
    @property
    def terms(self) -> int: ...
    @property
    def unit(self) -> int:
        """Terms of the sum that one evaluation (a forward pass) takes."""

    @property
    def matrices(self) -> bool:
        """Whether some trained tensor is a matrix."""

    @property
    def radius(self) -> float: ...
    @property
    def marks(self) -> int:
        """At how many equally spaced points of the budget the clean value is taken."""

    def about(self) -> str:
        """All that fixes the problem, as a line of text."""

    def begin(self, space: Space, seed: int, whole: bool) -> Session:
        """Open it; whole: a query without `rows` is answered by all terms of the sum, not by a batch."""


@dataclass(frozen=True)
class Problem:
    """f, with what a method may see of it.

    value: the clean f(x). x0: the start. mu: a radius at which differences are about the slope. minimum: of f.
    terms, batch, part: for a finite sum, part(x, rows) is the mean of the terms `rows`; a step sees `batch` of them
        (0: all). noise(rng): added to each value on its own. order: only the ranks of a step's values are told.
    kind: one letter of the table in docs/methods.md. radius: of the l1 ball that constrains x, 0 for none.
    shapes: of the tensors that x is made of, in order; () is one vector.
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
    minimum: float = 0.0
    shapes: tuple[tuple[int, ...], ...] = ()
    marks: ClassVar[int] = 20

    @property
    def dim(self) -> int:
        return int(self.x0.size)

    @property
    def unit(self) -> int:
        return self.batch or self.terms or 1

    @property
    def matrices(self) -> bool:
        return any(math.prod(shape[1:]) > 1 for shape in self.shapes)

    def about(self) -> str:
        start = f"starts at f - min f = {self.value(self.x0) - self.minimum:.5g}"
        shapes = f" as {' + '.join('x'.join(map(str, s)) for s in self.shapes)}" if self.shapes else ""
        told = [f"{self.batch or 'all'} of {self.terms} terms a step"] if self.terms else []
        told += ["values with noise"] if self.noise else []
        told += ["ranks only"] if self.order else []
        told += [f"l1 ball of radius {self.radius:g}"] if self.radius else []
        return ", ".join([f"d = {self.dim}{shapes}", *told, f"mu = {self.mu:g}", start])

    def begin(self, space: Space, seed: int, whole: bool = False) -> Session:
        store = as_store(self, space)

        def judge() -> dict[str, float]:
            with np.errstate(all="ignore"):
                return {"value": self.value(store.array) - self.minimum}

        def project() -> None:
            store.array[:] = project_l1(store.array, self.radius)

        return Session(store, self.oracle(seed, whole), judge()["value"], judge, project if self.radius else None)

    def oracle(self, seed: int, whole: bool = False) -> Oracle:
        """What a run asks: all queries of a step see the same batch; noise is drawn anew for each value.

        whole: a query that names no terms gets all of them, as methods for finite sums expect it.
        """
        rng = np.random.default_rng([seed, 1])

        def evaluate(store: Any, queries: Sequence[Query], key: int) -> list[float]:
            points = [store.point(query.at) for query in queries]
            with np.errstate(all="ignore"):
                if self.part is not None and self.batch and not whole:
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


def quadratic(
    name: str, eigenvalues: Array, *, rotate: bool = True, fast: bool = False, seed: int = 0, **more: Any
) -> Problem:
    """x^T H x / 2 with these eigenvalues, in a random rotation, from a start with equal shares of all eigenvectors.

    fast: a rotation in O(d log d), by `_spread`; taken in any case above d = 2000, where a matrix would not fit.
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
    """The orthonormal Hartley transform, its own inverse. With random signs before it and eigenvalues in random order
    behind it, H has a nearly constant diagonal and small elements everywhere else, as in a rotation drawn uniformly.
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

    def value(x: Array) -> float:
        return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))

    return Problem(name, "a", value, np.tile([-1.2, 1.0], d // 2), **more)


def noisy(problem: Problem, name: str, noise: Callable[[np.random.Generator], float], mu: float) -> Problem:
    """The same f, each value with noise of its own."""
    return replace(problem, name=name, kind="c", noise=noise, mu=mu)


def ordinal(problem: Problem, name: str, mu: float) -> Problem:
    """The same f, of which only the ranks of the values of each query list are told: 0, 1, ..., equal for equal."""
    return replace(problem, name=name, kind="d", order=True, mu=mu)


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


def project_l1(y: Array, radius: float) -> Array:
    """The nearest point of {x : sum_i |x_i| <= radius}: y soft-thresholded until it fits (Duchi et al. 2008)."""
    size = np.abs(y)
    if not size.sum() > radius:
        return y
    u = np.sort(size.ravel())[::-1]
    over = (np.cumsum(u) - radius) / np.arange(1, u.size + 1)
    threshold = over[np.nonzero(u > over)[0][-1]] if np.all(np.isfinite(over)) else 0.0
    return np.asarray(np.sign(y) * np.maximum(size - threshold, 0.0))


@dataclass(frozen=True, slots=True)
class L1Projection:
    """The projection onto the l1 ball as a proximal map of `zograd.rules.Proximal`, for x in a single tensor."""

    radius: float
    unit: ClassVar[Unit] = "leaf"

    def prox_(self, y: Tensor, t: float) -> Tensor:
        return y.copy_(torch.from_numpy(project_l1(y.numpy(), self.radius)))


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


@cache
def method_problem(name: str) -> Problem:
    """A problem of the comparison of methods by its name."""
    return METHOD_PROBLEMS[name]()


def _wide(d: int, rows: int) -> Problem:
    """Eigenvalues 1 .. 1e-3 in geometric order; x is handed over as a matrix, so that low-rank methods have one."""
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


class FlatStore(Store):
    """One flat array as the iterate, seen as the tensors of a problem."""

    def __init__(self, x0: Array, shapes: Sequence[tuple[int, ...]], space: Space) -> None:
        self.array = x0.astype(np.float64)  # a copy
        self.cuts = tuple(int(end) for end in np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        parts = torch.from_numpy(self.array).tensor_split(self.cuts)
        tensors: Mapping[str, Tensor] = {
            f"x{i}": part.view(shape) for i, (part, shape) in enumerate(zip(parts, shapes, strict=True))
        }
        super().__init__(tensors, space=space)

    def point(self, at: Vector) -> Array:
        """A fresh array at Retr_x(at)."""
        out = torch.empty(self.dim, dtype=torch.float64)
        for leaf, part in zip(self.leaves, out.tensor_split(self.cuts), strict=True):
            self.point_(part, leaf, at)
        array: Array = out.numpy()
        return array


def as_store(problem: Problem, space: Space = Euclidean()) -> FlatStore:
    """The start of a problem as the store of a run."""
    return FlatStore(problem.x0, problem.shapes or (problem.x0.shape,), space)
