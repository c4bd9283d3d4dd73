"""Moments in float32 or in bfloat16: their slots, and the move of one of them."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from zograd import noise
from zograd.core.slots import BFloat16
from zograd.stores import Block

Moments: TypeAlias = Literal["full", "bfloat16"]
"""How a rule keeps its moments: in the precision of its arithmetic, or in 16 bits with stochastic rounding."""


def check_moments(moments: str) -> None:
    """Raise ValueError for moments that a rule does not know."""
    if moments not in get_args(Moments):
        raise ValueError(f"moments are 'full' (float32) or 'bfloat16', got {moments!r}")


def initial(moments: Moments, value: float = 0.0) -> float:
    """The initial value of a slot that holds a moment."""
    return BFloat16(value) if moments == "bfloat16" else value


def average_(b: Block, slot: str, scale: float, g: Tensor, coef: float, *, number: int) -> Tensor:
    """m <- scale m + coef g on a block, m the slot. In bfloat16, m is rounded up or down at random with the right mean.

    The noise of the rounding is a function of the step, of `number` (another one for each moment of a rule) and of the
    element, so a run repeats to the bit, whatever its blocks. Rounding to nearest would lose every increment below
    2^-9 of m: with beta = 0.999, all of them near a mean.
    """
    m = b.slots[slot]
    if m.dtype != torch.bfloat16:
        return m.mul_(scale).add_(g, alpha=coef)
    _rounded_(m, b, scale, g, coef, number)
    return m


def average_square_(b: Block, slot: str, scale: float, g: Tensor, coef: float, *, number: int) -> Tensor:
    """s <- scale s + coef g^2 on a block, s the slot, rounded as in `average_`; g is overwritten in bfloat16."""
    s = b.slots[slot]
    if s.dtype != torch.bfloat16:
        return s.mul_(scale).addcmul_(g, g, value=coef)
    _rounded_(s, b, scale, g.square_(), coef, number)
    return s


def _rounded_(m: Tensor, b: Block, scale: float, g: Tensor, coef: float, number: int) -> None:
    """m <- scale m + coef g in bfloat16, rounded stochastically by noise of the step, of the number and the element."""
    assert b.iterate is not None
    key, place = noise.fold(b.iterate.key, number), b.leaf.place(b.start)
    noise.combine(m, m, scale=scale, dense=g.float(), dense_coef=coef, leaf=b.leaf.index, start=place, rounding=key)
