"""Directions of one step that are orthogonal to each other: no variance is spent on measuring a thing twice.

Total variance of b directions, in units of |g|^2: d/b - 1, against (d - 1)/b of independent ones of fixed norm. The
gap is (b - 1)/b: it is worth having when b is not far below d.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import mul

import numpy as np
import torch
from torch import Tensor

from zograd.core.vector import Address, Array, Basis, Noise, Vector, basis
from zograd.laws.base import Draw, Law
from zograd.noise import Kind, Term, combine


def gram_schmidt(gram: Array) -> Array:
    """Lower triangular C with C G C^T = I and a positive diagonal: its rows orthonormalise vectors of Gram matrix G.

    Row by row, C = L^-1 with G = L L^T. Raises ValueError when a vector depends on those before, to rounding.
    """
    g: list[list[float]] = gram.tolist()
    c: list[list[float]] = []
    for j, row in enumerate(g):
        inner = [math.fsum(map(mul, c[k], row)) for k in range(j)]  # <q_k, z_j>; c[k] has k + 1 elements
        rest = row[j] - math.fsum(q * q for q in inner)
        if not rest > 1e-12 * row[j]:
            raise ValueError(f"vector {j} is a combination of the {j} before it, to rounding")
        length = math.sqrt(rest)
        c.append([-math.fsum(inner[k] * c[k][i] for k in range(i, j)) / length for i in range(j)] + [1.0 / length])
    return np.array([row + [0.0] * (len(g) - len(row)) for row in c]).reshape(len(g), len(g))


@dataclass(frozen=True, slots=True)
class Orthogonal(Law):
    """Direction j is sqrt(d) q_j, with q_0, q_1, ... the Gram-Schmidt vectors of Gaussian noises z_0, z_1, ...

    The directions of a step are the first columns of a Haar orthogonal matrix: each is uniform on the sphere. All in
    scalars: direction j is a Vector of j + 1 noises, with coefficients from the Cholesky factor of their exact Gram
    matrix. So a step of b directions generates about b^2 / 2 noises a probe side instead of b; see `Walsh` for a
    cheaper law with the same variance. Raises ValueError for direction number j >= d.
    """

    fixed_norm: bool = True

    def __call__(self, draw: Draw) -> Vector:
        if draw.j >= draw.dim:
            raise ValueError(
                f"direction number {draw.j} of a step was asked for, but there are only {draw.dim} orthogonal "
                f"directions in dimension {draw.dim}; use at most n={draw.dim} directions, or law=Rademacher()"
            )
        z = [Vector(((Noise(Kind.NORMAL, draw.number(k).key), 1.0),)) for k in range(draw.j + 1)]
        last = gram_schmidt(draw.gram(z))[-1] * math.sqrt(draw.dim)
        return Vector(tuple((e, float(c)) for c, v in zip(last, z, strict=True) for e, _ in v.terms))


@basis
@dataclass(frozen=True, slots=True)
class WalshSigns(Basis):
    """s_i (-1)^popcount(i & j): Rademacher noise s times the Walsh function number j of the element's index i."""

    key: int
    j: int

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        signs = torch.empty_like(out)
        combine(signs, None, terms=(Term(Kind.SIGN, self.key, coef),), leaf=at.leaf, start=at.start)
        period = max(1, min(1 << self.j.bit_length(), out.numel()))  # no longer than the block, whatever j
        walsh = torch.tensor(
            [1.0 - 2.0 * (((at.start + i) & self.j).bit_count() & 1) for i in range(period)],
            dtype=out.dtype,
            device=out.device,
        )
        whole = out.numel() // period * period
        signs[:whole].view(-1, period).mul_(walsh)
        signs[whole:].mul_(walsh[: out.numel() - whole])
        out.add_(signs)


@dataclass(frozen=True, slots=True)
class Walsh(Law):
    """v_j = s * w_j: one Rademacher noise s a step, common to all, and Walsh signs w_j(i) = (-1)^popcount(i & j).

    Each direction is Rademacher. Those of a step are orthogonal when the size of every leaf is a multiple of the next
    power of two above the largest j; else |<v_j, v_k>| <= (number of leaves) 2^floor(log2(j xor k)), out of d. Unlike
    with `Orthogonal`, a direction costs one pass of sign noise whatever j. i is the index inside of a leaf.
    """

    fixed_norm: bool = True

    def __call__(self, draw: Draw) -> Vector:
        key = draw.number(0).key
        return Vector(((WalshSigns(key, draw.j) if draw.j else Noise(Kind.SIGN, key), 1.0),))
