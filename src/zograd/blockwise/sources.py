"""Where the gradient of a block's weights comes from: residual feedback, or backpropagation block by block."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from zograd.blockwise.calls import Around, Call, derivative, record
from zograd.stores import Leaf

if TYPE_CHECKING:
    from zograd.blockwise.nodes import Terms


FRONT = -1
"""The number of what stands in front of the blocks."""


@dataclass(frozen=True)
class Lookup:
    """An embedding of trained vectors that runs once in a forward, in front of the blocks.

    used: after it ran, bool [rows, width]: the tokens of the forward at which its output counts. None: its output is
    not of the tokens of the forward, and stands in front of each row (keys and values of a prefix).
    """

    module: nn.Embedding
    used: Callable[[], Tensor] | None = None


class Ends(NamedTuple):
    """The names of trained tensors outside of the blocks.

    tail: behind the last block; a forward gives their gradients. front: in front of the first one. A matrix that is
    embedding and output is in both. lookup: the embedding that the front consists of, where it is known.
    """

    tail: Collection[str] = ()
    front: Collection[str] = ()
    lookup: Lookup | None = None


NO_ENDS = Ends()


class Batch(Protocol):
    """A batch as a source sees it: forwards of the model, in the same order and of the same shape each time."""

    def loss(self) -> Tensor:
        """The mean loss, a scalar, by forwards of the model."""

    def terms(self) -> list[Terms]:
        """What the mean loss sums up, for each of these forwards."""

    def around(self) -> Around:
        """The context of the forward under way: see `record`."""

    def owners(self) -> Tensor | None:
        """The sequence of each token of the forward under way, [rows, width], -1 for padding; None: a row is one."""


class Blockwise(ABC):
    """A `zograd.stores.GradientSource` over the blocks of a model: `begin` a step with what a forward has shown.

    blocks: of the model, in order. leaves: those of the store; each of them is a parameter of one block, or one of
    `ends`. Raises ValueError for another leaf that is in no block, or in several.
    """

    adds = False
    """Whether the blocks have to add to the states that enter them (`adds_to_its_input`)."""
    reaches_front = False
    """Whether it knows the gradient of what stands in front of the blocks."""

    def __init__(self, blocks: Sequence[nn.Module], leaves: Sequence[Leaf], ends: Ends = NO_ENDS) -> None:
        tail, front, _ = ends
        if front and not self.reaches_front:
            raise ValueError(f"{type(self).__name__} has no gradient in front of the blocks; got front={list(front)}")
        self.blocks = blocks
        self.leaves: dict[int, list[Leaf]] = {}
        self.number: dict[int, int] = {}
        """The block of a leaf, by its index; for leaves behind the blocks their number, for those in front `FRONT`."""
        owners: dict[int, list[int]] = {}
        for number, block in enumerate(blocks):
            for parameter in block.parameters():
                owners.setdefault(id(parameter), []).append(number)
        for leaf in leaves:
            found = owners.get(id(leaf.tensor), [])
            if not found and (leaf.name in front or leaf.name in tail):
                found = [FRONT if leaf.name in front else len(blocks)]
            if len(found) != 1:
                where = "in no block of the model" if not found else f"in the blocks {found}"
                raise ValueError(
                    f"{leaf.name} is {where}, and its gradient is that of one block; train matrices inside of the "
                    f"blocks, for example --train 'layers.*(proj|fc)'"
                )
            self.number[leaf.index] = found[0]
            self.leaves.setdefault(found[0], []).append(leaf)
        self._tail = [leaf for leaf in leaves if leaf.name in tail and self.number[leaf.index] in (FRONT, len(blocks))]
        self.calls: list[Call] = []
        self.key = 0
        self._states: list[Tensor] = []
        self._found: dict[int, Tensor] = {}
        self.combine: Callable[[Tensor], Tensor] | None = None
        """Makes of the gradient of a leaf, flat, that of all processes: their sum or mean, as their losses are."""
        self._warned = False
        self._rest: Iterator[int] = iter(())
        self._at: int | None = None
        """The block that was visited last: its gradients are there."""

    @property
    def start(self) -> int:
        """The lowest number that is visited; what stands in front of the blocks is visited as one more block."""
        return min(*self.leaves, len(self.blocks) - 1)

    @property
    def first(self) -> int:
        """The first block that is visited."""
        return max(self.start, 0)

    @property
    def tail(self) -> dict[int, Tensor]:
        """The trained tensors behind the last block, by the index of their leaf."""
        return {leaf.index: leaf.tensor for leaf in self._tail}

    @property
    def front(self) -> list[Tensor]:
        """The trained tensors in front of the first block."""
        return [leaf.tensor for leaf in self.leaves.get(FRONT, ())]

    @property
    def kept(self) -> Collection[int]:
        """The blocks, beside the first, of which the forward keeps what enters them."""
        return ()

    @property
    def stop(self) -> int:
        """The number behind the highest that is visited; what stands behind the blocks is visited as one more block."""
        return len(self.blocks) + (len(self.blocks) in self.leaves)

    def recorded(
        self, loss: Callable[[], Tensor], around: Callable[[], Around], *, any_way: bool = False
    ) -> tuple[float, list[Call]]:
        """`record` of a loss, with all that this source needs.

        any_way: it may depend on trained tensors, and on states behind earlier blocks, on ways of their own.
        """
        tail, inner = self.tail, None
        if any_way:
            leaves = (leaf for of_block in self.leaves.values() for leaf in of_block)
            inner = {leaf.index: leaf.tensor for leaf in leaves if leaf.index not in tail}
        return record(
            loss, self.blocks, self.first, keep=self.kept, around=around, tail=tail, front=self.front, inner=inner
        )

    def observe(self, batch: Batch, key: int) -> list[float]:
        """Run the forwards of a step on a batch, and `begin`; returns the losses that they gave.

        key: of this step, for directions.
        """
        loss, calls = self.recorded(batch.loss, batch.around)
        self.begin(calls, key)
        return [loss]

    def begin(self, calls: Sequence[Call], key: int = 0) -> None:
        """The forward of a step. Its gradients are asked for once each, in the order of `order`."""
        self.calls, self.key, self._found = list(calls), key, {}
        self._rest, self._at = iter(self.visits), None

    def end(self) -> None:
        """Let go of everything of this step."""
        self.calls, self._states, self._found = [], [], {}

    @property
    @abstractmethod
    def visits(self) -> Sequence[int]:
        """The blocks in the order in which they are visited."""

    @abstractmethod
    def _visit(self, block: nn.Module, number: int, trained: Sequence[Tensor]) -> None:
        """Take the derivative of a block in its trained tensors."""

    def order(self, leaves: Sequence[Leaf]) -> Sequence[Leaf]:
        """The leaves in the order of `visits`."""
        turn = {number: k for k, number in enumerate(self.visits)}
        return sorted(leaves, key=lambda leaf: turn[self.number[leaf.index]])

    def gradient(self, leaf: Leaf) -> Tensor:
        """dL/d leaf as this source sees it, flat; zeros where it overflowed. RuntimeError: no forward was recorded."""
        if not self.calls:
            raise RuntimeError(
                "these gradients are computed from a batch, and no forward of this step was recorded: a tape alone "
                "does not replay them; go on from the state that the run has saved"
            )
        while self._at != self.number[leaf.index]:
            number = self._at = next(self._rest)
            self._found = {}
            if FRONT < number < len(self.blocks):
                self._visit(self.blocks[number], number, [leaf.tensor for leaf in self.leaves.get(number, ())])
            elif number == FRONT:
                self._visit_front()
        found = self._gathered(leaf)
        if self.combine is not None:
            found = self.combine(found)
        if not bool(found.isfinite().all()):
            if not self._warned:
                warnings.warn(
                    f"the gradient of {leaf.name} is not finite, and this tensor rests in this step; so will others, "
                    f"without another warning. Use --dtype float32 or bfloat16, or a smaller learning rate",
                    stacklevel=2,
                )
            self._warned = True
            found.zero_()
        return found

    def _visit_front(self) -> None:
        """Take the derivative of what stands in front of the blocks."""
        for call, signal in zip(self.calls, self._states, strict=True):
            self._add(FRONT, call.before(self.front, call.step_back(FRONT, signal)))

    def _gathered(self, leaf: Leaf) -> Tensor:
        """The gradient of a leaf of the block that was visited, with that outside of the blocks."""
        found = self._found.pop(leaf.index, None)
        for call in self.calls:
            if (direct := call.direct.pop(leaf.index, None)) is not None:
                found = direct.reshape(-1) if found is None else found + direct.reshape(-1)
        return torch.zeros_like(leaf.tensor).reshape(-1) if found is None else found

    def _add(self, number: int, gradients: Sequence[Tensor]) -> None:
        """Add the gradients of the leaves of a block in one call to those in the calls before."""
        for leaf, gradient in zip(self.leaves.get(number, ()), gradients, strict=True):
            self._sum(leaf, gradient)

    def _sum(self, leaf: Leaf, gradient: Tensor) -> None:
        if leaf.index in self._found:
            self._found[leaf.index].add_(gradient.reshape(-1))
        else:
            self._found[leaf.index] = gradient.reshape(-1)


class Residual(Blockwise):
    """g_l = d<H, F_l(h_l; W_l)>/dW_l with H = dL/dh_L: the identity path from each block to the loss.

    In a pre-norm transformer h_{l+1} = h_l + F_l(h_l; W_l), so dL/dh_{l+1} = H + (paths through later blocks), and
    this keeps the first term. Exact for the last block; biased elsewhere. Highway backpropagation (Fagnou et al. 2025,
    arXiv 2501.17086) with zero iterations.

    exact: the last `exact` blocks are visited backwards, from the last one on, and get dL/dh_{l+1} itself. The blocks
    before them learn from H = dL/dh_{L - exact}, which has all paths through the exact blocks. With as many as are
    trained this is `Backprop`.

    Costs a forward and one block's derivative at a time, from the first trained block on: 3 forwards of these blocks a
    step, beside the forward that is recorded. Memory: the states between two blocks, what enters each of the `exact`
    blocks, and the activations of one block.
    """

    adds = True

    def __init__(
        self, blocks: Sequence[nn.Module], leaves: Sequence[Leaf], ends: Ends = NO_ENDS, *, exact: int = 0
    ) -> None:
        super().__init__(blocks, leaves, ends)
        self.split = max(self.first, len(blocks) - exact)
        """The first of the exact blocks, or the number behind the last block."""

    @property
    def kept(self) -> Collection[int]:
        return range(self.split, len(self.blocks))

    @property
    def visits(self) -> Sequence[int]:
        return [*range(self.stop - 1, self.split - 1, -1), *range(self.first, self.split)]

    def begin(self, calls: Sequence[Call], key: int = 0) -> None:
        super().begin(calls, key)
        self._states = [call.inputs[self.first] for call in calls]

    def _visit(self, block: nn.Module, number: int, trained: Sequence[Tensor]) -> None:
        for k, call in enumerate(self.calls):
            exact = number >= self.split
            hidden = call.inputs.pop(number) if exact else self._states[k]
            if exact:
                signal = call.signal = call.step_back(number, call.behind)
            else:
                signal = call.behind_all(number)
            after, gradients, before = derivative(
                block, call, number, hidden, signal, trained, of_input=exact and number > self.first
            )
            if before is not None:
                call.signal = before
            if not exact:
                self._states[k] = after
            self._add(number, gradients)


class Backprop(Blockwise):
    """The exact gradient, by backpropagation with checkpointed blocks, each of which moves before the next is visited.

    Chen et al. 2016 (checkpoints), Lv et al. 2023 (LOMO: the update within the backward pass). Costs a forward and a
    backward of each block from the first trained one on, beside the forward that is recorded. Memory: what enters each
    of these blocks, and the activations of one block.

    recompute: of L blocks, the states that enter about sqrt(2 L) are kept (`starts`), and those between are computed
    again, from the last segment on: at most one more forward of each block.

    It goes on in front of the first block: to embeddings, and to the embeddings of virtual tokens. A matrix that is
    embedding and output gets the sum of both derivatives, and moves last.
    """

    reaches_front = True

    def __init__(
        self, blocks: Sequence[nn.Module], leaves: Sequence[Leaf], ends: Ends = NO_ENDS, *, recompute: bool = False
    ) -> None:
        super().__init__(blocks, leaves, ends)
        self.recompute = recompute

    @property
    def kept(self) -> Collection[int]:
        blocks = range(self.first, len(self.blocks))
        return starts(blocks) if self.recompute else blocks

    @property
    def visits(self) -> Sequence[int]:
        return range(self.stop - 1, self.start - 1, -1)

    def begin(self, calls: Sequence[Call], key: int = 0) -> None:
        super().begin(calls, key)
        self._states = [call.behind for call in calls]

    def _visit(self, block: nn.Module, number: int, trained: Sequence[Tensor]) -> None:
        for k, call in enumerate(self.calls):
            self._fill(call, number)
            self._states[k] = call.step_back(number, self._states[k])
            _, gradients, before = derivative(
                block, call, number, call.inputs.pop(number), self._states[k], trained, of_input=number > self.start
            )
            if before is not None:
                self._states[k] = before
            self._add(number, gradients)

    @torch.no_grad()
    def _fill(self, call: Call, number: int) -> None:
        """What enters a block, and those before it back to the last one that is kept: none of them has moved yet."""
        if number not in call.inputs:
            for k in range(max(call.inputs), number):
                call.inputs[k + 1] = call.run(self.blocks[k], k, call.inputs[k])


def starts(blocks: range) -> list[int]:
    """The first blocks of segments of 1, 2, 3, ... blocks, from the last block back.

    While a segment of j blocks is filled, what enters the j before it has been let go of: n segments, of up to
    n (n + 1) / 2 blocks, need n states at a time.

    >>> starts(range(10))
    [0, 4, 7, 9]
    """
    found, stop, size = [], blocks.stop, 1
    while stop > blocks.start:
        stop = max(stop - size, blocks.start)
        found.append(stop)
        size += 1
    return found[::-1]
