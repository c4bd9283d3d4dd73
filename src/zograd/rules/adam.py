"""Adam on the zeroth-order estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zograd.core.query import Estimate
from zograd.core.vector import Vector
from zograd.estimators.elementwise import Power, Product
from zograd.rules.base import Rule
from zograd.rules.moments import Moments, average_, average_square_, check_moments, initial
from zograd.rules.sgd import check_beta
from zograd.stores import Iterate

SMALLEST = 1e-30
"""Below this a second moment counts as 0."""


@dataclass(frozen=True, slots=True)
class Adam(Rule[Any]):
    """m <- b1 m + (1 - b1) g, s <- b2 s + (1 - b2) g^2, x <- x - lr m^ / (sqrt(s^) + eps), with m^ = m / (1 - b1^t).

    Kingma and Ba (2015), Algorithm 1, with decoupled weight decay. With few directions a step, s is nearly constant
    over the coordinates: expect little from the preconditioner.

    moments: "full": two float32 slots of d elements. "bfloat16": half of that; each moment is rounded stochastically
    when it is written, so its mean is that of float32, and it deviates from it by up to 2^-8 of itself a step. Raises
    ValueError for betas and moments that it does not know.

    >>> import zograd as zo
    >>> type(zo.rules.Adam(moments="bfloat16").slots["exp_avg"]).__name__
    'BFloat16'
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    moments: Moments = "full"

    def __post_init__(self) -> None:
        check_moments(self.moments)
        check_beta("beta1", self.beta1)
        check_beta("beta2", self.beta2)

    @property
    def slots(self) -> Mapping[str, float]:
        return {"exp_avg": initial(self.moments), "exp_avg_sq": initial(self.moments)}

    @property
    def preconditions(self) -> bool:
        return True

    def weigh(self, v: Vector, moves: int) -> Vector:
        """P^(-1/2) v with P = (s^ + eps^2)^(1/2), which lies between sqrt(s^) + eps and its 0.7-fold."""
        correct = 1.0 - self.beta2**moves
        root = Power("exp_avg_sq", -0.25, max(correct * self.eps**2, SMALLEST))
        return Vector(((Product(v.terms, root), correct**0.25),))

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        t = state["t"] = state.get("t", 0) + 1
        correct1, correct2 = 1.0 - self.beta1**t, 1.0 - self.beta2**t
        for b in x.blocks(estimate.vector):
            (g,) = b.v
            m = average_(b, "exp_avg", self.beta1, g, 1.0 - self.beta1, number=1)
            s = average_square_(b, "exp_avg_sq", self.beta2, g, 1.0 - self.beta2, number=2)
            denominator = g.copy_(s).div_(correct2).sqrt_().add_(self.eps)
            b.step_(denominator.reciprocal_().mul_(m).div_(correct1))
