"""An estimate from comparisons of pairs: which side of x is better, not by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from zograd.core.query import Ask, Estimate, Routine
from zograd.core.sums import mean
from zograd.core.vector import combination
from zograd.estimators.base import Estimator, Feedback
from zograd.estimators.differences import pairs, positive_count


@dataclass(frozen=True, slots=True)
class Compared(Estimator[None]):
    """g = (1/n) sum_j sign(f(x + mu v_j) - f(x - mu v_j)) v_j; a tie counts 0.

    Exactly unchanged when the losses pass through any increasing function. The length of g carries no slope: lr is in
    units of x / sqrt(d). Costs 2 n evaluations. The update of ZO-signSGD in ZO-Bench (arXiv 2402.11592), which is not
    the elementwise sign of Liu et al. 2019 (`Sign`) unless v is Rademacher and n = 1.
    """

    n: int = 1

    def __post_init__(self) -> None:
        positive_count(self.n)

    estimates_gradient: ClassVar[bool] = False
    feedback: ClassVar[Feedback] = "pairs"

    @property
    def evaluations(self) -> int:
        return 2 * self.n

    def __call__(self, ask: Ask) -> Routine[None]:
        v = [ask.draw(j) for j in range(self.n)]
        f = yield pairs(v, ask.mu)
        plus, minus = np.array(f[::2]), np.array(f[1::2])
        return Estimate(combination(np.sign(plus - minus) / self.n, v), mean(f), f, None)
