"""Load the compiled de-quantization (`_native.cpp`) through ctypes; `gguf_blocks.py` is the same without it."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from zograd.noise.native import newest_build

ABI = 1
DTYPES = {torch.float32: 0, torch.bfloat16: 1}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None if they were not built, or were built from another version of the source."""
    lib = newest_build(__file__, "zograd_quantized_abi", ABI)
    if lib is not None:
        i64, address = ctypes.c_int64, ctypes.c_void_p
        lib.zograd_quantized_dequantize.argtypes = [i64, address, i64, i64, address, address, address, i64, i64]
        lib.zograd_quantized_dequantize.restype = None
    return lib


def dequantize(out: Tensor, format: int, size: int, blocks: Tensor, scales: Tensor | None, mins: Tensor | None) -> None:
    """out <- the weights of blocks. The caller has checked the arguments: contiguous, CPU, out in a dtype of DTYPES."""
    lib = library()
    assert lib is not None
    lib.zograd_quantized_dequantize(
        format,
        blocks.data_ptr(),
        out.numel() // size,
        size,
        None if scales is None else scales.data_ptr(),
        None if mins is None else mins.data_ptr(),
        out.data_ptr(),
        DTYPES[out.dtype],
        torch.get_num_threads(),
    )
