"""Directions that carry their own momentum: the estimator of ZO-AdaMU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.vector import Slot, Vector
from zograd.estimators.base import Estimator
from zograd.laws import Gaussian

if TYPE_CHECKING:
    from zograd.core.method import Method


@dataclass(frozen=True, slots=True)
class Anneal:
    """1 before step `start`, then (1/2 + cos(pi u) / 2)^phi with u from 0 to 1 until `stop`, then `end`."""

    phi: float
    start: int = 1024
    stop: int = 16_000
    end: float = 0.9

    def __post_init__(self) -> None:
        if not self.start < self.stop:
            raise ValueError(f"annealing needs start < stop, got start={self.start}, stop={self.stop}")

    def __call__(self, step: int) -> float:
        if step < self.start:
            return 1.0
        if step >= self.stop:
            return self.end
        u = (step - self.start) / (self.stop - self.start)
        return float((0.5 + 0.5 * math.cos(math.pi * u)) ** self.phi)


class Mixture(NamedTuple):
    """The scalars of one step: shares of fresh noise, and the slope along the mixed direction."""

    alpha: float
    beta1: float
    beta2: float
    slope: float


@dataclass(frozen=True, slots=True)
class SimulatedMomentum(Estimator[Mixture]):
    """g = D_u u along u = b1 z0 + (1 - b1) zm, z0 ~ N(0, a I), zm ~ N(mean, (1 - a) I), mean a slot.

    E[u u^T] is not I, so g is no unbiased estimate of anything: a method by design (ZO-AdaMU, arXiv 2312.15184, Eq. 3
    to 7). The direction that moves is the one that is probed; the released code mixes the two with different weights.
    Costs 2 evaluations. The rule writes the mean (`AdaMU`).
    """

    alpha: Anneal | float = Anneal(1.0)
    beta1: Anneal | float = Anneal(0.1)
    beta2: Anneal | float = Anneal(1.5)

    estimates_gradient: ClassVar[bool] = False

    @property
    def evaluations(self) -> int:
        return 2

    @property
    def aux(self) -> type[Mixture]:
        return Mixture

    @property
    def slots(self) -> Mapping[str, float]:
        return {"mean": 0.0}

    def misfit(self, method: Method[Any]) -> str | None:
        if isinstance(method.law, Gaussian):
            return None
        return f"SimulatedMomentum mixes normal noise, and {type(method.law).__name__} draws other; use law=Gaussian()"

    def __call__(self, ask: Ask) -> Routine[Mixture]:
        a, b1, b2 = (s(ask.step) if isinstance(s, Anneal) else s for s in (self.alpha, self.beta1, self.beta2))
        z0 = math.sqrt(a) * ask.draw(0)
        zm = Vector(((Slot("mean"), 1.0),)) + math.sqrt(1.0 - a) * ask.draw(1)
        u = b1 * z0 + (1.0 - b1) * zm
        plus, minus = yield [Query(ask.mu * u), Query(-ask.mu * u)]
        slope = (plus - minus) / (2 * ask.mu)
        return Estimate(slope * u, (plus + minus) / 2, [plus, minus], Mixture(a, b1, b2, slope))
