"""Gradient descent and its two momenta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zograd.core.query import Estimate
from zograd.core.vector import Vector, combination
from zograd.rules.base import Rule
from zograd.rules.moments import Moments, average_, check_moments, initial
from zograd.stores import Iterate

if TYPE_CHECKING:
    from zograd.core.method import Method


@dataclass(frozen=True, slots=True)
class SGD(Rule[Any]):
    """x <- x - lr g, in one pass over the weights that regenerates the directions. No d-sized memory."""

    linear: ClassVar[bool] = True
    momentum: ClassVar[float] = 0.0

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        x.step_(estimate.vector)


def check_beta(name: str, beta: float) -> None:
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"{name} must lie in [0, 1), got {beta}")


def replayable(rule: Rule[Any], method: Method[Any], instead: str = "Momentum()") -> str | None:
    """Why the estimates of past steps cannot be regenerated: they name slots, whose numbers have changed since.

    instead: the rule that keeps a slot of its own, as one writes it.
    """
    if not method.estimator.replays:
        return (
            f"{type(rule).__name__} regenerates past estimates from their seeds, and those of "
            f"{type(method.estimator).__name__} have none. Use {instead}, which has a slot."
        )
    for part in (method.law, method.estimator):
        if named := sorted(part.slots):
            return (
                f"{type(rule).__name__} regenerates past estimates from their seeds, but those of "
                f"{type(part).__name__} read the slot {named[0]!r}, which changes. Use {instead}, which has a slot."
            )
    return None


@dataclass(frozen=True, slots=True)
class Momentum(Rule[Any]):
    """Heavy ball: m <- beta m + g, x <- x - lr m. Memory: one slot of d elements, in float32 or bfloat16 (`moments`).

    moments="bfloat16" rounds m stochastically, as in `Adam`. The largest stable lr shrinks by about (1 - beta), unlike
    with exact gradients (arXiv 2604.14669). ValueError for a beta outside of [0, 1) and for other moments.
    """

    beta: float = 0.9
    moments: Moments = "full"

    def __post_init__(self) -> None:
        check_beta("beta", self.beta)
        check_moments(self.moments)

    @property
    def momentum(self) -> float:
        return self.beta

    @property
    def slots(self) -> Mapping[str, float]:
        return {"momentum": initial(self.moments)}

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        for b in x.blocks(estimate.vector):
            (g,) = b.v
            b.step_(g.copy_(average_(b, "momentum", self.beta, g, 1.0, number=1)))


@dataclass(frozen=True, slots=True)
class ReplayMomentum(Rule[Any]):
    """Heavy ball from replayed seeds: m = sum_{k < window} beta^k g_{t-k}. No d-sized memory.

    Costs `window` regenerations of noise a step instead of a slot. window=None takes the smallest K with
    beta^K <= 1e-3, so that what is cut off is at most 0.1 % of the weight of the newest estimate.
    """

    beta: float = 0.9
    window: int | None = None

    def __post_init__(self) -> None:
        check_beta("beta", self.beta)
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1 step, got {self.window}")

    @property
    def momentum(self) -> float:
        return self.beta

    @property
    def steps(self) -> int:
        """The number of estimates kept."""
        if self.window is not None:
            return self.window
        k = 1
        while self.beta**k > 1e-3:
            k += 1
        return k

    def misfit(self, method: Method[Any]) -> str | None:
        return replayable(self, method)

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        past: list[Vector] = [estimate.vector, *state.get("past", [])][: self.steps]
        state["past"] = past
        x.step_(combination([self.beta**k for k in range(len(past))], past))
