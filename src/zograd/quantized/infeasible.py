"""Count the probes at which some scale is not positive."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zograd.core.vector import Query
from zograd.oracles import Oracle
from zograd.stores import Store


class Probes:
    """Counts, over all oracles made by `counted`, the probes that have elements <= 0.

    probes: points evaluated; infeasible: those with at least one element <= 0. elements, infeasible_elements: the same
    counts by element.
    """

    def __init__(self) -> None:
        self.probes = self.infeasible = self.elements = self.infeasible_elements = 0

    def counted(self, oracle: Oracle) -> Oracle:
        """An oracle that counts its points and then evaluates them as `oracle` does.

        Cost: one pass over the elements of each point, and no evaluation.
        """

        def evaluate(store: Store, queries: Sequence[Query], key: int) -> Sequence[float]:
            for query in queries:
                self._count(store, query)
            return oracle(store, queries, key)

        return evaluate

    def _count(self, store: Store, query: Query) -> None:
        bad = 0
        for leaf in store.leaves:
            point = store.scratch(leaf, leaf.numel, use=-2)
            bad += int(torch.count_nonzero(store.point_(point, leaf, query.at) <= 0))
        self.probes += 1
        self.infeasible += bad > 0
        self.elements += store.dim
        self.infeasible_elements += bad

    def shares(self) -> dict[str, float]:
        """The infeasible share of the probes so far, and of their elements."""
        return {
            "infeasible": self.infeasible / max(self.probes, 1),
            "infeasible_scales": self.infeasible_elements / max(self.elements, 1),
        }
