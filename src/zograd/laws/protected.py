"""Directions that leave what a model does on remembered inputs as it is: W [out, in] moves in their null space."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zograd.core.keys import Shared
from zograd.core.slots import BFloat16, PerColumn
from zograd.core.vector import Address, Basis, Vector, basis
from zograd.files import write_tensors
from zograd.laws.base import Draw, Law
from zograd.laws.factors import Factor, add_product_, factor, noise_factor, normals, part, product
from zograd.laws.inputs import token_rows
from zograd.laws.lowrank import check_most, check_rank
from zograd.sets.base import one_thread

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.stores import Leaf, Store

MEMORY = "memory"
"""The slot with orthonormal rows that span what is remembered, [width, columns]; rows of 0 where there are fewer."""
NOISE = 1e-12
"""Directions of inputs with less than this share of the largest energy are rounding."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What layers have read: by the name of a weight [out, in], orthonormal columns [in, width] that span its inputs.

    `NullSpace` moves a weight W only by D with D M = 0, so W x is unchanged for every x in the span of M.
    """

    by_name: Mapping[str, Tensor]

    def __call__(self, leaf: Leaf) -> Tensor:
        if leaf.name not in self.by_name:
            known = ", ".join(list(self.by_name)[:3])
            raise ValueError(f"nothing is remembered of {leaf.name!r}; train weights that are, such as {known}")
        return self.by_name[leaf.name]

    @classmethod
    def from_activations(
        cls,
        layers: Mapping[str, nn.Module],
        forwards: Iterable[Callable[[], object]],
        *,
        energy: float = 0.97,
        filled: Callable[[], Tensor | None] = lambda: None,
        before: Memory | None = None,
    ) -> Memory:
        """The directions that carry `energy` of the inputs of the layers in these forwards, of NAME.weight for each.

        From X^T X over all rows that enter a layer, its leading eigenvectors until the sum of their eigenvalues is
        `energy` of the trace (Saha et al. 2021, GPM; the rule of CoSO, arXiv 2505.11816). before: what is remembered
        already stays, counts towards the energy, and is extended. filled: which positions hold tokens, as in
        `compress.activation_norms`. Memory: in^2 float64 a layer. ValueError for an energy outside (0, 1] and layers
        that no forward reached.
        """
        if not 0.0 < energy <= 1.0:
            raise ValueError(f"energy is the share of the inputs that is remembered, in (0, 1], got {energy}")
        moments = second_moments(layers, forwards, filled)
        known = {} if before is None else dict(before.by_name)
        for name, c in moments.items():
            known[f"{name}.weight"] = extended(known.get(f"{name}.weight", c.new_zeros(len(c), 0)), c, energy)
        return cls(known)

    def shares(self) -> dict[str, float]:
        """The share of the dimensions of each weight's inputs that is taken."""
        return {name: m.shape[1] / m.shape[0] for name, m in self.by_name.items()}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Memory:
        """From a safetensors file, under the names of the weights."""
        return cls(load_file(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """To a safetensors file, in float32."""
        write_tensors(Path(path), {name: m.float().contiguous() for name, m in self.by_name.items()})


def second_moments(
    layers: Mapping[str, nn.Module], forwards: Iterable[Callable[[], object]], filled: Callable[[], Tensor | None]
) -> dict[str, Tensor]:
    """X^T X in float64 by layer, over all rows that enter it in the forwards."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        @torch.no_grad()
        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = token_rows(args[0].detach(), filled()).double().cpu()
            found[name] = found[name] + x.T @ x if name in found else x.T @ x

        return enter

    with ExitStack() as stack, torch.no_grad():
        for name, module in layers.items():
            stack.callback(module.register_forward_pre_hook(hook(name)).remove)
        for forward in forwards:
            forward()
    if missing := [name for name in layers if name not in found]:
        raise ValueError(f"no forward reached {missing[0]}; pass forwards that use the layers, or leave them out")
    return found


def extended(m: Tensor, c: Tensor, energy: float) -> Tensor:
    """M with the leading eigenvectors of what it leaves of C, until together they carry `energy` of its trace."""
    m, total = m.double(), float(c.trace())
    with one_thread():
        rest = c - m @ (m.T @ c)
        rest = rest - (rest @ m) @ m.T
        values, vectors = torch.linalg.eigh(0.5 * (rest + rest.T))
        values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
        missing = energy * total - (total - float(values.sum()))
        sums = values.cumsum(0)
        count = int((sums < missing * (1.0 - 1e-12)).sum()) + 1 if missing > 0.0 else 0
        count = min(count, int((values > NOISE * total).sum()), len(c) - m.shape[1])
        return torch.cat([m, torch.linalg.qr(vectors[:, :count] - m @ (m.T @ vectors[:, :count])).Q], dim=1)


_KEPT: dict[tuple[int, int, int, torch.device], tuple[Tensor, Factor, int, int]] = {}
"""What `_complement` has found, with the memory that it was found for."""


def _complement(right: int, rank: int, leaf: int, memory: Tensor, device: torch.device) -> tuple[Factor, int, int]:
    """B^T [r, columns] as a factor, its rank r, and the number k of free dimensions."""
    key = right, rank, leaf, device
    kept = _KEPT.get(key)
    if kept is not None and kept[0].shape == memory.shape and torch.equal(kept[0], memory):
        return kept[1:]
    with torch.inference_mode(False), one_thread():
        copy = memory.clone()
        rows = copy[copy.any(1)].double()
        columns = copy.shape[1]
        free = columns - len(rows)
        r = min(rank, free)
        n = normals(right, max(r, 1), leaf, 0, columns, device)
        for _ in range(2):
            n = n - (n @ rows.T) @ rows
        q, t = torch.linalg.qr(n.T)
        q = q * torch.where(t.diagonal() < 0.0, -1.0, 1.0)
        q = q - rows.T @ (rows @ q)
        found = factor(q.T.contiguous(), 2.0), r, free
    while len(_KEPT) >= MOST_KEPT:
        del _KEPT[next(iter(_KEPT))]
    _KEPT[key] = (copy, *found)
    return found


MOST_KEPT = 64


@basis
@dataclass(frozen=True, slots=True)
class OffMemory(Basis):
    """sqrt(k / r) U B^T: U [out, r] Gaussian of key `key`, B [in, r] orthonormal and orthogonal to the slot "memory".

    B is the Q of the QR factorisation of projected Gaussian noise of key `right`; k dimensions are free, r at most k.
    """

    key: int
    right: int
    rank: int
    low_rank: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = (MEMORY,)

    def __post_init__(self) -> None:
        check_most(self.rank)

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        b, r, free = _complement(self.right, self.rank, at.leaf, slots[MEMORY], out.device)
        if r == 0:
            return

        def multiply(rows: slice, columns: slice) -> Tensor:
            u = normals(self.key, r, at.leaf, rows.start, rows.stop - rows.start, out.device)
            return product(noise_factor(u), part(b, columns))

        add_product_(out, coef, at, multiply, math.sqrt(free / r))

    def factors(
        self, leaf: int, shape: tuple[int, ...], device: torch.device, slots: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """sqrt(k / r) U^T [r, out] and B^T [r, in] in float64; None where nothing is free, or the leaf is no matrix."""
        (high, low), r, free = _complement(self.right, self.rank, leaf, slots[MEMORY], device)
        if r == 0 or math.prod(shape[1:]) == 1:
            return None
        u = normals(self.key, r, leaf, 0, shape[0], device).mul_(math.sqrt(free / r))
        return u, high if low is None else high + low


@dataclass(frozen=True, slots=True)
class NullSpace(Law):
    """v = sqrt(k / r) U B^T on a weight W [out, in], B [in, r] orthonormal with B^T M = 0: what is remembered stays.

    memory: a `Memory`, or a function of a leaf that returns M, orthonormal [in, width] (width 0: all of it is free).
    k = in - width dimensions are free; U is fresh, B is shared for `refresh` steps. E[v v^T] is the projection onto the
    complement of M, so probes and moves are in it: W x does not change for x in the span of M, where the rule moves
    along directions (`SGD`, momenta). CoSO (arXiv 2505.11816) and GPM project gradients; here it is the probes.
    E[D_v v] = G (I - M M^T), with the variance of out x k dimensions. A weight whose inputs are all taken stands still.

    Memory: `width` numbers a column. ValueError, when a run starts, for a memory of other shapes or that is not
    orthonormal, and where no weight has a free dimension. TypeError for weight decay and rules that leave the span.

    >>> import torch, zograd as zo
    >>> w, x = torch.ones(2, 3), torch.tensor([1.0, 0.0, 0.0])
    >>> law = zo.laws.NullSpace(lambda leaf: x[:, None], rank=1)
    >>> method = zo.Method(zo.estimators.Central(1), law, zo.rules.SGD(), lr=0.1)
    >>> record = zo.Run(zo.Store({"w": w}), method).step(
    ...     zo.oracles.sequential(lambda: (w * 1.0).square().sum())
    ... )
    >>> (w @ x).tolist(), bool((w[:, 1:] != 1.0).any())
    ([1.0, 1.0], True)
    """

    memory: Callable[[Leaf], Tensor] | None = None
    rank: int = 16
    refresh: int = 100
    fixed_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_rank(self.rank, self.refresh)
        check_most(self.rank)

    @property
    def width(self) -> int:
        """The most dimensions that any weight has taken; of a function of a leaf, what a run finds out."""
        known = self.memory.by_name.values() if isinstance(self.memory, Memory) else ()
        return max([1, *(m.shape[1] for m in known)])

    @property
    def slots(self) -> Mapping[str, float]:
        return {MEMORY: PerColumn(0.0, self.width)}

    def misfit(self, method: Method[Any]) -> str | None:
        if method.weight_decay:
            return "NullSpace keeps what is remembered, and weight decay changes every weight; use weight_decay=0"
        if not method.space.flat:
            return f"NullSpace moves along straight lines, which {type(method.space).__name__} does not have"
        if any(isinstance(value, BFloat16) for value in method.rule.slots.values()):
            return "NullSpace keeps what is remembered, and bfloat16 rounds each element of a sum; use moments='full'"
        if method.rule.linear or type(method.rule).__name__ in LINEAR:
            return None
        return (
            f"NullSpace keeps what is remembered only where a move is a sum of its directions, and "
            f"{type(method.rule).__name__} changes their elements; use SGD(), SpreadSGD() or Momentum()"
        )

    def prepare(self, store: Store) -> None:
        if self.memory is None:
            raise ValueError("NullSpace has no memory; pass memory=Memory.load('file.safetensors'), or Memory(...)")
        found = []
        for leaf in store.leaves:
            m, columns = self.memory(leaf), leaf.matrix_shape[1]
            if m.ndim != 2 or m.shape[0] != columns or m.shape[1] > columns:
                raise ValueError(
                    f"{leaf.name!r} has {columns} columns, its memory is {tuple(m.shape)}: pass [in, width]"
                )
            off = m.double().T @ m.double() - torch.eye(m.shape[1], dtype=torch.float64, device=m.device)
            if m.numel() and float(off.abs().max()) > 1e-4:
                raise ValueError(f"the memory of {leaf.name!r} is not orthonormal; take torch.linalg.qr(memory).Q")
            found.append(m)
        if all(m.shape[0] == m.shape[1] for m in found):
            raise ValueError("no weight has a free dimension left; remember less (a smaller energy), or train others")
        for leaf, m in zip(store.leaves, found, strict=True):
            slot = leaf.slots[MEMORY]
            if len(slot) < m.shape[1]:
                leaf.slots[MEMORY] = slot = slot.new_zeros(m.shape[1], slot.shape[1])
            slot.zero_()[: m.shape[1]] = m.T

    def __call__(self, draw: Draw) -> Vector:
        return Vector(((OffMemory(draw.key, draw.shared(Shared.RIGHT, self.refresh), self.rank), 1.0),))


LINEAR = ("Momentum", "SpreadSGD")
"""Rules beyond the linear ones whose moves are sums of past estimates."""
