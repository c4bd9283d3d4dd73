"""Problems with constraints: four of Hock and Schittkowski, a plane in ten dimensions, a classifier of equal scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from zograd.core.vector import Array
from zograd.problems.small import _table

WEIGHTS = np.arange(1.0, 11.0) / 10


@dataclass(frozen=True)
class Case:
    """min f s.t. c_1 .. c_at_most <= 0 and the other c = 0; best: the value at the known minimum."""

    name: str
    f: Callable[[Any], Any]
    x0: Sequence[float]
    c: Callable[[Any], Any]
    at_most: int
    equal: int
    bounds: Any
    best: float

    def both(self, x: Any) -> tuple[float, Any]:
        """(value, c) of one evaluation."""
        return float(self.f(x)), np.asarray(self.c(x), dtype=float)


def hs71(x: Any) -> list[float]:
    """The constraints of problem 71."""
    return [25 - np.prod(x), x @ x - 40]


def hs100(x: Any) -> Any:
    """The value of problem 100."""
    return (
        (x[0] - 10) ** 2 + 5 * (x[1] - 12) ** 2 + x[2] ** 4 + 3 * (x[3] - 11) ** 2 + 10 * x[4] ** 6 + 7 * x[5] ** 2
        + x[6] ** 4 - 4 * x[5] * x[6] - 10 * x[5] - 8 * x[6]
    )  # fmt: skip


def hs100_rows(x: Any) -> list[float]:
    """The constraints of problem 100."""
    return [
        2 * x[0] ** 2 + 3 * x[1] ** 4 + x[2] + 4 * x[3] ** 2 + 5 * x[4] - 127,
        7 * x[0] + 3 * x[1] + 10 * x[2] ** 2 + x[3] - x[4] - 282,
        23 * x[0] + x[1] ** 2 + 6 * x[5] ** 2 - 8 * x[6] - 196,
        4 * x[0] ** 2 + x[1] ** 2 - 3 * x[0] * x[1] + 2 * x[2] ** 2 + 5 * x[5] - 11 * x[6],
    ]


PROBLEMS = [
    Case("HS6", lambda x: (1 - x[0]) ** 2, [-1.2, 1.0], lambda x: [10 * (x[1] - x[0] ** 2)], 0, 1, None, 0.0),
    Case("HS7", lambda x: np.log(1 + x[0] ** 2) - x[1], [2.0, 2.0],
         lambda x: [(1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4], 0, 1, None, -math.sqrt(3)),
    Case("HS71", lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2], [1.0, 5.0, 5.0, 1.0], hs71, 1, 1,
         [(1, 5)] * 4, 17.0140173),
    Case("HS100", hs100, [1.0, 2.0, 0.0, 4.0, 0.0, 1.0, 1.0], hs100_rows, 4, 0, None, 680.6300573),
    Case("sphere, plane", lambda x: x @ x, [2.0] * 10, lambda x: [WEIGHTS @ x - 1], 0, 1, None,
         float(1 / (WEIGHTS @ WEIGHTS))),
]  # fmt: skip
"""HS: Hock and Schittkowski 1981, by their numbers; the last one in ten variables."""


@cache
def equal_scores(column: int = 0, l2: float = 1e-3) -> Case:
    """Logistic regression on breast cancer (31 weights, l2) whose mean score is the same in two groups.

    The groups are the rows above and below the median of a column (the mean radius of the tumour), which tells much of
    the class, so the constraint costs something. Value and constraint come from one pass over the data. best: nan, as
    there is no formula for it.
    """
    x, y = _table("breast_cancer")
    signs, high = 2.0 * y - 1.0, x[:, column] > np.median(x[:, column])

    def f(w: Array) -> float:
        return float(np.logaddexp(0.0, -signs * (x @ w)).mean() + 0.5 * l2 * (w @ w))

    def c(w: Array) -> list[float]:
        scores = x @ w
        return [float(scores[high].mean() - scores[~high].mean())]

    return Case("equal scores", f, [0.0] * x.shape[1], c, 0, 1, None, math.nan)
