"""Rules that work in the thin coordinates of low-rank directions instead of on the weights' full size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from zograd import noise
from zograd.core.query import Estimate
from zograd.core.slots import PerRow
from zograd.core.vector import Address, Basis, Vector
from zograd.estimators import Coordinates, Players, Saddle
from zograd.laws.factors import (
    Factor,
    add_product_,
    bound,
    factor,
    frame,
    is_matrix,
    keys,
    noise_factor,
    normals,
    part,
    product,
    side,
)
from zograd.laws.lowrank import Lifted, LowRank, Outer, Projected
from zograd.noise import Kind, Term
from zograd.rules.base import Rule
from zograd.rules.sgd import check_beta
from zograd.stores import Iterate, Leaf

if TYPE_CHECKING:
    from zograd.core.method import Method


D = TypeVar("D", bound=Basis)


def bare(rule: Rule[Any], method: Method[Any]) -> str | None:
    """Why estimates are not made of the directions of the law alone, of which these rules read the factors."""
    estimator, name = method.estimator, type(method.estimator).__name__
    if estimator.slots or isinstance(estimator, Coordinates | Saddle | Players):
        return (
            f"{type(rule).__name__} reads the factors of directions, and an estimate of {name} has other parts (slots, "
            f"coordinates, or parts by player). Use Momentum(), or estimator=Central(n)."
        )
    return None


def drawn(vector: Vector, kind: type[D]) -> list[tuple[D, float]]:
    """The terms of a vector, which are directions of one kind. Raises TypeError for another one."""
    found: list[tuple[D, float]] = []
    for e, c in vector.terms:
        if not isinstance(e, kind):
            raise TypeError(f"the estimate has a {type(e).__name__}, and this rule reads {kind.__name__} alone")
        found.append((e, c))
    return found


@dataclass(frozen=True, slots=True)
class FactorMomentum(Rule[Any]):
    """N <- beta N + (1 - beta) sum_j c_j U_j, X <- X - lr r^-1/2 N V^T: the momentum of LOZO-M (arXiv 2410.07698).

    The momentum lives in the coordinates of U, m x r numbers for an m x n matrix. When V is resampled it is expressed
    in the new ones, N <- N (V_old^T V_new) / n, the least-squares projection (V_new^T V_new is near n I). Vectors have
    heavy ball with the same beta. Memory: a slot of r numbers a row.

    `lr="auto"`: with constant V this is heavy ball at the rate lr (1 - beta), whose edge of stability is (1 - beta) of
    that of SGD (`learning_rate.AutoRate`). So the edge of lr is that of SGD, and declared is a momentum of 0. The
    projection onto the new coordinates shortens N.
    """

    beta: float = 0.9
    rank: int = 2
    momentum: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_beta("beta", self.beta)

    @property
    def slots(self) -> Mapping[str, float]:
        return {"factor_momentum": PerRow(0.0, width=self.rank)}

    def misfit(self, method: Method[Any]) -> str | None:
        law = method.law
        if isinstance(law, LowRank) and law.rank == self.rank and law.refresh > 1:
            return bare(self, method)
        return (
            f"FactorMomentum(rank={self.rank}) reads the factors of LowRank(rank={self.rank}, refresh > 1) directions, "
            f"but the law is {law}. Use that law, or Momentum()."
        )

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        terms = drawn(estimate.vector, Outer)
        if not terms:  # a step that is taken back
            return
        right, before = terms[0][0].right, state.get("right")
        state["right"] = right
        most = 1.0
        for b in x.blocks(Vector()):
            n_slot = b.leaf.slots["factor_momentum"]
            if not is_matrix(b.leaf.shape):
                m = n_slot[b.start : b.start + b.x.numel(), 0]
                m.mul_(self.beta).add_(b.fill_(b.v[0], estimate.vector).mul_(1.0 - self.beta))
                b.step_(b.v[0].copy_(m))
                continue
            if b.start == 0:
                self._update(b.leaf, n_slot, terms, right, before)
                most = bound(n_slot)
            v = side(right, self.rank, b.leaf.index, b.leaf.matrix_shape[1], b.x.device)

            def multiply(
                rows: slice, columns: slice, n_slot: Tensor = n_slot, v: Tensor = v, most: float = most
            ) -> Tensor:
                return product(factor(n_slot[rows].double().T, most), noise_factor(v[:, columns]))

            at = Address(b.leaf.index, b.start, b.leaf.shape)
            add_product_(b.v[0], self.rank**-0.5, at, multiply)
            b.step_(b.v[0])

    def _update(
        self, leaf: Leaf, n_slot: Tensor, terms: list[tuple[Outer, float]], right: int, before: int | None
    ) -> None:
        old = n_slot.double().T
        if before is not None and before != right:
            old = self._transport(old, leaf, before, right)
        new = torch.zeros_like(old)
        for e, c in terms:
            new += normals(e.key, self.rank, leaf.index, 0, new.shape[1], new.device).mul_(c)
        n_slot.copy_(old.mul(self.beta).add_(new.mul_(1.0 - self.beta)).T)

    def _transport(self, old: Tensor, leaf: Leaf, before: int, right: int) -> Tensor:
        """N (V_old^T V_new) / n, transposed, in a fixed order of sums."""
        names = [(Kind.NORMAL, k) for key in (before, right) for k in keys(key, self.rank)]
        n = leaf.matrix_shape[1]
        inner = np.asarray(noise.gram(names, leaf.index, 0, n) / 2**32, dtype=np.float64)[: self.rank, self.rank :]
        new = torch.zeros_like(old)
        for k, row in enumerate(inner / n):
            for s, weight in enumerate(row):
                new[s] += old[k].mul(float(weight))
        return new


# ---- orthogonalised steps --------------------------------------------------------------------------------------------

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz step of Muon (Jordan et al. 2024): five steps bring singular values to 1 +- 0.3."""


