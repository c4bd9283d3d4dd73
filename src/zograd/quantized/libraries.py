"""Models that other libraries quantized, trained through the scales of their groups.

One float32 master a group, the parameter `scale` of its module, takes the place of the library's own scales during each
forward. No kernel of a library is touched, integers and zero points never change, and all that works on tensors works
on masters: estimators, spaces, rules, tapes. Layers are recognised by how they hold their weights:

    library       layers                       scales, and what the library computes with
    bitsandbytes  Linear4bit (NF4, FP4)        float32, blocks of 64; doubly quantized ones are un-nested
    bitsandbytes  Linear8bitLt                 float32, a row; activations are rounded to int8 as well
    torchao       int8 and intx weight-only    float32, a row or group; int4 is held in 8 bits on a CPU
    hqq           HQQLinear                    its compute_dtype; zero points beside
    GPTQ, AWQ     `qweight` with `scales`      that of `scales`, mostly float16; zero points beside

In float32 the masters are the library's scales, without memory of their own. Where a library holds 16 bits (HQQ in
bfloat16 and float16 models, GPTQ, AWQ), they are rounded for each forward. Of probes at +-2^-7 all arrive; of those at
1e-3 all do in float16 (spacing 2^-11 to 2^-10), and from scales that bfloat16 (2^-8 to 2^-7) holds exactly, none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zograd.patterns import searching
from zograd.quantized.library_layers import FORMS, Form, LibraryError, check, steady
from zograd.quantized.packed_layers import storable
from zograd.stores.leaf import tensor_bytes

__all__ = [
    "KNOWN",
    "QUANTIZE",
    "Handle",
    "LibraryError",
    "baked",
    "check",
    "config_of",
    "discover",
    "form_of",
    "from_hqq",
    "is_quantized",
    "load_scales",
    "masters",
    "save",
    "save_scales",
    "steady",
    "storable",
    "to_hqq",
    "unknown",
]

KNOWN = "bitsandbytes 4-bit and int8, torchao int8 and intx, HQQ, GPTQ and AWQ"


@dataclass(frozen=True)
class Handle:
    """A quantized linear layer of a library: `format` of its integers, `groups` with a scale each.

    `group_size` is in weights; `dtype` that of the scales as the library holds them now.
    """

    name: str
    module: Any
    form: Form

    @property
    def library(self) -> str:
        return self.form.library

    @property
    def format(self) -> str:
        return self.form.name(self.module)

    @property
    def groups(self) -> int:
        return self.form.read(self.module).numel()

    @property
    def group_size(self) -> int:
        rows, columns = self.form.size(self.module)
        return rows * columns // max(self.groups, 1)

    @property
    def dtype(self) -> torch.dtype:
        return self.form.read(self.module).dtype

    @property
    def integers(self) -> Tensor:
        return self.form.integers(self.module)

    @property
    def master(self) -> nn.Parameter | None:
        """The trained scales, where there are any yet."""
        return self.module._parameters.get("scale")  # type: ignore[no-any-return]

    def masters(self) -> nn.Parameter:
        """The trained scales |s| (1 where s = 0), made from those of the library when there are none yet.

        [rows, groups of a row] where rows hold whole groups, else in the shape that the library has for them. Signs, 0
        where s = 0, stay in the buffer `scale_sign`, None when all are positive: what is 0 stays 0.
        """
        if self.master is not None:
            return self.module.scale  # type: ignore[no-any-return]
        module, form = self.module, self.form
        stored = form.read(module).dtype
        with torch.inference_mode(False), torch.no_grad():
            form.settle(module)
            library = form.read(module).detach()
            if stored not in (torch.float16, torch.bfloat16):  # a nested absmax is uint8: it stays un-nested
                stored = library.dtype
            s = library.float().clone()
            if not bool(torch.isfinite(s).all()):
                raise LibraryError(f"{self.name} has scales that are not finite; its file is damaged")
            sign = None if bool((s > 0).all()) else torch.sign(s).to(torch.int8)
            s = s if sign is None else torch.where(s == 0, 1.0, s.abs())
            rows, _ = form.size(module)
            if s.ndim == 1 or s.shape[-1] == 1:
                s = s.view(rows, -1) if s.numel() % rows == 0 else s.view(-1)
            module.register_parameter("scale", nn.Parameter(s, requires_grad=False))
            module.register_buffer("scale_sign", None if sign is None else sign.view(s.shape), persistent=False)
            module.__dict__["_stored"] = stored
            if sign is None and library.dtype == torch.float32:
                form.write(module, s.view(library.shape))  # at rest the masters themselves
        module.register_forward_pre_hook(partial(_enter, form))
        module.register_forward_hook(partial(_leave, form), always_call=True)
        return module.scale  # type: ignore[no-any-return]

    def signed(self) -> Tensor:
        """The scales that are meant now, float32 in the shape of the masters; those of the library without masters."""
        if self.master is None:
            return self.form.read(self.module).float()
        return _signed(self.module)


def _signed(module: Any) -> Tensor:
    s: Tensor = module.scale.float()  # an optimizer that evaluates at another point shows it here
    return s if module.scale_sign is None else s * module.scale_sign


def _enter(form: Form, module: Any, args: Any) -> None:
    """Before a forward: the library's scales are the masters, at the point that is evaluated."""
    if module._parameters.get("scale") is None:  # away while the library saves
        return
    library = form.read(module)
    module.__dict__["_at_rest"] = library
    form.write(module, _signed(module).reshape(library.shape).to(library.dtype))


