"""Which tensors of a model get a gradient from its blocks, found by one forward of a few tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from zograd.blockwise import Call, adds_to_its_input, record
from zograd.llm.loading.errors import ModelError, first_line
from zograd.llm.loading.structure import blocks, has_encoder_and_decoder, plain_model, vocabulary

TRIED = 8
"""Tokens of the forward that shows what the blocks of a model do."""

PASSED_ON = ("relative_attention_bias",)
"""Parts of a block whose values later blocks get as an argument (T5), so that its own derivative is not all."""


@dataclass(frozen=True)
class Parts:
    """Which of the trained tensors get a gradient from blocks: those inside of them, and those behind the last one.

    tail: the names of the latter. outside: the names of all others.
    """

    blocks: Sequence[nn.Module] = ()
    inside: Mapping[str, Tensor] = field(default_factory=dict)
    tail: Sequence[str] = ()
    outside: Sequence[str] = ()

    def last(self) -> Parts:
        """The last block and what stands behind it; all else is outside."""
        number = self.numbers[-1]
        owned = {id(p) for p in self.blocks[number].parameters()}
        inside = {name: tensor for name, tensor in self.inside.items() if id(tensor) in owned}
        below = [name for name in self.inside if name not in inside]
        return replace(self, inside=inside, outside=[*below, *self.outside])

    @property
    def numbers(self) -> list[int]:
        """The numbers of the blocks with trained tensors."""
        owners = {id(p): number for number, block in enumerate(self.blocks) for p in block.parameters()}
        return sorted({owners[id(tensor)] for tensor in self.inside.values()})


def parts_of(model: nn.Module, tensors: Mapping[str, Tensor], *, residual: bool) -> Parts | str:
    """The trained tensors by where they stand; or, as a clause, why gradients cannot come from the blocks.

    residual: each block must add to the stream of hidden states.
    """
    base: Any = plain_model(model)
    try:
        found = list(blocks(base))
    except ModelError:
        return "the model has no list of blocks"
    owned = {id(p) for block in found for p in block.parameters()}
    inside = {n: t for n, t in tensors.items() if id(t) in owned and not any(part in n for part in PASSED_ON)}
    if not inside:
        return "what is trained lies outside of the blocks"
    parts = Parts(found, inside, (), [name for name in tensors if name not in inside])
    ends = {id(p) for module in _ends(base) for p in module.parameters()}
    candidates = {name: tensors[name] for name in parts.outside if id(tensors[name]) not in ends}
    call = _tried(model, base, parts, list(candidates.values()))
    if isinstance(call, str):
        return call
    with _still(model):
        numbers = range(parts.numbers[0], len(found)) if residual else ()
        other = next((k for k in numbers if not adds_to_its_input(found[k], call, k)), None)
    if other is not None:
        return (
            f"block {other} of {type(base).__name__} does not add to the hidden states that enter it (a norm behind "
            f"the sum, for example)"
        )
    tail = [name for name, gradient in zip(candidates, call.tail, strict=True) if bool(gradient.any())]
    return replace(parts, tail=tail, outside=[name for name in parts.outside if name not in tail])


def _ends(base: Any) -> list[nn.Module]:
    """The embeddings and the output matrix of a language model, which methods that look at blocks do not train."""
    found = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        with suppress(Exception):  # models without: some raise, some have none
            found.append(getattr(base, name)())
    return [module for module in found if isinstance(module, nn.Module)]


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Inside, forwards keep no keys and values, with which a block could not be run twice."""
    config: Any = getattr(plain_model(model), "config", None)
    before = getattr(config, "use_cache", None)
    try:
        if before is not None:
            config.use_cache = False
        yield
    finally:
        if before is not None:
            config.use_cache = before


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode, nothing requires grad, and keys and values are not kept."""
    required, training = [p for p in model.parameters() if p.requires_grad], model.training
    try:
        model.requires_grad_(False).eval()
        with without_cache(model):
            yield
    finally:
        model.train(training)
        for p in required:
            p.requires_grad_(True)


def _tried(model: nn.Module, base: Any, parts: Parts, tail: Sequence[Tensor]) -> Call | str:
    """What one forward shows, or why there is none."""
    try:
        with _still(model):
            first = parts.numbers[0]
            _, calls = record(lambda: _of_little(model, base), parts.blocks, first, keep=True, tail=tail)
        if len(calls) > 1:
            return f"its blocks run {len(calls)} times in one forward"
        if set(calls[0].inputs) != set(range(first, len(parts.blocks))):
            return "not all of its blocks run in a forward"
        return calls[0]
    except Exception as e:  # any model may come here, with any code
        return f"its blocks could not be tried ({type(e).__name__}: {first_line(e)[:100]})"


def _of_little(model: nn.Module, base: Any) -> Tensor:
    """A number from the outputs of a model for a few tokens, or for an empty image."""
    device = next(base.parameters()).device
    inputs: dict[str, Any] = {}
    if getattr(base, "main_input_name", "input_ids") == "pixel_values":
        size = base.config.image_size
        shape = (1, base.config.num_channels, *((size, size) if isinstance(size, int) else size))
        inputs["pixel_values"] = torch.zeros(shape, device=device, dtype=base.dtype)
    else:
        ids = torch.arange(1, TRIED + 1, device=device)[None] % vocabulary(base)
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if has_encoder_and_decoder(base):
            inputs["decoder_input_ids"] = ids
    return model(**inputs)[0].float().mean()  # type: ignore[no-any-return]