def msign_newton_schulz5(g: Tensor, steps: int = 5) -> Tensor:
    """About U V^T for g = U S V^T (float64): X <- a X + b A X + c A^2 X with A = X X^T, from X = g / |g|_F.

    Singular values land between 0.68 and 1.2 when they were above 0.003 |g|_F, smaller ones grow by 3.4 a step. The
    same bits on any number of threads. g = 0 gives 0.
    """
    if g.shape[0] > g.shape[1]:
        return msign_newton_schulz5(g.T, steps).T
    most = bound(g)
    transposed = factor(g.T, most)
    squared = product(transposed, transposed)
    norm = math.sqrt(max(0.0, math.fsum(squared.diagonal().tolist())))
    if norm == 0.0:
        return torch.zeros_like(g)
    a, b, c = QUINTIC
    x = g / norm
    for _ in range(steps):
        most = bound(x)
        transposed = factor(x.T, most)
        gram = product(transposed, transposed)  # A
        symmetric = factor(gram, bound(gram))
        polynomial = product(symmetric, symmetric).mul_(c).add_(gram * b)
        x = product(factor(polynomial, bound(polynomial)), factor(x, most)).add_(x * a)
    return x


@dataclass(frozen=True, slots=True)
class SubspaceMuon(Rule[Any]):
    """X <- X - lr P msign(G), G = sum_j c_j Psi_j the r x n estimate in the subspace of P: ZO-Muon (arXiv 2602.17155).

    msign is five quintic Newton-Schulz steps, so lr is in units of the spectral norm of an update. Vectors move by lr
    `plain` times their plain estimate. Memory: several r x n float64 matrices of one leaf at a time. The published code
    overwrites P for each sample, so that only the last direction lies in the subspace in which the step is taken; here
    all directions of `Projected` share P until it is resampled.
    """

    plain: float = 1.0
    newton_schulz: int = 5

    def misfit(self, method: Method[Any]) -> str | None:
        if isinstance(method.law, Projected):
            return bare(self, method)
        return f"SubspaceMuon reads the subspace of Projected directions, but the law is {method.law}. Use Projected()."

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        terms = drawn(estimate.vector, Lifted)
        if not terms:
            return
        left, rank = terms[0][0].left, terms[0][0].rank
        whole = noise_factor(torch.empty(0, device="cpu"))
        for b in x.blocks(Vector()):
            if not is_matrix(b.leaf.shape):
                b.step_(b.fill_(b.v[0], estimate.vector).mul_(self.plain))
                continue
            m, n = b.leaf.matrix_shape
            a = min(rank, m)
            if b.start == 0:
                g = torch.empty(a, n, dtype=torch.float64, device=b.x.device)
                for s, row in enumerate(g):  # rows of sum_j c_j Psi_j
                    summands = [Term(Kind.NORMAL, keys(e.key, a)[s], c) for e, c in terms]
                    noise.combine(row, None, terms=summands, leaf=b.leaf.index)
                g = msign_newton_schulz5(g, self.newton_schulz)
                whole = factor(g, bound(g))

            def multiply(rows: slice, columns: slice, whole: Factor = whole, leaf: int = b.leaf.index) -> Tensor:
                p = frame(left, a, leaf, rows.start, rows.stop - rows.start, m, whole[0].device)  # noqa: B023
                return product(factor(p, 2.0), part(whole, columns))

            add_product_(b.v[0], 1.0, Address(b.leaf.index, b.start, b.leaf.shape), multiply)
            b.step_(b.v[0])