def _leave(form: Form, module: Any, args: Any, out: Any) -> None:
    """After a forward, or an exception in it: the library's scales are what they were."""
    library = module.__dict__.pop("_at_rest", None)
    if library is not None:
        form.write(module, library)


# ---- finding them --------------------------------------------------------------------------------------------------


def form_of(module: nn.Module) -> Form | None:
    """How a module holds quantized weights; None when it is none of the layers that zograd knows."""
    return next((form for form in FORMS if form.owns(module)), None)


def discover(model: nn.Module) -> list[Handle]:
    """The quantized linear layers of a model, in its order. Embeddings have scales that nobody trains: not among them.

    Raises LibraryError for HQQ layers whose scales are quantized again or offloaded.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        if (form := form_of(module)) is not None:
            found.append(Handle(name, module, form))
        elif isinstance(meta := getattr(module, "meta", None), dict) and {"scale_q", "zero_scale"} & meta.keys():
            raise LibraryError(
                f"{name} is an HQQ layer whose scales are quantized again or offloaded; quantize it with "
                f"quant_scale=False, offload_meta=False"
            )
    return found


def masters(
    model: nn.Module, pattern: str = "", keep: Callable[[nn.Module], bool] = lambda module: True
) -> dict[str, Tensor]:
    """name -> float32 masters of the layers whose names the regular expression is found in, and that `keep` accepts.

    Cost: 4 bytes a group, none where the library computes with float32 scales (they then are the masters), plus a byte
    a group in matrices that have a zero or negative scale.
    """
    handles = list(discover(model))
    names = searching(pattern, [handle.name for handle in handles])
    return {f"{h.name}.scale": h.masters() for h in handles if keep(h.module) and h.name in names}


def is_quantized(model: nn.Module) -> bool:
    """Whether a library holds some of a model's matrices in integers."""
    return any(form_of(module) is not None for module in model.modules())


def unknown(model: nn.Module) -> list[str]:
    """Kinds of modules that hold integer matrices in a form that zograd does not know."""
    kinds = {
        type(m).__name__
        for m in model.modules()
        for t in (*m._parameters.values(), *m._buffers.values())
        if t is not None and t.ndim > 1 and not t.is_floating_point() and t.dtype != torch.bool and form_of(m) is None
    }
    return sorted(kinds)


# ---- saving ----------------------------------------------------------------------------------------------------------


@contextmanager
def baked(model: nn.Module) -> Iterator[None]:
    """Inside, the model is the library's alone: trained scales in its own tensors and dtype, no masters.

    Rounded to 16 bits where the library stores so; a scale that would round to 0 becomes the smallest number above.
    """
    held: list[tuple[Handle, nn.Parameter, Tensor]] = []
    try:
        for handle in discover(model):
            if handle.master is None:
                continue
            library, module = handle.form.read(handle.module), handle.module
            scales = storable(handle.signed(), module.__dict__["_stored"]).reshape(library.shape)
            held.append((handle, handle.module._parameters.pop("scale"), library))
            handle.form.write(module, scales)
        yield
    finally:
        for handle, scale, library in held:
            handle.module._parameters["scale"] = scale
            handle.form.write(handle.module, library)


