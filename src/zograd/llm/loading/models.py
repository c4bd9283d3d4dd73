"""Load a causal language model and its tokenizer: dense, packed GGUF, or quantized by a library."""

from __future__ import annotations

import json
import os
import warnings
from contextlib import suppress
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zograd.hub import resolve_model
from zograd.hub.gguf_header import GGUFError, check_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
from zograd.llm.loading.errors import DeviceError, ModelError, UnknownDtypeError, extra, first_line
from zograd.llm.loading.media import load_images, load_speech
from zograd.llm.loading.structure import kind_named
from zograd.llm.stages import Stages, importing
from zograd.runs.memory import few_kernels

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype of a name; "auto" is bfloat16 if the machine is faster in it (`fast_bfloat16`), else float32.

    >>> dtype_named("bf16")
    torch.bfloat16
    """
    if name == "auto":
        return torch.bfloat16 if fast_bfloat16() else torch.float32
    if name not in DTYPES:
        raise UnknownDtypeError(f"there is no dtype {name!r}; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def check_device(name: str) -> None:
    """Raise DeviceError for a name of no device, and for a device that torch cannot use on this machine."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"there is no device {name!r}; use cpu, cuda, cuda:1, mps or another one of torch") from None
    try:
        torch.empty(1, device=device)
    except Exception as e:  # AssertionError, RuntimeError, NotImplementedError ..., by the kind of device
        why = first_line(e).split(". ")[0]
        raise DeviceError(
            f"torch {torch.__version__} cannot use the device {name} on this machine ({why}); use --device cpu, or "
            f"install a torch and a driver for it"
        ) from e


def fast_bfloat16() -> bool:
    """Whether this machine multiplies matrices of bfloat16 faster than those of float32.

    GPUs that have it do, and processors with instructions for it: AMX, or AVX512_BF16 (AMD since Zen 4): 1.4 to 1.9
    times as fast there (`benchmarks.dtypes`). Others convert it, and float32 is faster.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def load(
    name_or_path: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "cpu",
    quantized: bool = False,
    quantize: str | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model in eval mode and its tokenizer: a causal one, or of the kind that its configuration names.

    Of a classifier of images the model and its image processor, and of a model of speech (Whisper) its processor.

    name_or_path: an alias (fetched on first use), a directory, a .gguf file, or a name of the Hugging Face hub.
    dtype: of the weights; see `dtype_named`.
    quantized: keep the matrices of a .gguf file packed (that file, or the one in the folder of an alias) instead of
        de-quantizing them on loading. `dtype` is then the dtype of activations.
    quantize: quantize a dense model through another library, to one of `zograd.quantized.quantizing.QUANTIZE`. A
        checkpoint that such a library has quantized needs no option.
    classes: an encoder without a head, and a classifier of images, gets a new one of so many classes, drawn from
        `seed`.

    Memory: the weights in `dtype`; with `quantized`, mapped blocks of the file.
    Raises ModelError for a name that cannot be resolved and for files that do not parse, FetchError for a download.

        model, tokenizer = load("smollm2-135m", dtype="float32")
    """
    try:
        with importing():
            silence()
            import transformers.modeling_utils  # noqa: F401  # whatever model it is
            from transformers import AutoTokenizer
    except ImportError as e:
        raise ModelError(extra("llm")) from e
    check_device(device)
    few_kernels()
    path = resolve_model(name_or_path)
    kind = dtype_named(dtype) if isinstance(dtype, str) else dtype
    check_folder(path)
    if quantized:
        return load_packed(Path(path), kind, device)
    from zograd.quantized import libraries, quantizing

    config = library_config(quantize, path, kind)
    file: dict[str, Any] = {}
    if path.endswith(".gguf"):
        check_gguf(Path(path))
        path, file = str(Path(path).parent), {"gguf_file": Path(path).name}
    try:
        config_ = configuration_of(path)
        reads = takes_no_text(config_)
        if reads is not None:
            if quantize is not None:
                raise ModelError(f"--quantize {quantize} is for models of text, and {name_or_path} is one of {reads}")
            if reads == "speech":
                check_whisper(name_or_path, config_)
                return load_speech(path, kind, device)
            return load_images(path, kind, device, classes, seed)
        tokenizer = AutoTokenizer.from_pretrained(path, **file)
        auto, head = auto_class_of(config_, classes), {"num_labels": classes} if is_bare(config_) else {}
        if (Path(path) / "qmodel.pt").exists():
            model = quantizing.from_hqq(path, kind, device)
        elif config is not None:
            model = auto.from_pretrained(path, dtype=kind, quantization_config=config, device_map={"": device})
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed)  # of a new head
                model = auto.from_pretrained(path, dtype=kind, **file, **head)
            if file:
                unmark_(model)
                from zograd.quantized.gguf_file import rope_left_out

                if left := rope_left_out(Path(path) / file["gguf_file"], model):
                    warnings.warn(
                        f"{file['gguf_file']} holds {', '.join(left)}: its model scales rotary frequencies, which "
                        f"transformers does not read from a .gguf file, so it computes without. Take the folder with "
                        f"safetensors, or --quantized with the config.json of the model beside the file",
                        stacklevel=2,
                    )
    except ModelError:
        raise
    except ImportError as e:  # the library of a quantized checkpoint is missing
        raise ModelError(f"cannot load {path}: {first_line(e)}; {extra('quantized')}") from e
    except Exception as e:  # transformers raises OSError, ValueError, KeyError, SafetensorError ... for bad files
        where = path if Path(path).exists() else f"{path} of the hub (there is no folder of that name here)"
        raise ModelError(f"cannot load a model from {where}: {first_line(e)}") from e
    if quantize == "hqq4":
        quantizing.to_hqq(model, kind, device)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not libraries.is_quantized(model):
        return model.to(device).eval(), tokenizer
    try:
        for handle in libraries.discover(model):
            libraries.check_layer(handle.module)
            libraries.stop_repacking(handle.module)
    except libraries.LibraryError as e:
        raise ModelError(f"{path}: {e}") from e
    return (model if model.device == torch.device(device) else model.to(device)).eval(), tokenizer


