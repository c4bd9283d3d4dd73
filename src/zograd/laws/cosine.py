"""Directions in the span of a few cosines: the structured basis of DCT optimizers, kept as r integers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from zograd.core.keys import Shared
from zograd.core.vector import Address, Basis, Vector, basis
from zograd.laws.base import Draw, Law
from zograd.laws.factors import Factor, add_product_, factor, is_matrix, noise_factor, normals, part, product
from zograd.laws.lowrank import add_plain_, check_rank
from zograd.noise import Kind, Term, combine, fold


@lru_cache(maxsize=16)
def _quarter_waves(n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """cos(pi t / (2 n)) for t = 0 .. 4 n - 1."""
    return np.array([math.cos(math.pi * t / (2 * n)) for t in range(4 * n)])


def cosines(n: int, columns: Iterable[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """[len(columns), n]: columns of the orthonormal n x n DCT matrix, Q_jk = sqrt(2/n) cos(pi (2j + 1) k / (2n)),
    without the sqrt(2/n); Q_j0 = sqrt(1/n)."""
    k = np.array(list(columns), dtype=np.int64)[:, None]
    j = np.arange(n)[None, :]
    waves = _quarter_waves(n)[(2 * j + 1) * k % (4 * n)]
    return np.where(k == 0, math.sqrt(0.5), waves)


def strongest_columns(matrices: Iterable[Tensor], rank: int) -> tuple[int, ...]:
    """The `rank` columns k of the DCT with the largest sum over matrices G [m, n] (of one n) of |G Q_k|_1, ascending.

    The selection of arXiv 2505.17967, for `DCT(columns=...)`; G may be past estimates or activations.
    """
    score: np.ndarray[tuple[int], np.dtype[np.float64]] | None = None
    for g in matrices:
        dense = g.detach().double().reshape(g.shape[0], -1).cpu().numpy()
        n = dense.shape[1]
        energy = np.abs(dense @ cosines(n, range(n)).T).sum(0)
        if score is not None and score.shape != energy.shape:
            raise ValueError(f"matrices of {len(score)} and of {n} columns have no common DCT; choose for each width")
        score = energy if score is None else score + energy
    if score is None or rank > len(score):
        raise ValueError(f"{rank} columns were asked for, there are {0 if score is None else len(score)}")
    return tuple(sorted(int(k) for k in np.argsort(-score, kind="stable")[:rank]))


@lru_cache(maxsize=8)
def _waves(
    choice: int, columns: tuple[int, ...], rank: int, leaf: int, n: int, device: torch.device
) -> tuple[Factor, int]:
    """The chosen columns, without their factor sqrt(2/n), and how many there are."""
    if not columns:  # the places of the smallest of n noises; a second one breaks ties
        order = torch.empty(n, dtype=torch.float64, device="cpu")
        terms = (Term(Kind.NORMAL, choice, 1.0), Term(Kind.NORMAL, fold(choice, 0), 2.0**-20))
        combine(order, None, terms=terms, leaf=leaf)
        columns = tuple(int(k) for k in order.argsort(stable=True)[:rank])
    elif max(columns) >= n:
        raise ValueError(f"DCT column {max(columns)} was chosen, but leaf {leaf} has {n} columns; leave the leaf out")
    with torch.inference_mode(False):
        return factor(torch.from_numpy(cosines(n, columns)).to(device), 1.0), len(columns)


def check_columns(rank: int, columns: tuple[int, ...]) -> None:
    """Raise ValueError for columns that are not `rank` different numbers (none: as many, drawn)."""
    if rank < 1:
        raise ValueError(f"the rank must be at least 1, got {rank}")
    if len(set(columns)) != len(columns) or any(k < 0 for k in columns):
        raise ValueError(f"columns must be different numbers >= 0, got {columns}")
    if columns and len(columns) != rank:
        raise ValueError(f"{len(columns)} columns for rank {rank}; use rank={len(columns)}")


@basis
@dataclass(frozen=True, slots=True)
class Waves(Basis):
    """sqrt(n / r) U Q_I^T: U (m x r) Gaussian of key `key`, Q the orthonormal DCT, I given or drawn from `choice`."""

    key: int
    choice: int
    rank: int
    columns: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_columns(self.rank, self.columns)

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        if not is_matrix(at.shape):
            return add_plain_(out, coef, self.key, at)
        n = at.columns
        waves, r = _waves(self.choice, self.columns, min(self.rank, n), at.leaf, n, out.device)

        def multiply(rows: slice, columns: slice) -> Tensor:
            u = normals(self.key, r, at.leaf, rows.start, rows.stop - rows.start, out.device)
            return product(noise_factor(u), part(waves, columns))

        add_product_(out, coef, at, multiply, math.sqrt(2.0 / r))  # sqrt(n / r) times the sqrt(2 / n) of Q


@dataclass(frozen=True, slots=True)
class DCT(Law):
    """v = sqrt(n / r) U Q_I^T a matrix: U (m x r) fresh, Q_I r columns of the DCT, shared for `refresh` steps.

    The subspace of arXiv 2505.17967 for zeroth-order probes: of the basis only r integers are kept. I is random, or
    `columns` for all leaves (`strongest_columns` chooses by energy). With random I, E[v v^T] = I on average over I, and
    given I, E[D_v v] = (n / r) G Q_I Q_I^T. Total variance mn - 1 + 2 n / r. Vectors get plain Gaussian noise. With
    given columns nothing averages, and v never leaves their span.
    """

    rank: int = 16
    refresh: int = 100
    columns: tuple[int, ...] = ()
    fixed_norm: bool = False

    def __post_init__(self) -> None:
        check_rank(self.rank, self.refresh)
        check_columns(self.rank, self.columns)

    def __call__(self, draw: Draw) -> Vector:
        return Vector(((Waves(draw.key, draw.shared(Shared.RIGHT, self.refresh), self.rank, self.columns), 1.0),))
