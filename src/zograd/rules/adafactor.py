"""Adafactor: Adam's second moment from the means of rows and columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from zograd.core.query import Estimate
from zograd.core.slots import PerColumn, PerRow
from zograd.rules.base import Rule
from zograd.stores import Iterate

TINY = 1e-30
"""Added to squares, so that a gradient of zeros moves nothing."""


@dataclass(frozen=True, slots=True)
class Adafactor(Rule[Any]):
    """R <- b R + (1 - b) rows(g^2), C <- b C + (1 - b) columns(g^2), V = R C / mean(R), u = g / sqrt(V),
    x <- x - lr u / max(1, rms(u) / clip), with b = 1 - t^-decay in step t.

    rows and columns are means over a row, or a column, of each leaf as a matrix (first axis by the rest); of a vector,
    R is the whole second moment. rms(u) is over a leaf. Shazeer and Stern 2018 (arXiv 1804.04235), Algorithm 4 without
    the scale of the parameters, and no momentum. Memory: a number a row and a number a column; the workspace is as
    large as the largest leaf. Raises ValueError for numbers out of their ranges.

    >>> import zograd as zo
    >>> sorted(zo.rules.Adafactor().slots)
    ['column_sq', 'row_sq']
    """

    decay: float = 0.8
    clip: float = 1.0

    whole_leaf: ClassVar[bool] = True
    works_on_pieces: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay is the power of t in 1 - t^-decay, in (0, 1], got {self.decay}")
        if not self.clip > 0:
            raise ValueError(f"clip bounds the root mean square of a step and must be > 0, got {self.clip}")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"row_sq": PerRow(0.0), "column_sq": PerColumn(0.0)}

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        t = state["t"] = state.get("t", 0) + 1
        new = t**-self.decay  # 1 - b
        for b in x.blocks(estimate.vector, whole_leaf=True):
            rows, columns = b.leaf.matrix_shape
            g, row_sq, column_sq = b.v[0].view(rows, columns), b.leaf.slots["row_sq"], b.leaf.slots["column_sq"]
            for slot, axis, n in ((row_sq, 1, columns), (column_sq, 0, rows)):
                norms = torch.linalg.vector_norm(g, dim=axis, keepdim=True)
                slot.lerp_(norms.square_().div_(n).add_(TINY), new)
            g.div_(row_sq.div(row_sq.mean()).sqrt_()).div_(column_sq.sqrt())
            g.div_(max(1.0, float(torch.linalg.vector_norm(g)) / math.sqrt(g.numel()) / self.clip))
            b.step_(b.v[0])
