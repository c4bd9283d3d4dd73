"""Evolution strategies: what the ranks of a normal population say about its mean and its spread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.vector import Array, Slot, Vector, combination
from zograd.estimators.base import Estimator, Feedback
from zograd.estimators.differences import pairs, positive_count
from zograd.estimators.ranked import by_order, mean_of_finite

if TYPE_CHECKING:
    from zograd.core.method import Method

Recombination: TypeAlias = Literal["nes", "cma"]


def population_size(dim: int) -> int:
    """4 + floor(3 ln d): the population that CMA-ES and natural evolution strategies take by default in d dimensions.

    >>> population_size(20), population_size(1000)
    (12, 24)
    """
    return 4 + int(3 * math.log(dim))


def best_half(n: int) -> Array:
    """max(0, ln(n/2 + 1) - ln k), k = 1 .. n, scaled to sum 1: the weights of NES before 1/n is taken off."""
    w = np.maximum(0.0, math.log(n / 2 + 1) - np.log(np.arange(1, n + 1)))
    return np.asarray(w / w.sum())


def parents(n: int) -> Array:
    """ln((n + 1)/2) - ln k for k <= n/2, scaled to sum 1, and 0: the weights of CMA-ES."""
    k = np.arange(1, n + 1)
    w = np.where(k <= n // 2, math.log((n + 1) / 2) - np.log(k), 0.0)
    return np.asarray(w / w.sum())


def length_of_normal(dim: int) -> float:
    """E|z| for z ~ N(0, I), to order 1/d^2: sqrt(d) (1 - 1/(4 d) + 1/(21 d^2))."""
    return math.sqrt(dim) * (1 - 1 / (4 * dim) + 1 / (21 * dim**2))


@dataclass(frozen=True, slots=True)
class Evolution(Estimator[None]):
    """g = - sum_k w_(k) z_k over n points x + mu z_k (in frame coordinates), w by the rank of f, the lowest f first.

    weights: "nes": w_k = max(0, ln(n/2 + 1) - ln k) / sum - 1/n, which sum to 0 (Wierstra et al. 2014, Eq. 24). "cma":
        w_k = ln((n + 1)/2) - ln k for the better half, which sum to 1 (Hansen 2016, arXiv 1604.00772, Eq. 49).

    In the space `Diagonal` mu z / sqrt(h) is what is added to x, and the rules `SeparableNES` and `SeparableCMA` read
    w_k and z_k off g to adapt h. The population is never stored: a step is n keys and n numbers. Unchanged by any
    increasing function of f. Tied losses share their weights; where all are equal, g = 0. A loss that is not finite
    ranks last, and refuses the step only where no loss is finite. n evaluations (n >= 4).
    """

    n: int = 16
    weights: Recombination = "nes"

    estimates_gradient: ClassVar[bool] = False
    takes_failures: ClassVar[bool] = True
    feedback: ClassVar[Feedback] = "order"

    def __post_init__(self) -> None:
        positive_count(self.n, 4)
        if self.weights not in get_args(Recombination):
            raise ValueError(f"unknown weights {self.weights!r}; use one of {', '.join(get_args(Recombination))}")

    @property
    def evaluations(self) -> int:
        return self.n

    def __call__(self, ask: Ask) -> Routine[None]:
        z = [ask.draw(k) for k in range(self.n)]
        f = yield [Query(ask.mu * z_k) for z_k in z]
        w = by_order(best_half(self.n) - 1 / self.n if self.weights == "nes" else parents(self.n), f)
        return Estimate(combination(-w, z), mean_of_finite(f), f, None)


class Restricted(tuple[float, ...]):
    """What the rule `FastMovingNES` reads: five numbers, then t_j and then the weights u_j of the n/2 pairs.

    The five are |v|^2, half of eta_sigma G_sigma, eta_B, c_1 and <v, p_c>; t_j = <v, z_j>, and u_j is the sum of the
    weights of the two points of pair j.
    """

    __slots__ = ()

    @classmethod
    def _make(cls, values: Iterable[float]) -> Restricted:
        return cls(values)

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """(t_j, u_j) of each pair."""
        m = (len(self) - 5) // 2
        return list(zip(self[5 : 5 + m], self[5 + m :], strict=True))


@dataclass(frozen=True, slots=True)
class RestrictedEvolution(Estimator[Restricted]):
    """g = - sum_k w_k y_k over the n points x + mu y_k, y = z + (sqrt(1 + |v|^2) - 1) <v, z> v / |v|^2, in pairs +-z.

    y ~ N(0, I + v v^T) in frame coordinates, so that in the space `Diagonal` the population has the covariance
    D (I + v v^T) D of CR-FM-NES. w are the NES weights by rank, or, while the path of the mean is longer than that of a
    random walk, those weights times exp(alpha |z_k|), which favour far points (Nomura and Ono 2022, arXiv 2201.11422,
    Section III). Slots: "direction" (v, at first normal of length about 1), "sigma_path", "mean_path" (divided by D).
    The rule `FastMovingNES` adapts D, v and the step size by the scalars of `Restricted`.

    Ranks, ties and failures as in `Evolution`; the rates shrink with the number of finite losses, as in the paper. n
    evaluations, even; one pass over the noise for inner products.
    """

    n: int = 16

    estimates_gradient: ClassVar[bool] = False
    takes_failures: ClassVar[bool] = True
    feedback: ClassVar[Feedback] = "order"

    def __post_init__(self) -> None:
        positive_count(self.n, 4)
        if self.n % 2:
            raise ValueError(f"the population comes in pairs +-z, so n is even, got n={self.n}; use n={self.n + 1}")

    @property
    def evaluations(self) -> int:
        return self.n

    @property
    def aux(self) -> type[Restricted]:
        return Restricted

    @property
    def slots(self) -> Mapping[str, float]:
        return {"direction": 0.0, "sigma_path": 0.0, "mean_path": 0.0}

    def misfit(self, method: Method[Any]) -> str | None:
        if "log_curvature" in method.space.slots:
            return None
        mine = type(method.space).__name__
        return f"RestrictedEvolution is scaled by the metric of the space, and {mine} has none; use space=Diagonal()"

    def __call__(self, ask: Ask) -> Routine[Restricted]:
        n, m, d = self.n, self.n // 2, ask.dim
        z = [ask.draw(j) for j in range(m)]
        named = Vector(((Slot("direction"), 1.0),))
        v = named if ask.moves else ask.draw(m) / math.sqrt(d)
        p, q = (Vector(((Slot(name), 1.0),)) for name in ("sigma_path", "mean_path"))
        gram = ask.gram([v, p, q, *z])
        vv, t, zz = float(gram[0, 0]), gram[0, 3:], gram[3:, 3:]
        stretch = (math.sqrt(1 + vv) - 1) / vv if vv else 0.5

        def moved(c: Array, along: Vector) -> Vector:
            """sum_j c_j y_j, with v under this name."""
            return combination([*c, stretch * float(c @ t)], [*z, along])

        f = yield pairs([z_j + stretch * float(t_j) * v for z_j, t_j in zip(z, t, strict=True)], ask.mu)
        feasible = sum(map(math.isfinite, f))
        rank = by_order(best_half(n), f)
        flat = not rank.any()
        w = rank if flat else rank - 1 / n
        odd, even = w[::2] - w[1::2], w[::2] + w[1::2]

        mu_eff = 1 / float(best_half(n) @ best_half(n))
        c_s = (mu_eff + 2) / (d + mu_eff + 5)
        a, b = 1 - c_s, math.sqrt(c_s * (2 - c_s) * mu_eff)
        path_of_z = combination([a, *(b * odd)], [p, *z])
        path = a * a * gram[1, 1] + 2 * a * b * (gram[1, 3:] @ odd) + b * b * (odd @ zz @ odd)
        speed = math.sqrt(max(float(path), 0.0)) / length_of_normal(d)
        if speed >= 1 and not flat:
            alpha = min(1.0, math.sqrt(n / d)) * math.sqrt(feasible / n) * root_of_distance(d)
            far = rank * np.repeat(np.exp(alpha * (np.sqrt(np.diag(zz)) - math.sqrt(d))), 2)
            w = far / far.sum() - 1 / n
            odd, even = w[::2] - w[1::2], w[::2] + w[1::2]
        spread = 0.5 * sigma_rate(speed, d, feasible) * float(even @ (np.diag(zz) / d - 1))
        c_c = (4 + mu_eff / d) / (d + 4 + 2 * mu_eff / d)
        step = math.sqrt(c_c * (2 - c_c) * mu_eff)
        along = (1 - c_c) * float(gram[0, 2]) + step * math.sqrt(1 + vv) * float(odd @ t)  # <v, y> = sqrt(1 + |v|^2) t
        c_1 = feasible / n * max(d - 5, 0) / 6 * 2 / ((d + 1.3) ** 2 + mu_eff)
        aux = Restricted([vv, spread, shape_rate(d, feasible), c_1, along, *t.tolist(), *even.tolist()])
        writes = {} if ask.moves else {"direction": v}
        if not flat:
            writes["sigma_path"] = path_of_z
            writes["mean_path"] = (1 - c_c) * q + step * moved(odd, v)
        return Estimate(-moved(odd, named), mean_of_finite(f), f, aux, writes)


def root_of_distance(dim: int) -> float:
    """h > 0 with (1 + h^2) exp(h^2 / 2) / 0.24 = 10 + d, by bisection: h^-1(d), the inverse function, of CR-FM-NES."""
    low, high = 0.0, 10.0
    while high - low > 1e-15 * high:
        h = (low + high) / 2
        if not low < h < high:
            break
        low, high = (h, high) if (1 + h * h) * math.exp(h * h / 2) / 0.24 < 10 + dim else (low, h)
    return high


def sigma_rate(speed: float, dim: int, feasible: int) -> float:
    """eta_sigma of CR-FM-NES: for a mean that moves, stagnates or converges, by the length of its path."""
    if speed >= 1:
        return 1.0
    if speed >= 0.1:
        return math.tanh((0.024 * feasible + 0.7 * dim + 20) / (dim + 12))
    return 2 * math.tanh((0.025 * feasible + 0.75 * dim + 10) / (dim + 4))


def shape_rate(dim: int, feasible: int) -> float:
    """eta_B of CR-FM-NES."""
    return math.tanh((min(0.02 * feasible, 3 * math.log(dim)) + 5) / (0.23 * dim + 25))
