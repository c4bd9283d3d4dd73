"""Gradient descent in units of the slope, measured by the spread of the losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from zograd.core.query import Estimate
from zograd.estimators.differences import Spread
from zograd.rules.base import Rule
from zograd.stores import Iterate


@dataclass(frozen=True, slots=True)
class SpreadSGD(Rule[Spread]):
    """x <- x - lr g / slope, slope = std(f_1..f_n) / mu: normalised gradient descent (FZOO, arXiv 2506.09034).

    With u_j the directions this is lr (1/n) sum_j (f_j - f0) / std(f) u_j, the form and the lr of the released code;
    the paper's formula has one more 1/mu, so lr here = (its lr) / mu. Adding a constant to f, or multiplying f by a
    positive one, leaves the trajectory unchanged. The step never shrinks by itself: give lr a schedule. When the
    spread is 0 (all losses equal) the estimate is 0 as well, and nothing moves.
    """

    momentum: ClassVar[float] = 0.0

    def units(self, aux: tuple[float, ...] | None) -> float:
        """lr here moves as lr / slope along the estimate itself."""
        return 1.0 if aux is None else Spread(*aux).slope

    @property
    def reads(self) -> type[Spread]:
        return Spread

    @property
    def remedy(self) -> str:
        return "Use OneSided(n), or methods.fzoo()."

    def apply(self, x: Iterate, estimate: Estimate[Spread], state: dict[str, Any]) -> None:
        slope = estimate.aux.slope
        if slope > 0.0:
            x.step_(estimate.vector / slope)
