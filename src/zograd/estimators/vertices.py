"""Random search on the vertices of a box: which coordinates change sides, and the value there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.vector import Address, Basis, Vector, basis
from zograd.estimators.base import Estimator
from zograd.laws import Gaussian
from zograd.laws.coordinate import unit
from zograd.sets import Box

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.stores import Store

DECAY = 20
"""Steps after which the share of coordinates that change sides has halved."""


class Tried(NamedTuple):
    """f at the point to which the estimate leads."""

    value: float


@basis
@dataclass(frozen=True, slots=True)
class Sides(Basis):
    """y - x, y a vertex of the box between the slots "low" and "high".

    y_i is the bound far from x_i where `of` lies above `threshold`, and at element `element` of leaf `leaf`; the near
    one elsewhere. So a vertex that was rounded is mended by the next move. An x_i in the middle is nearer to low.
    """

    of: Basis
    threshold: float
    leaf: int
    element: int

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.of.reads, "x", "low", "high")

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        x, low, high = (slots[name] for name in ("x", "low", "high"))
        z = torch.zeros_like(out)
        self.of.add_(z, 1.0, at, slots)
        changes = z > self.threshold
        i = self.element - at.start
        if at.leaf == self.leaf and 0 <= i < out.numel():
            changes[i] = True
        upper = (x - low > high - x) != changes
        out.add_(torch.where(upper, high, low).sub_(x), alpha=coef)


@dataclass(frozen=True, slots=True)
class Vertices(Estimator[Tried]):
    """One vertex y of the box, and f(y); the estimate is x - y, so that lr = 1 leads there.

    Of the coordinates of x, one that is drawn uniformly changes its side, and each of the others does so with
    probability
        p_t = max(1 / d, share / (1 + t / 20))
    in step t. With share = 1/2 the first vertex is uniform over all but the nearest to x. Where z ~ N(0, 1) is the
    direction of the law, the others are those with z_i > Phi^{-1}(1 - p_t), so a vertex costs a key and no memory.

    1 evaluation a step. Memory: two slots, the bounds of each weight. A `rules.Improving` decides whether to move.
    Raises TypeError where `box` is no `sets.Box`, ValueError for an open side and for another share.

    >>> import zograd as zo
    >>> estimator = Vertices(zo.sets.Box(-1.0, 1.0))
    >>> [round(estimator.probability(step, dim=100), 3) for step in (0, 20, 10_000)]
    [0.5, 0.25, 0.01]
    """

    box: Box
    share: float = 0.5

    evaluations: ClassVar[int] = 1
    estimates_gradient: ClassVar[bool] = False
    works_on_pieces: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.box, Box):
            raise TypeError(f"Vertices searches a zograd.sets.Box, got {type(self.box).__name__}; pass Box(low, high)")
        if not 0 < self.share <= 0.5:
            raise ValueError(f"share is that of the coordinates that change at first, in (0, 0.5], got {self.share}")
        self.bounds(self.box.size or 1)

    @property
    def aux(self) -> type[Tried]:
        return Tried

    @property
    def slots(self) -> Mapping[str, float]:
        return {"low": 0.0, "high": 0.0}

    def bounds(self, dim: int) -> tuple[Tensor, Tensor]:
        """Both bounds of each of `dim` coordinates. ValueError where one is infinite."""
        low, high = (
            self.box.project_(torch.full((dim,), end, dtype=torch.float64, device="cpu"))
            for end in (-math.inf, math.inf)
        )
        if not (bool(low.isfinite().all()) and bool(high.isfinite().all())):
            raise ValueError("a box with an open side has no vertex there; give each coordinate two finite bounds")
        return low, high

    def misfit(self, method: Method[Any]) -> str | None:
        if not method.space.flat:
            return f"Vertices are those of a box in flat space, not of {type(method.space).__name__}; use Euclidean()"
        if not isinstance(method.law, Gaussian):
            return f"Vertices reads normal numbers, and {type(method.law).__name__} draws others; use law=Gaussian()"
        return None

    def prepare(self, store: Store) -> None:
        """The slots "low" and "high". ValueError where the box has another number of coordinates."""
        if self.box.size not in (None, store.dim):
            raise ValueError(f"the box has bounds for {self.box.size} elements, and x has {store.dim}; pass as many")
        low, high = self.bounds(store.dim)
        start = 0
        for leaf in store.leaves:
            stop = start + leaf.numel
            for name, ends in (("low", low), ("high", high)):
                slot = leaf.slots[name]
                slot.copy_(ends[start:stop].view(slot.shape))
            start = stop

    def probability(self, step: int, dim: int) -> float:
        """p_t."""
        return max(1.0 / dim, self.share / (1.0 + step / DECAY))

    def __call__(self, ask: Ask) -> Routine[Tried]:
        p = self.probability(ask.step, ask.dim)
        threshold = NormalDist().inv_cdf(1.0 - p) if p < 1.0 else 0.0
        one = unit(int(ask.rng.integers(ask.dim)), ask.shapes)
        ((z, _),) = ask.draw(0).terms
        move = Vector(((Sides(z, threshold, one.leaf, one.element), 1.0),))
        (f,) = yield [Query(move)]
        return Estimate(-move, f, [f], Tried(f))
