"""Logistic regression with an l1 penalty on breast cancer, and its minimum by FISTA with the exact gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zograd.core.vector import Array
from zograd.problems.small import _table


@dataclass(frozen=True)
class L1Logistic:
    """F(w) = (1/N) sum_i log(1 + exp(-y_i <x_i, w>)) + weight |w|_1, N = 569, 31 variables with the intercept.

    >>> problem = L1Logistic(0.01)
    >>> round(problem.minimum, 4), int((problem.solution == 0).sum())
    (0.164, 19)
    """

    weight: float = 0.01

    @cached_property
    def rows(self) -> Array:
        """y_i x_i, standardised, one a row."""
        x, y = _table("breast_cancer")
        return np.asarray(x * (2.0 * y - 1.0)[:, None])

    def smooth(self, w: Array) -> float:
        """F without the penalty."""
        return float(np.logaddexp(0.0, -(self.rows @ w)).mean())

    def value(self, w: Array) -> float:
        """F(w)."""
        return self.smooth(w) + self.weight * float(np.abs(w).sum())

    @cached_property
    def solution(self) -> Array:
        """argmin F, by 5,000 steps of FISTA with restarts."""
        rows = self.rows
        rate = 4 * len(rows) / float(np.linalg.norm(rows, 2)) ** 2
        w = ahead = np.zeros(rows.shape[1])
        t = 1.0
        for _ in range(5_000):
            g = -rows.T @ (1 / (1 + np.exp(rows @ ahead))) / len(rows)
            z = ahead - rate * g
            new = np.sign(z) * np.maximum(np.abs(z) - rate * self.weight, 0.0)
            if (ahead - new) @ (new - w) > 0:
                t = 1.0
            t_new = (1 + math.sqrt(1 + 4 * t * t)) / 2
            ahead, w, t = new + (t - 1) / t_new * (new - w), new, t_new
        return w

    @property
    def minimum(self) -> float:
        return self.value(self.solution)
