"""Activation cache of the frozen prefix: if only upper blocks are trained, the states below them never change.

`record` stores the input of the first trained block once for each example. Inside `recall`, the blocks below are
replaced by a module that returns the stored states. If all trained tensors come after the attention of the last block
and only the last position is scored, the output of the attention at that position is stored as well, and a forward is
one token for each example. The results are those of the full forward, up to the rounding of matrix products of other
shapes.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from zograd.llm.loading import blocks
from zograd.llm.parts import little, without_cache
from zograd.llm.scoring.head import backbone_of
from zograd.llm.scoring.packing import Layout


def first_trained_block(model: nn.Module, trained: Iterable[Tensor]) -> int:
    """Number of blocks at the bottom without trained tensors; 0 if a tensor outside of the upper blocks is trained."""
    ids = {id(p) for p in trained}
    layers = blocks(model)
    below = 0
    for block in layers:
        if any(id(p) in ids for p in block.parameters()):
            break
        below += 1
    inside = {id(p) for p in layers.parameters()}
    behind = {id(p) for p in model.parameters()} - {id(p) for p in backbone_of(model).parameters()}
    outside = ids - inside - behind
    frozen = below and (not outside or outside <= _after_blocks(model))
    return min(below, len(layers) - 1) if frozen else 0


@torch.no_grad()
def _after_blocks(model: Any) -> set[int]:
    """Ids of the parameters that only modules after the last block use (the final norm). Cost: one forward."""
    layers = blocks(model)
    within = set(layers.modules())
    called: list[nn.Module] = []
    with without_cache(model), ExitStack() as stack:
        for module in (*(m for m in backbone_of(model).modules() if not any(m.children())), *layers):
            stack.callback(module.register_forward_pre_hook(lambda module, _: called.append(module)).remove)
        backbone_of(model)(**little(model))
    last = max((k for k, module in enumerate(called) if module in within), default=len(called))
    before = {id(p) for module in called[: last + 1] for p in module.parameters()}
    return {id(p) for module in called[last + 1 :] for p in module.parameters()} - before


def attention_of(block: nn.Module) -> tuple[str, nn.Module] | None:
    """Name and module of the attention of a block; None unless exactly one child has such a name."""
    found = [(name, child) for name, child in block.named_children() if name.endswith(("attn", "attention"))]
    return found[0] if len(found) == 1 else None


def trained_after_attention(block: nn.Module, trained: Iterable[Tensor]) -> bool:
    """Whether no trained tensor is in the block's attention or in its first norm, which is taken to feed it."""
    ids = {id(p) for p in trained}
    attention = attention_of(block)
    if attention is None:
        return False
    norms = [m for m in block.children() if "norm" in type(m).__name__.lower()]
    before = [attention[1], *norms[:1]]
    return not any(id(p) in ids for m in before for p in m.parameters())


class _Recorded(Exception):
    """Ends a forward after the last module whose output is recorded."""


class _Recall(nn.Module):
    """Replaces a module whose output is known: returns the stored states for any input."""

    def __init__(self, hidden: Tensor | None, like: Any) -> None:
        super().__init__()
        self.hidden, self.like = hidden, like

    def forward(self, hidden_states: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        out = hidden_states if self.hidden is None else self.hidden
        return (out, *(None for _ in range(self.like - 1))) if self.like else out


def _length(output: Any) -> int:
    """0 for a plain tensor, else the length of the tuple."""
    return len(output) if isinstance(output, tuple) else 0


class States:
    """Stores tensors by number: tensors of a GPU in its memory, tensors of the CPU in an unnamed temporary file.

    The file is read through the page cache, which the system can reclaim, so the stored states do not count as memory
    of the process.
    """

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}
        self._where: dict[int, tuple[int, torch.Size, torch.dtype]] = {}
        self._file: BinaryIO | None = None

    def __contains__(self, number: int) -> bool:
        return number in self._held or number in self._where

    def keep(self, number: int, states: Tensor) -> None:
        """Store a copy under this number, unless it has one already."""
        if number in self:
            return
        if states.device.type != "cpu":
            self._held[number] = states.clone()
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # it lives as long as this object
            weakref.finalize(self, self._file.close)
        where = self._file.seek(0, os.SEEK_END)
        left = states.contiguous().view(torch.uint8).numpy().reshape(-1).data
        while left:
            left = left[self._file.write(left) :]
        self._where[number] = where, states.shape, states.dtype

    def __getitem__(self, number: int) -> Tensor:
        if number in self._held:
            return self._held[number]
        where, shape, dtype = self._where[number]
        assert self._file is not None
        out = torch.empty(shape, dtype=dtype)
        self._file.seek(where)
        left = out.view(torch.uint8).numpy().reshape(-1).data
        while left:
            read = self._file.readinto(left)  # type: ignore[attr-defined]
            if not read:
                raise OSError("the temporary file of kept activations ended early; is the disk full?")
            left = left[read:]
        return out


