"""Language models larger than the memory: their weights stay on the disk and are mapped block by block.

The skeleton of the model is built without weights, and its parameters become views of the model's own files. While a
block runs, the next one is read ahead; after the block, its pages are released. So a forward takes the memory of about
two blocks and of its activations, whatever the size of the model. The model's own files are never written: trained
tensors, and tensors stored in another dtype, are first copied to a working copy in the folder of the run.

The working copy is not a checkpoint: a killed process would leave it in the middle of a move. Base model and tape are
the checkpoint. Every start makes a new working copy without a name, which the system removes when the process ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zograd.hub import resolve_model
from zograd.llm.loading.errors import ModelError, extra, first_line
from zograd.llm.loading.models import dtype_named, silence
from zograd.llm.loading.structure import blocks, plain_model
from zograd.offload.mapped import MappedFile, Offloaded, Pages, write
from zograd.offload.streamed import Streamed
from zograd.runs.memory import few_kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def working_copy(folder: Path, tensors: Mapping[str, Any], pages: Pages) -> MappedFile:
    """Write tensors (see `zograd.offload.mapped.write`) to a writable mapped file in `folder`, and remove its name.

    So two runs in one folder do not share it, and the system removes the file however the process ends. Raises
    ModelError if the disk is full or writing is not permitted.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"weights.{os.getpid()}.safetensors"
        write(path, tensors, pages)
    except OSError as e:
        size = sum(shape.numel() * dtype.itemsize for dtype, shape, _ in tensors.values())
        raise ModelError(
            f"cannot write the working copy of the weights ({size / 2**30:.2f} GiB) to {folder}: {e.strerror}; "
            f"--offload disk needs that much free there: make room, or choose another folder"
        ) from e
    file = MappedFile(path, writable=True)
    with suppress(PermissionError):  # Windows keeps the name of an open file
        path.unlink()
    return file


def load(
    name_or_path: str, *, dtype: str | torch.dtype = "auto", scratch: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Pages]:
    """A causal language model in eval mode with its weights on the disk, its tokenizer, and the pages of its weights.

    Weights that are stored in `dtype` are read-only views of the model's files; others are cast piece by piece into a
    working copy. The bits are those of `loading.load`. Memory: the buffers of the model.

    scratch: the folder of working copies, created if needed.
    Raises ModelError for a model without safetensors files, a quantized model, and files whose names of tensors differ
    from those of the model.
    """
    from transformers import AutoTokenizer

    folder = local_folder(name_or_path)
    model, pages = load_model(folder, dtype_named(dtype) if isinstance(dtype, str) else dtype, scratch)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as e:  # transformers raises OSError, ValueError, KeyError ... for bad files
        raise ModelError(f"cannot load a tokenizer from {folder}: {first_line(e)}") from e
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer, pages


def local_folder(name_or_path: str) -> Path:
    """The folder of a model. A model of the hub is downloaded first."""
    path = resolve_model(name_or_path)
    if path.endswith(".gguf"):
        raise ModelError(f"--offload needs safetensors files, and {path} is packed: leave --offload out")
    if Path(path).is_dir():
        return Path(path)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.json", "tokenizer*", "*.txt"]))
    except Exception as e:  # the hub raises its own kinds of errors, and those of the network
        raise ModelError(f"cannot fetch {path}: {first_line(e)}") from e


