"""Low-rank factors kept in balance, so that a step does not depend on how a product was split into them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from zograd.core.query import Estimate
from zograd.core.vector import HALF, Vector
from zograd.rules.base import Rule
from zograd.sets.base import one_thread
from zograd.stores import Iterate, Leaf, Rate, Store

if TYPE_CHECKING:
    from zograd.core.method import Method


BALANCED = 1e-6
"""|B^T B - A A^T| relative to |B^T B| + |A A^T| below which nothing is done: balancing twice is balancing once."""
DEFICIENT = 1e-6
"""A factor whose Gram matrix has a smaller ratio of extreme eigenvalues counts as rank deficient."""


@dataclass(frozen=True, slots=True)
class Balanced(Rule[Any]):
    """Any rule on LoRA factors, A <- P A and B <- B P^-1 after each move, so that B^T B = A A^T; B A does not change.

    P = S^(1/2) with S = (A A^T)^-1 # (B^T B) the geometric mean of matrices, which solves S A A^T S = B^T B (RefLoRA,
    arXiv 2505.18877). Factors (c B, A / c) are balanced to the same ones for every c, so runs do not depend on c.
    Pairs are also balanced when a run starts, before the first probe; a run is made on the product, not the factors.

    factors: the pairs are leaves whose names differ in this dotted part only: "q.lora_A.weight" and "q.lora_B.weight".
    A is (r, m), B is (n, r). warmup: a pair that starts with a factor of deficient rank (B = 0 in LoRA) has no balance,
    and balanced right after its first steps both factors would be tiny, near the saddle at 0 where slopes vanish: so it
    is left alone for this many moves (100 in the published code). Later a pair is left alone while it is deficient.

    What the rule or another part remembers in slots would stand for the factors of before; so no part may have any.
    Weights in 16 bits must be split: rounding a pair anew each step would change the product. Workspace: two leaves in
    float64, factorisations of (r, r) on one thread. Raises ValueError on a store without pairs.
    """

    rule: Rule[Any]
    factors: tuple[str, str] = ("lora_A", "lora_B")
    warmup: int = 100

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"warmup counts moves and must be >= 0, got {self.warmup}")

    whole_leaf: ClassVar[bool] = True
    """Factors are read and written as whole matrices."""

    @property
    def reads(self) -> type[Any] | None:
        return self.rule.reads

    @property
    def remedy(self) -> str:
        return self.rule.remedy

    @property
    def momentum(self) -> float | None:
        return self.rule.momentum

    @property
    def meters(self) -> tuple[str, ...]:
        return self.rule.meters

    def units(self, aux: tuple[float, ...] | None) -> float:
        return self.rule.units(aux)

    def misplaced(self, store: Store) -> str | None:
        return self.rule.misplaced(store)

    def misfit(self, method: Method[Any]) -> str | None:
        if not method.space.flat:
            return f"Balanced changes factors of a product, which {type(method.space).__name__} restricts"
        for part in (method.law, method.estimator, self.rule):
            if named := sorted(part.slots):
                return (
                    f"{type(part).__name__} keeps {named[0]!r} for each weight, which would stand for the factors "
                    f"before they were balanced; use a rule like SGD() and an estimator without slots"
                )
        return self.rule.misfit(method)

    def pairs(self, store: Store) -> list[tuple[Leaf, Leaf]]:
        """(A, B) of each product."""
        by_name = {leaf.name: leaf for leaf in store.leaves}
        found = []
        for name, a in by_name.items():
            parts = name.split(".")
            if self.factors[0] in parts:
                b = by_name.get(".".join(self.factors[1] if part == self.factors[0] else part for part in parts))
                if b is not None:
                    found.append((a, b))
        return found

    def prepare(self, store: Store) -> None:
        pairs = self.pairs(store)
        if not pairs:
            raise ValueError(
                f"no two leaves differ in {self.factors[0]!r} and {self.factors[1]!r} only (the first leaf is "
                f"{store.leaves[0].name!r}); name the factors, Balanced(rule, factors=(A, B)), or use the rule alone"
            )
        for a, b in pairs:
            if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
                raise ValueError(f"{a.name!r} {a.shape} and {b.name!r} {b.shape} are no factors (r, m) and (n, r)")
            if any(leaf.dtype in HALF and leaf.low is None for leaf in (a, b)):
                raise ValueError(f"{a.name!r} is in 16 bits; balance float32 factors, or use rounding='split'")
        balance(store.iterate([Rate(1.0)] * (1 + max(leaf.group for leaf in store.leaves)), 0), pairs)

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        pairs = self.pairs(x.store)
        moves = state.get("balance_moves", 0)
        if moves == 0:
            state["balance_late"] = [k for k, pair in enumerate(pairs) if balancing(x.store, *pair) is None]
        state["balance_moves"] = moves + 1
        self.rule.apply(x, estimate, state)
        late = state["balance_late"] if moves + 1 <= self.warmup else []
        balance(x.store.iterate(x.rates, x.key), [pair for k, pair in enumerate(pairs) if k not in late])


def balance(x: Iterate, pairs: list[tuple[Leaf, Leaf]]) -> None:
    """A <- P A, B <- B P^-1 for each pair that is neither deficient nor balanced."""
    new: dict[int, Tensor] = {}
    for a, b in pairs:
        p = balancing(x.store, a, b)
        if p:
            with one_thread():
                new[a.index] = p[0] @ matrix(x.store, a)
                new[b.index] = matrix(x.store, b) @ p[1]
    for block in x.blocks(Vector(), whole_leaf=True) if new else ():
        if block.leaf.index in new:
            block.put_(block.v[0].copy_(new.pop(block.leaf.index).view(-1)))


def balancing(store: Store, a: Leaf, b: Leaf) -> tuple[Tensor, ...] | None:
    """P and P^-1 in float64; nothing when the pair is balanced; None when a factor is rank deficient."""
    with one_thread():
        A, B = matrix(store, a), matrix(store, b)
        aa, bb = A @ A.mT, B.mT @ B
        for e in (torch.linalg.eigvalsh(aa), torch.linalg.eigvalsh(bb)):
            if not float(e[0]) > DEFICIENT * float(e[-1]):
                return None
        if float((bb - aa).norm()) <= BALANCED * float(bb.norm() + aa.norm()):
            return ()
        root, inverse = powers(aa, 0.5, -0.5)
        (middle,) = powers(root @ bb @ root, 0.5)
        return tuple(powers(inverse @ middle @ inverse, 0.5, -0.5))  # of S


def powers(x: Tensor, *exponents: float) -> Iterator[Tensor]:
    """Powers of a symmetric positive definite matrix."""
    e, q = torch.linalg.eigh(0.5 * (x + x.mT))
    return (cast(Tensor, (q * e**exponent) @ q.mT) for exponent in exponents)


def matrix(store: Store, leaf: Leaf) -> Tensor:
    return store.master(leaf).double().view(leaf.shape)
