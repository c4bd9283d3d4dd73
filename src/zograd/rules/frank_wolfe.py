"""Frank-Wolfe: the iterate stays a convex combination of points of the set, nothing is ever projected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zograd.sets import LinearMinimizer
from zograd.stores.base import Iterate
from zograd.vector import Estimate, Slot, Vector


@dataclass(frozen=True, slots=True)
class FrankWolfe:
    """m <- (1 - rho_t) m + rho_t g, s = argmin_{s in set} <m, s>, x <- x + gamma_t (s - x), gamma_t = lr 2 / (t + 2).

    rho_t = rho * (t + 1)^(-2/3) with rho_0 = 1: the averaged estimate of stochastic Frank-Wolfe (Mokhtari et al. 2020),
    without which a single direction's noise picks a random vertex. lr = 1 is the classical step. Memory: one slot.
    Feasible at every iterate up to rounding; the start must lie in the set.
    """

    set: LinearMinimizer
    rho: float = 1.0

    @property
    def slots(self) -> Mapping[str, float]:
        return {"average": 0.0}

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        t = state.get("t", 0)
        state["t"] = t + 1
        rho = 1.0 if t == 0 else self.rho * (t + 1) ** (-2 / 3)
        found, offset = None, 0
        for b in x.blocks(estimate.vector):
            m = b.slots["average"].mul_(1.0 - rho).add_(b.v[0], alpha=rho)
            found = self.set.scan(m, found, offset)
            offset += m.numel()
        assert found is not None
        gamma, offset = 2.0 / (t + 2.0), 0
        for b in x.blocks(Vector(((Slot("x"), 1.0),)), Vector()):
            here, s = b.v
            s = self.set.vertex_(s, found, offset)
            offset += s.numel()
            b.step_(here.sub_(s).mul_(gamma))