def load_model(folder: Path, dtype: torch.dtype, scratch: Path) -> tuple[PreTrainedModel, Pages]:
    """The model of a folder, without its tokenizer: see `load`."""
    try:
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as e:
        raise ModelError(extra("llm")) from e
    few_kernels()
    silence()
    files = tensor_files(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
        if getattr(config, "quantization_config", None) is not None:
            raise ModelError(f"{folder} is quantized, and --offload is for dense weights: leave --offload out")
        with _Unallocated(), init_empty_weights(include_buffers=False):  # rotary tables are computed, not stored
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ModelError:
        raise
    except Exception as e:
        raise ModelError(f"cannot build a causal language model from {folder}: {first_line(e)}") from e
    pages = Pages()
    place(model, files, pages, scratch)
    return model.eval().requires_grad_(False), pages


class _Unallocated(TorchFunctionMode):
    """Inside, `torch.empty` allocates no memory. `init_empty_weights` frees what modules allocate, but in pieces that
    malloc keeps: 1.4 GiB for a model of 2 GiB."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def tensor_files(folder: Path) -> dict[str, MappedFile]:
    """Tensor name -> the mapped file that holds it, for a checkpoint of one or several files."""
    index = folder / "model.safetensors.index.json"
    try:
        if index.exists():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            names = ["model.safetensors"]
        mapped = [MappedFile(folder / name) for name in names]
    except FileNotFoundError as e:
        raise ModelError(
            f"--offload needs safetensors files, and {folder} has no {Path(e.filename).name}; load the model once and "
            f"write it with save_pretrained"
        ) from None
    except (OSError, ValueError, KeyError) as e:
        raise ModelError(f"cannot read the weights in {folder}: {first_line(e)}") from e
    return {name: file for file in mapped for name in file.entries}


def place(model: Any, files: Mapping[str, MappedFile], pages: Pages, scratch: Path) -> None:
    """Make the parameters of a skeleton views of the files, or of a working copy in its dtype; tie tied weights."""
    prefix = model.base_model_prefix + "."

    def stored(name: str) -> str | None:
        """The name of a parameter in the files, which may be relative to the base model."""
        return next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in files), None)

    skeleton = dict(model.named_parameters(remove_duplicate=False))
    homes = {name: (files[key], key) for name in skeleton if (key := stored(name)) is not None}
    casts: dict[str, Any] = {}
    originals = Pages()
    for name, (file, key) in homes.items():
        entry, meta = file.entries[key], skeleton[name]
        if entry.shape != tuple(meta.shape):
            raise ModelError(f"{name!r} is {tuple(meta.shape)} in the model, but {entry.shape} in its files")
        if entry.dtype != meta.dtype:
            original = file.tensor(key)
            originals.add(original, file, key)
            casts[name] = meta.dtype, meta.shape, original
    if casts:
        converted = working_copy(scratch, casts, originals)
        homes |= {name: (converted, name) for name in casts}
    placed: dict[str, nn.Parameter] = {}
    for name, (file, key) in homes.items():
        parameter = nn.Parameter(torch.empty(0, dtype=skeleton[name].dtype), requires_grad=False)
        pages.add(parameter, file, key)
        placed[name] = parameter
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, parameter)
    for name, buffer in model.named_buffers():
        if (key := stored(name)) is not None:
            buffer.copy_(files[key].tensor(key))
    model.tie_weights()
    for name, parameter in placed.items():
        if (now := model.get_parameter(name)) is not parameter and not torch.equal(now, parameter):
            raise ModelError(
                f"the configuration ties {name!r} to another tensor, but its files hold both, with different values; "
                f'set "tie_word_embeddings" to false in config.json'
            )
    if missing := [name for name, p in model.named_parameters() if p.is_meta]:
        raise ModelError(
            f"--offload reads weights under the names that the model has, and its files have no {missing[0]!r} (nor "
            f"{len(missing) - 1} others); load the model once and write it with save_pretrained, or leave --offload out"
        )


def make_trainable(trained: Mapping[str, Tensor], pages: Pages, scratch: Path) -> None:
    """Move trained tensors that are read-only views of the model's files to a working copy."""
    frozen = {name: t for name, t in trained.items() if not pages.writable(t)}
    if not frozen:
        return
    file = working_copy(scratch, {name: (t.dtype, t.shape, t) for name, t in frozen.items()}, pages)
    for name, t in frozen.items():
        pages.add(t, file, name)


def stream(model: nn.Module, pages: Pages) -> None:
    """Read each block ahead while the block before it runs, and release its pages after it has run.

    Mapped tensors outside of the blocks are released after their module has run. Tensors in memory, such as adapters,
    are left alone. Raises ModelError for a model without a list of blocks.
    """
    layers = blocks(model)
    mapped = [[p for p in block.parameters() if p in pages] for block in layers]
    inside = {id(p) for part in mapped for p in part}
    for block, mine, after in zip(layers, mapped, [*mapped[1:], mapped[0]], strict=True):
        block.register_forward_pre_hook(_advise(pages.want, after))
        block.register_forward_hook(_advise(pages.drop, mine), always_call=True)
    for module in model.modules():
        outside = [p for p in module.parameters(recurse=False) if p in pages and id(p) not in inside]
        if outside:
            module.register_forward_hook(_advise(pages.drop, outside), always_call=True)


def _advise(advice: Any, tensors: Sequence[Tensor]) -> Any:
    def hook(*_: Any) -> None:
        for t in tensors:
            advice(t)

    return hook


def to_device(model: nn.Module, device: str, keep: Collection[Tensor] = ()) -> Streamed:
    """Move a model from RAM to a device, except the matrices of its blocks, which are streamed there block by block.

    keep: matrices of blocks that move to the device too (adapters). Raises ModelError for a model without a list of
    blocks.
    """
    streamed = Streamed(list(blocks(model)), device, keep)
    for p in model.parameters():
        if p not in streamed:
            p.data = p.data.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return streamed


def _merged(layer: Any) -> Tensor:
    w: Tensor = layer.base_layer.weight
    delta: Tensor = layer.get_delta_weight("default")
    return w + delta.to(w.device)


def save(model: Any, tokenizer: Any, pages: Offloaded, out: Path) -> None:
    """Write the model piece by piece as files that transformers reads, with adapters merged."""
    base = plain_model(model)
    merged = {
        f"{name}.weight": (lambda layer=layer: _merged(layer))
        for name, layer in base.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    tensors: dict[str, Any] = {}
    seen: set[int] = set()
    for key, t in base.state_dict(keep_vars=True).items():
        name = key.replace(".base_layer.", ".")
        if ".lora_" not in key and ".polar_" not in key and id(t) not in seen:
            seen.add(id(t))
            tensors[name] = t.dtype, t.shape, merged.get(name, t)
    out.mkdir(parents=True, exist_ok=True)
    write(out / "model.safetensors", tensors, pages)
    base.config.save_pretrained(out)
    if base.can_generate():
        base.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
