"""signSGD on the zeroth-order estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zograd.core.query import Estimate
from zograd.rules.base import Rule
from zograd.stores import Iterate


@dataclass(frozen=True, slots=True)
class Sign(Rule[Any]):
    """x <- x - lr sign(g), elementwise, with g averaged over the estimator's directions (ZO-signSGD, Liu et al. 2019).

    lr is in units of x. With one direction, sign(c v) = sign(c) sign(v): a Rademacher step of fixed length.
    """

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        for b in x.blocks(estimate.vector):
            b.step_(b.v[0].sign_())
