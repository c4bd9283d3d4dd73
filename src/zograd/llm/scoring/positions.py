"""How many tokens a model takes: its positions, without those that it keeps for padding."""

from __future__ import annotations

from typing import Any

from torch import nn

NO_LIMIT = 10**9
"""Of models that know distances alone."""


def positions_of(base: Any) -> int:
    """The longest sequence that a transformers model takes; `NO_LIMIT` where its configuration names none.

    RoBERTa and its relatives count positions from the one behind that of the padding, so of max_position_embeddings
    = 514 with padding 1 there are 512. They are told by the padding of their table of positions, not by their names.
    """
    config = base.config.get_text_config()
    names = ("max_position_embeddings", "max_encoder_position_embeddings")  # the second one of LED
    limit: int = next((n for name in names if (n := getattr(config, name, None))), NO_LIMIT)
    for name, module in base.named_modules():
        table = isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2]
        if table and module.padding_idx is not None:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    return limit


def limits_of_pairs(base: Any) -> tuple[int | None, int | None]:
    """The most tokens that an encoder reads, and that its decoder writes; None for any number, as T5 takes them."""
    config = base.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    reads = getattr(config, "max_encoder_position_embeddings", None) or longest
    return reads, getattr(config, "max_decoder_position_embeddings", None) or longest
