"""The moving weights of one step: the only place where weights change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from zograd import kernels, noise
from zograd.core.vector import HALF, Address, Array, Noise, Vector, fill_, noise_terms, of_signs
from zograd.stores.leaf import Block, Leaf
from zograd.stores.low_rank import SignSide, sign_sides

if TYPE_CHECKING:
    from zograd.stores import Store


class Rate(NamedTuple):
    """How one group of leaves moves: x <- (1 - lr * weight_decay) x - lr * direction."""

    lr: float
    weight_decay: float = 0.0


class Iterate:
    """The moving weights of one step: a rule turns an estimate into a direction, this moves by -lr * direction.

    key: of the stochastic rounding; or what makes it, which is called when it is read, for most weights need none.
    Every leaf is to be moved once. Weight decay is decoupled: x <- (1 - lr * weight_decay) x before the move.
    """

    def __init__(self, store: Store, rates: Sequence[Rate], key: int | Callable[[], int]) -> None:
        if store.groups > len(rates):
            raise ValueError(f"the store has leaves of group {store.groups - 1}, got {len(rates)} rates")
        if not store.space.flat and any(rate.weight_decay for rate in rates):
            raise ValueError(
                f"weight decay pulls towards 0, which {type(store.space).__name__} does not contain; use weight_decay=0"
            )
        self.store, self.rates, self._key = store, rates, key
        self.changed = 0
        self._counters: dict[torch.device, Tensor | None] = {}
        self.left = 0
        """Leaves at which the move is pending."""
        self.moved = False

    @cached_property
    def key(self) -> int:
        """The key of the stochastic rounding of this step."""
        return self._key if isinstance(self._key, int) else self._key()

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
        if not (self.store.space.flat and all([isinstance(e, Noise) or of_signs(e) for e, _ in direction.terms])):
            for block in self.blocks(direction):
                block.step_(block.v[0])
            return
        together: dict[tuple[torch.device, int, tuple[noise.Term, ...]], list[Leaf]] = {}
        for leaf in self.store.leaves:
            if self.store.deferred.take(self, direction, leaf):
                continue
            if self.store.grouped(leaf):
                terms, others = noise_terms(direction, -self.rates[leaf.group].lr, on_vector=leaf.matrix_shape[1] == 1)
                if not others:
                    together.setdefault((leaf.tensor.device, leaf.group, tuple(terms)), []).append(leaf)
                    continue
            for start, stop in self.store.pieces(leaf, write=True):
                self.add(direction, leaf, start, stop)
        for (_, group, common), leaves in together.items():
            self._add_together(leaves, self.rates[group], common)

    def _add_together(self, leaves: Sequence[Leaf], rate: Rate, terms: Sequence[noise.Term]) -> None:
        """The step along noise on whole leaves of one group, in one launch; the count stays on the device."""
        if rate.lr == 0.0:
            return
        device = leaves[0].tensor.device
        if device not in self._counters:
            self._counters[device] = noise.counter(device)
        self.changed += noise.combine_group(
            [noise.Job(leaf.flat, leaf.flat, leaf.index, 0, None, leaf.low) for leaf in leaves],
            scale=1.0 - rate.lr * rate.weight_decay,
            terms=terms,
            rounding=self.key if self.store.rounding == "stochastic" else None,
            counter=self._counters[device],
        )
        self.moved = True

    def counted(self) -> int:
        """Elements whose bits changed so far; waits for the devices that counted some."""
        if not self._counters:
            return self.changed
        return self.changed + sum(int(count) for count in self._counters.values() if count is not None)

    def add(self, direction: Vector, leaf: Leaf, start: int, stop: int, sides: Sequence[SignSide] = ()) -> None:
        """The step along noise and products of signs, on the elements start..stop of a leaf.

        sides: the step as such, where it is known.
        """
        rate = self.rates[leaf.group]
        terms, others = noise_terms(direction, -rate.lr, on_vector=leaf.matrix_shape[1] == 1)
        low = None if leaf.low is None else leaf.low[start:stop]
        x = leaf.flat if stop - start == leaf.numel else leaf.flat[start:stop]
        if not others:
            self._write(leaf, x, low, start, terms=terms)
            return
        nearest = leaf.dtype not in HALF or self.store.rounding == "nearest"
        sides, columns = sides or ([] if terms else sign_sides(others, leaf)), leaf.matrix_shape[1]
        if sides and low is None and nearest and rate.lr != 0.0:
            scale = 1.0 - rate.lr * rate.weight_decay
            changed = kernels.add_outer(x, x, leaf.place(start), columns, scale, sides)
            if changed is not None:
                self.changed += changed
                self.moved = True
                return
        for a in range(start, stop, leaf.block):
            b = min(a + leaf.block, stop)
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
