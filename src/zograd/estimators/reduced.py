"""Estimators with a memory of the gradient: control variates take the variance of what the memory knows away.

Their slots are vectors in frame coordinates, except anchors, which are iterates of flat spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.sums import mean
from zograd.core.vector import Slot, Vector, combination
from zograd.estimators.base import Estimator
from zograd.estimators.coordinate import Coordinates
from zograd.estimators.differences import Central, pairs, positive_count, slopes
from zograd.laws.orthogonal import Orthogonal, Walsh

if TYPE_CHECKING:
    from zograd.core.method import Method


Memory: TypeAlias = Literal["momentum", "snapshot", "tracker"]


def slot(name: str) -> Vector:
    return Vector(((Slot(name), 1.0),))


X = slot("x")


def positive_share(name: str, p: float) -> None:
    if not 0 < p <= 1:
        raise ValueError(f"{name} is a probability and must lie in (0, 1], got {p}")


def flat_only(part: Estimator[Any], method: Method[Any]) -> str | None:
    if method.space.flat:
        return None
    return (
        f"{type(part).__name__} returns to an earlier iterate along a straight line, which "
        f"{type(method.space).__name__} does not have; use Euclidean()"
    )


@dataclass(frozen=True, slots=True)
class Recentred(Estimator[None]):
    """g = h + (1/n) sum_j (D_j - <v_j, h>) v_j: unbiased for any h, with variance (d - 1)/n |grad f - h|^2.

    D_j is the slope of `Central`, h a memory of the gradient in one slot ("prior"), 0 at the start:
    "momentum": h <- beta h + (1 - beta) (1/n) sum_j D_j v_j, an average of past estimates.
    "snapshot": every `every` steps h is a fresh `Central(pilot)` estimate.
    "tracker": h <- h + (1/n) sum_j (D_j - <v_j, h>) v_j / (d + 2), with error falling by 1 - 1/(d + 2) a step (n = 1).

    2 n evaluations, 2 pilot more where a snapshot is taken. It pays when h is good: a stale h adds noise that does not
    vanish at the minimum, and an estimate of few directions in many dimensions is worse than none (|grad f - h| >
    |grad f|).
    """

    n: int = 1
    memory: Memory = "momentum"
    beta: float = 0.9
    every: int = 100
    pilot: int = 64

    def __post_init__(self) -> None:
        positive_count(self.n)
        positive_count(self.pilot)
        if self.memory not in get_args(Memory):
            raise ValueError(f"unknown memory {self.memory!r}; use one of {', '.join(get_args(Memory))}")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must lie in (0, 1), got {self.beta}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"prior": 0.0}

    @property
    def evaluations(self) -> int:
        return 2 * self.n + (2 * self.pilot if self.memory == "snapshot" else 0)

    @property
    def fewest_evaluations(self) -> int:
        return 2 * self.n

    def __call__(self, ask: Ask) -> Routine[None]:
        v, h = [ask.draw(j) for j in range(self.n)], slot("prior")
        refresh = self.memory == "snapshot" and ask.moves % self.every == 0
        pilot = [ask.draw(self.n + j) for j in range(self.pilot if refresh else 0)]
        f = yield pairs((*v, *pilot), ask.mu)
        D, Dp = np.split(slopes(f, ask.mu), [self.n])
        if refresh:
            h = combination(Dp / self.pilot, pilot)
        along = D - ask.inner(h, v)  # D_j - <v_j, h>
        correction = combination(along / self.n, v)
        loss = mean(f)
        # `vector` is read with the new slot, so h is written in terms of it.
        if refresh:
            return Estimate(slot("prior") + correction, loss, f, None, {"prior": h})
        if self.memory == "momentum":
            plain = (1 - self.beta) * combination(D / self.n, v)
            return Estimate((h - plain) / self.beta + correction, loss, f, None, {"prior": self.beta * h + plain})
        if self.memory == "tracker":
            change = correction / (ask.dim + 2)
            return Estimate(h - change + correction, loss, f, None, {"prior": h + change})
        return Estimate(h + correction, loss, f, None)


# ---- finite sums -----------------------------------------------------------------------------------------------------


def drawn(ask: Ask, batch: int) -> tuple[int, ...] | None:
    """`batch` different terms of the sum, or None for all of them (also when f is not a sum)."""
    if batch >= max(ask.terms, 1):
        return None
    return tuple(int(i) for i in ask.rng.choice(ask.terms, batch, replace=False))


def unfit_full(part: Estimator[Any], full: Estimator[Any]) -> str | None:
    """Why `full` cannot be what the differences of `part` are added to: it has another length than the gradient."""
    if full.estimates_gradient or isinstance(full, Coordinates):
        return None
    return (
        f"{type(part).__name__} adds differences of slopes to the estimate of {type(full).__name__}, which does not "
        f"have the length of the gradient; use full=Central(n) or Coordinates(d)"
    )


def refreshed(ask: Ask, full: Estimator[Any], n: int) -> Routine[None]:
    """The anchor moves to x, where its gradient G is estimated: g = G, since the differences vanish there."""
    e = yield from full(ask.after(n))
    return Estimate(e.vector, e.loss, e.losses, None, {"anchor": X, "anchor_gradient": e.vector})


def corrected(ask: Ask, n: int, batch: int) -> Routine[None]:
    """g = G + (1/n) sum_j (D_{v_j} f_B(x) - D_{v_j} f_B(anchor)) v_j, the same rows B and the same v_j in both."""
    v, rows, anchor = [ask.draw(j) for j in range(n)], drawn(ask, batch), slot("anchor")
    f = yield [
        Query(at + side * ask.mu * vj, rows) for at in (Vector(), anchor - X) for vj in v for side in (1.0, -1.0)
    ]
    here, there = np.split(slopes(f, ask.mu), 2)
    g = slot("anchor_gradient") + combination((here - there) / n, v)
    return Estimate(g, mean(f[: 2 * n]), f, None)


class _Anchored(Estimator[None]):
    """What `SVRG` and `LooplessSVRG` share: their slots and their cost."""

    __slots__ = ()
    n: int
    batch: int
    full: Estimator[Any]
    reaches: ClassVar[bool] = True

    @property
    def slots(self) -> Mapping[str, float]:
        return {"anchor": 0.0, "anchor_gradient": 0.0}

    @property
    def evaluations(self) -> int:
        return max(4 * self.n, self.full.evaluations)

    @property
    def fewest_evaluations(self) -> int:
        return min(4 * self.n, self.full.fewest_evaluations)

    def most_evaluations(self, terms: int) -> int:
        terms = max(terms, 1)
        return max(4 * self.n * min(self.batch, terms), self.full.evaluations * terms)

    def misfit(self, method: Method[Any]) -> str | None:
        if self.full.slots:
            return (
                f"{type(self).__name__} needs a full estimator without slots, and {type(self.full).__name__} has some"
            )
        return unfit_full(self, self.full) or flat_only(self, method)


@dataclass(frozen=True, slots=True)
class SVRG(_Anchored):
    """g = (1/n) sum_j (D_{v_j} f_B(x) - D_{v_j} f_B(w)) v_j + G: variance-reduced steps on a finite sum.

    f_B: the mean of `batch` terms, drawn anew each step and the same at x and at the anchor w, as are the directions:
    only then do the two quotients cancel as x approaches w. Every `every` steps w <- x and G <- the estimate of
    grad f(w) by `full` from all terms; that step moves by G itself.

    Two slots. 4 n batch evaluations a step, N evaluations of `full` at a refresh. Only the variance of sampling terms
    is reduced: with a `full` of few directions that of the directions, (d - 1)|grad f|^2, remains, and with coordinate
    differences (`Coordinates`) nothing does. Without a finite sum f is its own single term: a caller that draws batches
    itself gets the batch of the step at both points, and G of the batch of the refresh. ZO-SVRG (Liu et al.
    2018); MeZO-SVRG (arXiv 2404.08080), whose released code draws other directions for the two points and keeps a
    snapshot that follows the weights, so that nothing can cancel.
    """

    n: int = 1
    batch: int = 64
    every: int = 2
    full: Estimator[Any] = field(default=Central(1))

    def __post_init__(self) -> None:
        positive_count(self.n)
        positive_count(self.batch)
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}")

    def __call__(self, ask: Ask) -> Routine[None]:
        if ask.moves % self.every == 0:
            return (yield from refreshed(ask, self.full, self.n))
        return (yield from corrected(ask, self.n, self.batch))


@dataclass(frozen=True, slots=True)
class LooplessSVRG(_Anchored):
    """`SVRG` whose anchor moves with probability p in each step: the same cost on average as every = 1/p, no phase.

    The first step always sets the anchor. Kovalev, Horvath and Richtarik (2020), on zeroth-order differences.
    """

    n: int = 1
    batch: int = 1
    p: float = 0.1
    full: Estimator[Any] = field(default=Central(1))

    def __post_init__(self) -> None:
        positive_count(self.n)
        positive_count(self.batch)
        positive_share("p", self.p)

    def __call__(self, ask: Ask) -> Routine[None]:
        coin = ask.rng.random() < self.p
        if ask.moves == 0 or coin:
            return (yield from refreshed(ask, self.full, self.n))
        return (yield from corrected(ask, self.n, self.batch))


@dataclass(frozen=True, slots=True)
class ZPDVR(Estimator[None]):
    """g = (D_u f_B(x) - D_u f_B(w)) u + G_w with G_w = h + (D_u' f(w) - <u', h>) u': both variances are reduced.

    That of the terms by the anchor w, that of the directions by the tracker h of grad f(w). With probability p (and in
    the first step) w <- x, h <- h + (D_u f(w) - <u, h>) u / (d + 2), and G_w is estimated anew with a fresh u'; since x
    is w then, the step moves by G_w. For Gaussian u, E|h - grad f(w)|^2 contracts by 1 - 1/(d + 2) each time.

    Three slots: "anchor", "tracker", "anchor_gradient". 4 batch evaluations a step, 4 N at a refresh. p = None is
    1/N: O(1) evaluations a step on average. f_B: the mean of `batch` terms drawn for this step. The tracker needs about
    d refreshes to learn grad f: for adapters, scales and simulators, not for whole language models. To be combined with
    a proximal rule (as published), gradient descent, or Frank-Wolfe. Di, Ye, Chang, Dai and Tsang (ICML 2024), from a
    third party's port; it draws the u of the tracker with the step before, here it is independent of w, as the rate
    of contraction assumes.
    """

    batch: int = 1
    p: float | None = None

    reaches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive_count(self.batch)
        if self.p is not None:
            positive_share("p", self.p)

    @property
    def slots(self) -> Mapping[str, float]:
        return {"anchor": 0.0, "tracker": 0.0, "anchor_gradient": 0.0}

    @property
    def evaluations(self) -> int:
        return 4

    def most_evaluations(self, terms: int) -> int:
        return 4 * max(terms, 1)

    def misfit(self, method: Method[Any]) -> str | None:
        if isinstance(method.law, Orthogonal | Walsh):
            return (
                f"ZPDVR takes two directions that are independent, and those of {type(method.law).__name__} are "
                f"orthogonal to each other: the estimate would be biased. Use law=Gaussian()"
            )
        return flat_only(self, method)

    def __call__(self, ask: Ask) -> Routine[None]:
        p = 1 / max(ask.terms, 1) if self.p is None else self.p
        coin = ask.rng.random() < p
        if not (ask.moves == 0 or coin):
            return (yield from corrected(ask, 1, self.batch))
        u, fresh, h = ask.draw(0), ask.draw(1), slot("tracker")
        f = yield pairs((u, fresh), ask.mu)
        D, D_fresh = slopes(f, ask.mu).tolist()
        (_, h_u, h_fresh), (_, _, u_fresh), _ = ask.gram([h, u, fresh]).tolist()
        a = (D - h_u) / (ask.dim + 2)
        tracked = h + a * u
        along = D_fresh - (h_fresh + a * u_fresh)  # D_u' f(w) - <u', h + a u>
        gradient = tracked + along * fresh
        writes = {"anchor": X, "tracker": tracked, "anchor_gradient": gradient}
        return Estimate(slot("anchor_gradient"), mean(f), f, None, writes)
