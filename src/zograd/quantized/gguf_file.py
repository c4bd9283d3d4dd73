"""Load a GGUF file as a transformers model with packed matrices, and save trained scales into a copy of the file.

The blocks are mapped from the file, not copied: loading is fast, and processes share the pages. Only the rows of q, k
and v are copied, for models in which llama.cpp orders them in another way. Saving copies the file and writes the
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

PAIRED = ("arcee", "granite", "llama", "mistral", "olmo", "smollm3")
"""GGUF architectures in which llama.cpp rotates neighbours (2i, 2i + 1) and transformers rotates halves."""

FUSED = ("bloom", "falcon", "gptneox")
"""Architectures with q, k and v in one matrix: all of q, k, v in the file, head by head in transformers."""

NORMS_PLUS_ONE = ("gemma", "gemma2", "gemma3", "nemotron")
"""Architectures whose norm gains are stored as 1 + w."""

UNCHANGED = (
    "chatglm", "cohere2", "command-r", "ernie4_5", "exaone4", "glm4", "gpt2", "hunyuan-dense", "olmo2", "phi2", "phi3",
    "qwen2", "qwen3", "seed_oss", "stablelm", "starcoder2",
)  # fmt: skip
"""Architectures whose tensors are stored as they are, but for the axes of a `Conv1D` (gpt2).

