"""Bandit controllers: which of a few arms to take next, from the losses of the arms that were taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

NEWTON = 60
"""Most steps of Newton's method for the normalization of `TsallisINF`; it needs about six."""


@dataclass(frozen=True, slots=True)
class TsallisINF:
    """p_a = 4 (eta (L_a - z))^-2 with z < min L such that sum_a p_a = 1;  eta = 2 / sqrt(t);  L_a += loss / p_a.

    Follow the regularized leader with Tsallis entropy of power 1/2 (Zimmert and Seldin 2021, Alg. 1, with
    importance-weighted estimates). No assumption is made on how the losses arise: the expected excess over the best
    fixed arm is of the order of sqrt(K T) in T rounds, and of log T where the losses are drawn independently.

    Losses need no scale. They count from `least`, the smallest loss that can occur, and L is divided by the mean of the
    losses seen so far (Khodak et al. 2024, arXiv 2310.02246, for numbers of iterations: least=1). The bounds are proved
    for losses in [0, 1] without that division.

    The state is a dict of plain numbers and lists (JSON). O(arms) for each call. Draw an arm with
    `rng.choice(arms, p=rule.probabilities(state))`.

        >>> rule = TsallisINF(3)
        >>> state = rule.initial()
        >>> rule.probabilities(state).round(3).tolist()
        [0.333, 0.333, 0.333]
        >>> rule.observe(state, arm=1, loss=7.0)
        >>> rule.probabilities(state).round(3).tolist()
        [0.461, 0.077, 0.461]
    """

    arms: int
    least: float = 0.0

    def __post_init__(self) -> None:
        _arms(self, self.arms)
        if not math.isfinite(self.least):
            raise ValueError(f"TsallisINF(least={self.least}) needs a finite number: the smallest loss that can occur")

    def initial(self) -> dict[str, Any]:
        """No round played: L = 0."""
        return {"losses": [0.0] * self.arms, "total": 0.0, "t": 0}

    def probabilities(self, state: Mapping[str, Any]) -> Array:
        """p for the next round, (arms,)."""
        t, total = state["t"], state["total"]
        mean = total / t if t else 0.0
        losses = np.asarray(state["losses"]) / mean if mean > 0 else np.zeros(self.arms)
        eta = 2 / math.sqrt(t + 1)
        losses = losses - losses.min()
        z = -2 / eta  # here the best arm has p = 1, so sum p >= 1, and Newton falls to the root of a convex function
        for _ in range(NEWTON):
            p = 4 / np.square(eta * (losses - z))
            step = (p.sum() - 1) / (eta * np.sum(p**1.5))
            if z - step >= z:
                break
            z -= step
        p = 4 / np.square(eta * (losses - z))
        return np.asarray(p / p.sum())

    def observe(self, state: dict[str, Any], arm: int, loss: float) -> None:
        """The loss of the arm that was drawn from `probabilities(state)`."""
        _index(arm, self.arms)
        if not loss >= self.least or not math.isfinite(loss):
            raise ValueError(f"loss={loss}; pass a finite number of at least least={self.least:g}")
        share = float(self.probabilities(state)[arm])
        state["losses"][arm] += float(loss - self.least) / share
        state["total"] += float(loss - self.least)
        state["t"] += 1


@dataclass(frozen=True, slots=True)
class InverseGap:
    """p_a = 1 / (K + gamma (y_a - y_b)) for a != b, the rest to b = argmin y: arms from predicted losses y.

    SquareCB (Foster and Rakhlin 2020): with y from a regression of losses on contexts, gamma of the order of
    sqrt(K T / regret of the regression) gives a regret of the order of sqrt(K T x regret of the regression). gamma = 0
    draws uniformly. No state.

        >>> InverseGap(10.0).probabilities([0.5, 0.2, 0.4]).round(3).tolist()
        [0.167, 0.633, 0.2]
    """

    gamma: float

    def __post_init__(self) -> None:
        _gamma(self, self.gamma)

    def probabilities(self, predicted: npt.ArrayLike) -> Array:
        """p from the predicted losses, (arms,)."""
        y = _predicted(predicted)
        return _rest_to_best(y, 1 / (y.size + self.gamma * (y - y.min())))


