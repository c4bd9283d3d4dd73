"""A leaf is one trained tensor; a block is a slice of it with what a rule needs there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from zograd import noise
from zograd.core.vector import HALF, Address, Vector, fill_
from zograd.spaces import Euclidean, Space
from zograd.stores.sharding import Portion, local

if TYPE_CHECKING:
    from zograd.stores.iterate import Iterate

CHUNK = 1 << 18
"""Elements a block holds: 1 MiB of float32, small enough to stay in the cache between two operations."""

SUPPORTED = (torch.float32, torch.float64, *HALF)


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
    block: ClassVar[int] = CHUNK
    """Elements of a block of any leaf."""

    @property
    def flat(self) -> Tensor:
        """The elements that this process holds, sharing memory. Looked up each time: users replace `param.data`."""
        tensor = self.tensor
        if self.portion is not None:
            return local(tensor).view(-1)
        if tensor.ndim == 1 and not tensor.requires_grad:  # each operation of torch takes a microsecond
            return tensor
        return tensor.detach().view(-1)

    @property
    def numel(self) -> int:
        """Number of elements that this process holds."""
        return self.total if self.portion is None else math.prod(self.portion.sizes)

    @cached_property
    def total(self) -> int:
        """Number of elements of the whole tensor."""
        return self.tensor.numel()

    def place(self, element: int) -> int:
        """Index in the whole tensor of an element that this process holds."""
        return element if self.portion is None else self.portion.place(element)

    def runs(self, start: int, stop: int, size: int | None = None) -> Iterator[tuple[int, int]]:
        """Pieces of start..stop of at most `size` elements, each contiguous in the whole tensor."""
        run = max(self.numel, 1) if self.portion is None else self.portion.run
        while start < stop:
            end = min(start + (size or run), (start // run + 1) * run, stop)
            yield start, end
            start = end

    def gathered(self, whole: Tensor) -> Leaf:
        """The same leaf with all its elements, for a process that gathered a split tensor to read it."""
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
        """A block of elements in the shape that the leaf's space works on."""
        if self.space.unit == "leaf":
            return block.view(self.shape)
        return block.view(-1, self.shape[-1] if self.shape else 1) if self.space.unit == "row" else block

    def retract_(self, x: Tensor, z: Tensor, slots: Mapping[str, Tensor]) -> None:
        """x <- Retr_x(lift z), for blocks of what the space sees at once; z is overwritten."""
        x, z, seen = self.seen(x), self.seen(z), self.seen
        slots = {name: seen(slots[name]) for name in self.space.slots if name in slots}
        self.space.move_(x, self.space.lift_(z, x, slots))

    def frame_gradient(self, gradient: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        """lift^T of the derivative df/dx of the whole leaf, flat: its gradient in frame coordinates."""
        seen = {name: self.seen(slots[name]) for name in self.space.slots if name in slots}
        return self.space.colift_(self.seen(gradient.to(x.dtype)), self.seen(x), seen).reshape(-1)

    def chunk(self, whole_leaf: bool = False, row: int = 1) -> int:
        """Elements of a block: whole rows of `row` elements, and all that the space has to see at once."""
        if self.space.unit == "leaf" or whole_leaf:
            return max(self.numel, 1)
        if self.space.unit == "row":
            row = math.lcm(row, max(self.shape[-1], 1) if self.shape else 1)
        return min(max(self.block // row, 1) * row, max(self.numel, 1))


def by_row(slot: Tensor, columns: int, start: int, stop: int) -> Tensor:
    """One number a row, expanded to the elements start..stop of a matrix with so many columns."""
    row, offset = divmod(start, columns)
    index = torch.arange(offset, offset + stop - start, dtype=torch.int32, device=slot.device)
    return slot[row:][index.div_(columns, rounding_mode="floor")]


class Expanded(MutableMapping[str, Tensor]):
    """Slots of a block; those of `later` take three times its memory, and are made when they are first read."""

    def __init__(self, slots: dict[str, Tensor], later: dict[str, Callable[[], Tensor]]) -> None:
        self.slots, self.later = slots, later

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.slots:
            self.slots[name] = self.later[name]()
        return self.slots[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.slots[name] = value

    def __delitem__(self, name: str) -> None:
        del self.slots[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.slots, *self.later)))

    def __len__(self) -> int:
        return len(self.slots.keys() | self.later.keys())


@dataclass(slots=True)
class Block:
    """A slice of one leaf: the weights, the vectors' elements (workspace, yours to overwrite) and the slots.

    Slots with a number a row come expanded to the elements, as a copy to read; the slot itself is `leaf.slots[name]`.
    """

    leaf: Leaf
    start: int
    x: Tensor
    v: list[Tensor]
    slots: MutableMapping[str, Tensor]
    iterate: Iterate | None = None

    @property
    def stop(self) -> int:
        return self.start + self.x.numel()

    @property
    def lr(self) -> float:
        """The learning rate of this block's group."""
        assert self.iterate is not None
        return self.iterate.rates[self.leaf.group].lr

    def fill_(self, out: Tensor, vector: Vector) -> Tensor:
        """out <- the elements of a vector on this block. It may name slots of the store, but not "x"."""
        return fill_(out, vector, Address(self.leaf.index, self.leaf.place(self.start), self.leaf.shape), self.slots)

    def restore_(self, value: Tensor) -> None:
        """x <- value, an iterate of before: bit for bit (to the rounding of its float32, where float16 is split)."""
        if self.leaf.low is None:
            self.x.copy_(value)
        else:
            noise.combine(self.x, None, dense=value, low=self.leaf.low[self.start : self.stop])

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


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as they lie in memory (copied to the CPU when it is elsewhere)."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
