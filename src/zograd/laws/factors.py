"""Products of thin random matrices, with the same bits in any block, on any number of threads and any device.

Matrix products in floating point depend on the order of their sums. Here every product is one of integers small enough
for float64 to add them without rounding, in any order (the error-free splitting of Ozaki et al. 2012).

Matrices are held transposed, [rank, length]: one row a factor, one key a row. Nothing here is larger than a panel, or
than `rank` rows of a leaf's width; some of those are cached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from zograd.core.vector import Address
from zograd.laws.orthogonal import gram_schmidt
from zograd.noise import Kind, Term, combine, fold, gram

PANEL = 1 << 15
"""The most elements that are multiplied out at a time (256 KiB of float64)."""

NORMAL = 8.0
"""A bound on the elements of Gaussian noise."""


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a leaf, as first axis by the rest, has more than one column; vectors and scalars have not."""
    return math.prod(shape[1:]) > 1


@lru_cache(maxsize=1024)
def keys(key: int, rank: int) -> tuple[int, ...]:
    """The keys of the rows of a factor."""
    return tuple(fold(key, s) for s in range(rank))


def normals(key: int, rank: int, leaf: int, start: int, count: int, device: torch.device) -> Tensor:
    """float64 [rank, count]: Gaussian noise, row s at elements start .. start + count of key fold(key, s)."""
    with torch.inference_mode(False):
        out = torch.empty(rank, count, dtype=torch.float64, device=device)
        for row, k in zip(out, keys(key, rank), strict=True):
            combine(row, None, terms=(Term(Kind.NORMAL, k, 1.0),), leaf=leaf, start=start)
    return out


@lru_cache(maxsize=8)
def side(key: int, rank: int, leaf: int, count: int, device: torch.device) -> Tensor:
    """All of a leaf's right factor, [rank, columns], kept while its blocks go by."""
    return normals(key, rank, leaf, 0, count, device)


@lru_cache(maxsize=1024)
def triangle(key: int, rank: int, leaf: int, count: int, device: torch.device) -> Tensor:
    """[rank, rank] upper triangular T = R^-1, where N = Q R is the QR factorisation of `normals(key, ...)`^T.

    R has a positive diagonal, and comes from the exact Gram matrix N^T N: orthonormality of N T is good to the square
    of N's condition times the precision.
    """
    exact = gram([(Kind.NORMAL, k) for k in keys(key, rank)], leaf, 0, count)
    c = gram_schmidt(np.asarray(exact / 2**32, dtype=np.float64))
    with torch.inference_mode(False):
        return torch.from_numpy(np.ascontiguousarray(c.T)).to(device)


def frame(key: int, rank: int, leaf: int, start: int, count: int, total: int, device: torch.device) -> Tensor:
    """[rank, count]: rows start .. start + count of the orthonormal total x rank matrix Q, transposed."""
    t = triangle(key, rank, leaf, total, device)
    return product(factor(t, bound(t)), noise_factor(normals(key, rank, leaf, start, count, device)))


def bound(x: Tensor) -> float:
    """A power of two that is at least max |x_i|."""
    largest = float(x.abs().max()) if x.numel() else 0.0
    return math.ldexp(1.0, math.frexp(largest)[1])


Factor: TypeAlias = tuple[Tensor, Tensor | None]
"""A matrix [k, length] as the sum of two whose elements are integers of few bits, times powers of two."""


def noise_factor(x: Tensor) -> Factor:
    """Gaussian noise is multiples of 2^-16 below 8: integers of 19 bits as it is."""
    return x, None


def factor(x: Tensor, limit: float) -> Factor:
    """x to about limit 2^-2b in two halves of b bits each; limit: a power of two that no element exceeds."""
    bits = (51 - x.shape[0].bit_length()) // 2
    unit = math.ldexp(limit, -bits)
    fine = math.ldexp(unit, -bits)
    high = (x / unit).round_().mul_(unit)
    return high, (x - high).div_(fine).round_().mul_(fine)


def part(x: Factor, columns: slice) -> Factor:
    """Some columns of a factor."""
    return x[0][:, columns], None if x[1] is None else x[1][:, columns]


def product(a: Factor, b: Factor) -> Tensor:
    """a^T b for a [k, m] and b [k, n], with the same bits however it is cut: every matrix product here is exact."""
    (a1, a2), (b1, b2) = a, b
    small = [p.T @ q for p, q in ((a1, b2), (a2, b1)) if p is not None and q is not None]
    out = a1.T @ b1
    if small:
        out += small[0] if len(small) == 1 else small[0].add_(small[1])
    return out


def panels(at: Address, count: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cuts elements at.start .. at.start + count into rectangles of the matrix: (elements, rows, columns)."""
    columns, limit = at.columns, max(1, min(PANEL, count // 2))
    position, end = at.start, at.start + count
    while position < end:
        i, j = divmod(position, columns)
        if j or end - position < columns or columns > limit:
            rows, width = 1, min(columns - j, end - position, limit)
        else:
            rows, width = min((end - position) // columns, limit // columns), columns
        size = rows * width
        yield slice(position - at.start, position - at.start + size), slice(i, i + rows), slice(j, j + width)
        position += size


def add_product_(
    out: Tensor, coef: float, at: Address, multiply: Callable[[slice, slice], Tensor], scale: float = 1.0
) -> None:
    """out += (coef scale) * multiply(rows, columns), rectangle by rectangle."""
    for elements, rows, columns in panels(at, out.numel()):
        out[elements].add_(multiply(rows, columns).mul_(coef * scale).view(-1).to(out.dtype))
