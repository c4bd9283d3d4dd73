"""The optimistic step: the last estimate as a hint of the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zograd.core.vector import Estimate, Vector
from zograd.rules.sgd import replayable
from zograd.stores import Iterate


@dataclass(frozen=True, slots=True)
class Optimistic:
    """x <- x - lr (2 g_t - g_{t-1}), g_{-1} = 0, the last estimate regenerated from its seeds: no d-sized memory.

    Optimistic mirror descent in Euclidean space with the hint M_t = g_{t-1} (Rakhlin and Sridharan 2013; arXiv
    2302.04552). Converges on bilinear games, where gradient descent and ascent spirals outwards. With one
    direction a step the noise of g_{t-1} is independent of that of g_t: 5 times the variance of a plain step.
    """

    @property
    def slots(self) -> Mapping[str, float]:
        return {}

    def misfit(self, method: Any) -> str | None:
        return replayable(self, method)

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        last: Vector = state.get("last", Vector())
        state["last"] = estimate.vector
        x.step_(2.0 * estimate.vector - last)
