"""Loading a causal language model, and choosing which of its tensors are trained."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zograd.errors import UsageError
from zograd.hub import resolve_model
from zograd.hub.gguf_header import GGUFError, check_header
from zograd.patterns import PatternError, matching

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


class ModelError(ValueError):
    """A model that is not there, does not parse, or does not have what was asked for."""


class UnknownDtypeError(ModelError, UsageError):
    """A name that is no dtype of weights."""


def extra(name: str) -> str:
    return f'this needs more packages: pip install "zograd[{name}]"'


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype by its usual names; "auto" is bfloat16 where the processor multiplies it, else float32."""
    if name == "auto":
        return torch.bfloat16 if fast_bfloat16() else torch.float32
    if name not in DTYPES:
        raise UnknownDtypeError(f"there is no dtype {name!r}; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def fast_bfloat16() -> bool:
    """Whether this machine has matrix units for bfloat16 (CUDA, or AMX on the CPU); elsewhere float32 is faster."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_amx_tile_supported())


def load(
    name_or_path: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "cpu",
    quantized: bool = False,
    quantize: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode and its tokenizer; aliases are fetched on first use.

    quantized: keep the matrices of a .gguf (that file, or the one in the folder of an alias) packed, instead of
        de-quantizing them on loading; `dtype` is then that of activations.
    quantize: quantize a dense model through another library, to one of `quantized.libraries.QUANTIZE`. Checkpoints that
        such a library has quantized need no option.

    Raises ModelError when the name is no alias, directory or loadable hub name, or when the files do not parse.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as e:
        raise ModelError(extra("llm")) from e
    path = resolve_model(name_or_path)
    kind = dtype_named(dtype) if isinstance(dtype, str) else dtype
    silence()
    if quantized:
        return load_packed(Path(path), kind, device)
    from zograd.quantized import libraries

    config = library_config(quantize, path, kind)
    file: dict[str, Any] = {}
    if path.endswith(".gguf"):
        check_gguf(Path(path))
        path, file = str(Path(path).parent), {"gguf_file": Path(path).name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **file)
        if (Path(path) / "qmodel.pt").exists():
            model = libraries.from_hqq(path, kind, device)
        elif config is not None:
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=kind, quantization_config=config, device_map={"": device}
            )
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=kind, **file)
    except ImportError as e:  # the library of a quantized checkpoint
        raise ModelError(f"cannot load {path}: {first_line(e)}; {extra('quantized')}") from e
    except Exception as e:  # transformers raises OSError, ValueError, KeyError, SafetensorError ... for bad files
        raise ModelError(f"cannot load a causal language model from {path}: {first_line(e)}") from e
    if quantize == "hqq4":
        libraries.to_hqq(model, kind, device)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not libraries.is_quantized(model):
        return model.to(device).eval(), tokenizer
    try:
        for handle in libraries.discover(model):
            libraries.check(handle.module)
            libraries.steady(handle.module)
    except libraries.LibraryError as e:
        raise ModelError(f"{path}: {e}") from e
    return (model if model.device == torch.device(device) else model.to(device)).eval(), tokenizer


def check_gguf(path: Path) -> None:
    """Raise ModelError for a file that is cut or damaged, before a library believes what its header says."""
    try:
        check_header(path)
    except ImportError as e:
        raise ModelError(extra("demo")) from e
    except (OSError, GGUFError) as e:
        raise ModelError(first_line(e)) from e


def library_config(quantize: str | None, path: str, dtype: torch.dtype) -> Any:
    """The quantization_config for `load`; None without one."""
    from zograd.quantized import libraries

    if quantize is None:
        return None
    if path.endswith(".gguf"):
        raise ModelError(f"--quantize needs a dense model, and {path} is quantized already: use --quantized")
    if (Path(path) / "qmodel.pt").exists():
        raise ModelError(f"--quantize needs a dense model, and {path} is quantized already: leave --quantize out")
    try:
        return libraries.config_of(quantize, dtype)
    except ImportError as e:
        raise ModelError(f"--quantize {quantize}: {extra('quantized')}") from e
    except libraries.LibraryError as e:
        raise ModelError(str(e)) from e


def load_packed(path: Path, dtype: torch.dtype, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a .gguf file, or of the one in a folder, with packed matrices."""
    from zograd.quantized import gguf_file

    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as e:
        raise ModelError(extra("demo")) from e
    file = path if path.suffix == ".gguf" else gguf_file.gguf_in(path)
    if file is None:
        raise ModelError(
            f"--quantized needs a .gguf file, and {path} has none (or several); give the file itself, or leave "
            f"--quantized out"
        )
    config = file.parent if (file.parent / "config.json").exists() else None
    try:
        model, tokenizer = gguf_file.load(file, config, dtype=dtype)
    except GGUFError as e:
        raise ModelError(first_line(e)) from e
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as e:
        raise ModelError(f"cannot keep {file} packed: {first_line(e)}") from e
    return model.to(device), tokenizer


def first_line(e: BaseException) -> str:
    text = str(e).strip() or type(e).__name__
    return text.splitlines()[0]


def silence() -> None:
    """Keep transformers' bars and advice off the terminal: ours are enough."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for library in ("bitsandbytes", "torchao", "torch.utils._pytree"):  # a line for each call, kernel, registered enum
        getLogger(library).setLevel(ERROR)


def blocks(model: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks: the longest ModuleList of the model."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of blocks; select by pattern instead of by layers")
    return max(lists, key=len)


@dataclass(frozen=True)
class LoraSpec:
    """LoRA as peft has it: W + (alpha / r) B A, on the `targets` of the top `layers` blocks (all when None)."""

    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    layers: int | None = None


def attach_lora(model: PreTrainedModel, spec: LoraSpec, seed: int) -> nn.Module:
    """Insert adapters through peft. A is drawn from `seed` (the caller's random state is untouched), B is 0."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as e:
        raise ModelError(extra("llm")) from e
    depth = len(blocks(model))
    top = depth if spec.layers is None else min(spec.layers, depth)
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=0.0,
        target_modules=list(spec.targets),
        layers_to_transform=None if top == depth else list(range(depth - top, depth)),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            wrapped: nn.Module = get_peft_model(model, config)
        except ValueError as e:
            raise ModelError(f"LoRA does not fit this model: {first_line(e)}") from e
    refuse_tied(wrapped)
    return wrapped.eval()


def refuse_tied(model: nn.Module) -> None:
    """Raise ModelError for an adapter on a weight that two modules share: it acts in one, and is merged into both."""
    owners: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(p), []).append(name.removeprefix("base_model.model."))
    for names in owners.values():
        adapted = [name for name in names if name.endswith(".base_layer.weight")]
        if adapted and len(names) > 1:
            name, other = (n.removesuffix(".weight").removesuffix(".base_layer") for n in names[:2])
            target = adapted[0].removesuffix(".base_layer.weight").rpartition(".")[2]
            raise ModelError(
                f"{name!r} and {other!r} share one weight in this model: an adapter on {target} would act in one of "
                f"them and be merged into both; leave {target} out of --lora-targets"
            )


def select(model: nn.Module, train: str, *, layers: int | None = None) -> dict[str, Tensor]:
    """The tensors to train, by name: "full", "lora" (adapters already attached), "scales" or a pattern.

    "scales" are the scales of quantized matrices (not of embeddings), of a packed GGUF or of a library: float32 masters
    are made for those chosen;
    "scales:PATTERN" are those of the layers whose names a regular expression is found in ("scales:mlp").

    A pattern of letters, dots, "*" and "?" is a shell pattern for whole names ("*.q_proj.weight"); anything else is a
    regular expression searched in the name ("(q|v)_proj"). `layers` keeps only tensors of the top so many blocks.
    Raises ModelError when nothing matches.
    """
    if is_scales(train):
        return scales(model, train, layers)
    named: dict[str, Tensor] = dict(model.named_parameters())
    if train == "full":
        chosen = named
    elif train == "lora":
        chosen = {k: p for k, p in named.items() if "lora_" in k}
    else:
        try:
            names = matching(train, named)
        except PatternError as e:
            raise ModelError(f"--train is neither full, lora nor a valid pattern: {e}") from e
        chosen = {k: p for k, p in named.items() if k in names}
    if layers is not None:
        kept = {id(p) for block in list(blocks(model))[-layers:] for p in block.parameters()} if layers else set()
        chosen = {k: p for k, p in chosen.items() if id(p) in kept}
    if not chosen:
        raise ModelError(f"--train {train!r} selects no parameter; names look like {', '.join(list(named)[:3])}")
    return chosen


def is_scales(train: str) -> bool:
    """Whether a selection is one of scales."""
    return train.partition(":")[0] == "scales"


def scales(model: nn.Module, train: str, layers: int | None) -> dict[str, Tensor]:
    """The scales of the quantized linear layers, in the top `layers` blocks only when given."""
    from zograd.quantized import libraries
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
            f"{', '.join(map(str, FORMATS.values()))}, or train lora or full"
        )
    if kinds := libraries.unknown(model):
        raise ModelError(
            f"--train {train}: zograd does not know the scales of {', '.join(kinds)}; it knows {libraries.KNOWN}, and "
            f"packed GGUF"
        )
    raise ModelError(
        f"--train {train} needs a quantized model: add --quantized (a .gguf, kept packed) or --quantize nf4 (there are "
        f"{', '.join(libraries.QUANTIZE)}), or train lora or full"
    )


def decay_groups(chosen: Mapping[str, Tensor]) -> dict[str, int]:
    """Group 0 decays; group 1 (biases and norm gains: tensors with one axis) does not, as MeZO has it."""
    return {name: int(p.ndim <= 1) for name, p in chosen.items()}


def vocabulary(base: Any) -> int:
    """How many token ids the embedding of a model has rows for."""
    embedding = base.get_input_embeddings()
    return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])


def plain_model(model: nn.Module) -> Any:
    """The transformers model itself, inside of peft's wrapper if there is one."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner
