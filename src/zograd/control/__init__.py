"""Multipliers of constraints by measured violation, and budgets by price."""

from zograd.control.dual import Allocation, Ascent, Augmented, Dual, Kind, SignAscent, allocate

__all__ = ["Allocation", "Ascent", "Augmented", "Dual", "Kind", "SignAscent", "allocate"]
