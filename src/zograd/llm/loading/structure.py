"""The parts of a language model: the model inside peft's wrapper, its blocks, its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from torch import Tensor, nn

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


Kind = Literal["causal", "masked", "classes", "pairs", "images", "speech"]
"""What a model predicts: the next token, masked tokens, a class of a text, an answer that a decoder writes, a class of
an image, or what is said in a recording."""

ENDINGS: dict[str, Kind] = {
    "ForMaskedLM": "masked", "ForSequenceClassification": "classes", "ForConditionalGeneration": "pairs",
    "ForImageClassification": "images",
}  # fmt: skip


def kind_of(base: Any) -> Kind:
    """The kind of a transformers model, by the name of its class, and by what it reads."""
    if getattr(base, "main_input_name", "") == "input_features" and has_encoder_and_decoder(base):
        return "speech"
    return kind_named(type(base).__name__, has_encoder_and_decoder(base))


def kind_named(architecture: str, two_parts: bool) -> Kind:
    """The kind by the name of an architecture; two_parts: whether it has an encoder and a decoder."""
    found: Kind = next((kind for ending, kind in ENDINGS.items() if architecture.endswith(ending)), "causal")
    return "causal" if found == "pairs" and not two_parts else found


def head_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a masked model or a classifier behind its backbone, with its pooler, by their names in `model`.

    Embeddings that are also the output matrix are not among them. Empty for other kinds.
    """
    base = plain_model(model)
    if kind_of(base) not in ("masked", "classes", "images"):
        return {}
    backbone = getattr(base, base.base_model_prefix)
    pooler = getattr(backbone, "pooler", None)
    inside = {id(p) for p in backbone.parameters()} - {id(p) for p in (pooler.parameters() if pooler else ())}
    output = base.get_output_embeddings() if kind_of(base) == "masked" else None
    inside |= {id(output.weight)} if output is not None else set()
    own = {id(p) for p in base.parameters()} - inside
    return {
        name: p
        for name, p in model.named_parameters()
        if id(p) in own and "lora_" not in name and ".polar_" not in name
    }


def has_encoder_and_decoder(base: Any) -> bool:
    """Whether a model reads its input with an encoder and writes with a decoder (T5, BART)."""
    return bool(getattr(getattr(base, "config", None), "is_encoder_decoder", False)) and hasattr(base, "get_decoder")


def name_classes(model: nn.Module, classes: Sequence[str]) -> None:
    """Write the names of the classes into the configuration of a classifier that has none of its own (LABEL_0, ...)."""
    base = plain_model(model)
    if kind_of(base) not in ("classes", "images") or base.config.num_labels != len(classes):
        return
    if all(str(name).startswith("LABEL_") for name in base.config.id2label.values()):
        base.config.id2label = dict(enumerate(classes))
        base.config.label2id = {name: k for k, name in enumerate(classes)}


def vocabulary(base: Any) -> int:
    """Number of token ids: the rows of the embedding of a model."""
    embedding = base.get_input_embeddings()
    return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])


def plain_model(model: nn.Module) -> Any:
    """The transformers model itself, without peft's wrapper if there is one."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner
