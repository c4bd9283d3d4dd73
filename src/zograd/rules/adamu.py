"""ZO-AdaMU's step: the mixed direction over the root of its squared parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from zograd.core.query import Estimate
from zograd.core.vector import Noise, Slot, Vector
from zograd.estimators.simulated import Mixture
from zograd.rules.base import Rule
from zograd.stores import Iterate


@dataclass(frozen=True, slots=True)
class AdaMU(Rule[Mixture]):
    """x <- x - lr D u / sqrt(b2 z0^2 + (1 - b2) zm^2 + eps), mean <- sign(D) u, with u = b1 z0 + (1 - b1) zm.

    z0, zm and the slope D along u are those of `SimulatedMomentum`, which holds the slot. With a = b1 = b2 = 1 the step
    is lr D sign(z0): MeZO with every element of z normalised.
    """

    eps: float = 1e-8

    @property
    def reads(self) -> type[Mixture]:
        return Mixture

    @property
    def remedy(self) -> str:
        return "Use SimulatedMomentum(), or methods.zo_adamu()."

    def apply(self, x: Iterate, estimate: Estimate[Mixture], state: dict[str, Any]) -> None:
        a, b1, b2, slope = estimate.aux
        fresh, spread = [Vector(((e, 1.0),)) for e, _ in estimate.vector.terms if isinstance(e, Noise)]
        mean = Vector(((Slot("mean"), 1.0),))
        z0, zm = math.sqrt(a) * fresh, mean + math.sqrt(1.0 - a) * spread
        for b in x.blocks(b1 * z0 + (1.0 - b1) * zm, z0, zm):
            u, z0_block, zm_block = b.v
            b.slots["mean"].copy_(u).mul_(math.copysign(1.0, slope) if slope else 0.0)
            square = z0_block.square_().mul_(b2).addcmul_(zm_block, zm_block, value=1.0 - b2)
            b.step_(u.mul_(slope).mul_(square.add_(self.eps).rsqrt_()))
