"""How bitsandbytes, torchao, HQQ, GPTQ, AWQ and AQLM store a quantized matrix: where its scales and its integers are.

Layers are recognised by the tensors that they hold. None of the libraries is imported.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class LibraryError(ValueError):
    """A quantized layer or a file of scales cannot be used as asked."""


class LayerFormat(Protocol):
    """How one library stores a quantized matrix. `module: Any`, since no library is imported."""

    library: str

    def owns(self, module: Any) -> bool:
        """Whether a module stores its matrix in this way."""

    def name(self, module: Any) -> str:
        """Name of the format of its integers."""

    def settle(self, module: Any) -> None:
        """Make the scales one floating-point tensor; float32 if the library computes with float32 scales."""

    def read(self, module: Any) -> Tensor:
        """The library's scales."""

    def write(self, module: Any, scales: Tensor) -> None:
        """Make this tensor the library's scales."""

    def integers(self, module: Any) -> Tensor:
        """The quantized weights as they are stored."""

    def size(self, module: Any) -> tuple[int, int]:
        """Rows and columns of the matrix."""


class Bnb4:
    """`bitsandbytes.nn.Linear4bit`: a code book times absmax.

    On CPUs with AVX512-BF16, bitsandbytes repacks such a layer at its first forward in eval mode: it rounds absmax to
    bfloat16 and uses a kernel that is slower than de-quantizing. `stop_repacking` prevents that, and undoes it if it
    has happened (the scales then have 8 bits). The CPU de-quantization of bitsandbytes uses the wrong absmax if a block
    crosses rows: `check_layer` refuses such layers.
    """

    library = "bitsandbytes"

    def owns(self, module: Any) -> bool:
        return _state(module) is not None

    def name(self, module: Any) -> str:
        return str(_state(module).quant_type)

    def settle(self, module: Any) -> None:
        from bitsandbytes.functional import dequantize_blockwise

        state = _state(module)
        stop_repacking(module)
        check_layer(module)
        if state.nested:
            state.absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset
            state.nested, state.state2, state.offset = False, None, None
        state.absmax = state.absmax.float()

    def read(self, module: Any) -> Tensor:
        scales: Tensor = _state(module).absmax
        return scales

    def write(self, module: Any, scales: Tensor) -> None:
        _state(module).absmax = scales

    def integers(self, module: Any) -> Tensor:
        return _own(module.weight)

    def size(self, module: Any) -> tuple[int, int]:
        rows, columns = _state(module).shape
        return int(rows), int(columns)


def _state(module: Any) -> Any:
    """The QuantState of a layer; None without one."""
    return getattr(getattr(module, "weight", None), "quant_state", None)


def stop_repacking(module: Any) -> None:
    """Keep bitsandbytes from repacking a 4-bit layer for CPUs with AVX512-BF16, and undo it if it has happened."""
    state = _state(module)
    if getattr(state, "packing_format_for_cpu", False):
        module._save_to_state_dict({}, "", True)  # unpacks in place, as a side effect, and leaves absmax transposed
        if state.absmax.ndim == 2:
            state.absmax = state.absmax.t().reshape(-1).float()
    module.support_avx512bf16_for_cpu = False


def check_layer(module: Any) -> None:
    """Raise LibraryError for a 4-bit layer that bitsandbytes computes wrongly on a CPU (measured up to 0.50.2)."""
    state = _state(module)
    if state is not None and state.shape[1] % state.blocksize and module.weight.device.type == "cpu":
        raise LibraryError(
            f"bitsandbytes computes 4-bit layers of {state.shape[1]} columns wrongly on a CPU, where its blocks of "
            f"{state.blocksize} cross rows; use --quantize hqq4 or int8-torchao"
        )


class Bnb8:
    """`bitsandbytes.nn.Linear8bitLt`: w = q SCB / 127."""

    library = "bitsandbytes"

    def owns(self, module: Any) -> bool:
        return isinstance(getattr(module, "weight", None), Tensor) and any(
            getattr(place, "SCB", None) is not None for place in (module.weight, getattr(module, "state", None))
        )

    def name(self, module: Any) -> str:
        return "int8"

    def settle(self, module: Any) -> None:
        if module.weight.SCB is not None:
            module.init_8bit_state()

    def read(self, module: Any) -> Tensor:
        scales: Tensor = module.state.SCB if module.weight.SCB is None else module.weight.SCB
        return scales

    def write(self, module: Any, scales: Tensor) -> None:
        module.state.SCB = scales

    def integers(self, module: Any) -> Tensor:
        return _own(module.weight)

    def size(self, module: Any) -> tuple[int, int]:
        return int(module.weight.shape[0]), int(module.weight.shape[1])


