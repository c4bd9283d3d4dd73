"""Compiled loops other than noise: low-rank side branches and moves, log-sum-exp in pieces (`_native.cpp`).

Without the compiled loops, on other devices and for other dtypes, torch computes the same result up to rounding; moves
have the same bits.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from zograd.noise import backend
from zograd.noise.native import newest_build

__all__ = ["Factors", "Side", "add_outer", "add_sides_", "log_sum_exp_"]

ABI = 4
DTYPES = {torch.float32: 0, torch.bfloat16: 1}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None if they were not built or ZOGRAD_BACKEND declines them."""
    lib = newest_build(__file__, "zograd_kernels_abi", ABI) if backend() == "native" else None
    if lib is not None:
        i64, f32, address = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
        text = ctypes.c_char_p
        lib.zograd_kernels_side.argtypes = [i64, address, address, *[i64] * 6, text, text, text, i64]
        lib.zograd_kernels_side.restype = None
        lib.zograd_kernels_outer.argtypes = [i64, address, address, i64, i64, i64, f32, i64, i64, *[address] * 3, i64]
        lib.zograd_kernels_outer.restype = i64
        lib.zograd_kernels_lse.argtypes = [i64, address, i64, i64, i64, address, address, i64]
        lib.zograd_kernels_lse.restype = None
    return lib


def _compiled(*tensors: Tensor) -> ctypes.CDLL | None:
    """The library if all tensors are on the CPU and it supports the dtype of the first; else None."""
    on_cpu = tensors[0].dtype in DTYPES and all(t.device.type == "cpu" for t in tensors)
    return library() if on_cpu else None


class Factors:
    """The factors U [r, rows] and V [r, columns] of a matrix U^T V, in float32 or float64."""

    __slots__ = ("_at", "_kept", "u", "v")

    def __init__(self, u: Tensor, v: Tensor) -> None:
        self.u, self.v = u, v
        self._at: tuple[list[int], list[int]] | None = None

    @property
    def at(self) -> tuple[list[int], list[int]]:
        """Addresses of the rows of U and of V in float32, on the CPU."""
        if self._at is None:
            self._kept = u, v = _float_rows(self.u), _float_rows(self.v)
            self._at = _addresses(u), _addresses(v)
        return self._at


Side: TypeAlias = tuple[Sequence[float], Factors]
"""c [r] and factors: the matrix U^T diag(c) V."""


def add_sides_(y: Tensor, x: Tensor, sides: Sequence[Sequence[Side]], start: int = 0) -> Tensor:
    """y[k] += sum_j (x[k] V_kj^T) diag(c_kj) U_kj for y [n, N, rows], x [n, N, columns], n branches; returns y.

    start: y holds the rows of the matrices from `start` on. For bfloat16, U, V and all sums are float32, and y is
    rounded once every 32 ranks. Cost: one pass over y, one over x, and N (rows + columns) products per rank.
    """
    n, each = y.shape[:2]
    if x.is_contiguous() and y.is_contiguous() and (lib := _compiled(y, x)) is not None:
        most = max(sum(len(c) for c, _ in terms) for terms in sides)
        if not most:
            return y
        coefs: list[float] = []
        us: list[int] = []
        vs: list[int] = []
        for k, terms in enumerate(sides, 1):
            for c, factors in terms:
                at_u, at_v = factors.at
                coefs += c
                us += at_u
                vs += at_v
            absent = k * most - len(coefs)
            coefs += [0.0] * absent
            us += [0] * absent
            vs += [0] * absent
        lib.zograd_kernels_side(
            DTYPES[y.dtype], y.data_ptr(), x.data_ptr(), each, n * each, x.shape[2], y.shape[2], start, most,
            struct.pack(f"{n * most}f", *coefs), struct.pack(f"{n * most}Q", *us), struct.pack(f"{n * most}Q", *vs),
            torch.get_num_threads(),
        )  # fmt: skip
        return y
    wide = torch.promote_types(y.dtype, torch.float32)
    for xk, yk, terms in zip(x, y, sides, strict=True):
        xk, total = xk.to(wide), yk.to(wide)
        for c, factors in terms:
            u, v = factors.u[:, start : start + y.shape[2]].to(wide), factors.v.to(wide)
            total = total.addmm((xk @ v.T).mul_(u.new_tensor(c)), u)
        yk.copy_(total)
    return y


def _float_rows(t: Tensor) -> Tensor:
    """The matrix in float32 with contiguous rows; a copy only where that is needed."""
    return t if t.dtype == torch.float32 and t.stride(1) == 1 else t.float().contiguous()


def _addresses(t: Tensor) -> list[int]:
    """The addresses of the rows of a float32 matrix."""
    at, apart = t.data_ptr(), 4 * t.stride(0)
    return [at + k * apart for k in range(t.shape[0])]


def add_outer(
    out: Tensor,
    x: Tensor,
    start: int,
    columns: int,
    scale: float,
    terms: Sequence[tuple[float, Tensor, Tensor]],
    *,
    one_by_one: bool = False,
) -> int | None:
    """out <- scale x + sum_k c_k u_k v_k^T on elements start .. start + len(x) of a matrix, in one pass.

    out may be x. u_k, v_k: float32, all rows and all columns, with elements +1 or -1. The sum over k is computed first,
    in float32; bfloat16 is rounded to nearest. one_by_one (float32 and scale 1 only): computes
    (x + c_1 u_1 v_1^T) + c_2 u_2 v_2^T ..., which has the bits of single moves made one after another. Returns the
    number of elements of out that differ from x, or None, with nothing done, if there is no compiled loop for this
    device or dtype.
    """
    if out.dtype != x.dtype or (lib := _compiled(out, x)) is None:
        return None
    pointers = ctypes.c_void_p * len(terms)
    return int(
        lib.zograd_kernels_outer(
            DTYPES[x.dtype], out.data_ptr(), x.data_ptr(), start, x.numel(), columns, scale, one_by_one, len(terms),
            (ctypes.c_float * len(terms))(*[c for c, _, _ in terms]),
            pointers(*[u.data_ptr() for _, u, _ in terms]), pointers(*[v.data_ptr() for _, _, v in terms]),
            torch.get_num_threads(),
        )
    )  # fmt: skip


def log_sum_exp_(top: Tensor, total: Tensor, logits: Tensor) -> None:
    """Adds the columns of `logits` [N, columns] to a running log-sum-exp, log sum_j e^l_j = top + log total.

    top <- m = max(top, max_j l_j);  total <- total e^(top_old - m) + sum_j e^(l_j - m). Start from -inf and 0.
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
