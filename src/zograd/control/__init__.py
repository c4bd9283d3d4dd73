"""Multipliers of constraints by measured violation, budgets by price, and which of a few arms to take next."""

from zograd.control.bandit import InverseGap, RelativeGap, TsallisINF, UpperBound
from zograd.control.dual import Allocation, Ascent, Augmented, Dual, Kind, SignAscent, allocate

__all__ = [
    "Allocation", "Ascent", "Augmented", "Dual", "InverseGap", "Kind", "RelativeGap", "SignAscent", "TsallisINF",
    "UpperBound", "allocate",
]  # fmt: skip