def unmark_(model: PreTrainedModel) -> None:
    """Take the marks of quantization off a model from a .gguf file, unless it has weights that are not floats.

    transformers (5.23) marks each such model, although it has de-quantized it, and then refuses to save it.
    """
    if all(p.is_floating_point() for p in model.parameters()):
        for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
            model.__dict__.pop(mark, None)
        model.config.__dict__.pop("quantization_config", None)


def check_folder(path: str) -> None:
    """Raise ModelError for a folder that holds something else than a model, and say what to do with that."""
    folder = Path(path)
    if not folder.is_dir() or (folder / "config.json").exists() or any(folder.glob("*.gguf")):
        return
    if (folder / "run.json").exists():
        raise ModelError(
            f"{path} is a run, not a model: write its weights with `zograd replay {path} --out FOLDER`, or give it "
            f"where a run is taken (--run of eval, the first argument of predict and generate)"
        )
    adapter = folder / "adapter_config.json"
    if not adapter.exists():
        held = ", ".join(sorted(child.name for child in folder.iterdir())[:5]) or "nothing"
        raise ModelError(f"{path} is a folder without a config.json, so it holds no model; it holds {held}")
    kind = None
    with suppress(OSError, ValueError, AttributeError):  # of a damaged file, the loading itself says what is wrong
        kind = json.loads(adapter.read_text(encoding="utf-8")).get("peft_type")
    if kind in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"):
        raise ModelError(
            f"{path} holds virtual tokens that peft puts in front of a model ({kind}), not a model: load it in Python "
            f"with peft.AutoPeftModelForCausalLM.from_pretrained, or give the run that it comes from"
        )


def configuration_of(path: str) -> Any:
    """The configuration of a folder or hub name; None for a folder that holds a .gguf alone."""
    from transformers import AutoConfig

    if not (Path(path) / "config.json").exists() and Path(path).is_dir():
        return None
    return AutoConfig.from_pretrained(path)


