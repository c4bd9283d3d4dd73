"""Adam on the zeroth-order estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zograd.core.query import Estimate
from zograd.rules.base import Rule
from zograd.rules.sgd import check_beta
from zograd.stores import Iterate


@dataclass(frozen=True, slots=True)
class Adam(Rule[Any]):
    """m <- b1 m + (1 - b1) g, s <- b2 s + (1 - b2) g^2, x <- x - lr m^ / (sqrt(s^) + eps), with m^ = m / (1 - b1^t).

    Kingma and Ba (2015), Algorithm 1, with decoupled weight decay. Memory: two float32 slots of d elements. With few
    directions a step, s is nearly constant over the coordinates: expect little from the preconditioner.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_beta("beta1", self.beta1)
        check_beta("beta2", self.beta2)

    @property
    def slots(self) -> Mapping[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        t = state["t"] = state.get("t", 0) + 1
        correct1, correct2 = 1.0 - self.beta1**t, 1.0 - self.beta2**t
        for b in x.blocks(estimate.vector):
            (g,), m, s = b.v, b.slots["exp_avg"], b.slots["exp_avg_sq"]
            m.mul_(self.beta1).add_(g, alpha=1.0 - self.beta1)
            s.mul_(self.beta2).addcmul_(g, g, value=1.0 - self.beta2)
            denominator = g.copy_(s).div_(correct2).sqrt_().add_(self.eps)
            b.step_(denominator.reciprocal_().mul_(m).div_(correct1))
