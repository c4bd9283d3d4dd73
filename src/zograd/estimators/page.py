"""Estimators that follow the gradient: they remember it, and measure what changed since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.sums import mean
from zograd.core.vector import Slot, Vector, combination
from zograd.estimators.base import Estimator
from zograd.estimators.differences import Central, pairs, positive_count, slopes
from zograd.estimators.reduced import X, drawn, flat_only, positive_share, slot, unfit_full

if TYPE_CHECKING:
    from zograd.core.method import Method


@dataclass(frozen=True, slots=True)
class Tracker(Estimator[None]):
    """h <- h + (1/n) sum_j (D_j - <v_j, h>) v_j n / (n + d + 1), and the estimate is h itself.

    D_j is the slope of `Central`. For Gaussian directions E|h - grad f|^2 contracts by 1 - n/(n + d + 1) a step, the
    best that this form can do, while grad f stays where it is; so h is biased, and its error vanishes where x comes to
    rest. The correction of ZPDVR (n = 1), as an estimator of its own. 2 n evaluations, one slot ("tracker").
    """

    n: int = 1

    def __post_init__(self) -> None:
        positive_count(self.n)

    @property
    def evaluations(self) -> int:
        return 2 * self.n

    @property
    def slots(self) -> Mapping[str, float]:
        return {"tracker": 0.0}

    def __call__(self, ask: Ask) -> Routine[None]:
        v, h = [ask.draw(j) for j in range(self.n)], slot("tracker")
        f = yield pairs(v, ask.mu)
        along = slopes(f, ask.mu) - ask.inner(h, v)
        changed = h + combination(along / (self.n + ask.dim + 1), v)
        return Estimate(slot("tracker"), mean(f), f, None, {"tracker": changed})


@dataclass(frozen=True, slots=True)
class Page(Estimator[None]):
    """g <- full with probability p and at first, else g + (1/n) sum_j (D_{v_j} f_B(x) - D_{v_j} f_B(x')) v_j.

    x' is the iterate before the last move. f_B: the mean of `batch` terms of a finite sum, drawn anew each step and the
    same at x and x', as are the directions, so that the increment vanishes with the move. `full` estimates the gradient
    from all terms. p = None is batch / (N + batch): as many evaluations for `full` as for increments, on average.

    Unlike with `SVRG`, the reference point is one step away, not an epoch; unlike there, errors of increments add up
    until the next `full`: those of n random directions have variance (d - 1)/n |grad f(x) - grad f(x')|^2 each.
    Slots "page" and "last", and those of `full`. 4 n batch evaluations a step, N evaluations of `full` at a refresh.
    Without a finite sum f is its own single term. PAGE: Li, Bao, Zhang and Richtarik (2021, arXiv 2008.10898), on
    differences. TypeError where the space is not flat.
    """

    n: int = 1
    batch: int = 1
    p: float | None = None
    full: Estimator[Any] = field(default=Central(1))

    reaches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive_count(self.n)
        positive_count(self.batch)
        if self.p is not None:
            positive_share("p", self.p)

    @property
    def slots(self) -> Mapping[str, float]:
        return {"page": 0.0, "last": 0.0, **self.full.slots}

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
        if taken := {"page", "last"} & self.full.slots.keys():
            return f"Page and its full estimator {type(self.full).__name__} both have the slot {min(taken)!r}"
        return unfit_full(self, self.full) or flat_only(self, method) or self.full.misfit(method)

    def __call__(self, ask: Ask) -> Routine[None]:
        p = self.batch / (max(ask.terms, 1) + self.batch) if self.p is None else self.p
        coin = ask.rng.random() < p
        if ask.moves == 0 or coin:
            e = yield from self.full(ask.after(self.n))
            parts = [(e.writes.get(b.name) if isinstance(b, Slot) else None, b) for b, _ in e.vector.terms]
            vectors = [Vector(((b, 1.0),)) if new is None else new for new, b in parts]  # in terms of the old slots
            g = combination([c for _, c in e.vector.terms], vectors)
            return Estimate(slot("page"), e.loss, e.losses, None, {**e.writes, "page": g, "last": X})
        v, rows = [ask.draw(j) for j in range(self.n)], drawn(ask, self.batch)
        back = slot("last") - X
        f = yield [Query(at + side * ask.mu * vj, rows) for at in (Vector(), back) for vj in v for side in (1.0, -1.0)]
        here, there = np.split(slopes(f, ask.mu), 2)
        g = slot("page") + combination((here - there) / self.n, v)
        return Estimate(slot("page"), mean(f[: 2 * self.n]), f, None, {"page": g, "last": X})
