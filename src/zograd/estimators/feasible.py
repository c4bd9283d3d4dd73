"""Queries that never leave a convex set: each is drawn a little towards a point in its interior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.vector import Slot, Vector
from zograd.estimators.base import Estimator, Wrapper
from zograd.sets import Ball

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.stores import Store

INWARD = Vector(((Slot("interior"), 1.0), (Slot("x"), -1.0)))
SLACK = 1 + 1e-9


class HasInterior(Protocol):
    """A convex set with a ball inside."""

    def ball(self, dim: int) -> Ball: ...


@dataclass(frozen=True, slots=True)
class Feasible(Wrapper[Any]):
    """The estimate of `inner` at x' = x + s (c - x), where every query x' + u of a feasible x lies in the set.

    c and r: center and radius of a ball inside of the set (`set.ball(d)`). s = max |u| / r over the queries of the
    step. Then x' + u = (1 - s) x + s (c + u / s), a convex combination of x and a point of the ball, so it lies in the
    set, exactly but for rounding. mu is made smaller, for this step, where s would be more than `shrink`.

    Bias: the estimate is that at x', so that with an L-smooth f it is off by at most L s |x - c|, besides the bias of
    `inner`; the loss shown is that of points around x'. For the l1 ball of radius R and directions of signs
    s = mu d / R. Costs no evaluation; one pass over the noise for the lengths |u|. Memory: one slot, c. Meter:
    `inward`, which is s. The loss itself must be evaluated at feasible x only, so the rule has to keep x in the set.

    Sets with a known ball: balls, `NonNegative`, `Halfspace`, and `Box` where no variable is fixed. ValueError
    otherwise.
    """

    inner: Estimator[Any]
    set: HasInterior
    shrink: float = 2.0**-7

    shifts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.shrink < 1:
            raise ValueError(f"shrink is the largest share of the way to the interior, in (0, 1); got {self.shrink}")
        self.set.ball(1 if (size := getattr(self.set, "size", None)) is None else size)  # it says what is wrong

    @property
    def evaluations(self) -> int:
        return self.inner.evaluations

    @property
    def fewest_evaluations(self) -> int:
        return self.inner.fewest_evaluations

    def most_evaluations(self, terms: int) -> int:
        return self.inner.most_evaluations(terms)

    @property
    def slots(self) -> Mapping[str, float]:
        return {**self.inner.slots, "interior": 0.0}

    def misfit(self, method: Method[Any]) -> str | None:
        if not method.space.flat:
            return f"Feasible moves queries along straight lines, which {type(method.space).__name__} does not have"
        if self.inner.reaches:
            return (
                f"Feasible keeps queries inside that shrink with mu, and {type(self.inner).__name__} asks at points "
                f"that do not (an earlier iterate, or a step of its own length); use Central(n)"
            )
        return self.inner.misfit(method)

    def prepare(self, store: Store) -> None:
        """The slot "interior" <- c."""
        center, start = self.set.ball(store.dim).center, 0
        for leaf in store.leaves:
            slot = leaf.slots["interior"]
            if isinstance(center, float):
                slot.fill_(center)
            else:
                slot.copy_(center[start : start + slot.numel()])
            start += slot.numel()
        self.inner.prepare(store)

    def __call__(self, ask: Ask) -> Routine[Any]:
        radius = self.set.ball(ask.dim).radius
        routine = self.inner(ask)
        queries = next(routine)
        if (longest := _longest(ask, queries)) > self.shrink * radius:
            ask = replace(ask, mu=ask.mu * self.shrink * radius / (longest * SLACK))
            routine = self.inner(ask)
            queries = next(routine)
        inward = 0.0
        while True:
            inward = max(inward, SLACK * _longest(ask, queries) / radius)
            if inward > 1.0:
                raise ValueError(
                    f"a query of {type(self.inner).__name__} is {inward * radius:.3g} long, farther than the ball of "
                    f"radius {radius:.3g} inside of {type(self.set).__name__}; pass a smaller mu"
                )
            losses = yield [replace(q, at=inward * INWARD + q.at) for q in queries]
            try:
                queries = routine.send(losses)
            except StopIteration as stop:
                estimate: Estimate[Any] = stop.value
                return replace(estimate, meters={**estimate.meters, "inward": inward})


def _longest(ask: Ask, queries: Sequence[Query]) -> float:
    """max |u| over the queries x + u; one pass over their noise."""
    return float(np.sqrt(np.diag(ask.gram([q.at for q in queries])).max()))