class TorchAO:
    """A weight that is one of torchao's tensors with integers `qdata` and `scale`."""

    library = "torchao"

    def owns(self, module: Any) -> bool:
        weight: Any = getattr(module, "weight", None)
        if not (type(weight).__module__.startswith("torchao.") and isinstance(getattr(weight, "scale", None), Tensor)):
            return False
        return not getattr(weight, "qdata", weight.scale).is_floating_point()

    def name(self, module: Any) -> str:
        return str(getattr(module.weight, "target_dtype", module.weight.qdata.dtype)).removeprefix("torch.")

    def settle(self, module: Any) -> None:
        module.weight.scale = module.weight.scale.float()  # it multiplies integers; the product is rounded

    def read(self, module: Any) -> Tensor:
        scales: Tensor = module.weight.scale
        return scales

    def write(self, module: Any, scales: Tensor) -> None:
        module.weight.scale = scales

    def integers(self, module: Any) -> Tensor:
        integers: Tensor = module.weight.qdata
        return integers

    def size(self, module: Any) -> tuple[int, int]:
        return int(module.weight.shape[0]), int(module.weight.shape[1])


class Hqq:
    """`hqq.core.quantize.HQQLinear`: w = (q - zero) scale, in its compute_dtype."""

    library = "hqq"

    def owns(self, module: Any) -> bool:
        meta = getattr(module, "meta", None)
        return hasattr(module, "W_q") and isinstance(meta, dict) and isinstance(meta.get("scale"), Tensor)

    def name(self, module: Any) -> str:
        return f"{module.meta['nbits']}-bit"

    def settle(self, module: Any) -> None:
        pass

    def read(self, module: Any) -> Tensor:
        scales: Tensor = module.meta["scale"]
        return scales

    def write(self, module: Any, scales: Tensor) -> None:
        module.meta["scale"] = scales

    def integers(self, module: Any) -> Tensor:
        return _own(module.W_q)

    def size(self, module: Any) -> tuple[int, int]:
        rows, columns = module.meta["shape"]
        return int(rows), int(columns)


class Gptq:
    """Layers of GPTQ and AWQ packages, which call their tensors `qweight`, `qzeros` and `scales` [groups, rows]."""

    library = "gptq/awq"

    def owns(self, module: Any) -> bool:
        q, s = getattr(module, "qweight", None), getattr(module, "scales", None)
        return isinstance(q, Tensor) and isinstance(s, Tensor) and not q.is_floating_point() and s.is_floating_point()

    def name(self, module: Any) -> str:
        return f"{getattr(module, 'bits', getattr(module, 'w_bit', 'n'))}-bit"

    def settle(self, module: Any) -> None:
        pass

    def read(self, module: Any) -> Tensor:
        scales: Tensor = module.scales
        return scales

    def write(self, module: Any, scales: Tensor) -> None:
        module.scales = scales

    def integers(self, module: Any) -> Tensor:
        return _own(module.qweight)

    def size(self, module: Any) -> tuple[int, int]:
        return int(module.out_features), int(module.in_features)


class Aqlm:
    """`aqlm.QuantizedLinear`: w = scale sum_c codebook_c[code_c] for groups of weights; one scale a row, or rows.

    codes [row groups, column groups, codebooks], codebooks [codebooks, size, rows, columns of a group], scales [row
    groups, 1, 1, 1] (Egiazarian et al. 2024, arXiv 2401.06118). For its kernel on a CPU the library transposes the
    codes of small codebooks at the first forward; `integers` gives them as they were stored.
    """

    library = "aqlm"

    def owns(self, module: Any) -> bool:
        found = [getattr(module, name, None) for name in ("codes", "codebooks", "scales")]
        if not all(isinstance(t, Tensor) for t in found):
            return False
        codes, books, scales = found
        return codes.ndim == 3 and books.ndim == 4 and scales.ndim == 4 and not codes.is_floating_point()  # type: ignore[union-attr]

    def name(self, module: Any) -> str:
        books, size = module.codebooks.shape[:2]
        return f"{books}x{size.bit_length() - 1}-bit"

    def settle(self, module: Any) -> None:
        pass

    def read(self, module: Any) -> Tensor:
        scales: Tensor = module._parameters["scales"]
        return scales

    def write(self, module: Any, scales: Tensor) -> None:
        module._parameters["scales"] = scales  # it is a parameter, and may be any tensor for a forward

    def integers(self, module: Any) -> Tensor:
        codes = _own(module.codes)
        transposed = (
            getattr(module, "gemv_op", None) is not None
            and codes.device.type == "cpu"
            and module.codebooks.shape[1] == 256
        )
        return codes.permute(1, 0, 2).contiguous() if transposed else codes

    def size(self, module: Any) -> tuple[int, int]:
        return int(module.out_features), int(module.in_features)


def _own(tensor: Tensor) -> Tensor:
    """The same data as a plain Tensor, not a subclass."""
    return tensor.detach().as_subclass(Tensor)


LAYER_FORMATS: tuple[LayerFormat, ...] = (Bnb4(), Bnb8(), TorchAO(), Hqq(), Gptq(), Aqlm())
