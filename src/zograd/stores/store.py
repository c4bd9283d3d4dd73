"""The store: the iterate and its slots as named tensors, read and moved block by block.

A query never writes to the weights: `Store.at(point)` puts a lens (`lens/lens.py`) between the loss and the weights,
so that whatever the loss raises, the weights are bit-identical afterwards, in every dtype. Weights change in
`Iterate` and nowhere else.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from zograd import kernels, noise
from zograd.core.sums import Sum
from zograd.core.vector import (
    HALF,
    Address,
    Array,
    Basis,
    Noise,
    Vector,
    accumulation_dtype,
    fill_,
    noise_terms,
    of_signs,
)
from zograd.spaces import Euclidean, Space
from zograd.stores.master_weights import expand
from zograd.stores.sharding import Portion, local, portion_of

if TYPE_CHECKING:
    from zograd.offload.mapped import Offloaded

Rounding: TypeAlias = Literal["stochastic", "split", "nearest"]

CHUNK = 1 << 18
"""Elements a block holds: 1 MiB of float32, small enough to stay in the cache between two operations."""

MERGE = 8
"""Moves that may wait at a matrix and ride along with the probes of a forward."""

SUPPORTED = (torch.float32, torch.float64, *HALF)


class PerRow(float):
    """Initial value of a slot with `width` numbers a row (first axis) of each leaf instead of one an element."""

    width: int
    coupled = True

    def __new__(cls, value: float, width: int = 1) -> PerRow:
        self = super().__new__(cls, value)
        self.width = width
        return self


class PerLeaf(float):
    """Initial value of a slot with one number a leaf."""

    coupled = True


class Bits(float):
    """Initial value of a slot of one byte an element, that holds True or False: a mask."""


class Rate(NamedTuple):
    """How one group of leaves moves: x <- (1 - lr * weight_decay) x - lr * direction."""

    lr: float
    weight_decay: float = 0.0


@dataclass(eq=False)
class Leaf:
    """One trained tensor. `low` holds the low halves of fp32 master weights where the tensor is kept split."""

    name: str
    tensor: Tensor
    index: int
    group: int
    low: Tensor | None = None
    slots: dict[str, Tensor] = field(default_factory=dict)
    space: Space = Euclidean()
    portion: Portion | None = None
    """The part of the tensor that this process holds, when others hold the rest."""

    @property
    def flat(self) -> Tensor:
        """The elements held here in order, sharing memory; looked up afresh because users replace `param.data`."""
        return (self.tensor.detach() if self.portion is None else local(self.tensor)).view(-1)

    @property
    def numel(self) -> int:
        """Elements held here."""
        return self.total if self.portion is None else math.prod(self.portion.sizes)

    @cached_property
    def total(self) -> int:
        """Elements of the whole tensor."""
        return self.tensor.numel()

    def place(self, element: int) -> int:
        """Number in the whole tensor of an element held here."""
        return element if self.portion is None else self.portion.place(element)

    def runs(self, start: int, stop: int, size: int | None = None) -> Iterator[tuple[int, int]]:
        """Pieces of start..stop, of at most `size` elements, that each follow each other in the whole tensor."""
        run = max(self.numel, 1) if self.portion is None else self.portion.run
        while start < stop:
            end = min(start + (size or run), (start // run + 1) * run, stop)
            yield start, end
            start = end

    def gathered(self, whole: Tensor) -> Leaf:
        """The same leaf with all its elements, as a process sees them that gathered a split tensor to read it."""
        return Leaf(self.name, whole, self.index, self.group, space=self.space)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @cached_property
    def matrix_shape(self) -> tuple[int, int]:
        """As a matrix: first axis by the rest; a vector is one column, a scalar 1 x 1."""
        rows = self.shape[0] if self.shape else 1
        return rows, self.total // rows if rows else 0

    def seen(self, block: Tensor) -> Tensor:
        """A block of elements in the shape in which the leaf's space sees it."""
        if self.space.unit == "leaf":
            return block.view(self.shape)
        return block.view(-1, self.shape[-1] if self.shape else 1) if self.space.unit == "row" else block

    def retract_(self, x: Tensor, z: Tensor, slots: Mapping[str, Tensor]) -> None:
        """x <- Retr_x(lift z), for blocks of what the space sees at once; z is overwritten."""
        x, z, seen = self.seen(x), self.seen(z), self.seen
        slots = {name: seen(slots[name]) for name in self.space.slots if name in slots}
        self.space.move_(x, self.space.lift_(z, x, slots))

    def chunk(self, whole_leaf: bool = False, row: int = 1) -> int:
        """Elements of a block: whole rows of `row` elements, and all that the space has to see at once."""
        if self.space.unit == "leaf" or whole_leaf:
            return max(self.numel, 1)
        if self.space.unit == "row":
            row = math.lcm(row, max(self.shape[-1], 1) if self.shape else 1)
        return min(max(CHUNK // row, 1) * row, max(self.numel, 1))


@dataclass(slots=True)
class Block:
    """A slice of one leaf: the weights, the vectors' elements (workspace, yours to overwrite) and the slots.

    Slots with a number a row come expanded to the elements, as a copy to read; the slot itself is `leaf.slots[name]`.
    """

    leaf: Leaf
    start: int
    x: Tensor
    v: list[Tensor]
    slots: dict[str, Tensor]
    iterate: Iterate | None = None

    @property
    def lr(self) -> float:
        """The learning rate of this block's group."""
        assert self.iterate is not None
        return self.iterate.rates[self.leaf.group].lr

    def rows(self) -> slice:
        """The rows of the leaf (as a matrix) that this block touches, the first and last perhaps in part."""
        columns = max(self.leaf.matrix_shape[1], 1)
        return slice(self.start // columns, -(-(self.start + self.x.numel()) // columns))

    def step_(self, direction: Tensor) -> None:
        """x <- Retr_x(-lr * direction), with weight decay; the direction is overwritten when the space is not flat."""
        assert self.iterate is not None, "blocks of a store are read-only; a rule gets blocks that move"
        self.iterate._step_block(self, direction)

    def put_(self, value: Tensor) -> None:
        """x <- value, rounded as the store rounds: for moves that are not x + v, such as proximal ones."""
        assert self.iterate is not None, "blocks of a store are read-only; a rule gets blocks that move"
        self.iterate._put_block(self, value)


@dataclass
class Passing:
    """A move that is made in passing, from the beginning of a leaf on; `done` elements have made it."""

    iterate: Iterate
    direction: Vector
    leaf: Leaf
    done: int = 0

    def pair(self, plus: Tensor, minus: Tensor, terms: list[noise.Term]) -> None:
        """Make it on the next elements, and both sides of where it leads."""
        self.iterate.pair(self.direction, self.leaf, self.done, plus, minus, terms)
        self.done += plus.numel()


class Store:
    """Named tensors under optimization, with the geometry and the rounding of their moves.

    tensors: name -> tensor (parameters of a model, or any tensors). Float32, float64, bfloat16 or float16, contiguous.
        A tensor that occurs under several names (tied weights) is one leaf.
    rounding: how a 16-bit weight takes a step smaller than its spacing. "stochastic": up or down at random with the
        right mean, drawn from counter noise, so replay is exact. "split": exact fp32 master weights, the high half in
        the tensor that the forward uses and the low half in two more bytes a weight. "nearest": torch's rounding.
        Vectors and scalars (norm gains, biases) in 16 bits are always split: a gain of 1 would not feel a probe.
    groups: the group of each tensor (for its own learning rate), by name; default all in group 0.
    decays: factor on the weight decay of each group.
    pages: where tensors are offloaded. Views of mapped files (`offload/mapped.py`): passes over the weights ask for
        pages in advance and give them back behind. Tensors in RAM that visit a device (`offload/streamed.py`).

    Buffers are not the store's: BatchNorm in train mode updates its running statistics at every evaluation.
    Memory beyond the weights: slots that rules declare, `low`, one tile of weights in use (`lens/lens.py`).
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        space: Space | None = None,
        rounding: Rounding = "stochastic",
        groups: Mapping[str, int] | None = None,
        decays: Sequence[float] = (1.0,),
        pages: Offloaded | None = None,
    ) -> None:
        if rounding not in ("stochastic", "split", "nearest"):
            raise ValueError(f"unknown rounding {rounding!r}; use 'stochastic', 'split' or 'nearest'")
        self.space: Space = space if space is not None else Euclidean()
        self.rounding = rounding
        self.decays = tuple(decays)
        self.pages = pages
        self.late: set[int] = set()
        self._due: dict[int, list[tuple[Iterate, Vector]]] = {}
        self._complete: Iterate | None = None
        self.sides = False
        self.recent: dict[Basis, Drawn] = {}
        """Factors of the directions of the last forward in branches."""
        self._waiting: dict[int, list[kernels.Side]] = {}
        """The moves that wait at a matrix, a side each."""
        self.leaves: list[Leaf] = []
        self.by_id: dict[int, Leaf] = {}
        self._aliases: list[Tensor] = []
        by_memory: dict[tuple[Any, ...], Leaf] = {}
        for name, tensor in tensors.items():
            if id(tensor) in self.by_id:
                continue
            self._check(name, tensor)
            portion = portion_of(tensor)
            held = tensor if portion is None else local(tensor)
            memory = (tensor.device, held.data_ptr())
            if held.numel() and memory in by_memory:
                first = by_memory[memory]
                if first.tensor.shape != tensor.shape or first.dtype != tensor.dtype:
                    raise ValueError(
                        f"{name!r} and {first.name!r} share memory but differ in shape or dtype; train one of them"
                    )
                self.by_id[id(tensor)] = first
                self._aliases.append(tensor)
                continue
            group = (groups or {}).get(name, 0)
            leaf = Leaf(name, tensor, len(self.leaves), group, space=part_of(self.space, name), portion=portion)
            if leaf.dtype in HALF and (rounding == "split" or tensor.ndim <= 1):
                if portion is not None:
                    raise ValueError(
                        f"{name!r} would be kept in two halves (16-bit, {'split' if tensor.ndim > 1 else 'a vector'}), "
                        f"and it is split over processes, which is not supported together; keep it in float32, or "
                        f"leave it out of the selection"
                    )
                leaf.low = torch.zeros(tensor.numel(), dtype=torch.int16, device=tensor.device)
            self.leaves.append(leaf)
            self.by_id[id(tensor)] = by_memory[memory] = leaf
        if not self.leaves:
            raise ValueError("there is nothing to train: the selection holds no tensor")
        self.dim = sum(leaf.total for leaf in self.leaves)
        self.escaped: set[int] = set()
        self.seen: set[int] = set()
        self.pointed: set[int] = set()
        self._scratch: dict[tuple[torch.dtype, torch.device, int], Tensor] = {}
        self._warned_small = False
        self.require(self.space.slots)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: waiting moves are made, and tensors known by identity go beside their leaves."""
        self.catch_up()
        found = [(tensor, self.by_id[id(tensor)]) for tensor in self.tensors]
        return {**self.__dict__, "by_id": found, "_scratch": {}, "_complete": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.by_id = {id(tensor): leaf for tensor, leaf in state["by_id"]}
        for alias in self._aliases:  # torch copies tensors that share memory apart
            alias.data = self.by_id[id(alias)].tensor.detach()

    def _check(self, name: str, tensor: Tensor) -> None:
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} is on the meta device, with a shape and no values; load the weights first, for example with "
                f"from_pretrained without init_empty_weights, or with model.to_empty(device='cpu') and load_state_dict"
            )
        if tensor.dtype not in SUPPORTED:
            raise TypeError(
                f"{name!r} has dtype {tensor.dtype}; zograd trains float32, float64, bfloat16 and float16 tensors. "
                f"Leave it out of the selection, or train what scales it."
            )
        if not (tensor if portion_of(tensor) is None else local(tensor)).is_contiguous():
            raise ValueError(
                f"{name!r} is not contiguous (strides {tensor.stride()}); make it so, for a model with "
                f"model.to(memory_format=torch.contiguous_format)"
            )
        space = part_of(self.space, name)
        if (why := space.explain(tensor.detach())) is not None:
            raise ValueError(f"{name!r} is not in {type(space).__name__}: {why}")

    @property
    def sharded(self) -> bool:
        """Whether other processes hold parts of the weights, so that each forward waits for theirs."""
        return any(leaf.portion is not None for leaf in self.leaves)

    @property
    def tensors(self) -> list[Tensor]:
        """The trained tensors, tied ones under each of their names."""
        return [*(leaf.tensor for leaf in self.leaves), *self._aliases]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the leaves, in order."""
        return tuple(leaf.shape for leaf in self.leaves)

    # ---- slots -------------------------------------------------------------------------------------------------

    def require(self, slots: Mapping[str, float]) -> set[str]:
        """Allocate slots once, filled with their initial values; returns the names of those that are new.

        A slot has one number an element of the weights in the accumulation dtype; `PerRow`, `PerLeaf` and `Bits`
        values make smaller ones.
        """
        new = set()
        for name, value in slots.items():
            for leaf in self.leaves:
                if name not in leaf.slots:
                    new.add(name)
                    dtype = torch.bool if isinstance(value, Bits) else accumulation_dtype(leaf.dtype)
                    shape: tuple[int, ...] = (leaf.numel,)
                    if isinstance(value, PerRow):
                        shape = (leaf.matrix_shape[0], value.width)
                    elif isinstance(value, PerLeaf):
                        shape = (1, 1)
                    fill = bool(value) if isinstance(value, Bits) else float(value)
                    leaf.slots[name] = torch.full(shape, fill, dtype=dtype, device=leaf.tensor.device)
        return new

    def assign(self, writes: Mapping[str, Vector]) -> None:
        """slot <- vector for all of them at once, evaluated with the old slots."""
        for block in self.blocks(*writes.values()):
            for slot, v in zip(writes, block.v, strict=True):
                block.slots[slot].copy_(v)

    # ---- reading -----------------------------------------------------------------------------------------------

    def blocks(self, *vectors: Vector, whole_leaf: bool = False, whole_row: bool = False) -> Iterator[Block]:
        """The leaves in order, in chunks: weights, vectors' elements in a reused workspace, slots. No allocation.

        whole_leaf: one block a leaf (for matrix operations), with a workspace as large as the largest leaf.
        whole_row: blocks of whole rows (first axis by the rest), at least one, for sums over rows.
        """
        self.catch_up()
        if (whole_leaf or whole_row) and self.sharded:
            raise TypeError("this method looks at whole matrices or rows, and other processes hold parts of them")
        for leaf in self.leaves:
            flat, step = leaf.flat, leaf.chunk(whole_leaf, max(leaf.matrix_shape[1], 1) if whole_row else 1)
            for start, stop in self.pieces(leaf, step):
                slots = self._slots(leaf, start, stop)
                sources = self._sources(leaf, start, stop, slots, vectors)
                at = Address(leaf.index, leaf.place(start), leaf.shape)
                v = [
                    fill_(self.scratch(leaf, stop - start, use=1 + k), vector, at, sources)
                    for k, vector in enumerate(vectors)
                ]
                yield Block(leaf, start, flat[start:stop], v, slots)

    def pieces(self, leaf: Leaf, size: int | None = None, *, write: bool = False) -> Iterator[tuple[int, int]]:
        """Start and stop of pieces of `size` elements; None: whole, or in pieces that suit where it is offloaded."""
        if self.pages is not None:
            return self.pages.walk(leaf.tensor, size, write=write)
        if leaf.portion is not None:
            return leaf.runs(0, leaf.numel, size)
        size = max(leaf.numel, 1) if size is None else size
        return ((start, min(start + size, leaf.numel)) for start in range(0, leaf.numel, size))

    def _slots(self, leaf: Leaf, start: int, stop: int) -> dict[str, Tensor]:
        """The slots on elements start..stop; those with one number a row or leaf expanded to them."""
        slots = {}
        for name, slot in leaf.slots.items():
            if slot.ndim == 1:
                slots[name] = slot[start:stop]
            elif slot.shape == (1, 1):
                slots[name] = slot.view(1).expand(stop - start)
            elif slot.shape[1] == 1:
                columns = leaf.matrix_shape[1]
                row, offset = divmod(start, columns)
                index = torch.arange(offset, offset + stop - start, dtype=torch.int32, device=slot.device)
                slots[name] = slot.view(-1)[row:][index.div_(columns, rounding_mode="floor")]
        return slots

    def _sources(
        self, leaf: Leaf, start: int, stop: int, slots: dict[str, Tensor], vectors: Sequence[Vector]
    ) -> Mapping[str, Tensor]:
        """The tensors that vectors may name: the slots and, when asked for, the iterate."""
        if any("x" in e.reads for v in vectors for e, _ in v.terms):
            return {**slots, "x": self.master(leaf, start, stop)}
        return slots

    def master(self, leaf: Leaf, start: int = 0, stop: int | None = None) -> Tensor:
        """The weights in the accumulation dtype, with the low halves where they are split (a fresh tensor)."""
        self.catch_up([leaf])
        return expand(leaf.flat[start:stop], None if leaf.low is None else leaf.low[start:stop])

    def gram(self, vectors: Sequence[Vector]) -> Array:
        """<v_j, v_k> in frame coordinates for all pairs, in one pass. Exact integer sums between noise directions."""
        bases: list[Basis] = list(dict.fromkeys(e for v in vectors for e, _ in v.terms))
        position = {e: i for i, e in enumerate(bases)}
        coefs = np.zeros((len(vectors), len(bases)))
        for j, v in enumerate(vectors):
            for e, c in v.terms:
                coefs[j, position[e]] = c
        return np.asarray(coefs @ self._basis_gram(bases) @ coefs.T)

    def _basis_gram(self, bases: Sequence[Basis]) -> Array:
        g = np.zeros((len(bases), len(bases)))
        noises = [(j, e) for j, e in enumerate(bases) if isinstance(e, Noise)]
        at, keys = [j for j, _ in noises], [(e.kind, e.key) for _, e in noises]
        if keys:
            integers = np.zeros((len(keys), len(keys)), dtype=object)
            for leaf in self.leaves:
                integers = integers + np.asarray(noise.gram(keys, leaf.index, 0, leaf.total), dtype=object)
            g[np.ix_(at, at)] = np.asarray(integers / 2**32, dtype=np.float64)
        exact = set(itertools.product(at, at))
        sums = {(j, k): Sum() for k in range(len(bases)) for j in range(k + 1) if (j, k) not in exact}
        if sums:
            if self.sharded:
                raise TypeError(
                    "this method takes inner products of stored vectors, and other processes hold parts of them; use "
                    "one whose directions are noise"
                )
            for block in self.blocks(*(Vector(((e, 1.0),)) for e in bases)):
                for (j, k), total in sums.items():
                    total.add(block.v[j], block.v[k])
        for (j, k), total in sums.items():
            g[j, k] = g[k, j] = total.value
        return g

    def scratch(self, leaf: Leaf, numel: int, use: int, dtype: torch.dtype | None = None) -> Tensor:
        """Workspace number `use` on the leaf's device, allocated once and grown when a larger block comes."""
        dtype = dtype if dtype is not None else accumulation_dtype(leaf.dtype)
        key = (dtype, leaf.tensor.device, use)
        buffer = self._scratch.get(key)
        if buffer is None or buffer.numel() < numel:
            with torch.inference_mode(False):  # the next query may come from outside of it
                self._scratch[key] = buffer = torch.empty(numel, dtype=dtype, device=leaf.tensor.device)
        return buffer[:numel]

    def point_(self, out: Tensor, leaf: Leaf, point: Vector, start: int = 0, stop: int | None = None) -> Tensor:
        """out <- the elements start..stop of leaf at Retr_x(point), rounded to nearest in out's dtype.

        In a space that couples elements, start and stop bound whole rows or the whole leaf.
        """
        riding = self.riding(leaf)
        terms, others = noise_terms(point, on_vector=leaf.matrix_shape[1] == 1)
        stop = leaf.numel if stop is None else stop
        if leaf.space.flat and not (others or riding) and out.dtype == leaf.dtype and leaf.low is None:
            flat = leaf.flat
            for a, b in leaf.runs(start, stop):
                noise.combine(out[a - start : b - start], flat[a:b], terms=terms, leaf=leaf.index, start=leaf.place(a))
            return out
        if leaf.space.flat and not terms and leaf.low is None and all(of_signs(e) for e, _ in others):
            sides, flat, columns = [*map(sign_side, riding), *sign_sides(others, leaf)], leaf.flat, leaf.matrix_shape[1]
            made = [
                kernels.add_outer(
                    out[a - start : b - start], flat[a:b], leaf.place(a), columns, 1.0, sides,
                    one_by_one=bool(riding) and leaf.dtype == torch.float32,
                )
                for a, b in leaf.runs(start, stop)
            ]  # fmt: skip
            if None not in made:
                return out
        for a, b in leaf.runs(start, stop, leaf.chunk()):
            x = expand(leaf.flat[a:b], None if leaf.low is None else leaf.low[a:b])
            at = Address(leaf.index, leaf.place(a), leaf.shape)
            for iterate, direction in self._due[leaf.index] if riding else ():
                z = self.scratch(leaf, b - a, use=0)
                fill_(z, direction * -iterate.rates[leaf.group].lr, at, {})
                x.add_(z)
            if point:
                slots, z = self._slots(leaf, a, b), self.scratch(leaf, b - a, use=0)
                fill_(z, point, at, self._sources(leaf, a, b, slots, (point,)))
                leaf.retract_(x, z, slots)
            out[a - start : b - start].copy_(x)
        return out

    # ---- standing at a point -----------------------------------------------------------------------------------

    @contextmanager
    def at(self, point: Vector) -> Iterator[None]:
        """Inside, the loss sees Retr_x(point); the weights themselves are not written.

        Leaves that the loss reads without torch's function dispatch (scripted modules, foreign kernels) are found on
        the first query: they get `escaped`, and are then perturbed by save, write and copy back. `settled()` tells
        whether the value just obtained may be used.
        """
        from zograd.lens.lens import Lens

        saved: list[tuple[Leaf, Tensor]] = []
        try:
            for index in sorted(self.escaped):
                leaf = self.leaves[index]
                self.catch_up([leaf])
                saved.append((leaf, leaf.flat.clone()))
                self.point_(leaf.flat, leaf, point)
            if saved and self.pages is not None:
                self.pages.forget()
            with Lens(self, point):
                yield
        finally:
            for leaf, copy in saved:
                leaf.flat.copy_(copy)
            if saved and self.pages is not None:
                self.pages.forget()

    def settled(self) -> bool:
        """After a query: True, or False when leaves were found that the lens did not see (evaluate once more)."""
        unseen = [
            leaf
            for leaf in self.leaves
            if leaf.index not in self.escaped and (leaf.index not in self.seen or leaf.index in self.pointed)
        ]
        if not unseen:
            return True
        self.escaped.update(leaf.index for leaf in unseen)
        names = ", ".join(leaf.name for leaf in unseen[:3]) + (", ..." if len(unseen) > 3 else "")
        warnings.warn(
            f"the loss did not read {len(unseen)} of {len(self.leaves)} trained tensors through torch functions "
            f"({names}): they are unused, or read by compiled code. They are perturbed by copy, which is exact but "
            f"needs their size in extra memory; leave them out of the selection if they are unused.",
            stacklevel=3,
        )
        return False

    # ---- moving ------------------------------------------------------------------------------------------------

    def iterate(self, rates: Sequence[Rate], key: int) -> Iterate:
        """The iterate of one step, for a rule to move; `key` draws the stochastic rounding."""
        return Iterate(self, rates, key)

    @contextmanager
    def lazily(self, *, sides: bool = False) -> Iterator[None]:
        """Inside, a move along noise waits at each leaf until that is read: the next forward makes it in passing.

        sides: moves along one product of signs each (`RankOne`) may wait longer, up to `MERGE` of them: a forward in
        branches adds them to x W^T like the probes, without reading the weights twice, and who reads the matrix itself
        is shown it with them added. Losses then depend in their last bits on when moves are made, which no reading
        decides; so make them at steps that a resumed run knows (`catch_up`).

        What reads through the store (queries, `blocks`, `state_dict`, `digest`) finds the weights moved; who reads the
        tensors themselves calls `catch_up()` first. The bits are those of moves made at once. `health` tells of the
        step before. At the end all moves are made.
        """
        before = self.late, self.sides
        self.late, self.sides = {leaf.index for leaf in self.leaves}, sides
        try:
            yield
        finally:
            self.late, self.sides = before
            self.catch_up()

    def riding(self, leaf: Leaf) -> list[kernels.Side]:
        """The moves that go on waiting at a leaf, to be added to what is read of it; others are made."""
        if not self._due:
            return []
        if (waiting := self.waiting_sides(leaf)) is None:
            self.catch_up([leaf])
        return waiting or []

    def waiting_sides(self, leaf: Leaf) -> list[kernels.Side] | None:
        """The moves that wait at a matrix, a side each, where they may stay: few, each along one product of signs."""
        moves = self._due.get(leaf.index)
        if not moves:
            return []
        if not self.sides or len(moves) > MERGE or leaf.matrix_shape[1] == 1:
            return None
        known = self._waiting.setdefault(leaf.index, [])
        for iterate, direction in moves[len(known) :]:
            rate = iterate.rates[leaf.group]
            if len(direction.terms) != 1 or not of_signs(direction.terms[0][0]) or rate.weight_decay:
                return None
            ((e, c),) = direction.terms
            if e not in self.recent:
                self.recent[e] = Drawn(self.leaves, e)
            factors = self.recent[e][leaf.index]
            assert factors is not None  # products of signs have them on every matrix
            known.append(((-rate.lr * c,), factors))
        return known

    def catch_up(self, leaves: Sequence[Leaf] | None = None) -> list[Leaf]:
        """Make the moves that wait, of these leaves or of all; returns the leaves that were moved."""
        if not self._due:
            return []
        moved = [leaf for leaf in (self.leaves if leaves is None else leaves) if leaf.index in self._due]
        for leaf in moved:
            waiting = (self.waiting_sides(leaf) if leaf.index in self._waiting else None) or []
            sides = [*map(sign_side, waiting)]
            moves = self._due.pop(leaf.index)
            self._waiting.pop(leaf.index, None)
            if sides and self._add_sides(leaf, moves, sides):
                continue
            for start, stop in self.pieces(leaf, CHUNK if len(moves) > 1 else None, write=True):
                for k, (iterate, direction) in enumerate(moves):
                    iterate._add(direction, leaf, start, stop, sides[k : k + 1])
            self._made(moves)
        if not self._due:
            self.recent = {}
        return moved

    @contextmanager
    def passing(self, leaf: Leaf) -> Iterator[Passing | None]:
        """The one move along noise that waits at a leaf, for whoever goes over all of the leaf now; None: no such move.

        What has not been made of it at the end, whatever happens, is made then.
        """
        moves = self._due.get(leaf.index, [])
        plain = len(moves) == 1 and not noise_terms(moves[0][1], on_vector=leaf.matrix_shape[1] == 1)[1]
        whole = leaf.space.flat and leaf.low is None and leaf.portion is None and self.pages is None
        if not (plain and whole):
            yield None
            return
        ((iterate, direction),) = self._due.pop(leaf.index)
        move = Passing(iterate, direction, leaf)
        try:
            yield move
        finally:
            if move.done < leaf.numel:
                iterate._add(direction, leaf, move.done, leaf.numel)
            self._made(((iterate, direction),))

    def _made(self, moves: Sequence[tuple[Iterate, Vector]]) -> None:
        """One more leaf has made these moves."""
        for iterate, _ in moves:
            iterate.left -= 1
            self._complete = self._complete if iterate.left else iterate

    def _add_sides(self, leaf: Leaf, moves: Sequence[tuple[Iterate, Vector]], sides: list[SignSide]) -> bool:
        """The moves that wait at a matrix in one pass, with the bits of one after the other; False where it cannot.

        How many weights changed is then known of all of them together.
        """
        if leaf.dtype != torch.float32 or any(iterate.rates[leaf.group].lr == 0.0 for iterate, _ in moves):
            return False
        for start, stop in self.pieces(leaf, write=True):
            x = leaf.flat[start:stop]
            columns = leaf.matrix_shape[1]
            changed = kernels.add_outer(x, x, leaf.place(start), columns, 1.0, sides, one_by_one=True)
            if changed is None:  # of the first piece, if at all
                return False
            for iterate, _ in moves:
                iterate.changed += changed
                iterate.moved = True
        self._made(moves)
        return True

    def health(self, iterate: Iterate) -> float:
        """Fraction of the weights whose bits the step changed; warns once when steps vanish below the spacing.

        Where moves wait, that of the last step that is made everywhere (0 before one is).
        """
        if not iterate.left:
            self._complete = iterate
        elif self._complete is None:
            return 0.0
        iterate = self._complete or iterate
        fraction = iterate.changed / max(sum(leaf.numel for leaf in self.leaves), 1)
        rounded = sum(leaf.numel for leaf in self.leaves if leaf.dtype in HALF and leaf.low is None)
        if self._warned_small or not rounded or rounded < self.dim // 2 or not iterate.moved or fraction >= 0.02:
            return fraction
        self._warned_small = True
        remedy = "rounding='split' (two more bytes a trained weight) or a larger lr"
        warnings.warn(
            f"this step changed {fraction:.2%} of the 16-bit weights: it is far below their spacing, and rounding "
            f"noise outweighs it ({self.rounding} rounding). Use {remedy}.",
            stacklevel=4,
        )
        return fraction

    # ---- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, low halves and slots, by name (references, not copies)."""
        self.catch_up()
        if self.pages is not None:
            self.pages.forget()
        state = {f"x.{leaf.name}": leaf.tensor.detach() for leaf in self.leaves}
        state |= {f"low.{leaf.name}": leaf.low for leaf in self.leaves if leaf.low is not None}
        state |= {f"slot.{name}.{leaf.name}": slot for leaf in self.leaves for name, slot in leaf.slots.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy back what `state_dict` gave; refuses, before anything is written, what does not fit."""
        mine = self.state_dict()
        if missing := sorted(mine.keys() ^ state.keys()):
            raise ValueError(f"the saved state does not fit this store: {missing[0]!r} is in only one of them")
        for name, tensor in mine.items():
            if tensor.shape != state[name].shape or tensor.dtype != state[name].dtype:
                raise ValueError(
                    f"{name!r} is {tuple(tensor.shape)} {tensor.dtype} here, but {tuple(state[name].shape)} "
                    f"{state[name].dtype} in the saved state"
                )
        for name, tensor in mine.items():
            tensor.copy_(state[name])

    def digest(self) -> str:
        """SHA-256 over the weights in order of the leaves."""
        h = hashlib.sha256()
        self.catch_up()
        for leaf in self.leaves:
            for start, stop in self.pieces(leaf):
                h.update(tensor_bytes(leaf.flat[start:stop]))
        return h.hexdigest()


SignSide: TypeAlias = tuple[float, Tensor, Tensor]
"""c, u [rows], v [columns]: c u v^T."""


def sign_sides(terms: Sequence[tuple[Basis, float]], leaf: Leaf) -> list[SignSide]:
    """Products of signs (`of_signs`) on a matrix, by their factors."""
    factors = [(c, *e.factors(leaf.index, leaf.shape, leaf.tensor.device)) for e, c in terms]  # type: ignore[attr-defined]
    return [(c, u.view(-1), v.view(-1)) for c, u, v in factors]


def sign_side(side: kernels.Side) -> SignSide:
    """One product of signs as `kernels.add_outer` takes it."""
    (c,), factors = side
    return c, factors.u[0], factors.v[0]


class Drawn(dict[int, "kernels.Factors | None"]):
    """The factors of a direction, by number of the leaf: those that are asked for, and products of signs all at once.

    None: on this leaf the direction is not known to be of low rank.
    """

    def __init__(self, leaves: Sequence[Leaf], e: Basis) -> None:
        super().__init__()
        self.leaves, self.e = leaves, e
        if not of_signs(e):
            return
        for device in {leaf.tensor.device for leaf in leaves}:
            matrices = [leaf for leaf in leaves if leaf.tensor.device == device and leaf.matrix_shape[1] > 1]
            drawn = e.all_factors([(leaf.index, leaf.shape) for leaf in matrices], device)  # type: ignore[attr-defined]
            self.update((leaf.index, kernels.Factors(u, v)) for leaf, (u, v) in zip(matrices, drawn, strict=True))

    def __missing__(self, index: int) -> kernels.Factors | None:
        leaf = self.leaves[index]
        made = self.e.factors(index, leaf.shape, leaf.tensor.device) if hasattr(self.e, "factors") else None
        self[index] = None if made is None else kernels.Factors(*made)
        return self[index]


def part_of(space: Space, name: str) -> Space:
    """The space of the leaf of that name: a part of a product, otherwise the space itself."""
    of = getattr(space, "of", None)
    return space if of is None else of(name)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as they lie in memory (copied to the CPU when it is elsewhere)."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


class Iterate:
    """The moving weights of one step: a rule turns an estimate into a direction, this moves by -lr * direction.

    Every leaf is to be moved once. Weight decay is decoupled: x <- (1 - lr * weight_decay) x before the move.
    """

    def __init__(self, store: Store, rates: Sequence[Rate], key: int) -> None:
        if max(leaf.group for leaf in store.leaves) >= len(rates):
            raise ValueError(
                f"the store has leaves of group {max(g.group for g in store.leaves)}, got {len(rates)} rates"
            )
        if not store.space.flat and any(rate.weight_decay for rate in rates):
            raise ValueError(
                f"weight decay pulls towards 0, which {type(store.space).__name__} does not contain; use weight_decay=0"
            )
        self.store, self.rates, self.key = store, rates, key
        self.changed = 0
        self.left = 0
        """Leaves at which the move waits."""
        self.moved = False

    @property
    def dim(self) -> int:
        return self.store.dim

    def gram(self, vectors: Sequence[Vector]) -> Array:
        return self.store.gram(vectors)

    def blocks(self, *vectors: Vector, whole_leaf: bool = False, whole_row: bool = False) -> Iterator[Block]:
        for block in self.store.blocks(*vectors, whole_leaf=whole_leaf, whole_row=whole_row):
            block.iterate = self
            yield block

    def step_(self, direction: Vector) -> None:
        """x <- Retr_x(-lr * direction): in a flat space one pass that reads and writes each weight once."""
        if not (self.store.space.flat and all(isinstance(e, Noise) or of_signs(e) for e, _ in direction.terms)):
            for block in self.blocks(direction):
                block.step_(block.v[0])
            return
        for leaf in self.store.leaves:
            if leaf.index in self.store.late:
                self.store._due.setdefault(leaf.index, []).append((self, direction))
                self.left += 1
                continue
            for start, stop in self.store.pieces(leaf, write=True):
                self._add(direction, leaf, start, stop)

    def _add(self, direction: Vector, leaf: Leaf, start: int, stop: int, sides: Sequence[SignSide] = ()) -> None:
        """The step along noise and products of signs, on the elements start..stop of a leaf.

        sides: the step as such, where it is known.
        """
        rate = self.rates[leaf.group]
        terms, others = noise_terms(direction, -rate.lr, on_vector=leaf.matrix_shape[1] == 1)
        low = None if leaf.low is None else leaf.low[start:stop]
        if not others:
            self._write(leaf, leaf.flat[start:stop], low, start, terms=terms)
            return
        x = leaf.flat[start:stop]
        nearest = leaf.dtype not in HALF or self.store.rounding == "nearest"
        sides, columns = sides or ([] if terms else sign_sides(others, leaf)), leaf.matrix_shape[1]
        if sides and low is None and nearest and rate.lr != 0.0:
            scale = 1.0 - rate.lr * rate.weight_decay
            changed = kernels.add_outer(x, x, leaf.place(start), columns, scale, sides)
            if changed is not None:
                self.changed += changed
                self.moved = True
                return
        for a in range(start, stop, CHUNK):
            b = min(a + CHUNK, stop)
            v = self.store.scratch(leaf, b - a, use=1)
            if not sides or kernels.add_outer(v.zero_(), v, leaf.place(a), columns, 1.0, sides) is None:
                fill_(v, direction * -rate.lr, Address(leaf.index, leaf.place(a), leaf.shape), {})
            part = None if low is None else low[a - start : b - start]
            self._write(leaf, leaf.flat[a:b], part, a, dense=v)

    def pair(
        self, direction: Vector, leaf: Leaf, start: int, plus: Tensor, minus: Tensor, terms: list[noise.Term]
    ) -> None:
        """The step along noise on the elements from `start` on, then both sides of where it leads, x + v and x - v."""
        rate = self.rates[leaf.group]
        x = leaf.flat[start : start + plus.numel()]
        if rate.lr == 0.0:
            noise.combine_pair(plus, minus, x, terms=terms, leaf=leaf.index, start=start)
            return
        move, _ = noise_terms(direction, -rate.lr, on_vector=leaf.matrix_shape[1] == 1)
        stochastic = leaf.dtype in HALF and self.store.rounding == "stochastic"
        self.changed += noise.move_and_pair(
            plus, minus, x, scale=1.0 - rate.lr * rate.weight_decay, move=move,
            rounding=self.key if stochastic else None, terms=terms, leaf=leaf.index, start=start,
        )  # fmt: skip
        self.moved = True

    def _step_block(self, block: Block, direction: Tensor) -> None:
        leaf = block.leaf
        low = None if leaf.low is None else leaf.low[block.start : block.start + block.x.numel()]
        rate = self.rates[leaf.group]
        if leaf.space.flat:
            self._write(leaf, block.x, low, block.start, dense=direction, dense_coef=-rate.lr)
            return
        x = self.store.master(leaf, block.start, block.start + block.x.numel())
        leaf.retract_(x, direction.mul_(-rate.lr), block.slots)
        self._write(leaf, block.x, low, block.start, scale=0.0, dense=x)  # 0 x + Retr_x(v): exact

    def _put_block(self, block: Block, value: Tensor) -> None:
        leaf = block.leaf
        low = None if leaf.low is None else leaf.low[block.start : block.start + block.x.numel()]
        self._write(leaf, block.x, low, block.start, scale=0.0, dense=value)

    def _write(self, leaf: Leaf, x: Tensor, low: Tensor | None, start: int, **source: Any) -> None:
        rate = self.rates[leaf.group]
        if rate.lr == 0.0:  # x + 0 v is not x where x is -0 or v is not finite
            return
        stochastic = leaf.dtype in HALF and low is None and self.store.rounding == "stochastic"
        source.setdefault("scale", 1.0 - rate.lr * rate.weight_decay)
        rounding = self.key if stochastic else None
        place = leaf.place(start)
        self.changed += noise.combine(x, x, leaf=leaf.index, start=place, rounding=rounding, low=low, **source)
        self.moved = self.moved or rate.lr != 0.0
