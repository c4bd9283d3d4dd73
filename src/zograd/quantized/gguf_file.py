"""Load a GGUF file as a transformers model with packed matrices, and save trained scales into a copy of the file.

The blocks are mapped from the file, not copied: loading is fast, and processes share the pages. Only the rows of q and
k are copied, for models in which llama.cpp orders rotary pairs in another way. Saving copies the file and writes the
trained scales into their blocks. All other bytes (header, integers, mins) stay the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from zograd.files import replace
from zograd.hub.gguf_header import check_header
from zograd.patterns import searching
from zograd.quantized.gguf_blocks import FORMATS, Format
from zograd.quantized.packed_layers import Packed, PackedEmbedding, PackedLinear

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PAIRED = ("llama", "mistral")
"""GGUF architectures in which llama.cpp rotates neighbours (2i, 2i + 1) and transformers rotates halves."""

NORMS_PLUS_ONE = ("gemma", "gemma2", "gemma3")
"""Architectures whose norm gains are stored as 1 + w."""


class PackedError(ValueError):
    """A file is not a GGUF model, or cannot stay packed. The message names the tensor and the reason."""


@dataclass(frozen=True)
class Source:
    """The origin of a packed matrix: its name in the file, and the order of its rows (None: as in the file)."""

    tensor: str
    rows: Tensor | None


def load(
    file: str | Path, config: str | Path | None = None, *, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode with packed matrices, and its tokenizer.

    file: a .gguf file of an architecture that gguf and transformers both know.
    config: a folder with config.json and the files of the tokenizer; None: transformers reads both from the header.
    dtype: of activations and norms.

    Memory: norms and other vectors in `dtype`; matrices are mapped from the file.
    Raises GGUFError for a truncated or damaged file, PackedError for a file that is not a model and for matrices in
    formats that are not in `FORMATS`.
    """
    import gguf
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = Path(file)
    check_header(path)
    try:
        reader = gguf.GGUFReader(str(path))
        architecture = bytes(reader.fields["general.architecture"].parts[-1]).decode()
    except (OSError, ValueError, KeyError, IndexError) as e:
        raise PackedError(f"{path} is not a GGUF model: {e}") from e
    found = {"gguf_file": path.name} if config is None else {}
    folder = str(path.parent if config is None else config)
    cfg: PretrainedConfig = AutoConfig.from_pretrained(folder, **found)
    cfg.__dict__.pop("quantization_config", None)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **found)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(cfg, dtype=dtype)
    fill(model, path, reader, architecture, dtype)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.packed_file = str(path)
    model.dense_formats = {t.tensor_type.name for t in reader.tensors if len(t.shape) > 1} - set(
        map(str, FORMATS.values())
    )
    return model.eval(), tokenizer


def fill(model: PreTrainedModel, path: Path, reader: Any, architecture: str, dtype: torch.dtype) -> None:
    """Put the tensors of the file into a model without weights; matrices become packed layers."""
    names = _names(model, architecture)
    tensors = {t.name: t for t in reader.tensors}
    mapped = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c"))
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, module in list(model.named_modules()):
        for own in [key for key, p in module.named_parameters(recurse=False) if p.device.type == "meta"]:
            key = f"{name}.{own}"
            if key not in names or names[key] not in tensors:
                if key == "lm_head.weight":  # tied to the embedding
                    continue
                raise PackedError(f"{path} has no tensor for {key!r} of {type(model).__name__}")
            tensor = tensors[names[key]]
            rows = None
            if architecture in PAIRED and (part := name.rsplit(".", 1)[-1]) in heads:
                rows = _halves(int(tensor.shape[-1]), heads[part])
            if int(tensor.tensor_type) in (0, 1, 30):  # F32, F16, BF16
                value = _plain(tensor)
                if own == "weight" and architecture in NORMS_PLUS_ONE and value.ndim == 1:
                    value = value - 1.0
                value = value if rows is None else value[rows]
                setattr(module, own, nn.Parameter(value.to(dtype), requires_grad=False))
                continue
            if int(tensor.tensor_type) not in FORMATS or not isinstance(module, nn.Linear | nn.Embedding):
                known = ", ".join(map(str, FORMATS.values()))
                raise PackedError(
                    f"{tensor.name} of {path} is {tensor.tensor_type.name} in a {type(module).__name__}; zograd keeps "
                    f"linear layers and embeddings in {known} packed. Use --model without --quantized"
                )
            _replace(model, name, module, FORMATS[int(tensor.tensor_type)], tensor, mapped, rows, dtype)
    _tie(model)
    left = [k for k, p in model.named_parameters() if p.device.type == "meta"]
    if left:
        raise PackedError(f"{path} has no tensor for {left[0]!r} of {type(model).__name__}")


def _names(model: PreTrainedModel, architecture: str) -> dict[str, str]:
    """Name of a parameter -> name of its tensor in the file, by the table of the package gguf."""
    import gguf

    by_name = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in by_name:
        raise PackedError(f"the package gguf has no table of names for the architecture {architecture!r}")
    table = gguf.get_tensor_name_map(by_name[architecture], model.config.num_hidden_layers)
    found = {key: table.get_name(key, try_suffixes=(".weight", ".bias")) for key, _ in model.named_parameters()}
    return {key: name for key, name in found.items() if name is not None}


