"""Gradient descent with a bound on the move of each coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zograd.core.query import Estimate
from zograd.rules.base import Rule
from zograd.stores import Iterate


@dataclass(frozen=True, slots=True)
class Bounded(Rule[Any]):
    """x <- Retr_x(-clip(lr g, -bound, bound)), element by element in frame coordinates. No d-sized memory.

    On the positive orthant a bound of 0.1 lets no element change by more than a factor e^0.1, about 10.5 %, in a step.
    """

    bound: float

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"the bound on a move must be > 0, got {self.bound}")

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        for b in x.blocks(estimate.vector):
            (g,) = b.v
            if b.lr > 0.0:
                g.clamp_(-self.bound / b.lr, self.bound / b.lr)
            b.step_(g)