Others are refused, because a tensor that llama.cpp has changed would be read as if it had not: experts, the A of a
state space (mamba), per-layer heads (deci). Source: conversion/*.py of llama.cpp, and the tensor processors of
transformers (modeling_gguf_pytorch_utils.py).
"""

ARCHITECTURES = frozenset(PAIRED + FUSED + NORMS_PLUS_ONE + UNCHANGED)


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
    Raises GGUFError for a truncated or damaged file, PackedError for a file that is not a model, for an architecture
    that is not in `ARCHITECTURES`, for matrices in formats that are not in `FORMATS`, and for tensors that the model
    does not take.
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
    _check_kind(path, architecture)
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


def _check_kind(path: Path, architecture: str) -> None:
    """Raise PackedError for an architecture that is not handled, and for a file in the other byte order."""
    if architecture not in ARCHITECTURES:
        raise PackedError(
            f"{path} is a model of the architecture {architecture!r}, and zograd keeps the matrices of "
            f"{', '.join(sorted(ARCHITECTURES))} packed: of others it does not know how the file changes the weights. "
            f"Leave --quantized out, or take the safetensors of the model"
        )
    with path.open("rb") as file:
        version = file.read(8)[4:]
    if version[:2] == b"\0\0":  # the high half of a small number comes first
        raise PackedError(
            f"{path} is a big-endian file, and its blocks are read where they lie, as little-endian ones. Convert it "
            f"with `gguf-convert-endian FILE little` of the package gguf"
        )


def fill(model: PreTrainedModel, path: Path, reader: Any, architecture: str, dtype: torch.dtype) -> None:
    """Put the tensors of the file into a model without weights; matrices become packed layers.

    Raises PackedError for a tensor that is missing, has another shape, or is left over.
    """
    from transformers.pytorch_utils import Conv1D

    names = _names(model, architecture)
    tensors = {t.name: t for t in reader.tensors}
    rest = dict(tensors)
    mapped = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c"))
    head = model.get_output_embeddings()
    for name, found in list(model.named_modules()):
        module = found
        for own, p in list(found.named_parameters(recurse=False)):
            if p.device.type != "meta":
                continue
            key = f"{name}.{own}"
            tensor = tensors.get(names.get(key, ""))
            if tensor is None:
                if found is head and own == "weight":  # tied to the embedding
                    continue
                raise PackedError(f"{path} has no tensor for {key!r} of {type(model).__name__}")
            rest.pop(tensor.name, None)
            turned = own == "weight" and isinstance(module, Conv1D)
            shape = tuple(int(n) for n in (tensor.shape if turned else reversed(tensor.shape)))
            if shape != tuple(p.shape):
                raise PackedError(
                    f"{tensor.name} of {path} has the shape {shape}, and {key!r} of {type(model).__name__} has "
                    f"{tuple(p.shape)}: the configuration is that of another model. Put the config.json of this one "
                    f"beside the file"
                )
            rows = _rows(model, architecture, name, shape[0])
            if int(tensor.tensor_type) in (0, 1, 30):  # F32, F16, BF16
                value = _plain(tensor)
                if own == "weight" and architecture in NORMS_PLUS_ONE and value.ndim == 1:
                    value = value - 1.0
                value = value.t() if turned else value if rows is None else value[rows]
                setattr(module, own, nn.Parameter(value.to(dtype).contiguous(), requires_grad=False))
                continue
            if int(tensor.tensor_type) not in FORMATS or not isinstance(module, nn.Linear | nn.Embedding):
                known = ", ".join(map(str, FORMATS.values()))
                raise PackedError(
                    f"{tensor.name} of {path} is {tensor.tensor_type.name} in a {type(module).__name__}; zograd keeps "
                    f"linear layers and embeddings in {known} packed. Use --model without --quantized"
                )
            module = _replace(model, name, module, FORMATS[int(tensor.tensor_type)], tensor, mapped, rows, dtype)
    _tie(model)
    left = [k for k, p in model.named_parameters() if p.device.type == "meta"]
    if left:
        raise PackedError(f"{path} has no tensor for {left[0]!r} of {type(model).__name__}")
    _check_rest(model, path, rest)


def _check_rest(model: PreTrainedModel, path: Path, rest: Mapping[str, Any]) -> None:
    """Raise PackedError for tensors of the file that the model does not take: it would compute other numbers.

    Factors of rotary frequencies are no weights in transformers, whose configuration holds what they are made from:
    they only have to agree with it. (A configuration that is read from the header of a file has none.)
    """
    wrong = sorted(name for name, t in rest.items() if not _rope_agrees(model, name, t))
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise PackedError(
            f"{path} holds {', '.join(wrong[:5])}{more}, which {type(model).__name__} does not take with its "
            f"configuration, so it would compute other numbers than the file is for. Put the config.json of this model "
            f"beside the file (rope_scaling, attention_bias ... stand there), or take the safetensors of the model"
        )


def rope_left_out(path: Path, model: PreTrainedModel) -> list[str]:
    """Factors of rotary frequencies in a .gguf file that a model of transformers, loaded from it, computes without."""
    import gguf

    found = {t.name: t for t in gguf.GGUFReader(str(path)).tensors if t.name.startswith("rope_")}
    return sorted(name for name, tensor in found.items() if not _rope_agrees(model, name, tensor))


def _rope_agrees(model: PreTrainedModel, name: str, tensor: Any) -> bool:
    """Whether a tensor holds the factors by which the model divides its rotary frequencies theta^(-i / n), i < n."""
    c = model.config
    rope = getattr(c, "rope_parameters", None) or getattr(c, "rope_scaling", None) or {}
    kept = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
    if name in kept:
        of_config = torch.tensor(rope.get(kept[name]) or [], dtype=torch.float32)
        factors = _plain(tensor)
        return of_config.shape == factors.shape and torch.allclose(of_config, factors, rtol=1e-4)
    if name != "rope_freqs.weight":
        return False
    factors = _plain(tensor)
    theta = float(rope.get("rope_theta") or getattr(c, "rope_theta", None) or 10000.0)
    plain = theta ** (-torch.arange(len(factors)) / len(factors))
    used = [b for key, b in model.named_buffers() if key.endswith("rotary_emb.inv_freq")]
    return bool(used) and all(
        b.shape == plain.shape and torch.allclose(b.float() * factors, plain, rtol=1e-3, atol=0.0) for b in used
    )


def _names(model: PreTrainedModel, architecture: str) -> dict[str, str]:
    """Name of a parameter -> name of its tensor in the file, by the table of the package gguf."""
    import gguf

    by_name = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in by_name:
        raise PackedError(f"the package gguf has no table of names for the architecture {architecture!r}")
    table = gguf.get_tensor_name_map(by_name[architecture], model.config.num_hidden_layers)
    bare = f"{model.base_model_prefix}."  # some tables have the names of a model without its head (bloom)
    names: dict[str, str] = {}
    for key, _ in model.named_parameters(remove_duplicate=False):
        for known in (key.removeprefix(bare), key):
            name = table.get_name(known, try_suffixes=(".weight", ".bias"))
            if name is not None:
                names[key] = name
    return names


def _rows(model: PreTrainedModel, architecture: str, name: str, rows: int) -> Tensor | None:
    """Index in the file of each row of a matrix (or number of a bias) of the model; None: in the order of the file."""
    part, c = name.rpartition(".")[2], model.config
    if architecture in PAIRED and part in ("q_proj", "k_proj"):
        return _halves(rows, c.num_attention_heads if part == "q_proj" else c.num_key_value_heads)
    if architecture in FUSED and part == "query_key_value":
        groups = c.num_attention_heads
        if getattr(c, "new_decoder_architecture", False):
            groups = c.num_kv_heads
        elif getattr(c, "multi_query", False):
            groups = 1
        return None if groups == 1 else _groups(rows, c.num_attention_heads, groups)
    return None


def _groups(rows: int, heads: int, groups: int) -> Tensor:
    """Index of each model row in the file: all q, all k, all v there; here some q, one k, one v for each group."""
    d = rows // (heads + 2 * groups)
    index = torch.arange(rows).view(-1, d)
    q, k, v = index[:heads], index[heads : heads + groups], index[heads + groups :]
    return torch.cat([q.view(groups, -1, d), k.view(groups, 1, d), v.view(groups, 1, d)], 1).reshape(-1)


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
) -> Packed:
    """Put a packed layer in the place of a module; returns it. Its bias still has to be filled from the file."""
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
        layer.bias = module.bias  # type: ignore[assignment]
    layer.source = Source(tensor.name, rows)  # type: ignore[assignment]
    model.set_submodule(name, layer)
    return layer


def _tie(model: PreTrainedModel) -> None:
    """A head that the file does not hold reads the embedding: its blocks, or its weight if that is dense."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not isinstance(head, nn.Linear) or head.weight.device.type != "meta":
        return
    if isinstance(embedding, PackedEmbedding):
        tied = PackedLinear(embedding.form, embedding.blocks, embedding.columns)
        tied.bias = head.bias
        model.set_output_embeddings(tied)
    elif isinstance(embedding, nn.Embedding):
        head.weight = embedding.weight


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
