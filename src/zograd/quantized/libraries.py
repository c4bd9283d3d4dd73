"""Train models that other libraries have quantized, through the scales of their groups.

Each group has one float32 master, in the parameter `scale` of its module, which replaces the library's own scale during
each forward. The library's kernels, integers and zero points never change. Masters are ordinary tensors for estimators,
spaces, rules and tapes. Layers are recognised by how they store their weights:

    library       layers                       scales, and what the library computes with
    bitsandbytes  Linear4bit (NF4, FP4)        float32, blocks of 64; doubly quantized ones are un-nested
    bitsandbytes  Linear8bitLt                 float32, a row; activations are rounded to int8 as well
    torchao       int8 and intx weight-only    float32, a row or group; int4 is held in 8 bits on a CPU
    hqq           HQQLinear                    its compute_dtype; zero points beside
    GPTQ, AWQ     `qweight` with `scales`      that of `scales`, mostly float16; zero points beside
    AQLM          `codes` with `codebooks`     that of `scales`, one a row; codebooks beside

If the library's scales are float32, they are the masters, which need no memory of their own. If they have 16 bits
(GPTQ, AWQ, AQLM, and HQQ in bfloat16 and float16 models), the masters are rounded for each forward. Probes with mu =
2^-7 survive this rounding. Probes with mu = 1e-3 survive in float16 (relative spacing 2^-11 to 2^-10); in bfloat16
(2^-8 to 2^-7) they vanish for scales that bfloat16 stores exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zograd.files import write_tensors
from zograd.patterns import searching
from zograd.quantized.library_layers import LAYER_FORMATS, LayerFormat, LibraryError, check_layer, stop_repacking
from zograd.quantized.packed_layers import storable
from zograd.quantized.quantizing import without_bars
from zograd.stores.leaf import tensor_bytes

__all__ = [
    "KNOWN",
    "LibraryError",
    "QuantizedLayer",
    "check_layer",
    "discover",
    "form_of",
    "is_quantized",
    "load_scales",
    "masters",
    "save",
    "save_scales",
    "stop_repacking",
    "unknown",
    "without_masters",
]

KNOWN = "bitsandbytes 4-bit and int8, torchao int8 and intx, HQQ, GPTQ, AWQ and AQLM"


@dataclass(frozen=True)
class QuantizedLayer:
    """A quantized linear layer of a library.

    form: how its library stores it.
    """

    name: str
    module: Any
    form: LayerFormat

    @property
    def library(self) -> str:
        """Name of the library."""
        return self.form.library

    @property
    def format(self) -> str:
        """Format of the integers."""
        return self.form.name(self.module)

    @property
    def groups(self) -> int:
        """Number of groups; each has one scale."""
        return self.form.read(self.module).numel()

    @property
    def group_size(self) -> int:
        """Weights in a group."""
        rows, columns = self.form.size(self.module)
        return rows * columns // max(self.groups, 1)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the library stores the scales now."""
        return self.form.read(self.module).dtype

    @property
    def integers(self) -> Tensor:
        """The quantized weights as they are stored."""
        return self.form.integers(self.module)

    @property
    def master(self) -> nn.Parameter | None:
        """The trained scales; None before `masters` has made them."""
        return self.module._parameters.get("scale")  # type: ignore[no-any-return]

    def masters(self) -> nn.Parameter:
        """The trained scales |s| (1 where s = 0) in float32; the first call makes them from the library's scales.

        Shape: [rows, groups of a row] if rows hold whole groups, else the library's shape. The buffer `scale_sign`
        holds the signs (0 where s = 0, so a scale of 0 stays 0); it is None if all scales are positive.
        Raises LibraryError for scales that are not finite.
        """
        if self.master is not None:
            return self.module.scale  # type: ignore[no-any-return]
        module, form = self.module, self.form
        stored = form.read(module).dtype
        with torch.inference_mode(False), torch.no_grad():
            form.settle(module)
            library = form.read(module).detach()
            if stored not in (torch.float16, torch.bfloat16):  # a nested absmax is uint8: it is un-nested for good
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
        """The current scales with their signs in float32; without masters, those of the library."""
        if self.master is None:
            return self.form.read(self.module).float()
        return _signed(self.module)


def _signed(module: Any) -> Tensor:
    s: Tensor = module.scale.float()  # under a lens, this read gives the evaluated point
    return s if module.scale_sign is None else s * module.scale_sign


def _enter(form: LayerFormat, module: Any, args: Any) -> None:
    """Before a forward: put the masters, at the evaluated point, in place of the library's scales."""
    if module._parameters.get("scale") is None:  # the library is saving
        return
    library = form.read(module)
    module.__dict__["_at_rest"] = library
    form.write(module, _signed(module).reshape(library.shape).to(library.dtype))


