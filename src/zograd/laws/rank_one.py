"""Directions of rank one with signs: each leaf as a matrix (first axis by the rest) is u v^T with elements +1 or -1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zograd.core.vector import Address, Basis, Vector, basis
from zograd.laws.base import Draw, Law
from zograd.laws.factors import is_matrix, panels
from zograd.noise import Kind, Term, combine, signs


@basis
@dataclass(frozen=True, slots=True)
class SignOuter(Basis):
    """u v^T on a matrix of m rows: u are signs 0 .. m of `key`, v those from m on. On a vector plain signs of `key`."""

    key: int

    low_rank: ClassVar[bool] = True
    signs: ClassVar[bool] = True
    """Products with a coefficient are exact, so that every way to add them up has the same bits."""

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        if not is_matrix(at.shape):
            combine(out, out, terms=(Term(Kind.SIGN, self.key, coef),), leaf=at.leaf, start=at.start)
            return
        v = signs(self.key, [(at.leaf, at.shape[0], at.columns)], out.device).to(out.dtype)
        for elements, rows, columns in panels(at, out.numel()):
            u = signs(self.key, [(at.leaf, rows.start, rows.stop - rows.start)], out.device)
            u = u.to(out.dtype).mul_(coef).view(-1, 1)
            out[elements].view(u.shape[0], -1).addcmul_(u, v[columns])

    def factors(self, leaf: int, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor] | None:
        """U [1, rows], V [1, columns] in float32 with u v^T = U^T V on a matrix; None on a vector."""
        if not is_matrix(shape):
            return None
        ((u, v),) = self.all_factors([(leaf, shape)], device)
        return u, v

    def all_factors(
        self, matrices: Sequence[tuple[int, tuple[int, ...]]], device: torch.device
    ) -> list[tuple[Tensor, Tensor]]:
        """`factors` of matrices, by leaf and shape, drawn in one go."""
        lengths = [(shape[0], math.prod(shape[1:])) for _, shape in matrices]
        runs = [(leaf, 0, sum(two)) for (leaf, _), two in zip(matrices, lengths, strict=True)]
        drawn = signs(self.key, runs, device)
        parts = drawn.view(1, -1).split_with_sizes([n for two in lengths for n in two], dim=1)
        return list(zip(parts[::2], parts[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class RankOne(Law):
    """v = u v^T on each matrix, u and v with independent signs: rank one, and every element +1 or -1.

    |v|^2 = d always, so the two-point estimate D_v v has total variance d - 1 in units of |g|^2, the least that a law
    with E[v v^T] = I can have (Gaussian factors, `LowRank`, give (m + 2)(n + 2) - 1 on an m x n matrix); of coordinate
    i it is |g|^2 - g_i^2. A probe costs no pass over the weights, and several share one forward (`zograd.batched`).
    Where the gradient of a matrix is near rank one, D_v has a heavier tail than with full signs, E[D_v^4] up to
    9 E[D_v^2]^2: it wants a learning rate of about half (measured in docs/log.md).
    Our law: the factors are those of EGGROLL (arXiv 2511.16652) with signs in place of normals.
    """

    fixed_norm: bool = True

    def __call__(self, draw: Draw) -> Vector:
        return Vector(((SignOuter(draw.key), 1.0),))
