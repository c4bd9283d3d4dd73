"""Low-rank factors kept in balance, so that a step does not depend on how a product was split into them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from zograd.core.query import Estimate
from zograd.core.slots import BFloat16
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


class _Balancing(Rule[Any]):
    """What both rules share: they wrap a rule, find the pairs, and wait for those that have no balance yet."""

    __slots__ = ()
    rule: Rule[Any]
    factors: tuple[str, str]
    warmup: int

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
            return f"{type(self).__name__} changes factors of a product, which {type(method.space).__name__} restricts"
        return self.unscaled(method) or self.rule.misfit(method)

    def unscaled(self, method: Method[Any]) -> str | None:
        """Why what the parts remember cannot follow the factors; None where it can, or nothing is remembered."""
        raise NotImplementedError

    def balance(self, x: Iterate, pairs: list[tuple[Leaf, Leaf]]) -> None:
        """Balance these pairs, except those that have no balance, or have it already."""
        raise NotImplementedError

    def open(self, store: Store, a: Leaf, b: Leaf) -> bool:
        """Whether a pair has no balance."""
        raise NotImplementedError

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
        pairs, mine = self.pairs(store), type(self).__name__
        if not pairs:
            raise ValueError(
                f"no two leaves differ in {self.factors[0]!r} and {self.factors[1]!r} only (the first leaf is "
                f"{store.leaves[0].name!r}); name the factors, {mine}(rule, factors=(A, B)), or use the rule alone"
            )
        for a, b in pairs:
            if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
                raise ValueError(f"{a.name!r} {a.shape} and {b.name!r} {b.shape} are no factors (r, m) and (n, r)")
            if any(leaf.dtype in HALF and leaf.low is None for leaf in (a, b)):
                raise ValueError(f"{a.name!r} is in 16 bits; balance float32 factors, or use rounding='split'")
        self.balance(store.iterate([Rate(1.0)] * store.groups, 0), pairs)

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        pairs = self.pairs(x.store)
        moves = state.get("balance_moves", 0)
        if moves == 0:
            state["balance_late"] = [k for k, pair in enumerate(pairs) if self.open(x.store, *pair)]
        state["balance_moves"] = moves + 1
        self.rule.apply(x, estimate, state)
        late = state["balance_late"] if moves + 1 <= self.warmup else []
        self.balance(x.store.iterate(x.rates, x.key), [pair for k, pair in enumerate(pairs) if k not in late])


@dataclass(frozen=True, slots=True)
class Balanced(_Balancing):
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

    def unscaled(self, method: Method[Any]) -> str | None:
        for part in (method.law, method.estimator, self.rule):
            if named := sorted(part.slots):
                return (
                    f"{type(part).__name__} keeps {named[0]!r} for each weight, which would stand for the factors "
                    f"before they were balanced; use a rule like SGD() and an estimator without slots, or "
                    f"BalancedNorms"
                )
        return None

    def balance(self, x: Iterate, pairs: list[tuple[Leaf, Leaf]]) -> None:
        balance(x, pairs)

    def open(self, store: Store, a: Leaf, b: Leaf) -> bool:
        return balancing(store, a, b) is None


POWERS = {"momentum": 1, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
"""The slots that `BalancedNorms` can keep in step with the factors: averages of the gradient, or of its square."""


@dataclass(frozen=True, slots=True)
class BalancedNorms(_Balancing):
    """Any rule on LoRA factors, A <- c A and B <- B / c after each move with c = (|B|_F / |A|_F)^1/2, so that
    |A|_F = |B|_F; B A does not change. What the rule remembers follows: a first moment of A is divided by c, a second
    one by c^2, those of B multiplied. (RefLoRA-S of arXiv 2505.18877.)

    The gradient in c A is 1 / c times that in A, so moments that are scaled along are those of a run in which the
    factors had these norms. Rules without slots, and those that keep averages of the gradient or of its square
    (`Momentum`, `Adam`, `AMSGrad`, `Lion`), in full precision. Runs do not depend on how (c B, A / c) was split, as far
    as the norms of the factors go; `Balanced` also turns and stretches their columns, and knows no slots.

    factors and warmup: as in `Balanced`; a pair that starts with a factor of 0 is left alone for `warmup` moves.
    Cost: two norms a pair and step. Weights in 16 bits must be split. ValueError for a store without pairs.

    >>> import zograd as zo
    >>> zo.rules.BalancedNorms(zo.rules.Adam()).warmup
    100
    """

    rule: Rule[Any]
    factors: tuple[str, str] = ("lora_A", "lora_B")
    warmup: int = 100

    @property
    def slots(self) -> Mapping[str, float]:
        return self.rule.slots

    def unscaled(self, method: Method[Any]) -> str | None:
        for part in (method.law, method.estimator, self.rule):
            for name, initial in part.slots.items():
                if part is not self.rule or name not in POWERS or isinstance(initial, BFloat16):
                    return (
                        f"{type(part).__name__} keeps {name!r} for each weight, which BalancedNorms does not know how "
                        f"to scale; use a rule like SGD(), Momentum() or Adam(), with moments='full'"
                    )
        return None

    def scale(self, store: Store, a: Leaf, b: Leaf) -> float:
        """c; 0 where a factor is 0."""
        with one_thread():
            norms = [float(matrix(store, leaf).norm()) for leaf in (a, b)]
        return math.sqrt(norms[1] / norms[0]) if min(norms) > 0.0 else 0.0

    def open(self, store: Store, a: Leaf, b: Leaf) -> bool:
        return self.scale(store, a, b) == 0.0

    def balance(self, x: Iterate, pairs: list[tuple[Leaf, Leaf]]) -> None:
        by: dict[int, float] = {}
        for a, b in pairs:
            c = self.scale(x.store, a, b)
            if c and abs(c - 1.0) > BALANCED:
                by |= {a.index: c, b.index: 1.0 / c}
        for block in x.blocks(Vector(), whole_leaf=True) if by else ():
            if (c := by.get(block.leaf.index, 0.0)) != 0.0 and x.rates[block.leaf.group].lr != 0.0:
                value = x.store.master(block.leaf).mul(c).view(-1)
                block.put_(block.v[0].copy_(value))
                for name in self.rule.slots:
                    block.slots[name].mul_(c ** -POWERS[name])


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
