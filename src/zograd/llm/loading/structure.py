"""The parts of a language model: the model inside peft's wrapper, its blocks, its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from zograd.llm.loading.errors import ModelError


def blocks(model: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks: the longest ModuleList of the model that is in no other one.

    Of a model with an encoder and a decoder, that of the decoder.

    Raises ModelError if it has none.
    """
    base = plain_model(model)
    within = base.get_decoder() if has_encoder_and_decoder(base) else model
    lists = list(_outermost(within))
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of blocks; select by pattern instead of by layers")
    return max(lists, key=len)


def _outermost(module: nn.Module) -> Iterator[nn.ModuleList]:
    """The ModuleLists that are in no other one: a block may have lists of its own, of experts or of sublayers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost(child)


def has_encoder_and_decoder(base: Any) -> bool:
    """Whether a model reads its input with an encoder and writes with a decoder (T5, BART)."""
    return bool(getattr(getattr(base, "config", None), "is_encoder_decoder", False)) and hasattr(base, "get_decoder")


def vocabulary(base: Any) -> int:
    """Number of token ids: the rows of the embedding of a model."""
    embedding = base.get_input_embeddings()
    return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])


def plain_model(model: nn.Module) -> Any:
    """The transformers model itself, without peft's wrapper if there is one."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner
