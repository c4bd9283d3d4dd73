"""Estimators around an estimator: they move its queries, or judge what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.vector import Basis, Slot, Vector
from zograd.estimators.base import Estimator, Feedback, Wrapper
from zograd.estimators.differences import Central
from zograd.estimators.elementwise import Power, Product
from zograd.laws.masked import Ones

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

    reaches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"rho is the length of the ascent and must be > 0, got {self.rho}")

    @property
    def evaluations(self) -> int:
        return 2 * self.inner.evaluations

    @property
    def fewest_evaluations(self) -> int:
        return 2 * self.inner.fewest_evaluations

    @property
    def directions(self) -> int:
        return 2 * self.inner.directions

    @property
    def feedback(self) -> Feedback:
        return self.inner.feedback

    def misfit(self, method: Method[Any]) -> str | None:
        return stateless(self, self.inner)

    def __call__(self, ask: Ask) -> Routine[Any]:
        e = yield from self.inner(ask)
        ascent, length = e.vector, ask.norm(e.vector)
        return (yield from ascended(self, ask, e, ascent * (self.rho / length) if length > 0 else Vector()))


def ascended(part: Wrapper[Any], ask: Ask, e: Estimate[Any], ascent: Vector) -> Routine[Any]:
    """The estimate of the inner estimator at x + ascent, with the loss at x; e: the estimate at x."""
    there = yield from moved(part.inner(ask.after(part.inner.directions)), ascent)
    return replace(there, loss=e.loss, losses=[*e.losses, *there.losses])


def by(vector: Vector, factor: Basis) -> Vector:
    """The elementwise product of a vector and a basis vector."""
    return Vector(((Product(vector.terms, factor), 1.0),)) if vector else vector


@dataclass(frozen=True, slots=True)
class AdaptiveSAM(SAM):
    """`SAM` with the ascent rho D^2 g / |D g|, D = |x| + floor elementwise: the worst point of a ball in units of x.

    ASAM of Kwon et al. 2021 (arXiv 2102.11600), which arXiv 2501.06603 writes as a preconditioner of the ascent. The
    ascent is then not of length rho: large weights move further. Two passes over the noise and x more than `SAM`. No
    slots. ValueError for a rho or a floor that is not positive.
    """

    floor: float = 0.01

    def __post_init__(self) -> None:
        SAM.__post_init__(self)
        if not self.floor > 0:
            raise ValueError(f"floor is added to |x|, so that weights of 0 move as well, and must be > 0: {self.floor}")

    def __call__(self, ask: Ask) -> Routine[Any]:
        e = yield from self.inner(ask)
        length = ask.norm(by(e.vector, Power("x", 1.0, self.floor)))
        scaled = by(e.vector, Power("x", 2.0, self.floor))
        return (yield from ascended(self, ask, e, scaled * (self.rho / length) if length > 0 else Vector()))


@dataclass(frozen=True, slots=True)
class InfoSAM(SAM):
    """`SAM` with the ascent rho D^2 g / |D^2 g|, D^-2 = v + eps: ascents go where the gradient is known best.

    v <- beta v + (1 - beta) (g - m)^2 and m <- beta m + (1 - beta) g are running means of the estimates at x,
    elementwise, v with the old m. The idea is that of infoSAM (arXiv 2501.06603): trust coordinates by the inverse of
    their noise. The exact form, the scale of the ascent (length rho) and the first step (v = 0, so plain `SAM`) are
    ours.

    From few random directions an estimate is as noisy in every coordinate, v is nearly constant, and this is SAM: use
    an estimator that tells coordinates apart (`Coordinates`, or many directions). Memory: two slots of d elements.
    ValueError for a rho or an eps that is not positive, and a beta outside of [0, 1).
    """

    beta: float = 0.9
    eps: float = 1e-8

    def __post_init__(self) -> None:
        SAM.__post_init__(self)
        if not 0.0 <= self.beta < 1.0:
            raise ValueError(f"beta must lie in [0, 1), got {self.beta}")
        if not self.eps > 0:
            raise ValueError(f"eps is added to a variance that may be 0, and must be > 0, got {self.eps}")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"info_mean": 0.0, "info_variance": 0.0}

    def __call__(self, ask: Ask) -> Routine[Any]:
        e = yield from self.inner(ask)
        mean, variance = (Vector(((Slot(name), 1.0),)) for name in ("info_mean", "info_variance"))
        scaled = by(e.vector, Power("info_variance", -1.0, self.eps))
        length = ask.norm(scaled)
        there = yield from ascended(self, ask, e, scaled * (self.rho / length) if length > 0 else Vector())
        off = e.vector - mean
        square = by(off, Product(off.terms, Ones()))
        new = {
            "info_mean": self.beta * mean + (1.0 - self.beta) * e.vector,
            "info_variance": self.beta * variance + (1.0 - self.beta) * square,
        }
        return replace(there, writes={**there.writes, **new})
