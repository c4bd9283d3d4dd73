"""Compiled loops besides noise: side branches and moves of low rank, log-sum-exp in pieces (`_native.cpp`).

Without a compiler, off the CPU and for other dtypes torch computes the same to rounding; moves have the same bits.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from zograd.noise import backend
from zograd.noise.native import newest_build

__all__ = ["Side", "add_outer", "add_sides_", "log_sum_exp_"]

ABI = 1
DTYPES = {torch.float32: 0, torch.bfloat16: 1}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None when they were not built (or declined, like those of `zograd.noise`)."""
    lib = newest_build(__file__, "zograd_kernels_abi", ABI) if backend() == "native" else None
    if lib is not None:
        i64, f32, address = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
        lib.zograd_kernels_side.argtypes = [i64, address, address, *[i64] * 5, address, address, address, i64]
        lib.zograd_kernels_side.restype = None
        lib.zograd_kernels_outer.argtypes = [
            i64,
            address,
            address,
            i64,
            i64,
            i64,
            f32,
            i64,
            address,
            address,
            address,
            i64,
        ]
        lib.zograd_kernels_outer.restype = i64
        lib.zograd_kernels_lse.argtypes = [i64, address, i64, i64, i64, address, address, i64]
        lib.zograd_kernels_lse.restype = None
    return lib


def _compiled(*tensors: Tensor) -> ctypes.CDLL | None:
    """The library, when all of these are on the CPU and the first is of a dtype that it knows."""
    on_cpu = tensors[0].dtype in DTYPES and all(t.device.type == "cpu" for t in tensors)
    return library() if on_cpu else None


Side: TypeAlias = tuple[float, Tensor, Tensor]
"""coef, U [r, rows], V [r, columns]: the matrix coef U^T V."""


def add_sides_(y: Tensor, x: Tensor, sides: Sequence[Sequence[Side]], rows: slice | None = None) -> Tensor:
    """y[k] += sum_j c_kj (x[k] V_kj^T) U_kj, y [n, N, rows] and x [n, N, columns], n branches; returns y.

    rows: only these of the n N rows. In 16 bits U, V and their sums are float32, and y is rounded once a rank. Cost: a
    pass over x and y for each rank.
    """
    compiled = _compiled(y, x) if x.is_contiguous() and y.is_contiguous() else None
    n, each = y.shape[:2]
    first, last = (0, n * each) if rows is None else (rows.start, rows.stop)
    for turn in itertools.zip_longest(*sides):
        if compiled is None or max(side[1].shape[0] for side in turn if side) > 1:
            for k, side in enumerate(turn):
                part = slice(min(max(first - k * each, 0), each), min(max(last - k * each, 0), each))
                if side is None or part.start == part.stop:
                    continue
                (c, u, v), xk, yk = side, x[k, part], y[k, part]
                t = (xk.to(u.dtype) @ v.T).mul_(c)
                yk.copy_(yk.to(u.dtype).addmm_(t, u)) if yk.dtype != u.dtype else yk.addmm_(t, u)
            continue
        kept = [(c, u.float().contiguous(), v.float().contiguous()) for c, u, v in filter(None, turn)]
        at = iter(kept)
        c, u, v = zip(*[next(at) if side else (0.0, *kept[0][1:]) for side in turn], strict=True)
        pointers = ctypes.c_void_p * n
        compiled.zograd_kernels_side(
            DTYPES[y.dtype], y.data_ptr(), x.data_ptr(), each, first, last, x.shape[2], y.shape[2],
            (ctypes.c_float * n)(*c), pointers(*[t.data_ptr() for t in u]), pointers(*[t.data_ptr() for t in v]),
            torch.get_num_threads(),
        )  # fmt: skip
    return y


def add_outer(out: Tensor, x: Tensor, start: int, columns: int, scale: float, terms: Sequence[Side]) -> int | None:
    """out <- scale x + sum_k coef_k u_k v_k^T on elements start .. start + len(x) of a matrix, in one pass.

    out may be x. u_k, v_k: float32, all rows and all columns, with elements +1 or -1. The sum over k comes first, in
    float32, and bfloat16 is rounded to nearest. Returns how many elements of out differ from x; None (nothing is
    done) where the loops are not compiled for this device or dtype.
    """
    if out.dtype != x.dtype or (lib := _compiled(out, x)) is None:
        return None
    pointers = ctypes.c_void_p * len(terms)
    return int(
        lib.zograd_kernels_outer(
            DTYPES[x.dtype], out.data_ptr(), x.data_ptr(), start, x.numel(), columns, scale, len(terms),
            (ctypes.c_float * len(terms))(*[c for c, _, _ in terms]),
            pointers(*[u.data_ptr() for _, u, _ in terms]), pointers(*[v.data_ptr() for _, _, v in terms]),
            torch.get_num_threads(),
        )
    )  # fmt: skip


def log_sum_exp_(top: Tensor, total: Tensor, logits: Tensor) -> None:
    """Take the columns of `logits` [N, columns] into log sum_j e^l_j = top + log total, from -inf and 0 on.

    top <- m = max(top, max_j l_j);  total <- total e^(top_old - m) + sum_j e^(l_j - m).
    """
    if (lib := _compiled(logits, top, total)) is not None and logits.stride(1) == 1:
        lib.zograd_kernels_lse(
            DTYPES[logits.dtype], logits.data_ptr(), logits.stride(0), logits.shape[0], logits.shape[1],
            top.data_ptr(), total.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return
    logits = logits.float()
    m = torch.maximum(top, logits.amax(1))
    total.mul_(torch.exp(top - m)).add_(torch.exp(logits - m[:, None]).sum(1))
    top.copy_(m)
