"""Consensus-based optimization: a population of particles that drift to their softmin and explore around it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.schedules import Schedule
from zograd.core.sums import mean
from zograd.core.vector import Slot, Vector, combination
from zograd.estimators.base import Estimator
from zograd.estimators.differences import positive_count
from zograd.estimators.elementwise import Product

if TYPE_CHECKING:
    from zograd.core.method import Method


@dataclass(frozen=True, slots=True)
class Consensus(Estimator[None]):
    """c = sum_i w_i x_i, w_i ~ exp(-alpha f(x_i)); x_i <- x_i - lam dt (x_i - c) + sigma sqrt(dt) |x_i - c| xi_i.

    A step moves the particles, evaluates them and moves the iterate to c. Slots: "particle_0", ... hold them as offsets
    from the iterate before its move, "shift" holds that move; so the rule is `SGD` with lr = 1. At the start the
    particles lie at x + mu v_i. componentwise: the noise is (x_i - c) * xi_i element by element, which suits many
    dimensions (Carrillo et al. 2021): the population contracts where (1 - lam dt)^2 + sigma^2 dt k < 1, with k = d for
    the plain noise and k = 1 for the componentwise one. Memory: n + 1 slots, so for small problems. n evaluations.

    Pinnau et al. 2017; Riedl et al. 2023, arXiv 2306.09778. Defaults as in CBXpy (Bailo et al. 2024).
    """

    n: int = 20
    alpha: float = 1.0
    lam: float = 1.0
    sigma: float = 1.0
    dt: float = 0.1
    componentwise: bool = False

    def __post_init__(self) -> None:
        positive_count(self.n, 2)
        if not self.alpha > 0:
            raise ValueError(f"alpha is an inverse temperature and must be > 0, got {self.alpha}")
        if not 0 < self.lam * self.dt <= 1:
            raise ValueError(f"the drift lam dt must lie in (0, 1], got lam={self.lam}, dt={self.dt}")

    estimates_gradient: ClassVar[bool] = False

    @property
    def evaluations(self) -> int:
        return self.n

    @property
    def slots(self) -> Mapping[str, float]:
        return {**{f"particle_{i}": 0.0 for i in range(self.n)}, "shift": 0.0}

    def misfit(self, method: Method[Any]) -> str | None:
        if not method.space.flat:
            return f"Consensus averages points, which {type(method.space).__name__} does not allow; use Euclidean()"
        if method.rule.linear and method.controller == Schedule(1.0) and not method.weight_decay:
            return None
        return (
            "Consensus keeps its particles as offsets from an iterate that moves to their consensus: use rule=SGD(), "
            "lr=1.0 and weight_decay=0"
        )

    def __call__(self, ask: Ask) -> Routine[None]:
        v = [ask.draw(i) for i in range(self.n)]
        x = [self._moved(ask, i, xi) for i, xi in enumerate(v)] if ask.moves else [ask.mu * v_i for v_i in v]
        f = yield [Query(x_i) for x_i in x]
        w = np.exp(-self.alpha * (np.array(f) - min(f)))  # log-sum-exp: the largest weight is 1
        writes = {f"particle_{i}": x_i for i, x_i in enumerate(x)}
        to_c = Vector(((Slot("shift"), -1.0),))
        return Estimate(to_c, mean(f), f, None, {**writes, "shift": combination(w / w.sum(), x)})

    def _moved(self, ask: Ask, i: int, xi: Vector) -> Vector:
        """Particle i after its drift and noise, as an offset from the iterate, which stands at c."""
        away = Vector(((Slot(f"particle_{i}"), 1.0), (Slot("shift"), -1.0)))
        noise = product(away, xi) if self.componentwise else ask.norm(away) * xi
        return (1.0 - self.lam * self.dt) * away + self.sigma * math.sqrt(self.dt) * noise


def product(a: Vector, b: Vector) -> Vector:
    """a * b, element by element."""
    return Vector(tuple((Product(a.terms, e), c) for e, c in b.terms))
