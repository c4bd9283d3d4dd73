"""Directions on a part of the weights: another law's direction with 0 outside of a mask.

With S the mask, E[v v^T] is the identity on S and 0 outside: E[D_v v] = g on S, with the variance of the inner law in
dimension |S|, (|S| + 1) |g_S|^2 for the Gaussian. Weights outside keep their bits (leave weight decay off). Each law
says what its mask is in `support`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from zograd.core.keys import Shared
from zograd.core.slots import Bits, PerLeaf
from zograd.core.vector import Address, Basis, Vector, basis
from zograd.laws.base import Draw, Gaussian, Law
from zograd.noise import Kind, Term, combine
from zograd.stores import Leaf, Store


@basis
@dataclass(frozen=True, slots=True)
class Ones(Basis):
    """1 everywhere: what a mask leaves of it is the mask."""

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        out.add_(coef)


def masked(e: Basis, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor], mask: Tensor) -> None:
    """out += coef * (mask * e)."""
    z = torch.zeros_like(out)
    e.add_(z, coef, at, slots)
    out.add_(z.masked_fill_(~mask, 0.0))


# ---- small weights ---------------------------------------------------------------------------------------------------


@basis
@dataclass(frozen=True, slots=True)
class OnSmall(Basis):
    """The basis vector `of` where |x_i| <= h, with h the leaf's threshold (a slot) and x the unperturbed iterate."""

    of: Basis

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.of.reads, "x", "mask_threshold")

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        masked(self.of, out, coef, at, slots, slots["x"].abs() <= slots["mask_threshold"])


@dataclass(frozen=True, slots=True)
class SmallWeights(Law):
    """The inner law's direction on the weights with |x_i| <= h: Sparse-MeZO (NeurIPS 2025, arXiv 2402.15751).

    h is fixed for each leaf at the start of a run, such that the fraction `sparsity` of its weights lies above (at
    least one weight lies below). The mask itself is recomputed from the current weights whenever it is needed, never
    from perturbed ones, so both probes and the update have the same; memory: one number a leaf. A weight that grows
    past h stops moving.
    """

    sparsity: float = 0.75
    inner: Law = Gaussian()
    fixed_norm: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise ValueError(f"sparsity is the fraction of weights left alone, in [0, 1), got {self.sparsity}")

    @property
    def slots(self) -> Mapping[str, float]:
        return {**self.inner.slots, "mask_threshold": PerLeaf(math.inf)}

    def prepare(self, store: Store) -> None:
        self.inner.prepare(store)
        for leaf in store.leaves:
            if leaf.numel:
                kept = max(1, round((1.0 - self.sparsity) * leaf.numel))
                leaf.slots["mask_threshold"].fill_(float(store.master(leaf).abs().kthvalue(kept).values))

    def support(self, draw: Draw) -> Vector:
        """The diagonal of E[v v^T]: 1 on the mask."""
        return Vector(((OnSmall(Ones()), 1.0),))

    def __call__(self, draw: Draw) -> Vector:
        return Vector(tuple((OnSmall(e), c) for e, c in self.inner(draw).terms))


# ---- chosen weights --------------------------------------------------------------------------------------------------


@basis
@dataclass(frozen=True, slots=True)
class OnMask(Basis):
    """The basis vector `of` where the slot "mask" is True."""

    of: Basis

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.of.reads, "mask")

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        masked(self.of, out, coef, at, slots, slots["mask"])


@dataclass(frozen=True, slots=True)
class TopScores(Law):
    """The inner law's direction on the `density` d weights with the highest scores: SensZOQ (ICLR 2025).

    The mask is fixed for the run, and is taken over all leaves together. scores: a function of a leaf that returns a
    tensor of its shape; for SensZOQ the mean squared gradients of the pre-training loss (`laws.Scores` reads them from
    a file or holds them in memory, `laws.sensitivity` estimates them without gradients). A boolean tensor is a mask:
    with density=1.0 exactly its True elements are taken. Ties with the last score that is taken are taken too. Memory:
    one byte a weight, and a float64 a weight while the run starts.
    """

    density: float = 1e-3
    scores: Callable[[Leaf], Tensor] | None = None
    inner: Law = Gaussian()
    fixed_norm: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise ValueError(f"density is the fraction of weights that move, in (0, 1], got {self.density}")

    @property
    def slots(self) -> Mapping[str, float]:
        return {**self.inner.slots, "mask": Bits(False)}

    def prepare(self, store: Store) -> None:
        self.inner.prepare(store)
        if self.scores is None:
            raise ValueError(
                "TopScores has no scores to choose the weights by; pass scores=Scores.load('file.safetensors'), or the "
                "Scores that zograd.laws.sensitivity(store, oracle) returns"
            )
        scores = []
        for leaf in store.leaves:
            score = self.scores(leaf)
            if score.numel() != leaf.numel:
                raise ValueError(
                    f"the scores of {leaf.name!r} have shape {tuple(score.shape)}, the tensor has {leaf.shape}"
                )
            scores.append(score.reshape(-1).double().cpu())
        flat = torch.cat(scores)
        if not flat.max() > 0:
            raise ValueError("no score is above 0, so there is nothing to train; check the scores")
        kept = max(1, round(self.density * len(flat)))
        least = flat.kthvalue(len(flat) - kept + 1).values
        for leaf, score in zip(store.leaves, scores, strict=True):
            leaf.slots["mask"].copy_((score >= least) & (score > 0))

    def support(self, draw: Draw) -> Vector:
        """The diagonal of E[v v^T]: 1 on the mask."""
        return Vector(((OnMask(Ones()), 1.0),))

    def __call__(self, draw: Draw) -> Vector:
        return Vector(tuple((OnMask(e), c) for e, c in self.inner(draw).terms))


# ---- random weights, so many in each leaf ----------------------------------------------------------------------------


@basis
@dataclass(frozen=True, slots=True)
class OnScatter(Basis):
    """The basis vector `of` where Gaussian noise of key `key` is at most the leaf's quantile (a slot)."""

    of: Basis
    key: int

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.of.reads, "mask_quantile")

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        u = torch.empty_like(out)
        combine(u, None, terms=(Term(Kind.NORMAL, self.key, 1.0),), leaf=at.leaf, start=at.start)
        masked(self.of, out, coef, at, slots, u <= slots["mask_quantile"])


LEAST = 1e-5
"""The least density of `Scattered`: its mask is where normal noise, which has a table, is below a quantile."""


@dataclass(frozen=True, slots=True)
class Scattered(Law):
    """The inner law's direction on random weights, each of leaf l with probability density_l, for `refresh` steps.

    DeepZero (ICLR 2024) keeps of its pruning at initialisation (ZO-GraSP) only the densities of the layers, and draws
    the indices anew every few epochs; `estimators.grasp_densities` measures them. densities: one for all leaves, or
    one a leaf, to about 1e-5. Memory: one number a leaf; the mask is counter noise.
    """

    densities: float | Sequence[float] = 0.1
    refresh: int = 100
    inner: Law = Gaussian()
    fixed_norm: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.densities, float | int):
            object.__setattr__(self, "densities", tuple(float(p) for p in self.densities))
        all_of_them: Sequence[Any] = self.densities if isinstance(self.densities, tuple) else (self.densities,)
        if not all(0.0 <= p <= 1.0 for p in all_of_them) or not any(all_of_them):
            raise ValueError(f"densities are fractions in [0, 1], not all 0, got {self.densities}")
        if any(0.0 < p < LEAST for p in all_of_them):
            raise ValueError(f"a density below {LEAST:g} would leave nothing on a mask, got {self.densities}; pass 0")
        if self.refresh < 1:
            raise ValueError(f"refresh must be at least 1 step, got {self.refresh}")

    @property
    def slots(self) -> Mapping[str, float]:
        return {**self.inner.slots, "mask_quantile": PerLeaf(math.inf)}

    def prepare(self, store: Store) -> None:
        self.inner.prepare(store)
        densities = self.densities if isinstance(self.densities, tuple) else (self.densities,) * len(store.leaves)
        if len(densities) != len(store.leaves):
            raise ValueError(f"{len(densities)} densities were given for {len(store.leaves)} tensors; give one each")
        for leaf, p in zip(store.leaves, densities, strict=True):
            edges = {0.0: -math.inf, 1.0: math.inf}
            leaf.slots["mask_quantile"].fill_(edges[p] if p in edges else NormalDist().inv_cdf(p))

    def support(self, draw: Draw) -> Vector:
        """The diagonal of E[v v^T] given the mask of this draw's period: 1 on the mask."""
        return Vector(((OnScatter(Ones(), draw.shared(Shared.SCATTER, self.refresh)), 1.0),))

    def __call__(self, draw: Draw) -> Vector:
        key = draw.shared(Shared.SCATTER, self.refresh)
        return Vector(tuple((OnScatter(e, key), c) for e, c in self.inner(draw).terms))
