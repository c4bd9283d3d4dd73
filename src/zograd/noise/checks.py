"""Checks of the arguments of `zograd.noise`; each raises before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .device import Job
from .format import MAX_INDEX, Term
from .native import DTYPES

SUPPORTED = frozenset(DTYPES)
HALF = frozenset((torch.bfloat16, torch.float16))


def strided(name: str, tensor: Tensor) -> str:
    return (
        f"{name} is not contiguous (shape {tuple(tensor.shape)}, strides {tensor.stride()}); noise is indexed in "
        f"memory order. Pass a contiguous tensor, for example {name}.contiguous() and copy the result back"
    )


def check_out(out: Tensor, leaf: int, start: int) -> None:
    """Checks what `combine` writes, and its place in the leaf."""
    if out.dtype not in SUPPORTED:
        raise TypeError(
            f"out is {out.dtype}; expected float32, float64, bfloat16 or float16. Convert it with out.float()"
        )
    if not out.is_contiguous():
        raise ValueError(strided("out", out))
    check_place(leaf, start, out.numel())


def check_job(job: Job) -> None:
    """Checks the tensors of `combine` and their place in the leaf."""
    out, x, leaf, start, dense, low = job
    dtype, n = out.dtype, out.numel()
    check_out(out, leaf, start)
    if x is not None and x is not out:
        check_like("x", x, out, n, dtype)
        check_overlap("x", x, out)
    if dense is not None:
        check_like("dense", dense, out, n, torch.float64 if dtype == torch.float64 else torch.float32)
        check_overlap("dense", dense, out)
    if low is not None:
        if dtype not in HALF:
            raise ValueError(f"low is given for {dtype}; it applies to bfloat16 and float16 only. Leave it out")
        if not job.in_place:
            raise ValueError(
                "low is given but x is not out; split weights update in place: combine(w, w, low=low, ...)"
            )
        check_like("low", low, out, n, torch.int16)
        check_overlap("low", low, out)


def check_pair(plus: Tensor, minus: Tensor, x: Tensor, terms: Sequence[Term], leaf: int, start: int) -> None:
    check_job(Job(plus, x, leaf, start))
    check_like("minus", minus, x, x.numel(), x.dtype)
    for name, out, other in (("plus", plus, x), ("minus", minus, x), ("minus", minus, plus)):
        check_overlap(name, out, other, same_allowed=False)
    check_terms(terms)


def check_rounding(job: Job, rounding: int) -> None:
    check_key("rounding", rounding)
    if job.out.dtype not in HALF:
        raise ValueError(
            f"rounding is given for {job.out.dtype}; it applies to bfloat16 and float16 only. Leave it out"
        )
    if job.low is not None:
        raise ValueError("both rounding and low are given; split weights need no stochastic rounding: leave one out")


def check_like(name: str, tensor: Tensor, other: Tensor, numel: int, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        short = str(dtype).removeprefix("torch.")
        raise TypeError(f"{name} is {tensor.dtype}; expected {dtype}. Write {name}.to(torch.{short})")
    if tensor.numel() != numel:
        raise ValueError(f"{name} has {tensor.numel()} elements (shape {tuple(tensor.shape)}); expected {numel}")
    if tensor.device != other.device:
        raise ValueError(
            f"{name} is on {tensor.device}; expected {other.device}. Write {name}.to({str(other.device)!r})"
        )
    if not tensor.is_contiguous():
        raise ValueError(strided(name, tensor))


def check_overlap(name: str, tensor: Tensor, out: Tensor, *, same_allowed: bool = True) -> None:
    """Equal memory means in place. With partial overlap, elements would be read after they were overwritten."""
    a, b = tensor.data_ptr(), out.data_ptr()
    if a == b and same_allowed and tensor.dtype == out.dtype:
        return
    if a < b + out.numel() * out.element_size() and b < a + tensor.numel() * tensor.element_size():
        raise ValueError(f"{name} and the tensor it is combined with share part of their memory; pass {name}.clone()")


def check_key(name: str, key: object) -> None:
    if not isinstance(key, int) or not 0 <= key < 1 << 64:
        raise ValueError(
            f"{name}={key!r} is not a 64-bit key; expected an int, 0 <= {name} < 2**64. Write fold(seed, step)"
        )


def check_kind(kind: object) -> None:
    if kind not in (0, 1):
        raise ValueError(f"kind={kind!r} is not a law of noise; expected Kind.SIGN or Kind.NORMAL")


def check_terms(terms: Sequence[Term]) -> None:
    for term in terms:
        if len(term) != 3:
            raise ValueError(f"term {term!r} has {len(term)} fields; expected Term(kind, key, coef)")
        kind, key, coef = term
        if kind not in (0, 1):
            check_kind(kind)
        if type(key) is not int or not 0 <= key < 1 << 64:
            check_key("key", key)
        if not isinstance(coef, (float, int)):
            raise TypeError(f"coef is {type(coef).__name__}; expected a float. Write float(coef)")


def check_place(leaf: int, start: int, count: int) -> None:
    if not 0 <= leaf < 1 << 32:
        raise ValueError(
            f"leaf={leaf} is out of range; expected 0 <= leaf < 2**32, the number of the tensor in its model"
        )
    if start < 0 or start + count > MAX_INDEX:
        raise ValueError(
            f"start={start} with {count} elements is out of range; expected 0 <= start, start + n <= 2**40"
        )
