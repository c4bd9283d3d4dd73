"""The inverse of the empirical Fisher matrix of the last estimates, without matrices of the size of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zograd.core.query import Estimate
from zograd.core.vector import Vector, combination
from zograd.rules.base import Rule
from zograd.rules.sgd import replayable
from zograd.stores import Iterate

if TYPE_CHECKING:
    from zograd.core.method import Method


@dataclass(frozen=True, slots=True)
class InverseFisher(Rule[Any]):
    """x <- x - lr H^-1 g with H = damping I + (1/m) sum_i g_i g_i^T over the last m estimates, g the newest of them.

    M-FAC (Frantar, Kurtic and Alistarh 2021, arXiv 2107.03356), by Woodbury's identity: with rows g_i in G,
    H^-1 g = (g - G^T a) / l where (m l I + G G^T) a = G g and l is the damping. While fewer than `window` estimates
    exist, m is their number. |H^-1 g| is at most |g| / l.

    The paper stores m gradients. Here the estimates are names, so G G^T and G^T a are made again from their seeds.
    Memory: no slots; the names and scalars of `window` estimates. Cost: two passes of the noise of all of them a step
    (inner products, move), and a solve of m x m. TypeError from a method whose directions name slots, which change;
    ValueError for a window below 1 and a damping that is not positive.

    With few directions an estimate, the g_i are near orthogonal, and H^-1 g = g / (l + |g|^2 / m) is g, normalised.

    >>> import zograd as zo
    >>> dict(zo.rules.InverseFisher(window=8).slots)
    {}
    """

    window: int = 16
    damping: float = 1e-2

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1 estimate, got {self.window}")
        if not self.damping > 0.0:
            raise ValueError(f"damping must be > 0, got {self.damping}")

    def misfit(self, method: Method[Any]) -> str | None:
        return replayable(self, method)

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        past: list[Vector] = [estimate.vector, *state.get("past", [])][: self.window]
        state["past"] = past
        gram = x.gram(past)
        a = np.linalg.solve(len(past) * self.damping * np.eye(len(past)) + gram, gram[:, 0])
        x.step_(combination([1.0 / self.damping, *(-a / self.damping)], [past[0], *past]))
