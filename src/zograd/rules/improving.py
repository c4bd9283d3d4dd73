"""Moves to a point that was tried only where its value is no worse than the last one that was taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from zograd.core.query import Estimate
from zograd.core.vector import Vector
from zograd.estimators.vertices import Tried
from zograd.rules.base import Rule
from zograd.stores import Iterate


@dataclass(frozen=True, slots=True)
class Improving(Rule[Tried]):
    """x <- x - lr g where f(x - g) is at most the value of the last move, otherwise x stays. The first step moves.

    A step that stays has the zero vector for a direction. Equal values are taken, so that a plateau can be crossed.
    Memory: one number, shown as `value`. For values that repeat: in noise a lucky value is never beaten. lr = 1.

    >>> import numpy as np, zograd as zo
    >>> search = zo.estimators.Vertices(zo.sets.Box(-1.0, 1.0))
    >>> loop = zo.AskTell(np.zeros(3), zo.Method(search, zo.laws.Gaussian(), Improving(), lr=1.0))
    >>> for value in (2.0, 3.0, 1.0):
    ...     (point,) = loop.ask()
    ...     record = loop.tell([value])
    >>> np.array_equal(loop.x, point), [dict(record.meters)["value"] for record in loop.records]
    (True, [2.0, 2.0, 1.0])
    """

    automatic: ClassVar[float] = 1.0
    meters: ClassVar[tuple[str, ...]] = ("value",)

    @property
    def reads(self) -> type[Tried]:
        return Tried

    @property
    def remedy(self) -> str:
        return "Use Vertices(box), or methods.vertex_search(box)."

    def apply(self, x: Iterate, estimate: Estimate[Tried], state: dict[str, Any]) -> None:
        if "value" in state and estimate.aux.value > state["value"]:
            return x.step_(Vector())
        state["value"] = estimate.aux.value
        x.step_(estimate.vector)
