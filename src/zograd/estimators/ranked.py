"""Estimates that forget the scale of the losses: from their order, from preferences, from standardised fitness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

import numpy as np

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.sums import mean
from zograd.core.vector import Array, combination
from zograd.estimators.base import Estimator, Feedback
from zograd.estimators.differences import pairs, positive_count

Weights: TypeAlias = Literal["linear", "log", "top"]


def by_order(weights: Array, losses: Sequence[float]) -> Array:
    """The weight of each loss: weights[0] for the lowest, weights[-1] for the highest; 0 where all losses are equal.

    Tied losses share the mean of their weights. Those that are not finite come last, tied.
    """
    f = np.array(losses)
    _, group, count = np.unique(np.where(np.isfinite(f), f, np.inf), return_inverse=True, return_counts=True)
    if len(count) == 1:  # no order at all: exactly 0
        return np.zeros(len(f))
    last = np.cumsum(count)
    shared = np.array([weights[b - m : b].mean() for b, m in zip(last, count, strict=True)])
    return np.asarray(shared[group])


def mean_of_finite(losses: Sequence[float]) -> float:
    """The mean of the losses that are finite."""
    return float(np.mean([f for f in losses if math.isfinite(f)]))


@dataclass(frozen=True, slots=True)
class Ranked(Estimator[None]):
    """g = sum_k w_k v_(k), with v_(1) .. v_(n) ordered from the best loss to the worst, sum w = 0 and sum |w| = 1.

    weights: "linear": w_k = 2 k - n - 1. "log": w_k = log k - log((n + 1)/2) for the better half, as in CMA-ES, and
        mirrored for the worse half. "top": the `top` best against the `top` worst (default a quarter of n), the others
        left out. Each is scaled to sum |w| = 1; tied losses share the mean of their weights. Losses that are not finite
        rank last, and refuse the step only where none is finite.

    Exactly unchanged when the losses pass through any increasing function. The length of g carries no slope: lr is in
    units of x / sqrt(d). Costs n evaluations (n >= 2). Ye, arXiv 2512.16200; the weights are our choice: the cosine of
    linear and log ranks with the gradient is within 4 % of that of the values.
    """

    n: int = 16
    weights: Weights = "linear"
    top: int | None = None

    def __post_init__(self) -> None:
        positive_count(self.n, 2)
        if self.weights not in get_args(Weights):
            raise ValueError(f"unknown weights {self.weights!r}; use one of {', '.join(get_args(Weights))}")
        if self.top is not None and (self.weights != "top" or not 1 <= self.top <= self.n // 2):
            raise ValueError(
                f"top={self.top} is the number of best and of worst directions that weights='top' uses: "
                f"1 to n/2, here {self.n // 2}; got weights={self.weights!r}"
            )

    estimates_gradient: ClassVar[bool] = False
    takes_failures: ClassVar[bool] = True
    feedback: ClassVar[Feedback] = "order"

    @property
    def evaluations(self) -> int:
        return self.n

    def by_rank(self) -> Array:
        """w_1 .. w_n."""
        k = np.arange(1, self.n + 1)
        if self.weights == "linear":
            w = 2.0 * k - self.n - 1
        elif self.weights == "log":
            w = np.sign(2 * k - self.n - 1) * (np.log((self.n + 1) / 2) - np.log(np.minimum(k, self.n + 1 - k)))
        else:
            top = self.top or max(1, self.n // 4)
            w = 1.0 * (k > self.n - top) - 1.0 * (k <= top)
        return np.asarray(w / np.abs(w).sum())

    def __call__(self, ask: Ask) -> Routine[None]:
        v = [ask.draw(j) for j in range(self.n)]
        f = yield [Query(ask.mu * vj) for vj in v]
        return Estimate(combination(by_order(self.by_rank(), f), v), mean_of_finite(f), f, None)


@dataclass(frozen=True, slots=True)
class Preference(Estimator[None]):
    """g = 1/(2 n) sum_j sign(f(x + mu u_j) - f(x + mu w_j)) (u_j - w_j): n times, which of two is better.

    2 n directions and 2 n evaluations, of which only the order within a pair is used; equal losses contribute nothing.
    In the units of `Ranked`: with n = 1 it is `Ranked(2)`. Unchanged by any increasing function of the losses, which
    may differ from pair to pair: judges need not agree on a scale.
    """

    n: int = 8

    def __post_init__(self) -> None:
        positive_count(self.n)

    estimates_gradient: ClassVar[bool] = False
    takes_failures: ClassVar[bool] = True
    feedback: ClassVar[Feedback] = "pairs"

    @property
    def directions(self) -> int:
        return 2 * self.n

    @property
    def evaluations(self) -> int:
        return 2 * self.n

    def __call__(self, ask: Ask) -> Routine[None]:
        v = [ask.draw(j) for j in range(self.directions)]
        f = yield [Query(ask.mu * vj) for vj in v]
        a, b = np.where(np.isfinite(f), f, np.inf).reshape(-1, 2).T
        worse = (a > b).astype(float) - (a < b)  # 1: the first of the pair lost
        w = np.stack([worse, -worse], axis=1).reshape(-1) / (2 * self.n)
        return Estimate(combination(w, v), mean_of_finite(f), f, None)


@dataclass(frozen=True, slots=True)
class Mirrored(Estimator[None]):
    """g = 1/(2 n) sum_j (A_j+ - A_j-) v_j, A = (f - mean f) / max(std f, floor) over the 2 n losses f(x +- mu v_j).

    Evolution strategies with antithetic pairs and z-scored fitness (population deviation). The length of g carries no
    slope: lr is in units of x. Unchanged when all losses pass through an increasing affine function, as long as their
    deviation stays above `floor`. Costs 2 n evaluations. Salimans et al. 2017; Qiu et al., arXiv 2509.24372.
    """

    n: int = 15
    floor: float = 1e-8

    def __post_init__(self) -> None:
        positive_count(self.n)
        if not self.floor > 0:
            raise ValueError(f"floor keeps equal losses from being divided by 0 and must be > 0, got {self.floor}")

    estimates_gradient: ClassVar[bool] = False

    @property
    def evaluations(self) -> int:
        return 2 * self.n

    def __call__(self, ask: Ask) -> Routine[None]:
        v = [ask.draw(j) for j in range(self.n)]
        f = yield pairs(v, ask.mu)
        fitness = (np.array(f) - np.mean(f)) / max(float(np.std(f)), self.floor)
        w = (fitness[::2] - fitness[1::2]) / (2 * self.n)
        return Estimate(combination(w, v), mean(f), f, None)