def save(model: Any, out: str | Path) -> None:
    """The model in its library's own format (what `zograd.llm.loading.load` reads), and `scales.safetensors` beside.

    HQQ: `config.json` and `qmodel.pt`; the others: transformers' `save_pretrained` with a quantization_config
    (tensors of torchao through torch.save before transformers 5, which has no safetensors for them).
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    used = {handle.library for handle in discover(model)}
    old = "torchao" in used and int(version("transformers").partition(".")[0]) < 5
    with baked(model):
        if "hqq" in used:
            from hqq.models.hf.base import AutoHQQHFModel

            with without_bars():
                AutoHQQHFModel.save_quantized(model, str(folder))
        else:
            model.save_pretrained(folder, **({"safe_serialization": False} if old else {}))
    if any(handle.master is not None for handle in discover(model)):
        save_scales(model, folder / "scales.safetensors")


def save_scales(model: nn.Module, file: str | Path) -> int:
    """Only the trained scales, float32 with their signs, by layer; returns how many. 4 bytes a group.

    The metadata `zograd` names, for each, the library, the format, the group size and the SHA-256 of the integers that
    they belong to.
    """
    from safetensors.torch import save_file

    trained = [handle for handle in discover(model) if handle.master is not None]
    if not trained:
        raise LibraryError("no scales of this model are trained: there is nothing to save")
    about = {handle.name: _about(handle) for handle in trained}
    part = Path(f"{file}.part")
    tensors = {handle.name: handle.signed().detach().cpu().contiguous() for handle in trained}
    save_file(tensors, part, metadata={"zograd": json.dumps(about)})
    os.replace(part, file)
    return sum(t.numel() for t in tensors.values())


def load_scales(model: nn.Module, file: str | Path) -> dict[str, Tensor]:
    """Put saved scales onto a model with the same integers, as masters; returns those, by name.

    Raises LibraryError, before anything is changed, when the file is none of ours or belongs to other integers.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as f:
            about: Mapping[str, Any] = json.loads((f.metadata() or {}).get("zograd", "null"))
            scales = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as e:
        raise LibraryError(f"{file} does not hold scales: {e}") from e
    if not isinstance(about, dict) or about.keys() != scales.keys():
        raise LibraryError(f"{file} does not hold scales that zograd saved")
    handles = {handle.name: handle for handle in discover(model)}
    for name, expected in about.items():
        if name not in handles:
            raise LibraryError(f"{file} has scales of {name}, which this model does not hold quantized")
        if (found := _about(handles[name])) != expected:
            key = next(key for key in expected if found.get(key) != expected[key])
            raise LibraryError(f"{name} has {key} {found.get(key)}, but the scales in {file} belong to {expected[key]}")
    chosen: dict[str, Tensor] = {}
    for name, s in scales.items():
        chosen[f"{name}.scale"] = scale = handles[name].masters()
        s = s.to(scale.device).view(scale.shape)
        sign = torch.sign(s).to(torch.int8)
        handles[name].module.scale_sign = None if bool((s > 0).all()) else sign
        with torch.no_grad():
            scale.copy_(torch.where(s == 0, 1.0, s.abs()))
    return chosen


def _about(handle: Handle) -> dict[str, Any]:
    return {
        "library": handle.library,
        "format": handle.format,
        "group_size": handle.group_size,
        "groups": handle.groups,
        "integers": hashlib.sha256(tensor_bytes(handle.integers)).hexdigest(),
    }


# ---- quantizing ------------------------------------------------------------------------------------------------------

QUANTIZE = ("nf4", "int8-bnb", "int8-torchao", "int4-torchao", "hqq4")
"""What a dense model can be quantized to on loading: bitsandbytes NF4 in blocks of 64 and int8 a row, torchao int8 a
row and int4 in groups of 32, HQQ 4-bit in groups of 64."""


def config_of(kind: str, dtype: torch.dtype) -> Any:
    """The quantization_config with which transformers loads a dense model as `kind`; None for HQQ, which it cannot."""
    if kind in ("nf4", "int8-bnb"):
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig

        if kind == "int8-bnb":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if kind in ("int8-torchao", "int4-torchao"):
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerGroup
        from transformers import TorchAoConfig

        if kind == "int8-torchao":
            return TorchAoConfig(Int8WeightOnlyConfig())
        return TorchAoConfig(IntxWeightOnlyConfig(torch.int4, PerGroup(32)))  # type: ignore[attr-defined]
    if kind == "hqq4":
        import hqq.core.quantize  # noqa: F401

        return None
    raise LibraryError(f"there is no quantization {kind!r}; use {', '.join(QUANTIZE)}")


def to_hqq(model: Any, dtype: torch.dtype, device: str) -> None:
    """The linear layers of a dense model, except its head, in 4 bits with HQQ, groups of 64, in place."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config, head = BaseQuantizeConfig(nbits=4, group_size=64, axis=1), model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            model.set_submodule(name, HQQLinear(module, config, compute_dtype=dtype, device=device))


def from_hqq(folder: str | Path, dtype: torch.dtype, device: str) -> Any:
    """A model that HQQ saved: `config.json` and `qmodel.pt` (tensors only; nothing in it is run).

    HQQ's loader rounds what is in no file, the rotary frequencies, to `dtype`: they are made anew.
    """
    from accelerate import init_empty_weights
    from hqq.models.hf.base import AutoHQQHFModel
    from transformers import AutoModelForCausalLM

    with without_bars():
        model = AutoHQQHFModel.from_quantized(str(folder), compute_dtype=dtype, device=device)
    with init_empty_weights(include_buffers=False):
        fresh = AutoModelForCausalLM.from_config(model.config)
    kept = model.state_dict().keys()
    for name, buffer in fresh.named_buffers():
        if name not in kept:
            owner, _, key = name.rpartition(".")
            model.get_submodule(owner).register_buffer(key, buffer.to(device), persistent=False)
    return model


@contextmanager
def without_bars() -> Iterator[None]:
    """Inside, what HQQ writes to stderr (progress bars that it has no switch for) goes nowhere."""
    with redirect_stderr(StringIO()):
        yield