def architecture_of(config: Any) -> str:
    """The class of the model that a configuration describes; "" where it does not say."""
    return str((getattr(config, "architectures", None) or [""])[0])


def is_bare(config: Any) -> bool:
    """Whether a configuration describes an encoder without a head (BertModel, as sentence encoders are saved)."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    return architecture_of(config).endswith("Model") and getattr(config, "model_type", None) in MASKED


def check_whisper(name: str, config: Any) -> None:
    """Raise ModelError for a model of speech of another family: its decoder may begin otherwise, or there is none."""
    if config.model_type != "whisper":
        raise ModelError(
            f"{name} ({architecture_of(config)}) is a model of speech, and only Whisper is trained here: train "
            f"it from Python with zograd.hf.forward_only(Trainer), or take whisper-tiny.en"
        )


def takes_no_text(config: Any) -> str | None:
    """What a model reads in place of text, by its configuration: "images" or "speech"; None for one of text."""
    from transformers.models.auto import modeling_auto as known

    tables = {
        "speech": (known.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, known.MODEL_FOR_CTC_MAPPING_NAMES),
        "images": (known.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,),
    }
    name = architecture_of(config)
    for reads, found in tables.items():
        classes = [
            c for table in found for entry in table.values() for c in ([entry] if isinstance(entry, str) else entry)
        ]
        if name in classes:
            return reads
    return None


def auto_class_of(config: Any, classes: int | None = None) -> Any:
    """The class of transformers that builds a model: of causal ones unless the configuration says otherwise.

    Raises ModelError for an encoder without a head, unless it is to get one of so many classes.
    """
    import transformers

    architecture = architecture_of(config)
    if is_bare(config):
        if classes is None:
            raise ModelError(
                f"{architecture} has no head, so it predicts nothing: zograd train puts a head of classes on it for a "
                f"task with labels; score the model that the run saves"
            )
        return transformers.AutoModelForSequenceClassification
    name = {
        "causal": "AutoModelForCausalLM",
        "masked": "AutoModelForMaskedLM",
        "classes": "AutoModelForSequenceClassification",
        "pairs": "AutoModelForSeq2SeqLM",
    }[kind_named(architecture, bool(getattr(config, "is_encoder_decoder", False)))]
    return getattr(transformers, name)


def check_gguf(path: Path) -> None:
    """Raise ModelError for a truncated or damaged file, before a library trusts its header."""
    try:
        check_header(path)
    except ImportError as e:
        raise ModelError(extra("demo")) from e
    except (OSError, GGUFError) as e:
        raise ModelError(first_line(e)) from e


def library_config(quantize: str | None, path: str, dtype: torch.dtype) -> Any:
    """The quantization_config for transformers; None without `quantize`, and for HQQ."""
    from zograd.quantized import libraries, quantizing

    if quantize is None:
        return None
    if path.endswith(".gguf"):
        raise ModelError(f"--quantize needs a dense model, and {path} is quantized already: use --quantized")
    if (Path(path) / "qmodel.pt").exists():
        raise ModelError(f"--quantize needs a dense model, and {path} is quantized already: leave --quantize out")
    try:
        return quantizing.config_of(quantize, dtype)
    except ImportError as e:
        raise ModelError(f"--quantize {quantize}: {extra('quantized')}") from e
    except libraries.LibraryError as e:
        raise ModelError(str(e)) from e


def load_packed(path: Path, dtype: torch.dtype, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a .gguf file, or of the only one in a folder, with packed matrices."""
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


def import_transformers(stages: Stages) -> None:
    """Import transformers, which takes seconds, as a stage; where it is missing, `load` says so."""
    with stages.stage("importing transformers"), importing(), suppress(ImportError):
        silence()
        from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # noqa: F401


def silence() -> None:
    """Keep progress bars and advice of transformers and other libraries off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for library in (
        "bitsandbytes",
        "torchao",
        "torch.utils._pytree",
    ):  # they print a line for each call, kernel or enum
        getLogger(library).setLevel(ERROR)
