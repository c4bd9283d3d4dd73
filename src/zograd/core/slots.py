"""Sizes of slots: what a part keeps for each element, row or leaf of the weights.

A part names its slots with their initial values (`slots`). A plain number is one float an element; the classes here
make smaller ones. `Store.require` allocates them.
"""

from __future__ import annotations


class PerRow(float):
    """Initial value of a slot with `width` numbers a row (first axis) of each leaf instead of one an element."""

    width: int
    coupled = True

    def __new__(cls, value: float, width: int = 1) -> PerRow:
        self = super().__new__(cls, value)
        self.width = width
        return self


class PerColumn(float):
    """Initial value of a slot with `width` numbers a column of each leaf, seen as a matrix: first axis by the rest.

    Blocks do not show it: a rule reads `leaf.slots[name]`, of shape [width, columns]. A basis vector that names it in
    `reads` is given it whole.
    """

    width: int
    coupled = True

    def __new__(cls, value: float, width: int = 1) -> PerColumn:
        self = super().__new__(cls, value)
        self.width = width
        return self


class PerLeaf(float):
    """Initial value of a slot with one number a leaf."""

    coupled = True


class BFloat16(float):
    """Initial value of a slot of one bfloat16 an element. What writes it decides how it is rounded."""


class Bits(float):
    """Initial value of a slot of one byte an element, that holds True or False: a mask."""
