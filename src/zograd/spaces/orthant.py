"""The positive orthant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zograd.spaces.base import Unit


@dataclass(frozen=True, slots=True)
class PositiveOrthant:
    """R^d_{>0} with the metric sum_i u_i v_i / x_i^2, isometric to R^d by y = log x: complete and flat.

    exp_x(v) = x * exp(v / x); frame coordinates are those of y, so mu and lr are relative (log) units and no probe
    ever leaves the orthant. Scaling x by any positive vector leaves the trajectory in y unchanged.
    """

    flat: ClassVar[bool] = False
    unit: ClassVar[Unit] = "element"

    @property
    def slots(self) -> Mapping[str, float]:
        return {}

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return z.mul_(x)

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        return x.mul_(v.div_(x).exp_())

    def explain(self, x: Tensor) -> str | None:
        bad = torch.nonzero(~(x.flatten() > 0))
        if not len(bad):
            return None
        i = int(bad[0])
        return f"element {i} is {x.flatten()[i].item():g}, but the positive orthant needs every element > 0"
