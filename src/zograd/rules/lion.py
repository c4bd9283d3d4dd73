"""Lion and its relatives: the gradient of a convex function of an interpolated momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zograd.core.query import Estimate
from zograd.core.vector import Slot, Vector
from zograd.rules.base import Rule
from zograd.rules.sgd import check_beta
from zograd.stores import Iterate


@dataclass(frozen=True, slots=True)
class Lion(Rule[Any]):
    """c = b1 m + (1 - b1) g, x <- x - lr sign(c), m <- b2 m + (1 - b2) g.

    Chen et al. 2023, arXiv 2302.06675, Algorithm 2; the rule of Lion-K (arXiv 2310.05898) with K the l1 norm, whose
    gradient is the sign. With decoupled weight decay w its fixed points solve min f over |x|_inf <= 1 / w. lr is in
    units of x. Memory: one float32 slot of d elements.
    """

    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        check_beta("beta1", self.beta1)
        check_beta("beta2", self.beta2)

    @property
    def slots(self) -> Mapping[str, float]:
        return {"momentum": 0.0}

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        c = (1.0 - self.beta1) * estimate.vector + Vector(((Slot("momentum"), self.beta1),))
        for b in x.blocks(c, estimate.vector):
            c_block, g = b.v
            b.slots["momentum"].mul_(self.beta2).add_(g, alpha=1.0 - self.beta2)
            b.step_(c_block.sign_())


@dataclass(frozen=True, slots=True)
class NormalizedLion(Rule[Any]):
    """c = b1 m + (1 - b1) g, x <- x - lr sqrt(d) c / |c|, m <- b2 m + (1 - b2) g: Lion-K with K = sqrt(d) |.|_2.

    The factor sqrt(d) gives the step the length of Lion's, |sign(c)| = sqrt(d), so that lr means the same. With
    decoupled weight decay w its fixed points solve min f over |x|_2 <= sqrt(d) / w. Costs one more pass than `Lion`,
    for |c|. Chen, Liu et al. 2023, arXiv 2310.05898, Table 1. Memory: one float32 slot of d elements.
    """

    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        check_beta("beta1", self.beta1)
        check_beta("beta2", self.beta2)

    @property
    def slots(self) -> Mapping[str, float]:
        return {"momentum": 0.0}

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        c = (1.0 - self.beta1) * estimate.vector + Vector(((Slot("momentum"), self.beta1),))
        norm = math.sqrt(x.gram([c])[0, 0])
        scale = math.sqrt(x.dim) / norm if norm > 0.0 else 0.0
        for b in x.blocks(c, estimate.vector):
            c_block, g = b.v
            b.slots["momentum"].mul_(self.beta2).add_(g, alpha=1.0 - self.beta2)
            b.step_(c_block.mul_(scale))