def _leave(form: LayerFormat, module: Any, args: Any, out: Any) -> None:
    """After a forward, or an exception in it: put the library's scales back."""
    library = module.__dict__.pop("_at_rest", None)
    if library is not None:
        form.write(module, library)


# ---- finding them --------------------------------------------------------------------------------------------------


def form_of(module: nn.Module) -> LayerFormat | None:
    """How a module stores quantized weights; None for a layer that zograd does not know."""
    return next((form for form in LAYER_FORMATS if form.owns(module)), None)


def discover(model: nn.Module) -> list[QuantizedLayer]:
    """The quantized linear layers of a model, in its order, without embeddings.

    Raises LibraryError for an HQQ layer whose scales are quantized again or offloaded.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        if (form := form_of(module)) is not None:
            found.append(QuantizedLayer(name, module, form))
        elif isinstance(meta := getattr(module, "meta", None), dict) and {"scale_q", "zero_scale"} & meta.keys():
            raise LibraryError(
                f"{name} is an HQQ layer whose scales are quantized again or offloaded; quantize it with "
                f"quant_scale=False, offload_meta=False"
            )
    return found


def masters(
    model: nn.Module, pattern: str = "", keep: Callable[[nn.Module], bool] = lambda module: True
) -> dict[str, Tensor]:
    """Name -> float32 masters of the layers whose names contain a match of `pattern` and that `keep` accepts.

    Memory: 4 bytes for each group, or none if the library's scales are float32 (they are the masters then); one byte
    more for each group of a matrix with a zero or negative scale.
    """
    handles = list(discover(model))
    names = searching(pattern, [handle.name for handle in handles])
    return {f"{h.name}.scale": h.masters() for h in handles if keep(h.module) and h.name in names}


def is_quantized(model: nn.Module) -> bool:
    """Whether a library stores some matrix of the model as integers."""
    return any(form_of(module) is not None for module in model.modules())


def unknown(model: nn.Module) -> list[str]:
    """Class names of modules that store integer matrices in a way that zograd does not know."""
    kinds = {
        type(m).__name__
        for m in model.modules()
        for t in (*m._parameters.values(), *m._buffers.values())
        if t is not None and t.ndim > 1 and not t.is_floating_point() and t.dtype != torch.bool and form_of(m) is None
    }
    return sorted(kinds)


# ---- saving ----------------------------------------------------------------------------------------------------------


@contextmanager
def without_masters(model: nn.Module) -> Iterator[None]:
    """Inside, the library's own tensors hold the trained scales in its dtype, and modules have no masters.

    Scales are rounded to 16 bits if the library stores 16 bits. A scale that would round to 0 becomes the smallest
    positive number.
    """
    held: list[tuple[QuantizedLayer, nn.Parameter, Tensor]] = []
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
    """Write a model in its library's own format, which `zograd.llm.loading.load` reads, and `scales.safetensors`.

    HQQ: `config.json` and `qmodel.pt`. Other libraries: `save_pretrained` of transformers with a quantization_config.
    Before transformers 5, tensors of torchao go through torch.save: safetensors cannot store them.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    used = {handle.library for handle in discover(model)}
    old = "torchao" in used and int(version("transformers").partition(".")[0]) < 5
    with without_masters(model):
        if "hqq" in used:
            from hqq.models.hf.base import AutoHQQHFModel

            with without_bars():
                AutoHQQHFModel.save_quantized(model, str(folder))
        else:
            model.save_pretrained(folder, **({"safe_serialization": False} if old else {}))
    if any(handle.master is not None for handle in discover(model)):
        save_scales(model, folder / "scales.safetensors")


def save_scales(model: nn.Module, file: str | Path) -> int:
    """Write the trained scales alone, float32 with their signs, by layer; returns their number. 4 bytes for each group.

    The metadata entry `zograd` holds for each layer its library, format, group size, and the SHA-256 of its integers.
    Raises LibraryError if the model has no trained scales.
    """
    trained = [handle for handle in discover(model) if handle.master is not None]
    if not trained:
        raise LibraryError("no scales of this model are trained: there is nothing to save")
    about = {handle.name: _about(handle) for handle in trained}
    tensors = {handle.name: handle.signed().detach().cpu().contiguous() for handle in trained}
    write_tensors(Path(file), tensors, {"zograd": json.dumps(about)})
    return sum(t.numel() for t in tensors.values())


def load_scales(model: nn.Module, file: str | Path) -> dict[str, Tensor]:
    """Load the scales of `save_scales` into the masters of a model with the same integers; returns name -> masters.

    Raises LibraryError, before anything changes, for a file that `save_scales` has not written and for other integers.
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


def _about(handle: QuantizedLayer) -> dict[str, Any]:
    return {
        "library": handle.library,
        "format": handle.format,
        "group_size": handle.group_size,
        "groups": handle.groups,
        "integers": hashlib.sha256(tensor_bytes(handle.integers)).hexdigest(),
    }
