"""Inner products of vectors over all leaves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from zograd import noise
from zograd.core.sums import Sum
from zograd.core.vector import Array, Basis, Noise, Vector

if TYPE_CHECKING:
    from zograd.stores import Store


def gram(store: Store, vectors: Sequence[Vector]) -> Array:
    """<v_j, v_k> in frame coordinates for all pairs, in one pass. Exact integer sums between noise directions.

    The terms of a vector may cancel, such as those of a difference of nearly equal slots. Then rounding can take
    <v, v> below 0, and it is 0 here.
    """
    bases: list[Basis] = list(dict.fromkeys(e for v in vectors for e, _ in v.terms))
    position = {e: i for i, e in enumerate(bases)}
    coefs = np.zeros((len(vectors), len(bases)))
    for j, v in enumerate(vectors):
        for e, c in v.terms:
            coefs[j, position[e]] = c
    products = np.asarray(coefs @ basis_gram(store, bases) @ coefs.T)
    np.fill_diagonal(products, np.maximum(products.diagonal(), 0.0))
    return products


def basis_gram(store: Store, bases: Sequence[Basis]) -> Array:
    """<e_j, e_k> for all pairs of basis vectors."""
    g = np.zeros((len(bases), len(bases)))
    noises = [(j, e) for j, e in enumerate(bases) if isinstance(e, Noise)]
    at, keys = [j for j, _ in noises], [(e.kind, e.key) for _, e in noises]
    if keys:
        integers = np.zeros((len(keys), len(keys)), dtype=object)
        for leaf in store.leaves:
            integers = integers + np.asarray(noise.gram(keys, leaf.index, 0, leaf.total), dtype=object)
        g[np.ix_(at, at)] = np.asarray(integers / 2**32, dtype=np.float64)
    exact = set(itertools.product(at, at))
    sums = {(j, k): Sum() for k in range(len(bases)) for j in range(k + 1) if (j, k) not in exact}
    if sums:
        if store.sharded:
            raise TypeError(
                "this method takes inner products of stored vectors, and other processes hold parts of them; use "
                "one whose directions are noise"
            )
        for block in store.blocks(*(Vector(((e, 1.0),)) for e in bases)):
            for (j, k), total in sums.items():
                total.add(block.v[j], block.v[k])
    for (j, k), total in sums.items():
        g[j, k] = g[k, j] = total.value
    return g
