"""AMSGrad on the zeroth-order estimate: ZO-AdaMM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from zograd.core.query import Estimate
from zograd.rules.base import Rule
from zograd.rules.sgd import check_beta
from zograd.stores import Iterate


@dataclass(frozen=True, slots=True)
class AMSGrad(Rule[Any]):
    """m <- b1 m + (1 - b1) g, s <- b2 s + (1 - b2) g^2, s^ <- max(s^, s), x <- x - lr m / sqrt(s^).

    Reddi et al. 2018 without bias corrections, as ZO-AdaMM has it (Chen et al. 2019, Algorithm 1), from s = s^ = start.
    The rate of no coordinate ever rises again. Memory: three float32 slots of d elements.
    """

    beta1: float = 0.9
    beta2: float = 0.3
    start: float = 1e-5

    def __post_init__(self) -> None:
        check_beta("beta1", self.beta1)
        check_beta("beta2", self.beta2)
        if not self.start > 0:
            raise ValueError(f"start must be > 0, since the step divides by its root, got {self.start}")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": self.start, "max_exp_avg_sq": self.start}

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        for b in x.blocks(estimate.vector):
            (g,), m, s, peak = b.v, b.slots["exp_avg"], b.slots["exp_avg_sq"], b.slots["max_exp_avg_sq"]
            m.mul_(self.beta1).add_(g, alpha=1.0 - self.beta1)
            s.mul_(self.beta2).addcmul_(g, g, value=1.0 - self.beta2)
            torch.maximum(peak, s, out=peak)
            b.step_(g.copy_(peak).rsqrt_().mul_(m))
