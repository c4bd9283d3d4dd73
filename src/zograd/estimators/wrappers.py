"""Estimators around an estimator: they move its queries, or judge what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.vector import Vector
from zograd.estimators.base import Estimator, Wrapper
from zograd.estimators.differences import Central

if TYPE_CHECKING:
    from zograd.core.method import Method


def moved(routine: Routine[Any], by: Vector) -> Routine[Any]:
    """The routine as it would be at x + by: each of its queries is shifted."""
    queries = next(routine)
    while True:
        losses = yield [replace(q, at=by + q.at) for q in queries]
        try:
            queries = routine.send(losses)
        except StopIteration as stop:
            estimate: Estimate[Any] = stop.value
            return estimate


def stateless(part: Estimator[Any], inner: Estimator[Any]) -> str | None:
    """Why `inner` cannot be wrapped: a direction that names slots is not known before the step assigns them."""
    if not inner.slots:
        return None
    return f"{type(part).__name__} looks at the direction of {type(inner).__name__} before its slots are assigned"


@dataclass(frozen=True, slots=True)
class Conservative(Wrapper[Any]):
    """The best of standing still and one step to either side: argmin f over x - lr g, x, x + lr g.

    g is the estimate of `inner`; the three points are those that SGD would reach, and the vector returned is g, 0 or
    -g. inner.evaluations + 3 evaluations: 5 with `Central(1)`. All losses are of the same batch, on which the move
    therefore never goes up. ZO-SGD-Cons (Bergou et al. 2020; Zhang et al. 2024, arXiv 2402.11592). With several
    groups, the learning rate of the first one is tried.
    """

    inner: Estimator[Any] = field(default=Central(1))

    estimates_gradient: ClassVar[bool] = False

    @property
    def evaluations(self) -> int:
        return self.inner.evaluations + 3

    def misfit(self, method: Method[Any]) -> str | None:
        if not method.rule.linear or method.weight_decay:
            return "Conservative tries the move x - lr g before it is made: use rule=SGD() and weight_decay=0"
        return stateless(self, self.inner)

    def __call__(self, ask: Ask) -> Routine[Any]:
        e = yield from self.inner(ask)
        f = yield [Query(-ask.lr * e.vector), Query(), Query(ask.lr * e.vector)]
        kept = (e.vector, Vector(), -e.vector)[int(np.argmin(f))]
        return replace(e, vector=kept, losses=[*e.losses, *f])


@dataclass(frozen=True, slots=True)
class SAM(Wrapper[Any]):
    """The estimate of `inner` at the ascent point x + rho g / |g|, g its estimate at x: descent of max f over a ball.

    The two estimates share the batch and have directions of their own: with the same ones the second would only see
    the curvature along the first. 2 inner.evaluations evaluations, one more pass over the noise for |g|. rho is in
    units of x. An estimate from n directions has |g| = sqrt(d/n) |grad f|, so that most of the ascent is random: at
    small n this smooths more than it sharpens. Foret et al. (2021), Eq. 2 and 3, with a zeroth-order gradient.
    """

    inner: Estimator[Any] = field(default=Central(1))
    rho: float = 0.05

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"rho is the length of the ascent and must be > 0, got {self.rho}")

    @property
    def evaluations(self) -> int:
        return 2 * self.inner.evaluations

    @property
    def fewest_evaluations(self) -> int:
        return 2 * self.inner.fewest_evaluations

    def misfit(self, method: Method[Any]) -> str | None:
        return stateless(self, self.inner)

    def __call__(self, ask: Ask) -> Routine[Any]:
        e = yield from self.inner(ask)
        length = ask.norm(e.vector)
        ascent = e.vector * (self.rho / length) if length > 0 else Vector()
        there = yield from moved(self.inner(ask.after(self.n)), ascent)
        return replace(there, loss=e.loss, losses=[*e.losses, *there.losses])