@dataclass(frozen=True, slots=True)
class RelativeGap:
    """p_a = y_b / (K y_b + gamma (y_a - y_b)) for a != b, the rest to b = argmin y: predicted losses y >= 0.

    FastCB (Foster and Krishnamurthy 2021): gaps count relative to the least prediction, so that little is explored
    where the best arm has almost no loss. With a regression on the logarithmic loss, regret is of the order of
    sqrt(K L*) for the loss L* of the best policy. Where y_b = 0, b is taken. No state.

        >>> RelativeGap(10.0).probabilities([0.5, 0.2, 0.4]).round(3).tolist()
        [0.056, 0.868, 0.077]
    """

    gamma: float

    def __post_init__(self) -> None:
        _gamma(self, self.gamma)

    def probabilities(self, predicted: npt.ArrayLike) -> Array:
        """p from the predicted losses, (arms,)."""
        y = _predicted(predicted)
        least = y.min()
        if least < 0:
            raise ValueError(f"a predicted loss of {least:g}; RelativeGap needs losses >= 0, shift them")
        if least == 0:
            return _rest_to_best(y, np.zeros(y.size))
        return _rest_to_best(y, least / (y.size * least + self.gamma * (y - least)))


@dataclass(frozen=True, slots=True)
class UpperBound:
    """score_a = mean_a + width sqrt(log t / n_a): optimism for rewards, such as rates of wins. Take the largest.

    UCB1 (Auer, Cesa-Bianchi and Fischer 2002: width sqrt(2), for rewards in [0, 1]). t counts all rounds and n_a those
    of the arm. An arm without a round has score infinity. The state is a dict of plain lists (JSON).

        >>> rule = UpperBound(2)
        >>> state = rule.initial()
        >>> for arm, reward in ((0, 1.0), (1, 0.0), (0, 0.0)):
        ...     rule.observe(state, arm, reward)
        >>> rule.scores(state).round(3).tolist()
        [0.871, 0.524]
    """

    arms: int
    width: float = 0.5

    def __post_init__(self) -> None:
        _arms(self, self.arms)
        if not self.width >= 0 or not math.isfinite(self.width):
            raise ValueError(f"UpperBound(width={self.width}) needs a finite width >= 0")

    def initial(self) -> dict[str, Any]:
        """No round played."""
        return {"rewards": [0.0] * self.arms, "rounds": [0] * self.arms}

    def scores(self, state: Mapping[str, Any]) -> Array:
        """The bounds, (arms,)."""
        n = np.asarray(state["rounds"], dtype=np.float64)
        t = max(float(n.sum()), 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            bounds = np.asarray(state["rewards"]) / n + self.width * np.sqrt(math.log(t) / n)
        return np.where(n > 0, bounds, np.inf)

    def observe(self, state: dict[str, Any], arm: int, reward: float) -> None:
        """The reward of the arm that was taken."""
        _index(arm, self.arms)
        if not math.isfinite(reward):
            raise ValueError(f"reward={reward}; pass a finite number")
        state["rewards"][arm] += float(reward)
        state["rounds"][arm] += 1


def _arms(rule: object, arms: int) -> None:
    if isinstance(arms, bool) or not isinstance(arms, int | np.integer) or arms < 2:
        raise ValueError(f"{type(rule).__name__}(arms={arms!r}) needs a whole number of at least 2 arms")


def _gamma(rule: object, gamma: float) -> None:
    if not gamma >= 0 or not math.isfinite(gamma):
        raise ValueError(f"{type(rule).__name__}(gamma={gamma}) needs a finite gamma >= 0; 0 draws uniformly")


def _index(arm: int, arms: int) -> None:
    if not 0 <= arm < arms:
        raise ValueError(f"arm={arm}, but there are {arms} arms, counted from 0")


def _predicted(predicted: npt.ArrayLike) -> Array:
    y = np.asarray(predicted, dtype=np.float64)
    if y.ndim != 1 or y.size < 2 or not np.all(np.isfinite(y)):
        raise ValueError(f"predicted has shape {y.shape}; pass one finite loss for each of at least 2 arms")
    return y


def _rest_to_best(y: Array, p: Array) -> Array:
    """p with what is missing to 1 on the first arm of least y."""
    best = int(np.argmin(y))
    p[best] = 0.0
    p[best] = 1 - p.sum()
    return p
