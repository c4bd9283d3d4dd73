"""`gradient`: one estimate of a gradient as an array, outside of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zograd.api.variables import Variables
from zograd.core import keys
from zograd.core.parts import check
from zograd.core.query import Query
from zograd.core.seeds import Seed, as_seed
from zograd.core.vector import Array, Vector
from zograd.estimators import Central, Estimator
from zograd.estimators.standalone import answered, asking
from zograd.laws import Law, Rademacher
from zograd.oracles import as_number
from zograd.spaces import Euclidean
from zograd.stores import Store


@dataclass(frozen=True)
class Gradient:
    """An estimate in the form of x. evaluations: calls of f. losses: their values, in order."""

    value: Any
    evaluations: int
    losses: tuple[float, ...]


def gradient(
    f: Callable[[Any], Any],
    x: Any,
    *,
    estimator: Estimator[Any] = Central(1),
    law: Law = Rademacher(),
    mu: float = 2.0**-10,
    seed: Seed = 0,
    step: int = 0,
) -> Gradient:
    """An estimate of the gradient of f at x from values of f: what a step of a run would move along.

    For fields, surrogates and searches that are no run: `Central(n)` is unbiased to O(mu^2) with variance (d - 1)/n
    |grad f|^2, `Coordinates(d, central=True)` is the gradient to O(mu^2) for 2 d evaluations.

    f: takes x in its own form and returns a number. x: a number, a list, an array of float64 or float32, a torch
        tensor, or a dict of these; it is not changed.
    estimator: one that estimates at a point without memory; an estimator with slots is refused.
    law: of the directions. mu: radius of the probes, in units of x.
    seed, step: the same pair gives the same directions for every f; other steps give independent ones. They are never
        the directions of a run.

    Memory: a few arrays of the size of x. TypeError for what is no estimator or law, or has slots; ValueError for an
    empty or non-finite x, mu <= 0, and where values of f that are not finite leave no estimate.

    >>> import numpy as np, zograd as zo
    >>> exact = zo.estimators.Coordinates(3, central=True)
    >>> g = zo.gradient(lambda x: float(x @ x), np.array([1.0, 2.0, 3.0]), estimator=exact)
    >>> g.value.round(9).tolist(), g.evaluations
    ([2.0, 4.0, 6.0], 6)
    """
    check(estimator, Estimator, "estimator")
    check(law, Law, "law")
    for part in (estimator, law):
        if part.slots:
            raise TypeError(
                f"gradient() takes one estimate at one point, and {type(part).__name__} remembers earlier ones (slots "
                f"{', '.join(sorted(part.slots))}); use Central(n) or Coordinates(d, central=True), or a run"
            )
    if isinstance(mu, str) or not mu > 0:
        raise ValueError(f"mu is the radius of the probes and must be > 0, got {mu}")
    variables = Variables(x)
    store = variables.store(Euclidean())
    for part in (law, estimator):
        part.prepare(store)
    told: list[float] = []

    def values(_: Store, queries: Sequence[Query], key: int) -> list[float]:
        found = [as_number(f(variables.shaped(store.point(query.at).reshape(-1)))) for query in queries]
        told.extend(found)
        return found

    ask = asking(store, law, keys.Part.ESTIMATE, mu=mu, seed=as_seed(seed), step=step)
    vector = answered(estimator(ask), values, store, 0).vector
    failed = sum(not math.isfinite(f) for f in told)
    if not vector and failed:
        if failed == len(told):
            raise ValueError(f"f is not finite at any of the {len(told)} points around x: {told[:3]}")
        raise ValueError(
            f"f is not finite at {failed} of the {len(told)} points around x, so that none of their differences is; "
            f"pass a smaller mu, or an x around which f is finite"
        )
    value = dense(store, vector)
    return Gradient(variables.shaped(value.astype(variables.flat.dtype, copy=False)), len(told), tuple(told))


def dense(store: Store, vector: Vector) -> Array:
    """The elements of a vector over all leaves, as one array of one axis."""
    return np.concatenate([block.v[0].numpy().copy() for block in store.blocks(vector)])
