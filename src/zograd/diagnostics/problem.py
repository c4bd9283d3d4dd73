"""A loss and the point at which it is examined."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from zograd.core import keys
from zograd.core.query import Query
from zograd.core.vector import Array, Vector
from zograd.laws import Draw, Law
from zograd.oracles import Oracle, as_number, sequential
from zograd.spaces import Euclidean
from zograd.stores import Store


@dataclass(frozen=True)
class Measurement:
    """A number, its standard error, and its cost in evaluations."""

    value: float
    error: float
    evaluations: int

    def __str__(self) -> str:
        return f"{self.value:.4g} +- {self.error:.2g} ({self.evaluations} evaluations)"


@dataclass(frozen=True)
class Problem:
    """A loss, examined at the current point of its store. The point does not move."""

    store: Store
    oracle: Oracle

    @property
    def dim(self) -> int:
        return self.store.dim

    def values(self, points: Iterable[Vector], key: int = 0) -> Array:
        """The loss at x + p for each p. Of a closure over tensors torch has the same random state at each of them; a
        function of an array draws on. Raises ValueError if one is not finite."""
        points = list(points)
        f = np.array(self.oracle(self.store, [Query(p) for p in points], key), dtype=np.float64)
        if not np.all(np.isfinite(f)):
            bad = int(np.flatnonzero(~np.isfinite(f))[0])
            raise ValueError(f"the loss is {f[bad]} at probe {bad}; examine another point, or use a smaller mu")
        return f

    def directions(self, law: Law, n: int, seed: int) -> list[Vector]:
        """n independent directions of a law; no run with this seed draws the same."""
        own = keys.seed_of(seed, keys.Part.DIAGNOSTICS)
        return [law(Draw(own, k, 0, self.store.shapes, self.store.gram)) for k in range(n)]


def problem(f: Callable[..., float | Tensor], x: npt.ArrayLike | Mapping[str, Tensor] | Iterable[Tensor]) -> Problem:
    """Wraps a loss for the diagnostics.

    Pass f(x) and an array x of numbers; or a closure f() that reads torch tensors, and these tensors (a mapping by
    name, or `model.parameters()`).
    """
    if isinstance(x, Mapping):
        return Problem(Store(x, space=Euclidean()), sequential(f))
    if not isinstance(x, np.ndarray | int | float) and not np.isscalar(x):
        items: list[Any] = list(x)  # type: ignore[arg-type]
        if items and all(isinstance(t, Tensor) for t in items):
            return Problem(Store({f"p{i}": t for i, t in enumerate(items)}, space=Euclidean()), sequential(f))
        x = np.asarray(items, dtype=np.float64)
    from zograd.api.variables import ArrayStore

    store = ArrayStore(x, Euclidean())

    def oracle(where: Any, queries: Sequence[Query], key: int) -> list[float]:
        return [as_number(f(store.point(query.at))) for query in queries]

    return Problem(store, oracle)


def mean(values: npt.ArrayLike, evaluations: int) -> Measurement:
    """The mean of independent values and its standard error."""
    v = np.asarray(values, dtype=np.float64)
    error = float(v.std(ddof=1) / math.sqrt(v.size)) if v.size > 1 else math.inf
    return Measurement(float(v.mean()), error, evaluations)