def _halves(rows: int, heads: int) -> Tensor:
    """Index of each model row in the file: pairs are neighbours (2i, 2i + 1) there, halves (i, i + d / 2) here."""
    return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)


def _plain(tensor: Any) -> Tensor:
    import gguf

    values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
    return torch.from_numpy(values.reshape(tuple(int(n) for n in reversed(tensor.shape))).copy())


def _replace(
    model: nn.Module,
    name: str,
    module: nn.Module,
    form: Format,
    tensor: Any,
    mapped: Tensor,
    rows: Tensor | None,
    dtype: torch.dtype,
) -> None:
    columns, count = (int(n) for n in tensor.shape)
    start = int(tensor.data_offset)
    blocks = mapped[start : start + int(tensor.n_bytes)].view(count, -1)
    if rows is not None:
        blocks = blocks[rows]
    layer: Packed
    if isinstance(module, nn.Embedding):
        layer = PackedEmbedding(form, blocks, columns, dtype, getattr(module, "embed_scale", None))
    else:
        layer = PackedLinear(form, blocks, columns)
        layer.bias = module.bias  # type: ignore[assignment]  # filled from the file like any other parameter
    layer.source = Source(tensor.name, rows)  # type: ignore[assignment]
    model.set_submodule(name, layer)


def _tie(model: PreTrainedModel) -> None:
    """If the head is tied to a packed embedding, make it read the blocks of the embedding."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if isinstance(head, nn.Linear) and head.weight.device.type == "meta" and isinstance(embedding, PackedEmbedding):
        model.set_output_embeddings(PackedLinear(embedding.form, embedding.blocks, embedding.columns))


def packed_layers(model: nn.Module) -> Iterator[tuple[str, Packed]]:
    """Name and module of the packed matrices of a model, without tied ones."""
    for name, module in model.named_modules():
        if isinstance(module, Packed) and hasattr(module, "source"):
            yield name, module


def linear_layers(
    model: nn.Module, pattern: str = "", keep: Callable[[nn.Module], bool] = lambda module: True
) -> Iterator[tuple[str, PackedLinear]]:
    """The packed linear layers whose names contain a match of `pattern` and that `keep` accepts."""
    layers = dict(packed_layers(model))
    names = searching(pattern, layers)
    for name, layer in layers.items():
        if isinstance(layer, PackedLinear) and keep(layer) and name in names:
            yield name, layer


def save(model: nn.Module, to: str | Path) -> dict[str, int]:
    """Write the model as GGUF: a copy of its file with the trained scales in place of the old ones.

    The scales are written as the model computes with them (`packed_layers.storable`), so the file holds the same model.
    Returns the number of `scales` written and of `bytes_changed`.
    """
    import gguf

    source = Path(model.packed_file)  # type: ignore[arg-type]
    target = Path(to)
    part = target.with_name(target.name + ".part")
    shutil.copyfile(source, part)
    written = changed = 0
    try:
        offsets = {t.name: (int(t.data_offset), int(t.n_bytes)) for t in gguf.GGUFReader(str(source)).tensors}
        data = np.memmap(part, dtype=np.uint8, mode="r+")
        for _, layer in packed_layers(model):
            scales = layer.signed()
            if scales is None:
                continue
            where: Source = layer.source  # type: ignore[assignment]
            start, size = offsets[where.tensor]
            if where.rows is not None:
                scales = scales[torch.argsort(where.rows)]
            blocks = torch.from_numpy(data[start : start + size])
            before = blocks.clone()
            layer.form.put_scales_(blocks, scales.reshape(-1))
            changed += int((blocks != before).sum())
            written += scales.numel()
        data.flush()
        del data
        replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return {"scales": written, "bytes_changed": changed}


def gguf_in(folder: str | Path) -> Path | None:
    """The .gguf file of a folder; None if there is not exactly one."""
    files = sorted(Path(folder).glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def resident_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the weights in memory: `blocks`, `masters`, `others` (tied tensors once), and all in `bfloat16`."""
    seen: set[int] = set()
    sizes = {"blocks": 0, "masters": 0, "others": 0, "bfloat16": 0}
    for module in model.modules():
        tensors: Mapping[str, Tensor | None] = {**module._parameters, **module._buffers}
        for name, tensor in tensors.items():
            if tensor is None or tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            kind = "others"
            if isinstance(module, Packed):
                kind = "blocks" if name == "blocks" else "masters" if name in ("scale", "sign") else "others"
            sizes[kind] += tensor.numel() * tensor.element_size()
            if kind == "blocks":
                assert isinstance(module, Packed)
                sizes["bfloat16"] += 2 * module.rows * module.columns
            elif kind == "others" and tensor.is_floating_point():
                sizes["bfloat16"] += 2 * tensor.numel()
    return sizes
