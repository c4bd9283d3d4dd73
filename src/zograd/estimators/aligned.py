"""Directionally aligned perturbations: directions with a fixed component along a guide to the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.sums import mean
from zograd.core.vector import Array, Slot, Vector, combination
from zograd.estimators.base import Estimator
from zograd.estimators.differences import pairs, positive_count, slopes
from zograd.laws import Gaussian, Rademacher, Sphere

if TYPE_CHECKING:
    from zograd.core.method import Method

GUIDE = Vector(((Slot("guide"), 1.0),))


def align(ask: Ask, z: Vector, u: Vector, side: float, fixed_norm: bool = True) -> Vector:
    """v = s (z - <z, u> u) + side u for a unit vector u; s = 1, or sqrt(d - 1) / |z - <z, u> u| for |v|^2 = d.

    E[v v^T] = I for any u that is independent of z, when E[z z^T] = I (for fixed norm: when z is isotropic) and side is
    +1 or -1 with probability 1/2. When u is the gradient's direction, <grad f, v> = +-|grad f|.
    """
    gram = ask.gram([z, u])
    along = float(gram[0, 1])
    across = z - along * u
    if fixed_norm:
        rest = float(gram[0, 0]) - along**2
        if not rest > 1e-12 * ask.dim:  # z lies along u: any other direction would do, there is none to scale
            return z
        across = across * math.sqrt((ask.dim - 1) / rest)
    return across + side * u


@dataclass(frozen=True, slots=True)
class Aligned(Estimator[None]):
    """g = (1/n) sum_j D_j v_j with v_j = P z_j + xi_j u, u a unit guide, P = I - u u^T, xi_j = +-1: DAP.

    Ma and Huang (ICLR 2025), Proposition 4.1 and Algorithm 2. Unbiased whatever u is. Total variance (d - 1)/n |g|^2
    with fixed norm (any guide), c^2 (d - 1) + (1 - c^2)(d + 1) over n for Gaussian z without it, c = cos(u, g). With
    an exact guide <estimate, g> has no variance at all.

    guide: where u comes from.
        "pilot": the first n/2 directions are the law's; their estimate g_1 is the guide of the other n/2, both halves
            are averaged. u is frozen before the second half is drawn. In its cosine with g, about sqrt(n / (2 d)), lies
            all that is gained: nothing for n << d. Each aligned probe regenerates n/2 + 1 directions.
        "momentum": the slot "guide", m <- beta m + (1 - beta) g. "user": the slot "guide", which you fill
            (`store.leaves[i].slots["guide"]`). All n directions are aligned. Memory: a slot.
    Where the guide is 0 or not finite, plain directions of the law are taken. fixed_norm: |v|^2 = d. The law is one of
    independent directions, isotropic (`Sphere`, `Gaussian`), or `Rademacher` without fixed_norm. central: 2 n
    evaluations; else n + 1, with f(x) shared.

    Meter `cosine`: between the estimates of the two halves (pilot), or between the estimate and the guide.
    """

    n: int = 8
    guide: Literal["pilot", "momentum", "user"] = "pilot"
    fixed_norm: bool = True
    central: bool = False
    beta: float = 0.9

    def __post_init__(self) -> None:
        if self.guide not in ("pilot", "momentum", "user"):
            raise ValueError(f"unknown guide {self.guide!r}; use 'pilot', 'momentum' or 'user'")
        positive_count(self.n, 4 if self.guide == "pilot" else 1)
        if self.guide == "pilot" and self.n % 2:
            raise ValueError(f"half of the directions find the guide, half follow it: n must be even, got {self.n}")

    @property
    def evaluations(self) -> int:
        return 2 * self.n if self.central else self.n + 1

    @property
    def slots(self) -> Mapping[str, float]:
        return {} if self.guide == "pilot" else {"guide": 0.0}

    def misfit(self, method: Method[Any]) -> str | None:
        law = method.law
        if isinstance(law, Sphere | Gaussian) or (not self.fixed_norm and isinstance(law, Rademacher)):
            return None
        signs = ", or fixed_norm=False" if isinstance(law, Rademacher) else ""
        return (
            f"Aligned puts a guide in the place of one component of each direction, which is unbiased for isotropic "
            f"directions that are independent, and {type(law).__name__} draws others; use law=Sphere() or "
            f"Gaussian(){signs}"
        )

    def __call__(self, ask: Ask) -> Routine[None]:
        first = self.n // 2 if self.guide == "pilot" else 0
        z = [ask.draw(j) for j in range(self.n)]
        losses: list[float] = []
        f0 = None
        pilot = Vector()
        if first:
            f = yield self._queries(ask, z[:first], shared=True)
            losses += f
            f0 = None if self.central else f[0]
            pilot = combination(self._slopes(ask, f) / first, z[:first])
        u = self._unit(ask, pilot if first else GUIDE)
        sides = np.where(ask.rng.random(self.n) < 0.5, -1.0, 1.0)
        v = z[first:]
        if u is not None:
            v = [align(ask, zj, u, float(side), self.fixed_norm) for zj, side in zip(v, sides[first:], strict=True)]
        f = yield self._queries(ask, v, shared=f0 is None)
        losses += f
        g = combination(self._slopes(ask, f if f0 is None else [f0, *f]) / len(v), v)
        cosine = 0.0 if u is None else self._cosine(ask, g, u)
        if first:
            g = 0.5 * pilot + 0.5 * g
        writes = {}
        if self.guide == "momentum":
            g, writes["guide"] = self._follow(g)
        shown = mean(losses) if self.central else losses[0]
        return Estimate(g, shown, losses, None, writes, {"cosine": cosine})

    def _follow(self, g: Vector) -> tuple[Vector, Vector]:
        """The estimate in terms of the new guide m' = beta m + (1 - beta) g, and m' in terms of the old one.

        With g = h + k m, m' = w m + (1 - beta) h for w = beta + (1 - beta) k, so m = (m' - (1 - beta) h) / w. Where w
        is nearly 0 the guide starts anew at g.
        """
        k = sum(c for e, c in g.terms if e == Slot("guide"))
        w = self.beta + (1.0 - self.beta) * k
        if abs(w) < 0.1:
            return GUIDE, g
        h = Vector(tuple((e, c) for e, c in g.terms if e != Slot("guide")))
        return (1.0 - k * (1.0 - self.beta) / w) * h + (k / w) * GUIDE, self.beta * GUIDE + (1.0 - self.beta) * g

    def _queries(self, ask: Ask, v: list[Vector], shared: bool) -> list[Query]:
        if self.central:
            return pairs(v, ask.mu)
        return [*([Query()] if shared else []), *(Query(ask.mu * vj) for vj in v)]

    def _slopes(self, ask: Ask, f: Sequence[float]) -> Array:
        if self.central:
            return slopes(f, ask.mu)
        values = np.array(f)
        return np.asarray((values[1:] - values[0]) / ask.mu)

    def _unit(self, ask: Ask, guide: Vector) -> Vector | None:
        norm = ask.norm(guide) if all(math.isfinite(c) for _, c in guide.terms) else math.nan
        return guide / norm if 0.0 < norm < math.inf else None

    def _cosine(self, ask: Ask, g: Vector, u: Vector) -> float:
        norm = ask.norm(g)
        return float(ask.inner(u, [g])[0]) / norm if norm else 0.0
