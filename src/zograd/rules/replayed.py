"""Adam whose moments are computed again from past estimates, in place of slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zograd.core.query import Estimate
from zograd.core.vector import Vector
from zograd.rules.base import Rule
from zograd.rules.sgd import check_beta, replayable
from zograd.stores import Iterate

if TYPE_CHECKING:
    from zograd.core.method import Method


@dataclass(frozen=True, slots=True)
class ReplayAdam(Rule[Any]):
    """m = sum_{k < K} b1^k g_{t-k} / sum_{k < K} b1^k, s = sum_{k < K} b2^k g_{t-k}^2 / sum_{k < K} b2^k,
    x <- x - lr m / (sqrt(s) + eps), with K = min(t, window) in step t.

    The estimates g_{t-k} are regenerated from their seeds and scalars, block by block. While t <= window, m and s are
    the moments of `Adam` with their bias correction, to rounding. Later they are means over the window, with weights
    that sum to 1. AdaMeZO, Cai, Chen and Zhu 2026 (arXiv 2605.00650), which cuts the sums off without dividing by the
    weights that are left, and has eps inside of the root.

    Memory: no slots; the names and scalars of `window` estimates, and three blocks of workspace. Cost: `window`
    regenerations of an estimate a step. ValueError for numbers out of their ranges; TypeError from a method whose
    directions name slots, which change.

    >>> import zograd as zo
    >>> dict(zo.rules.ReplayAdam(window=10).slots)
    {}
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    window: int = 10

    def __post_init__(self) -> None:
        check_beta("beta1", self.beta1)
        check_beta("beta2", self.beta2)
        if self.window < 1:
            raise ValueError(f"window must be at least 1 step, got {self.window}")

    def misfit(self, method: Method[Any]) -> str | None:
        return replayable(self, method, "Adam()")

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        past: list[Vector] = [estimate.vector, *state.get("past", [])][: self.window]
        state["past"] = past
        first, second = weights(self.beta1, len(past)), weights(self.beta2, len(past))
        nothing = Vector()
        for b in x.blocks(nothing, nothing, nothing):
            m, s, g = b.v
            for vector, a1, a2 in zip(past, first, second, strict=True):
                b.fill_(g, vector)
                m.add_(g, alpha=a1)
                s.addcmul_(g, g, value=a2)
            b.step_(m.div_(s.sqrt_().add_(self.eps)))


def weights(beta: float, n: int) -> list[float]:
    """beta^k / sum_j beta^j for k = 0 .. n - 1."""
    powers = [beta**k for k in range(n)]
    return [p / sum(powers) for p in powers]
