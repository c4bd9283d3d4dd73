"""Signs on one row of a matrix: what the slope along a row is measured with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from zograd.core.vector import Address, Basis, basis
from zograd.noise import Kind, Term, combine


@basis
@dataclass(frozen=True, slots=True)
class RowSigns(Basis):
    """Random signs of key `key` on row `row` of leaf number `leaf` (first axis by the rest), 0 elsewhere."""

    key: int
    leaf: int
    row: int

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        first = self.row * at.columns
        low, high = max(at.start, first), min(at.start + len(out), first + at.columns)
        if at.leaf == self.leaf and low < high:
            part = out[low - at.start : high - at.start]
            combine(part, part, terms=(Term(Kind.SIGN, self.key, coef),), leaf=at.leaf, start=low)
