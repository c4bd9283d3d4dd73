"""The optimistic step: the last estimate as a hint of the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zograd.core.query import Estimate
from zograd.core.vector import Vector
from zograd.rules.base import Rule
from zograd.rules.sgd import replayable
from zograd.stores import Iterate

if TYPE_CHECKING:
    from zograd.core.method import Method


@dataclass(frozen=True, slots=True)
class Optimistic(Rule[Any]):
    """x <- x - lr (2 g_t - g_{t-1}), g_{-1} = 0, the last estimate regenerated from its seeds: no d-sized memory.

    Optimistic mirror descent in Euclidean space with the hint M_t = g_{t-1} (Rakhlin and Sridharan 2013; arXiv
    2302.04552). Converges on bilinear games, where gradient descent and ascent spirals outwards. With one
    direction a step the noise of g_{t-1} is independent of that of g_t: 5 times the variance of a plain step.
    """

    def misfit(self, method: Method[Any]) -> str | None:
        return replayable(self, method)

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        last: Vector = state.get("last", Vector())
        state["last"] = estimate.vector
        x.step_(2.0 * estimate.vector - last)
