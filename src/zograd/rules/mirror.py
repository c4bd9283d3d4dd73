"""Optimistic mirror descent: steps in a geometry of the set, with the last estimate as a hint of the next one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from zograd.core.query import Estimate
from zograd.core.sums import Sum
from zograd.core.vector import Slot, Vector
from zograd.rules.base import Rule
from zograd.rules.proximal import Proximal
from zograd.rules.sgd import replayable
from zograd.sets import Projection
from zograd.sets.base import misplaced
from zograd.stores import Block, Iterate

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.stores import Store

BASE, X = (Vector(((Slot(name), 1.0),)) for name in ("base", "x"))


class MirrorMap(ABC):
    """argmin_{z in set} <g, z> + D(z, base) / rate for the Bregman distance D of a convex function."""

    __slots__ = ()
    whole_leaf: ClassVar[bool] = False

    @abstractmethod
    def moved(self, x: Iterate, g: Vector, rate: float) -> Iterator[tuple[Block, Tensor]]:
        """The blocks with their part of the point that the slot "base" moves to along g; lr multiplies the rate."""

    @abstractmethod
    def misplaced(self, store: Store) -> str | None:
        """Why no run can start at the weights, "is not ...; start at ..."; None when one can."""


@dataclass(frozen=True, slots=True)
class EuclideanMap(MirrorMap):
    """P(base - rate g), the projection onto a set of `zograd.sets`: D(z, y) = |z - y|^2 / 2.

    >>> import zograd as zo
    >>> zo.rules.OptimisticMirror(zo.rules.EuclideanMap(zo.sets.L2Ball(1.0)), diameter=2.0).whole_leaf
    False
    """

    set: Projection

    def moved(self, x: Iterate, g: Vector, rate: float) -> Iterator[tuple[Block, Tensor]]:
        projected = Proximal(self.set)

        def steps() -> Iterator[tuple[Block, Tensor]]:
            for b in projected.blocks(x, BASE, g):
                y, g_block = b.v
                yield b, y.sub_(g_block, alpha=b.lr * rate)

        return projected.mapped(steps)

    def misplaced(self, store: Store) -> str | None:
        if not hasattr(self.set, "explain"):
            return None
        return misplaced(self.set, *(store.master(leaf).view(leaf.shape) for leaf in store.leaves))


@dataclass(frozen=True, slots=True)
class Entropy(MirrorMap):
    """total softmax(log base - rate g) on each tensor: D(z, y) = sum z log(z / y), on {z >= 0, sum z = total}.

    Each tensor is one distribution, and is seen whole; an element at 0 stays there. ValueError for total <= 0.
    """

    total: float = 1.0
    whole_leaf: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.total > 0:
            raise ValueError(f"total is what the elements of a tensor add up to and must be > 0, got {self.total}")

    def moved(self, x: Iterate, g: Vector, rate: float) -> Iterator[tuple[Block, Tensor]]:
        for b in x.blocks(BASE, g, whole_leaf=True):
            y, g_block = b.v
            z = y.log_().sub_(g_block, alpha=b.lr * rate)
            z.sub_(z.max()).exp_()
            total = Sum()
            total.add(z)
            yield b, z.mul_(self.total / total.value)

    def misplaced(self, store: Store) -> str | None:
        for leaf in store.leaves:
            values = store.master(leaf).double()
            if not (bool(torch.all(values > 0)) and math.isclose(float(values.sum()), self.total, rel_tol=1e-3)):
                return (
                    f"is not inside of the simplex: the elements of {leaf.name!r} must be > 0 and add up to "
                    f"{self.total:g}; start at {self.total:g} / {leaf.numel} in each of them"
                )
        return None


@dataclass(frozen=True, slots=True)
class OptimisticMirror(Rule[Any]):
    """y <- argmin_z <g_t, z> + D(z, y) / eta_t, then x <- argmin_z <g_t, z> + D(z, y) / eta_{t+1}.

    x is played, y kept in the slot "base"; the second line takes g_t as the hint M_{t+1} of the next estimate.
    eta_t = diameter / sqrt(floor + sum_{s < t} |g_s - M_s|^2), M_0 = 0, |.| Euclidean: small steps where hints were
    wrong. lr multiplies eta and is 1 by default. map: `EuclideanMap(set)` or `Entropy(total)`.

    Regret against a fixed point is O(sqrt(sum of the noise's variances + sum of the drifts of means)) on losses drawn
    around drifting means (Chen, Tu, Zhao and Zhang 2023, arXiv 2302.04552; Rakhlin and Sridharan 2013). Under
    noise the hint costs: |g_t - g_{t-1}|^2 has twice its variance. Estimates of one random direction are such noise.

    Memory: one slot; M is regenerated from its seeds, at one more pass over the noise. A start outside of the set is
    refused, as are estimators with slots.

    >>> import zograd as zo
    >>> loop = zo.AskTell([0.5, 0.5], zo.methods.optimistic_mirror(zo.rules.Entropy(), n=4))
    >>> for _ in range(100):
    ...     _ = loop.tell([2 * p[0] + p[1] for p in loop.ask()])
    >>> bool(loop.x[1] > 0.95), round(float(loop.x.sum()), 9)
    (True, 1.0)
    """

    map: MirrorMap
    diameter: float = 1.0
    floor: float = 1.0
    automatic: ClassVar[float] = 1.0
    works_on_pieces: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.map, MirrorMap):
            raise TypeError(f"map is {self.map!r}, and expected is EuclideanMap(set) or Entropy(total)")
        if not (self.diameter > 0 and self.floor > 0):
            raise ValueError(f"diameter and floor must be > 0, got diameter={self.diameter}, floor={self.floor}")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"base": 0.0}

    @property
    def meters(self) -> tuple[str, ...]:
        """The rate eta_{t+1} that the move was made with."""
        return ("eta",)

    @property
    def whole_leaf(self) -> bool:
        return self.map.whole_leaf

    def misplaced(self, store: Store) -> str | None:
        return self.map.misplaced(store)

    def misfit(self, method: Method[Any]) -> str | None:
        if not method.space.flat:
            name = type(method.space).__name__
            return f"OptimisticMirror has its geometry in its map and moves in a flat space, not in {name}"
        if method.weight_decay:
            return "OptimisticMirror moves from its base and has no weight decay; add a penalty to the loss instead"
        return replayable(self, method, "Proximal(set)")

    def prepare(self, store: Store) -> None:
        store.assign({"base": X})

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        seen = state.get("seen", 0.0)
        g, last = estimate.vector, state.get("last", Vector())
        for b, z in self.map.moved(x, g, self.eta(seen)):
            b.slots["base"].copy_(z)
        wrong = g - last
        seen += float(x.gram([wrong])[0, 0]) if wrong else 0.0
        state["seen"], state["last"], state["eta"] = seen, g, self.eta(seen)
        for b, z in self.map.moved(x, g, self.eta(seen)):
            b.put_(z)

    def eta(self, seen: float) -> float:
        """The rate after hints that were wrong by `seen` in all, sum |g_s - M_s|^2."""
        return self.diameter / math.sqrt(self.floor + seen)
