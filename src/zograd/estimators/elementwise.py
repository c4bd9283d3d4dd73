"""Basis vectors that are elementwise functions: products of two vectors, and powers of a slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zograd.core.vector import Address, Basis, Vector, basis, fill_


@basis
@dataclass(frozen=True, slots=True)
class Product(Basis):
    """The elementwise product of a linear combination and a basis vector."""

    terms: tuple[tuple[Basis, float], ...]
    by: Basis

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for e in (*(e for e, _ in self.terms), self.by) for name in e.reads))

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        a = fill_(torch.empty_like(out), Vector(self.terms), at, slots)
        b = fill_(torch.empty_like(out), Vector(((self.by, 1.0),)), at, slots)
        out.addcmul_(a, b, value=coef)


@basis
@dataclass(frozen=True, slots=True)
class Power(Basis):
    """(|s| + floor)^exponent, elementwise, s a slot; "x" is the iterate."""

    slot: str
    exponent: float
    floor: float

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.slot,)

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        if self.slot not in slots:
            raise KeyError(f"the vector names slot {self.slot!r}, but this store has {sorted(slots)}")
        out.add_(slots[self.slot].abs().add_(self.floor).pow_(self.exponent), alpha=coef)