class Prefix:
    """Stored states of `model` above its `below` frozen blocks, by the caller's number of each example.

    last_only: store and compute the last position alone (see the docstring of this module).
    Storage: tokens x width x bytes of the dtype; with last_only 2 x width x bytes for each example.
    """

    def __init__(self, model: nn.Module, below: int, *, last_only: bool = False) -> None:
        self.model, self.below, self.last_only = model, below, last_only
        self.kept, self.attended = States(), States()
        self._block_like = self._attention_like = 0

    @contextmanager
    def record(self, numbers: Sequence[int], layout: Layout) -> Iterator[None]:
        """Inside, one forward over sequences in this layout stores the states of each example, without padding."""
        layers = blocks(self.model)

        def keep(output: Any, into: States) -> int:
            hidden = output[0] if isinstance(output, tuple) else output
            for number, (row, here) in zip(numbers, layout.cells, strict=True):
                states = hidden[row, here]
                into.keep(number, states[-1:] if self.last_only else states)
            return _length(output)

        def block_done(module: nn.Module, args: Any, output: Any) -> None:
            self._block_like = keep(output, self.kept)
            if not self.last_only:
                raise _Recorded

        def attention_done(module: nn.Module, args: Any, output: Any) -> None:
            self._attention_like = keep(output, self.attended)
            raise _Recorded

        with ExitStack() as stack:
            handles = [layers[self.below - 1].register_forward_hook(block_done)]
            if self.last_only:
                attention = attention_of(layers[self.below])
                assert attention is not None
                handles.append(attention[1].register_forward_hook(attention_done))
            for handle in handles:
                stack.callback(handle.remove)
            stack.enter_context(suppress(_Recorded))  # the modules above the last hook need not run
            yield

    @contextmanager
    def recall(self, numbers: Sequence[int], layout: Layout, copies: int = 1) -> Iterator[None]:
        """Inside, a forward over `copies` copies of these examples starts at the first trained module."""
        layers = blocks(self.model)
        frozen = list(layers[: self.below])
        for i, block in enumerate(frozen):
            hidden = _batch(self.kept, numbers, layout, copies) if i == self.below - 1 else None
            stand_in = _Recall(hidden, self._block_like)
            _copy_attributes(block, stand_in)
            layers[i] = stand_in
        attention = attention_of(layers[self.below]) if self.last_only else None
        try:
            if attention is not None:
                kept = _batch(self.attended, numbers, layout, copies)
                setattr(layers[self.below], attention[0], _Recall(kept, self._attention_like))
            yield
        finally:
            for i, block in enumerate(frozen):
                layers[i] = block
            if attention is not None:
                setattr(layers[self.below], *attention)


def _batch(kept: States, numbers: Sequence[int], layout: Layout, copies: int) -> Tensor:
    """The states of several examples, each at its place in the batch, with 0 elsewhere."""
    if layout.whole:
        return torch.cat([torch.stack([kept[number] for number in numbers])] * copies)
    first = kept[numbers[0]]
    out = torch.zeros(layout.count, layout.width, first.shape[-1], dtype=first.dtype, device=first.device)
    for number, (row, here) in zip(numbers, layout.cells, strict=True):
        out[row, here] = kept[number]
    return torch.cat([out] * copies)


def _copy_attributes(block: nn.Module, stand_in: nn.Module) -> None:
    """Copy the plain attributes that models read from a block (`attention_type` and the like)."""
    for name, value in vars(block).items():
        if isinstance(value, str | int | float | bool) and not name.startswith("_") and name != "training":
            setattr(stand_in, name, value)
