"""Directions of low rank: each leaf as a matrix (first axis by the rest), made of thin factors that are regenerated.

Vectors (and matrices of one column) get plain Gaussian noise. No two leaves share noise. Each law has E[v v^T] = I over
all of its randomness; given the factors that are kept for several steps, an estimate sees their subspace only.

Total variance of D_v v on one m x n matrix, in units of |G|^2, against mn + 1 of the Gaussian:
    LowRank     mn + 1 + 2 (m + n + 1) / r          (r = 1: (m + 2)(n + 2) - 1)
    Components  (3 (m + 2)(n + 2) + (r - 1)(mn + 2)) / r - 1
    Subspace    mn - 1 + 2 mn / r^2
    Projected   mn - 1 + 2 m / r
Less is not possible than mn - 1; what low rank buys is cheap probes, small momenta and structure, not variance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from zograd.core.keys import Shared
from zograd.core.vector import Address, Basis, Vector, basis
from zograd.laws.base import Draw, Law
from zograd.laws.factors import (
    NORMAL,
    Factor,
    add_product_,
    bound,
    factor,
    frame,
    is_matrix,
    noise_factor,
    normals,
    part,
    product,
    side,
)
from zograd.noise import Kind, Term, combine, fold

MOST = 1 << 14
"""The largest rank of a law whose factors are not cut to the sides of a matrix."""


def check_most(rank: int) -> None:
    """Raise ValueError for factors that no memory holds."""
    if not 1 <= rank <= MOST:
        raise ValueError(f"factors of rank {rank} are not kept for any matrix; use a rank from 1 to {MOST}")


def check_rank(rank: int, refresh: int = 1) -> None:
    if rank < 1 or refresh < 1:
        raise ValueError(f"a low-rank law needs rank >= 1 and refresh >= 1 steps, got rank={rank}, refresh={refresh}")


def add_plain_(out: Tensor, coef: float, key: int, at: Address) -> None:
    """What vectors get: Gaussian noise of the direction's own key."""
    combine(out, out, terms=(Term(Kind.NORMAL, key, coef),), leaf=at.leaf, start=at.start)


# ---- U V^T -----------------------------------------------------------------------------------------------------------


@basis
@dataclass(frozen=True, slots=True)
class Outer(Basis):
    """r^-1/2 U V^T, U of key `key` and V of key `right`, both Gaussian with r columns."""

    key: int
    right: int
    rank: int
    low_rank: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_most(self.rank)

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        if not is_matrix(at.shape):
            return add_plain_(out, coef, self.key, at)
        v = side(self.right, self.rank, at.leaf, at.columns, out.device)

        def multiply(rows: slice, columns: slice) -> Tensor:  # exact: sums of r integers below 2^38
            u = normals(self.key, self.rank, at.leaf, rows.start, rows.stop - rows.start, out.device)
            return u.T @ v[:, columns]

        add_product_(out, coef, at, multiply, self.rank**-0.5)

    def factors(self, leaf: int, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor] | None:
        """U [r, rows], V [r, columns] in float64 with r^-1/2 U V^T = U^T V on a matrix; None on a vector."""
        if not is_matrix(shape):
            return None
        u = normals(self.key, self.rank, leaf, 0, shape[0], device).mul_(self.rank**-0.5)
        return u, side(self.right, self.rank, leaf, Address(leaf, 0, shape).columns, device)


@dataclass(frozen=True, slots=True)
class LowRank(Law):
    """v = r^-1/2 U V^T a matrix, U fresh each direction, V shared by all directions of `refresh` steps.

    LOZO (arXiv 2410.07698) with refresh 50 or 100 and r 1 or 2; the noise of EGGROLL (arXiv 2511.16652) with refresh=1,
    where each direction has a V of its own. The factor r^-1/2, which LOZO's code leaves out, gives every element
    variance 1, so that one lr serves all ranks. Given V, E[D_v v] = G V V^T / r. Memory: V of the leaf in use.
    """

    rank: int = 1
    refresh: int = 50
    fixed_norm: bool = False

    def __post_init__(self) -> None:
        check_rank(self.rank, self.refresh)
        check_most(self.rank)

    def __call__(self, draw: Draw) -> Vector:
        right = draw.shared(Shared.RIGHT, self.refresh) if self.refresh > 1 else fold(draw.key, Shared.RIGHT)
        return Vector(((Outer(draw.key, right, self.rank), 1.0),))


# ---- sum_s tau_s u_s v_s^T -------------------------------------------------------------------------------------------


@basis
@dataclass(frozen=True, slots=True)
class Trilinear(Basis):
    """r^-1/2 sum_s tau_s u_s v_s^T: tau_1 .. tau_r from `key`, u_s from `left`, v_s from `right`, all Gaussian."""

    key: int
    left: int
    right: int
    rank: int

    def __post_init__(self) -> None:
        check_most(self.rank)

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        if not is_matrix(at.shape):
            return add_plain_(out, coef, self.key, at)
        v = side(self.right, self.rank, at.leaf, at.columns, out.device)
        tau = normals(self.key, 1, at.leaf, 0, self.rank, out.device).view(-1, 1)

        def multiply(rows: slice, columns: slice) -> Tensor:
            u = normals(self.left, self.rank, at.leaf, rows.start, rows.stop - rows.start, out.device)
            return product(factor(u.mul_(tau), NORMAL * NORMAL), noise_factor(v[:, columns]))

        add_product_(out, coef, at, multiply, self.rank**-0.5)


