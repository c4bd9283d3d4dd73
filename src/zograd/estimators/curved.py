"""Three-point estimators: the slope and the curvature along each direction, from the same probes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.vector import combination
from zograd.estimators.base import Estimator
from zograd.estimators.differences import pairs, positive_count, slopes


class Curvatures(tuple[float, ...]):
    """c_j = (f(x + mu v_j) - 2 f(x) + f(x - mu v_j)) / mu^2, near v_j^T H v_j: one number a direction."""

    __slots__ = ()

    @classmethod
    def _make(cls, values: Iterable[float]) -> Curvatures:
        return cls(values)


@dataclass(frozen=True, slots=True)
class Curved(Estimator[Curvatures]):
    """g = (1/n) sum_j D_j v_j as in `Central`, and c_j = (f_j+ - 2 f_0 + f_j-) / mu^2 alongside, as `Curvatures`.

    Costs 2 n + 1 evaluations. The mean of c is the meter `trace`: E[c_j] = tr H + O(mu^2) for every law with
    E[v v^T] = I. Noise of deviation s in f adds 6 s^2 / mu^4 to the variance of each c_j: curvature wants a larger mu
    than the slope does.
    """

    n: int = 1

    def __post_init__(self) -> None:
        positive_count(self.n)

    @property
    def evaluations(self) -> int:
        return 2 * self.n + 1

    @property
    def aux(self) -> type[Curvatures]:
        return Curvatures

    def __call__(self, ask: Ask) -> Routine[Curvatures]:
        v = [ask.draw(j) for j in range(self.n)]
        f0, *f = yield [Query(), *pairs(v, ask.mu)]
        plus, minus = np.array(f[::2]), np.array(f[1::2])
        g = combination(slopes(f, ask.mu) / self.n, v)
        c = (plus - 2 * f0 + minus) / (ask.mu * ask.mu)
        return Estimate(g, f0, [f0, *f], Curvatures(c.tolist()), meters={"trace": float(np.mean(c))})


@dataclass(frozen=True, slots=True)
class ProbeWeighted(Estimator[Curvatures]):
    """g = (1/n) sum_j w_j D_j v_j with w_j = 1 / max(floor, |c_j|^alpha): steep but strongly curved probes count less.

    D_j and c_j are the slope and the curvature of `Curved`. 2 n + 1 evaluations, no memory. The weights are in units
    of f: multiplying f by a constant changes more than the length of g. With alpha = 0 and floor = 1 it is `Curved`.
    1.5-SPSA (Chaubard et al., arXiv 2609.38095), Eq. 3 to 5.
    """

    n: int = 160
    alpha: float = 0.1
    floor: float = 1.0

    def __post_init__(self) -> None:
        positive_count(self.n)
        if self.alpha < 0:
            raise ValueError(f"alpha is the exponent of the curvature and must be >= 0, got {self.alpha}")
        if not self.floor > 0:
            raise ValueError(f"floor bounds the divisor from below and must be > 0, got {self.floor}")

    @property
    def evaluations(self) -> int:
        return 2 * self.n + 1

    @property
    def aux(self) -> type[Curvatures]:
        return Curvatures

    def __call__(self, ask: Ask) -> Routine[Curvatures]:
        e = yield from Curved(self.n)(ask)
        v = [ask.draw(j) for j in range(self.n)]
        _, *f = e.losses
        w = 1 / np.maximum(self.floor, np.abs(e.aux) ** self.alpha)
        return Estimate(combination(w * slopes(f, ask.mu) / self.n, v), e.loss, e.losses, e.aux, meters=e.meters)
