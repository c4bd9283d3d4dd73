"""Choose the trained tensors: all, adapters, a pattern of names, or the scales of a quantized model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from zograd.patterns import PatternError, matching

if TYPE_CHECKING:
    pass
from zograd.llm.loading.errors import ModelError
from zograd.llm.loading.structure import blocks, head_of
from zograd.llm.loading.virtual import PARTS

ADAPTERS = ("lora", "polar")
"""Parts that are adapters of linear layers, attached before they are chosen."""


def select(model: nn.Module, train: str, *, layers: int | None = None) -> dict[str, Tensor]:
    """The tensors to train, name -> tensor.

    train: "full": all parameters. "lora", "polar": adapters, "prompt" and "prefix": virtual tokens, which
        have been attached before. "scales": the scales of quantized matrices (not of embeddings) of a packed GGUF or of
        another library, as float32 masters, which are made here.
        "scales:PATTERN": those of layers in whose names the regular expression is found ("scales:mlp"). Anything else
        is a pattern of parameter names: with letters, dots, "*" and "?" only, a shell pattern for whole names
        ("*.q_proj.weight"); otherwise a regular expression that is searched in the name ("(q|v)_proj").
    layers: keep only tensors of the top `layers` blocks. The head of a masked model or a classifier is trained with
        them, and with adapters.

    Raises ModelError if nothing is selected.

    >>> import torch
    >>> list(select(torch.nn.ModuleDict({"up": torch.nn.Linear(2, 2), "down": torch.nn.Linear(2, 2)}), "up.*"))
    ['up.weight', 'up.bias']
    """
    if is_scales(train):
        return scales(model, train, layers)
    named: dict[str, Tensor] = dict(model.named_parameters())
    if train == "full":
        check_dense(model)
        chosen = named
    elif train == "lora":
        chosen = {k: p for k, p in named.items() if "lora_" in k}
    elif train == "polar":
        chosen = {k: p for k, p in named.items() if ".polar_" in f".{k}"}
    elif train in PARTS:
        chosen = {k: p for k, p in named.items() if k.startswith("prompt_encoder.")}
    else:
        try:
            names = matching(train, named)
        except PatternError as e:
            raise ModelError(f"--train is neither full, lora, polar, prefix, prompt nor a valid pattern: {e}") from e
        chosen = {k: p for k, p in named.items() if k in names}
    if layers is not None:
        kept = {id(p) for block in list(blocks(model))[-layers:] for p in block.parameters()} if layers else set()
        chosen = {k: p for k, p in chosen.items() if id(p) in kept}
    if train in ("full", *ADAPTERS):
        chosen = chosen | head_of(model)
    if not chosen:
        raise ModelError(f"--train {train!r} selects no parameter; names look like {', '.join(list(named)[:3])}")
    return chosen


def check_dense(model: nn.Module) -> None:
    """Raise ModelError for a model whose matrices are packed or quantized: "full" would mean its norms alone."""
    from zograd.quantized import libraries

    if hasattr(model, "packed_file") or libraries.is_quantized(model):
        raise ModelError(
            "--train full trains all weights, and the matrices of this model are packed integers; use --train lora or "
            "--train scales, or a pattern of tensors that are not packed, such as norm"
        )


def is_scales(train: str) -> bool:
    """Whether a selection asks for scales."""
    return train.partition(":")[0] == "scales"


def scales(model: nn.Module, train: str, layers: int | None) -> dict[str, Tensor]:
    """The scales of the quantized linear layers; with `layers`, of the top blocks only."""
    from zograd.quantized import libraries, quantizing
    from zograd.quantized.gguf_blocks import FORMATS
    from zograd.quantized.gguf_file import linear_layers

    pattern = train.partition(":")[2]
    kept = None if layers is None else {id(m) for block in list(blocks(model))[-layers:] for m in block.modules()}

    def keep(module: nn.Module) -> bool:
        return kept is None or id(module) in kept

    try:
        layers_ = list(linear_layers(model, pattern, keep))
    except PatternError as e:
        raise ModelError(f"--train scales:PATTERN: {e}") from e
    chosen: dict[str, Tensor] = {f"{n}.scale": layer.masters() for n, layer in layers_}
    try:
        handles = libraries.discover(model)
        chosen |= libraries.masters(model, pattern, keep)
    except libraries.LibraryError as e:
        raise ModelError(str(e)) from e
    if chosen:
        return chosen
    names = [name for name, _ in linear_layers(model)] + [handle.name for handle in handles]
    if names:
        raise ModelError(f"--train {train} selects no layer; names look like {names[0]}")
    if hasattr(model, "packed_file"):
        found = ", ".join(sorted(model.dense_formats)) or "no format that has any"  # type: ignore[arg-type]
        raise ModelError(
            f"--train {train}: the matrices of {model.packed_file} are in {found}, which has no scales; give a file in "
            f"{', '.join(map(str, FORMATS.values()))}, or train lora"
        )
    if kinds := libraries.unknown(model):
        raise ModelError(
            f"--train {train}: zograd does not know the scales of {', '.join(kinds)}; it knows {libraries.KNOWN}, and "
            f"packed GGUF"
        )
    raise ModelError(
        f"--train {train} needs a quantized model: add --quantized (a .gguf, kept packed) or --quantize nf4 (there are "
        f"{', '.join(quantizing.QUANTIZE)}), or train lora or full"
    )


def decay_groups(chosen: Mapping[str, Tensor]) -> dict[str, int]:
    """Parameter groups: group 0 has weight decay; group 1 (tensors with one axis: biases and norm gains) has none."""
    return {name: int(p.ndim <= 1) for name, p in chosen.items()}
