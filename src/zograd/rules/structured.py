"""Descent towards a low-rank matrix plus a sparse one, whose sizes follow targets (SALAAD)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from zograd.core.query import Estimate
from zograd.laws.factors import is_matrix
from zograd.rules.base import Rule
from zograd.sets.base import one_thread
from zograd.stores import Iterate

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.stores import Leaf, Store

ENERGY = 0.999
"""The share of the squares of singular values that counts as the rank of L."""


@dataclass(frozen=True, slots=True)
class LowRankSparse(Rule[Any]):
    """X <- X - lr (G + rho (X - M)), and every `every` moves, by leaf: L <- SVT(X - S + Y, a / rho),
    S <- soft(X - L + Y, b / rho), Y <- Y + X - L - S, M <- L + S - Y,
    a <- [a + gain rho (rank(L) / min(m, n) - rank)]_+, b <- [b + gain rho (density(S) - density)]_+.

    ADMM for f(X) + a |L|_* + b |S|_1 with X = L + S, whose penalties a and b are moved by an integral controller until
    L and S have the wanted sizes: SALAAD (arXiv 2602.00942). SVT shrinks singular values, soft elements. The rank of L
    is how many singular values carry 0.999 of its squares. G may be any estimate; the pull to M is exact. At the end,
    `parts` gives L and S, and truncating them gives models of several sizes from one run. Vectors move by G alone.

    rank: the wanted rank over the shorter side; density: the wanted share of S that is not 0. lr rho must be below 1,
    or the pull overshoots. Memory: three slots of d elements; the workspace is several times the largest leaf in
    float64. Cost: a singular value decomposition a leaf every `every` moves. ValueError for numbers outside of their
    ranges; TypeError in a curved space.

    >>> import zograd as zo
    >>> sorted(zo.rules.LowRankSparse().slots)
    ['dual', 'sparse', 'surrogate']
    """

    rank: float = 0.25
    density: float = 0.05
    rho: float = 1.0
    gain: float = 0.02
    every: int = 20

    whole_leaf: ClassVar[bool] = True
    works_on_pieces: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("rank", "density"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share, in [0, 1], got {getattr(self, name)}")
        if not (self.rho > 0.0 and self.gain > 0.0):
            raise ValueError(f"rho and gain must be > 0, got rho={self.rho}, gain={self.gain}")
        if self.every < 1:
            raise ValueError(f"every counts moves between two rounds, at least 1, got {self.every}")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"surrogate": 0.0, "sparse": 0.0, "dual": 0.0}

    def misfit(self, method: Method[Any]) -> str | None:
        if method.space.flat:
            return None
        return f"LowRankSparse adds matrices, which {type(method.space).__name__} does not allow; use Euclidean()"

    def prepare(self, store: Store) -> None:
        for leaf in store.leaves:
            leaf.slots["surrogate"].copy_(store.master(leaf))

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        t = state["t"] = state.get("t", 0) + 1
        weights = state.setdefault("penalties", [[0.0, 0.0] for _ in x.store.leaves])
        for b in x.blocks(estimate.vector, whole_leaf=True):
            g = b.v[0]
            if is_matrix(b.leaf.shape):
                g.add_(x.store.master(b.leaf).view(-1) - b.slots["surrogate"], alpha=self.rho)
            b.step_(g)
        if t % self.every:
            return
        for leaf in x.store.leaves:
            if is_matrix(leaf.shape) and leaf.numel:
                weights[leaf.index] = self._round(x.store, leaf, *weights[leaf.index])

    def _round(self, store: Store, leaf: Leaf, a: float, b: float) -> list[float]:
        """One round of ADMM on a leaf, and the new penalties."""
        x, s, y = (
            t.double().view(leaf.matrix_shape) for t in (store.master(leaf), leaf.slots["sparse"], leaf.slots["dual"])
        )
        with one_thread():
            u, sigma, vt = torch.linalg.svd(x - s + y, full_matrices=False)
            sigma = (sigma - a / self.rho).clamp_(min=0.0)
            low = (u * sigma) @ vt
            tiny = torch.finfo(leaf.slots["sparse"].dtype).eps ** (2 / 3) * float(x.abs().max())  # of rounding
            rest = x - low + y
            s = torch.where(rest.abs() > tiny, soft(rest, b / self.rho), 0.0)
            y = y + x - low - s
            leaf.slots["surrogate"].copy_((low + s - y).view(-1))
        leaf.slots["sparse"].copy_(s.view(-1))
        leaf.slots["dual"].copy_(y.view(-1))
        share = rank_of(sigma) / min(leaf.matrix_shape)
        density = float((s != 0.0).double().mean())
        return [
            max(0.0, a + self.gain * self.rho * (share - self.rank)),
            max(0.0, b + self.gain * self.rho * (density - self.density)),
        ]

    def parts(self, store: Store) -> dict[str, tuple[Tensor, Tensor]]:
        """(L, S) of each matrix of a store that this rule has moved, in float64; L + S is near its weight."""
        found = {}
        for leaf in store.leaves:
            if is_matrix(leaf.shape):
                m, s, y = (
                    leaf.slots[name].double().view(leaf.matrix_shape) for name in ("surrogate", "sparse", "dual")
                )
                found[leaf.name] = m + y - s, s.clone()
        return found


def soft(x: Tensor, by: float) -> Tensor:
    """sign(x) max(|x| - by, 0), elementwise."""
    return x.sign() * (x.abs() - by).clamp_(min=0.0)


def rank_of(sigma: Tensor) -> int:
    """How many singular values, in falling order, carry `ENERGY` of their squares; 0 where all are 0."""
    squares = sigma.square().cumsum(0)
    total = float(squares[-1])
    return int((squares < ENERGY * total).sum()) + 1 if total > 0.0 else 0
