"""A problem on which methods are compared: a frozen description; `begin` opens it for one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zograd.core.vector import Array, Query, Vector
from zograd.oracles import Oracle
from zograd.sets.base import Extent
from zograd.spaces import Euclidean, Space
from zograd.stores import Store

Clean = Callable[[Array], float]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Session:
    """A problem opened for one run: the store of x, the oracle, and the judge of the result.

    start: the value of the first x. judge(): measurements of x; "value" is the clean f(x) - min f. project(): moves x
    into the constraint set.
    """

    store: Store
    oracle: Oracle
    start: float
    judge: Callable[[], dict[str, float]]
    project: Callable[[], None] | None = None


class ComparedProblem(Protocol):
    """The protocol of a problem in the comparison of methods, such as `Problem` and `LoraTask`."""

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
        """How many terms of the sum one evaluation (a forward pass) takes."""

    @property
    def matrices(self) -> bool:
        """Whether at least one trained tensor is a matrix."""

    @property
    def radius(self) -> float: ...
    @property
    def marks(self) -> int:
        """The number of equally spaced points of the budget at which the clean value is recorded."""

    def about(self) -> str:
        """The complete definition of the problem, as one line of text."""

    def begin(self, space: Space, seed: int, whole: bool) -> Session:
        """Opens the problem. whole: a query without `rows` gets all terms of the sum, not a batch."""


@dataclass(frozen=True)
class Problem:
    """f, and the part of it that a method may see.

    value: the clean f(x). x0: the start. mu: a radius at which differences approximate the slope. minimum: min f.
    terms, batch, part: for a finite sum, part(x, rows) is the mean of the terms `rows`; a step sees `batch` of them
        (0: all). noise(rng): added to each value independently. order: a step learns only the ranks of its values.
    kind: the letter of its group in docs/methods.md. radius: that of the l1 ball that constrains x; 0: no constraint.
    shapes: those of the tensors that x consists of, in order; (): x is one vector.
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
        """The oracle of a run. All queries of a step see the same batch; each value has its own noise.

        whole: a query that names no terms gets all of them, as methods for finite sums expect.
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
    unit: ClassVar[Extent] = "leaf"

    def prox_(self, y: Tensor, t: float) -> Tensor:
        return y.copy_(torch.from_numpy(project_l1(y.numpy(), self.radius)))


class FlatStore(Store):
    """A store whose tensors are views of one flat array, the iterate."""

    def __init__(self, x0: Array, shapes: Sequence[tuple[int, ...]], space: Space) -> None:
        self.array = x0.astype(np.float64)  # a copy
        self.cuts = tuple(int(end) for end in np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        parts = torch.from_numpy(self.array).tensor_split(self.cuts)
        tensors: Mapping[str, Tensor] = {
            f"x{i}": part.view(shape) for i, (part, shape) in enumerate(zip(parts, shapes, strict=True))
        }
        super().__init__(tensors, space=space)

    def point(self, at: Vector) -> Array:
        """A new array: the point Retr_x(at)."""
        out = torch.empty(self.dim, dtype=torch.float64)
        for leaf, part in zip(self.leaves, out.tensor_split(self.cuts), strict=True):
            self.point_(part, leaf, at)
        array: Array = out.numpy()
        return array


def as_store(problem: Problem, space: Space = Euclidean()) -> FlatStore:
    """A store for a run, at the start of a problem."""
    return FlatStore(problem.x0, problem.shapes or (problem.x0.shape,), space)
