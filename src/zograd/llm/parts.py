"""Which tensors of a model get a gradient from its blocks, found by one forward of a few tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from zograd.blockwise import Call, Ends, adds_to_its_input, record
from zograd.llm.loading.errors import ModelError, first_line
from zograd.llm.loading.structure import blocks, has_encoder_and_decoder, plain_model, vocabulary
from zograd.llm.recipe import BLOCKS

TRIED = 8
"""Tokens of the forward that shows what the blocks of a model do."""

SIDE = 64
"""Pixels a side of an image that shows it."""

PASSED_ON = ("relative_attention_bias",)
"""Parts of a block whose values later blocks get as an argument (T5), so that its own derivative is not all."""


@dataclass(frozen=True)
class Parts:
    """Which of the trained tensors get a gradient from blocks: those inside of them, and those behind the last one.

    tail: the names of the latter. front: the names of those in front of the first block, where the method has their
    gradient; a matrix that is embedding and output is in both. outside: the names of all others.
    """

    blocks: Sequence[nn.Module] = ()
    inside: Mapping[str, Tensor] = field(default_factory=dict)
    tail: Sequence[str] = ()
    outside: Sequence[str] = ()
    front: Sequence[str] = ()

    @property
    def ends(self) -> Ends:
        """The names of those outside of the blocks that have a gradient."""
        return Ends(self.tail, self.front)

    def last(self) -> Parts:
        """The last block and what stands behind it; all else is outside."""
        number = self.numbers[-1]
        owned = {id(p) for p in self.blocks[number].parameters()}
        inside = {name: tensor for name, tensor in self.inside.items() if id(tensor) in owned}
        below = [name for name in self.inside if name not in inside]
        tail = [name for name in self.tail if name not in self.front]
        return replace(self, inside=inside, tail=tail, front=(), outside=[*self.front, *below, *self.outside])

    @property
    def numbers(self) -> list[int]:
        """The numbers of the blocks with trained tensors."""
        owners = {id(p): number for number, block in enumerate(self.blocks) for p in block.parameters()}
        return sorted({owners[id(tensor)] for tensor in self.inside.values()})

    @property
    def deep(self) -> bool:
        """Whether something trained lies in front of the last `BLOCKS` blocks: `residual` is biased there."""
        first = 0 if self.front else min(self.numbers, default=len(self.blocks))
        return len(self.blocks) - first > BLOCKS


def parts_of(model: nn.Module, tensors: Mapping[str, Tensor], *, residual: bool, front: bool = False) -> Parts | str:
    """The trained tensors by where they stand; or, as a clause, why gradients cannot come from the blocks.

    residual: each block must add to the stream of hidden states. front: whether embeddings, and all else in front of
    the blocks, are to be found too, and the output matrix. Not where a decoder reads an encoder, or where what stands
    in front of the blocks reaches them on other ways than by the states that enter the first one.
    """
    base: Any = plain_model(model)
    try:
        found = list(blocks(base))
    except ModelError:
        return "the model has no list of blocks"
    owned = {id(p) for block in found for p in block.parameters()}
    inside = {n: t for n, t in tensors.items() if id(t) in owned and not any(part in n for part in PASSED_ON)}
    front = front and not has_encoder_and_decoder(base)
    if not (inside or front):
        return OUTSIDE
    parts = Parts(found, inside, (), [name for name in tensors if name not in inside])
    left = {id(p) for module in embeddings_and_output(base) for p in module.parameters()} if not front else set()
    candidates = {name: tensors[name] for name in parts.outside if id(tensors[name]) not in left}
    call = _tried(model, base, parts, dict(enumerate(candidates.values())), front)
    if isinstance(call, str):
        return call
    with _still(model):
        numbers = range(parts.numbers[0], len(found)) if residual and inside else ()
        other = next((k for k in numbers if not adds_to_its_input(found[k], call, k)), None)
    if other is not None:
        return (
            f"block {other} of {type(base).__name__} does not add to the hidden states that enter it (a norm behind "
            f"the sum, or a stride, for example)"
        )
    tail = [name for k, name in enumerate(candidates) if bool(call.direct[k].any())]
    before: list[str] = []
    if front and call.front is not None and not _passed_on(call):
        ramp = torch.linspace(1, 2, call.front.numel(), device=call.front.device).view_as(call.front)
        found_in_front = call.before(list(candidates.values()), ramp)  # a signal that no norm takes out
        before = [name for name, gradient in zip(candidates, found_in_front, strict=True) if bool(gradient.any())]
    if not (inside or before or tail):
        return OUTSIDE
    if front:  # half of the derivative of a matrix that is embedding and output is none
        tail = [name for name in tail if name in before or id(candidates[name]) not in embedded(base)]
    outside = [name for name in parts.outside if name not in tail and name not in before]
    return replace(parts, tail=tail, front=before, outside=outside)


OUTSIDE = "what is trained lies outside of the blocks"


def embedded(base: Any) -> set[int]:
    """The identities of the parameters of the embedding of tokens."""
    with suppress(Exception):  # models without one raise
        return {id(p) for p in base.get_input_embeddings().parameters()}
    return set()


def _passed_on(call: Call) -> bool:
    """Whether a block gets an argument that depends on what is trained in front of the blocks."""
    values = [v for args, kwargs in call.arguments.values() for v in (*args, *kwargs.values())]
    flat = [part for v in values for part in (v if isinstance(v, tuple | list) else (v,))]
    return any(isinstance(v, Tensor) and v.requires_grad for v in flat)


def embeddings_and_output(base: Any) -> list[nn.Module]:
    """The embeddings and the output matrix of a language model, which only `backprop` reaches."""
    found = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        with suppress(Exception):  # models without: some raise, some have none
            found.append(getattr(base, name)())
    return [module for module in found if isinstance(module, nn.Module)]


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Inside, forwards keep no keys and values, with which a block could not be run twice."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]  # T5's decoder has its own
    before = {id(c): (c, c.use_cache) for c in configs if getattr(c, "use_cache", None) is not None}
    try:
        for config, _ in before.values():
            config.use_cache = False
        yield
    finally:
        for config, kept in before.values():
            config.use_cache = kept


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


def _tried(model: nn.Module, base: Any, parts: Parts, tail: Mapping[int, Tensor], front: bool) -> Call | str:
    """What one forward shows, or why there is none. front: whether `tail` may stand in front of the blocks too."""
    try:
        with _still(model):
            first = 0 if front else parts.numbers[0]
            _, calls = record(
                lambda: _of_little(model, base), parts.blocks, first, keep=range(first, len(parts.blocks)), tail=tail,
                front=list(tail.values()) if front else (), inner=dict(enumerate(parts.inside.values(), len(tail))),
            )  # fmt: skip
        if len(calls) > 1:
            return f"its blocks run {len(calls)} times in one forward"
        if set(calls[0].inputs) != set(range(first, len(parts.blocks))):
            return "not all of its blocks run in a forward"
        return calls[0]
    except Exception as e:  # any model may come here, with any code
        return f"its blocks could not be tried ({type(e).__name__}: {first_line(e)[:100]})"


def _of_little(model: nn.Module, base: Any) -> Tensor:
    """A number from the outputs of a model for a small input: their mean, and what experts add to the loss."""
    found = model(**little(base))
    values = getattr(found, "logits", None)
    mean = (found[0] if values is None else values).float().mean()
    aux = getattr(found, "aux_loss", None)
    return mean if aux is None else mean + aux  # type: ignore[no-any-return]


def little(base: Any) -> dict[str, Any]:
    """A small input of a model: a few tokens, an empty image, or a spectrum without sound (Whisper)."""
    device = next(base.parameters()).device
    inputs: dict[str, Any] = {}
    kind = getattr(base, "main_input_name", "input_ids")
    if kind == "pixel_values":
        size = getattr(base.config, "image_size", None) or SIDE  # some models take any
        shape = (1, base.config.num_channels, *((size, size) if isinstance(size, int) else size))
        inputs["pixel_values"] = torch.zeros(shape, device=device, dtype=base.dtype)
    else:
        ids = torch.arange(1, TRIED + 1, device=device)[None] % vocabulary(base)
        if kind == "input_features":
            shape = (1, base.config.num_mel_bins, 2 * base.config.max_source_positions)  # a convolution halves it
            inputs[kind] = torch.zeros(shape, device=device, dtype=base.dtype)
        else:
            inputs |= {kind: ids, "attention_mask": torch.ones_like(ids)}
        if has_encoder_and_decoder(base):
            inputs["decoder_input_ids"] = ids
    return inputs
