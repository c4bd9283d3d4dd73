"""Directions of low rank on a matrix, by their factors: what the forward adds without making the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from zograd import kernels
from zograd.core.vector import Basis, of_signs
from zograd.stores.leaf import Leaf

SignSide: TypeAlias = tuple[float, Tensor, Tensor]
"""c, u [rows], v [columns]: c u v^T."""


def sign_sides(terms: Sequence[tuple[Basis, float]], leaf: Leaf) -> list[SignSide]:
    """Products of signs (`of_signs`) on a matrix, by their factors."""
    factors = [(c, *e.factors(leaf.index, leaf.shape, leaf.tensor.device)) for e, c in terms]  # type: ignore[attr-defined]
    return [(c, u.view(-1), v.view(-1)) for c, u, v in factors]


def sign_side(side: kernels.Side) -> SignSide:
    """One product of signs as `kernels.add_outer` takes it."""
    (c,), factors = side
    return c, factors.u[0], factors.v[0]


class Drawn(dict[int, "kernels.Factors | None"]):
    """The factors of a direction, by number of the leaf: those that are asked for, and products of signs all at once.

    None: on this leaf the direction is not known to be of low rank.
    """

    def __init__(self, leaves: Sequence[Leaf], e: Basis) -> None:
        super().__init__()
        self.leaves, self.e = leaves, e
        if not of_signs(e):
            return
        for device in {leaf.tensor.device for leaf in leaves}:
            matrices = [leaf for leaf in leaves if leaf.tensor.device == device and leaf.matrix_shape[1] > 1]
            drawn = e.all_factors([(leaf.index, leaf.shape) for leaf in matrices], device)  # type: ignore[attr-defined]
            self.update((leaf.index, kernels.Factors(u, v)) for leaf, (u, v) in zip(matrices, drawn, strict=True))

    def __missing__(self, index: int) -> kernels.Factors | None:
        leaf = self.leaves[index]
        slots = (leaf.slots,) if self.e.reads else ()
        made = self.e.factors(index, leaf.shape, leaf.tensor.device, *slots) if self.e.low_rank else None  # type: ignore[attr-defined]
        self[index] = None if made is None else kernels.Factors(*made)
        return self[index]