@dataclass(frozen=True, slots=True)
class Components(Law):
    """v = r^-1/2 sum_s tau_s u_s v_s^T a matrix, u and v fixed for the run, only tau fresh: TeZO (arXiv 2501.19057).

    A run therefore moves in r dimensions a matrix, chosen by its seed, and never leaves them. The published ranks come
    from the spectrum of the weights and differ by layer (mean 31.5); here one rank serves all.
    """

    rank: int = 32
    fixed_norm: bool = False

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_most(self.rank)

    def __call__(self, draw: Draw) -> Vector:
        return Vector(((Trilinear(draw.key, draw.shared(Shared.LEFT), draw.shared(Shared.RIGHT), self.rank), 1.0),))


# ---- U Z V^T with orthonormal U, V -----------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _core_times_right(
    key: int, right: int, ranks: tuple[int, int], leaf: int, columns: int, device: torch.device
) -> Factor:
    """Z V^T [rank of U, columns]."""
    a, b = ranks
    v = frame(right, b, leaf, 0, columns, columns, device)
    z = normals(key, b, leaf, 0, a, device)
    zv = product(noise_factor(z), factor(v, 2.0))
    with torch.inference_mode(False):
        return factor(zv, bound(zv))


@basis
@dataclass(frozen=True, slots=True)
class Sandwich(Basis):
    """sqrt(m n / (a b)) U Z V^T: U (m x a) and V (n x b) orthonormal, Z Gaussian; a = min(r, m), b = min(r, n)."""

    key: int
    left: int
    right: int
    rank: int

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        if not is_matrix(at.shape):
            return add_plain_(out, coef, self.key, at)
        m, n = at.shape[0], at.columns
        a, b = min(self.rank, m), min(self.rank, n)
        zv = _core_times_right(self.key, self.right, (a, b), at.leaf, n, out.device)

        def multiply(rows: slice, columns: slice) -> Tensor:
            u = frame(self.left, a, at.leaf, rows.start, rows.stop - rows.start, m, out.device)
            return product(factor(u, 2.0), part(zv, columns))

        add_product_(out, coef, at, multiply, math.sqrt(m * n / (a * b)))


@dataclass(frozen=True, slots=True)
class Subspace(Law):
    """v = sqrt(mn / r^2) U Z V^T a matrix, Z (r x r) fresh, orthonormal U and V shared for `refresh` steps.

    SubZero (arXiv 2410.08989). U and V are the Q of the QR factorisations (R with a positive diagonal) of Gaussian
    matrices; only the r x r factors R^-1 are kept, the rows of U that a block needs are regenerated. Given them
    E[D_v v] = (mn / r^2) U U^T G V V^T. A rank above a side of the matrix is cut to that side.
    """

    rank: int = 24
    refresh: int = 1000
    fixed_norm: bool = False

    def __post_init__(self) -> None:
        check_rank(self.rank, self.refresh)

    def __call__(self, draw: Draw) -> Vector:
        left, right = draw.shared(Shared.LEFT, self.refresh), draw.shared(Shared.RIGHT, self.refresh)
        return Vector(((Sandwich(draw.key, left, right, self.rank), 1.0),))


# ---- P Psi -----------------------------------------------------------------------------------------------------------


@basis
@dataclass(frozen=True, slots=True)
class Lifted(Basis):
    """sqrt(m / a) P Psi: P (m x a) orthonormal of key `left`, Psi (a x n) Gaussian of key `key`; a = min(r, m)."""

    key: int
    left: int
    rank: int

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        if not is_matrix(at.shape):
            return add_plain_(out, coef, self.key, at)
        m = at.shape[0]
        a = min(self.rank, m)
        psi = side(self.key, a, at.leaf, at.columns, out.device)

        def multiply(rows: slice, columns: slice) -> Tensor:
            p = frame(self.left, a, at.leaf, rows.start, rows.stop - rows.start, m, out.device)
            return product(factor(p, 2.0), noise_factor(psi[:, columns]))

        add_product_(out, coef, at, multiply, math.sqrt(m / a))


@dataclass(frozen=True, slots=True)
class Projected(Law):
    """v = sqrt(m / r) P Psi a matrix, Psi (r x n) fresh, orthonormal P (m x r) shared for `refresh` steps.

    The directions of ZO-Muon (arXiv 2602.17155). P is the same for all directions of a step, so that their estimates
    add up in one subspace. Given P, E[D_v v] = (m / r) P P^T G.
    """

    rank: int = 64
    refresh: int = 100
    fixed_norm: bool = False

    def __post_init__(self) -> None:
        check_rank(self.rank, self.refresh)

    def __call__(self, draw: Draw) -> Vector:
        return Vector(((Lifted(draw.key, draw.shared(Shared.LEFT, self.refresh), self.rank), 1.0),))
