"""The frozen prefix: when only upper blocks are trained, what the lower ones compute never changes.

`record` keeps the hidden states that enter the first trained block, once for each example; inside of `recall`, the
blocks below it are replaced by one that hands out the kept states. Exact: the same numbers that the full forward gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zograd.llm.loading import blocks


def first_trained_block(model: nn.Module, trained: Iterable[Tensor]) -> int:
    """How many blocks at the bottom hold no trained tensor; 0 when anything outside of the upper blocks is trained."""
    ids = {id(p) for p in trained}
    layers = blocks(model)
    below = 0
    for block in layers:
        if any(id(p) in ids for p in block.parameters()):
            break
        below += 1
    inside = {id(p) for block in layers for p in block.parameters()}
    tops = _after_blocks(model)
    return below if all(i in inside or i in tops for i in ids) else 0


def _after_blocks(model: nn.Module) -> set[int]:
    """Parameters used after the last block only: the final norm, and an untied head."""
    layers = blocks(model)
    owner = next(m for m in model.modules() if any(child is layers for child in m.children()))
    norms = [m for m in owner.children() if m is not layers and not isinstance(m, nn.Embedding)]
    return {id(p) for m in norms for p in m.parameters()}


class _Recall(nn.Module):
    """Stands for the block below the first trained one: returns the kept states, whatever comes in."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        self.hidden: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        assert self.hidden is not None
        return (self.hidden,) if self.as_tuple else self.hidden


class _Pass(nn.Module):
    """Stands for the blocks below that: hands on what comes in."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if self.as_tuple else hidden_states


class Prefix:
    """Hidden states above the `below` frozen blocks of `model`, by the caller's example number.

    Memory: tokens x width x bytes of the dtype (28 tokens of 576 in float32: 65 kB an example).
    """

    def __init__(self, model: nn.Module, below: int) -> None:
        self.model, self.below = model, below
        self.kept: dict[int, Tensor] = {}
        self._as_tuple = False

    @contextmanager
    def record(self, numbers: list[int], lengths: list[int]) -> Iterator[None]:
        """Inside, one forward over right-padded sequences keeps the states of each example without its padding."""
        block = blocks(self.model)[self.below - 1]

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self._as_tuple = isinstance(output, tuple)
            hidden = output[0] if self._as_tuple else output
            for row, (number, length) in enumerate(zip(numbers, lengths, strict=True)):
                self.kept[number] = hidden[row, :length].clone()

        handle = block.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def recall(self, numbers: list[int], width: int) -> Iterator[None]:
        """Inside, a forward over these examples, padded to `width`, starts at the first trained block."""
        layers, owner = blocks(self.model), None
        hidden = torch.zeros(
            len(numbers), width, self.kept[numbers[0]].shape[-1],
            dtype=self.kept[numbers[0]].dtype, device=self.kept[numbers[0]].device,
        )  # fmt: skip
        for row, number in enumerate(numbers):
            kept = self.kept[number]
            hidden[row, : len(kept)] = kept
        recall = _Recall(self._as_tuple)
        recall.hidden = hidden
        frozen = list(layers[: self.below])
        for i in range(self.below):
            owner = recall if i == self.below - 1 else _Pass(self._as_tuple)
            _attributes(frozen[i], owner)
            layers[i] = owner
        try:
            yield
        finally:
            for i, block in enumerate(frozen):
                layers[i] = block


def _attributes(block: nn.Module, stand_in: nn.Module) -> None:
    """Copy the plain attributes that models read from a block (`attention_type` and the like)."""
    for name, value in vars(block).items():
        if isinstance(value, str | int | float | bool) and not name.startswith("_") and name != "training":
            setattr(stand_in, name, value)
