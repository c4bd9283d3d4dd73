"""The parts of a causal language model: the model inside peft's wrapper, its blocks, its vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    pass
from zograd.llm.loading.errors import ModelError


def blocks(model: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks: the longest ModuleList of the model. Raises ModelError if it has none."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of blocks; select by pattern instead of by layers")
    return max(lists, key=len)


def vocabulary(base: Any) -> int:
    """Number of token ids: the rows of the embedding of a model."""
    embedding = base.get_input_embeddings()
    return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])


def plain_model(model: nn.Module) -> Any:
    """The transformers model itself, without peft's wrapper if there is one."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner
