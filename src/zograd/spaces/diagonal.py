"""R^d with a diagonal metric that rules measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zograd.core.slots import PerRow
from zograd.spaces.base import Extent, Space


@dataclass(frozen=True, slots=True)
class Diagonal(Space):
    """R^d with the metric sum_i h_i u_i v_i, h > 0: frame coordinates z stand for the step z / sqrt(h).

    log h is the slot "log_curvature", 0 (h = 1) until a rule changes it: in logarithms a change of 1e-8 of h = 1 is
    not lost to float32. by_row: one h for each row of a leaf (its first axis by the rest), in the memory of inference.
    """

    by_row: bool = False
    flat: ClassVar[bool] = False
    adds: ClassVar[bool] = True
    unit: ClassVar[Extent] = "element"
    curvature: ClassVar[str] = "0 while the metric rests"
    complete: ClassVar[bool] = True

    @property
    def slots(self) -> Mapping[str, float]:
        return {"log_curvature": PerRow(0.0) if self.by_row else 0.0}

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return z.mul_(slots["log_curvature"].mul(-0.5).exp_())

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        return x.add_(v)

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return (slots["log_curvature"].exp() * u * v).sum()

    def explain(self, x: Tensor) -> str | None:
        return None
