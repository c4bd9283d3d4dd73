"""Counting the probes that ask for scales which are not positive."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zograd.core.vector import Query
from zograd.oracles import Oracle
from zograd.stores import Store


class Probes:
    """An oracle that counts, before it answers as `inner` does, how many points have elements that are not positive.

    probes: points asked for; infeasible: those with at least one element <= 0. elements, infeasible_elements: the same
    by element. Cost: the elements of every point once more, without an evaluation.
    """

    def __init__(self, inner: Oracle) -> None:
        self.inner = inner
        self.probes = self.infeasible = self.elements = self.infeasible_elements = 0

    def __call__(self, store: Store, queries: Sequence[Query], key: int) -> Sequence[float]:
        for query in queries:
            bad = 0
            for leaf in store.leaves:
                point = store.scratch(leaf, leaf.numel, use=-2)
                bad += int(torch.count_nonzero(store.point_(point, leaf, query.at) <= 0))
            self.probes += 1
            self.infeasible += bad > 0
            self.elements += store.dim
            self.infeasible_elements += bad
        return self.inner(store, queries, key)

    def shares(self) -> dict[str, float]:
        """Of the points, and of their elements, so far."""
        return {
            "infeasible": self.infeasible / max(self.probes, 1),
            "infeasible_scales": self.infeasible_elements / max(self.elements, 1),
        }
