"""Seeded noise, fused with the weight update: x -> scale * x + dense + sum_j coef_j * noise(key_j).

Noise is a pure function of (key: 64 bits, leaf: 32 bits, element index: below 2^40). It is never stored. The same three
numbers give the same bits on any device, with any number of threads and any division into chunks. `leaf` is the number
of a tensor in its model. The element index counts the elements of one tensor in memory order.

Format (version 1, frozen). Philox4x32-10 with key = (key lo, key hi) and counter = (q lo, q hi, leaf, stream):

========  =====================================================================================================
stream    element i of block b
========  =====================================================================================================
0 signs   blocks of 2048: b = i >> 11, e = i & 2047, w = e >> 5; q = 16 b + (w & 15), word w >> 4, bit e & 31;
          bit 0 is +1, bit 1 is -1
1, 2      blocks of 128: b = i >> 7, e = i & 127; q = 16 b + (e & 15), word (e >> 4) & 3, half e >> 6: one 16-bit u
1 normal  (-1)^(u >> 15) * table[u & 32767] * 2^-16, see `table.py`
2 round   the random bits of stochastic rounding
3 fold    key derivation, see `fold`
========  =====================================================================================================

Three backends with the same bits: "native" (compiled C++, CPU), "triton" (CUDA, where triton is installed) and "torch"
(integer operations, any device). The environment variable ZOGRAD_BACKEND=torch selects "torch" everywhere. Reference in
NumPy: `reference.py`.

Files: format.py (names, Philox, fold), table.py (quantiles), portable.py (torch), native.py and _native.cpp (C++),
device.py and triton_kernels.py (CUDA).
"""

import warnings
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import device as cuda
from . import native, portable
from .checks import (
    HALF,
    SUPPORTED,
    check_job,
    check_key,
    check_kind,
    check_like,
    check_out,
    check_overlap,
    check_pair,
    check_place,
    check_rounding,
    check_terms,
    strided,
)
from .device import Job
from .format import NOISE_VERSION, Kind, Term
from .keys import fold

__all__ = [
    "NOISE_VERSION",
    "Job",
    "Kind",
    "Term",
    "backend",
    "combine",
    "combine_group",
    "combine_pair",
    "combine_rows",
    "counter",
    "fold",
    "gram",
    "grouped",
    "move_and_pair",
    "shifted",
    "shifted_pairs",
    "signs",
]

CPU = torch.device("cpu")
_GRAM_COUNT = 1 << 24  # |z_j z_k| < 2^38 in integer units: sums of 2^24 stay in int64


@cache
def _use_triton() -> bool:
    """Decided once per process."""
    return not native.torch_is_wanted() and cuda.available()


@cache
def _use_native() -> bool:
    """Decided once per process. Warns if the kernels are missing, but not if ZOGRAD_BACKEND declines them."""
    if native.torch_is_wanted():
        return False
    if native.library() is None:
        warnings.warn(
            "the compiled noise kernels of zograd are missing, so torch operations compute noise on the CPU: the same "
            "bits, 40 to 100 times slower. Install a C++ compiler and reinstall zograd (in a checkout: "
            f"`python setup.py build_ext --inplace`), or set {native.ENVIRONMENT}=torch to silence this warning.",
            RuntimeWarning,
            stacklevel=4,
        )
        return False
    return True


def _engine(device: torch.device) -> ModuleType:
    if device == CPU:
        return native if _use_native() else portable
    return cuda if device.type == "cuda" and _use_triton() else portable


def backend(device: torch.device | str = "cpu") -> str:
    """The backend that computes noise for tensors on this device: "native", "triton" or "torch"."""
    return {native: "native", cuda: "triton", portable: "torch"}[_engine(torch.device(device))]


def grouped(device: torch.device) -> bool:
    """Whether one launch can process several leaves on this device."""
    return _engine(device) is cuda


def counter(device: torch.device) -> Tensor | None:
    """A zero on the device for `combine_group(..., counter=...)`; None where counting needs no synchronisation."""
    return cuda.counter(device) if grouped(device) else None


def combine(
    out: Tensor,
    x: Tensor | None = None,
    *,
    scale: float = 1.0,
    terms: Sequence[Term] = (),
    dense: Tensor | None = None,
    dense_coef: float = 1.0,
    leaf: int = 0,
    start: int = 0,
    rounding: int | None = None,
    low: Tensor | None = None,
) -> int:
    """out[i] = round(scale * x[i] + (dense_coef * dense[i] + sum_j coef_j * noise_j(key_j, leaf, start + i))).

    Reads x once and writes out once, whatever the number of terms. Autograd records nothing.

    Arithmetic is float32 (float64 when out is float64), without fused multiply-add. Coefficients are first rounded to
    that precision. The order is: v = dense_coef * dense, then v += coef_j * z_j for each term, then scale * x + v. The
    first contribution to v is assigned, not added to 0. A 16-bit NaN is stored as the canonical quiet NaN.

    Args:
        out: float32, float64, bfloat16 or float16; contiguous, any shape, read as a flat vector of n elements.
        x: same dtype, device and n; either `out` itself (in place) or memory apart from it. None: zeros.
        terms: `Term(kind, key, coef)` triples.
        dense: n elements, float32 (float64 when out is float64), contiguous.
        leaf: the number of the tensor, 0 <= leaf < 2^32.
        start: index of out[0] within that tensor; start + n <= 2^40. Any value, no alignment needed.
        rounding: None rounds to nearest even. A key (bfloat16 and float16 only) rounds stochastically with the 16-bit
            draws of that key at (leaf, start + i): E[out] is the unrounded value (for float16 subnormals to within
            2^-16 of their spacing). Exact values do not change; finite values stay finite. Use a new key per call.
        low: int16[n], contiguous: the lower halves of split master weights (bfloat16 and float16, in place only). The
            pair holds a 32-bit master: for bfloat16 a float32; for float16 the sign, 5 exponent bits and 26 mantissa
            bits. out is the master rounded to 16 bits (half away from zero). If low is 0, master == out. The float32
            increment v is added to the master in float32 (bfloat16) or float64 (float16; `scale` then keeps float64
            precision). Finite masters stay finite.

    Returns the number of elements whose bits changed (with `low`: in either half), or 0 when out is not x. On a GPU,
    reading this number is the only synchronisation.

    Cost per element on one core with AVX-512 (`zograd bench noise`): the first sign as much as `out.add_(c)` (float16:
    twice that), each further sign 0.06 ns; the first normal twice `out.add_(c)`, each further normal 0.45 ns;
    stochastic rounding 0.35 ns. The torch backend: 40 ns per sign, 80 ns per normal.

    Raises ValueError or TypeError before anything is written.

    >>> w = torch.zeros(4)
    >>> combine(w, w, terms=[Term(Kind.SIGN, key=7, coef=0.5)])
    4
    >>> w
    tensor([-0.5000,  0.5000, -0.5000, -0.5000])
    """
    if x is out and dense is None and low is None and rounding is None:
        check_out(out, leaf, start)
        in_place = True
    else:
        job = Job(out, x, leaf, start, dense, low)
        check_job(job)
        if rounding is not None:
            check_rounding(job, rounding)
        in_place = job.in_place
    check_terms(terms)
    if out.numel() == 0:
        return 0
    moved: int = _engine(out.device).combine(out, x, scale, terms, dense, dense_coef, leaf, start, rounding, low)
    return moved if in_place else 0


def signs(key: int, runs: Sequence[tuple[int, int, int]], device: torch.device) -> Tensor:
    """Concatenates, in float32, the signs of `key` at elements start .. start + count of each (leaf, start, count).

    Like `combine`, but without its checks. On the CPU one call serves any number of runs.
    """
    with torch.inference_mode(False):
        out = torch.empty(sum(count for _, _, count in runs), dtype=torch.float32, device=device)
    engine = _engine(device)
    if engine is native:
        native.signs(out, key, runs)
        return out
    for part, (leaf, start, count) in zip(out.split_with_sizes([run[2] for run in runs]), runs, strict=True):
        if count:
            engine.combine(part, None, 1.0, ((Kind.SIGN, key, 1.0),), None, 1.0, leaf, start, None, None)
    return out


def shifted(x: Tensor, *, terms: Sequence[Term], leaf: int = 0) -> Tensor:
    """A fresh x + sum_j coef_j noise_j(key_j, leaf, i), the bits of `combine(out, x, terms=..., leaf=...)`.

    x: a whole leaf, contiguous, float32, float64, bfloat16 or float16. Only the terms are checked, since `out` is made
    here: beside a function of a few numbers the checks of a call cost as much as its work.
    """
    check_terms(terms)
    out = torch.empty_like(x)
    if out.numel():
        _engine(x.device).combine(out, x, 1.0, terms, None, 1.0, leaf, 0, None, None)
    return out


def shifted_pairs(rows: Sequence[Tensor], x: Tensor, terms: Sequence[Term], *, leaf: int = 0) -> None:
    """rows[2 j] = x + coef_j noise_j(key_j, leaf, i), rows[2 j + 1] = x - coef_j noise_j: `combine_pair` for each term.

    x: a whole leaf, flat. rows: tensors like it, apart from it and from each other. Only the terms are checked.
    """
    check_terms(terms)
    pair = _engine(x.device).combine_pair
    for j, term in enumerate(terms):
        pair(rows[2 * j], rows[2 * j + 1], x, (term,), leaf, 0)


def combine_group(
    jobs: Sequence[Job],
    *,
    scale: float = 1.0,
    terms: Sequence[Term] = (),
    dense_coef: float = 1.0,
    rounding: int | None = None,
    counter: Tensor | None = None,
) -> int:
    """Calls `combine` on each of `jobs` with the same numbers; each tensor is a `Job(out, x, leaf, start, dense, low)`.

    On a CUDA device with triton this takes one launch for each combination of dtype and arguments given (two where some
    tensors are not aligned to 16 bytes), whatever the number of tensors and terms, and one synchronisation at the end
    for the count. Elsewhere the jobs run one after another. Jobs must not overlap; this is not checked.

    rounding: with a key, float16 and bfloat16 tensors without `low` are rounded stochastically; others ignore it.
    counter: the result of `zograd.noise.counter` for the device. The count is added to it without synchronisation.

    Returns the number of elements changed in place (0 if `counter` is given). Raises like `combine`, before anything is
    written.

    >>> a, b = torch.zeros(2), torch.zeros(3, dtype=torch.bfloat16)
    >>> combine_group([Job(a, a, leaf=0), Job(b, b, leaf=1)], terms=[Term(Kind.SIGN, key=7, coef=0.5)])
    5
    """
    for job in jobs:
        check_job(job)
    if rounding is not None:
        check_key("rounding", rounding)
    check_terms(terms)
    jobs = [job for job in jobs if job.out.numel()]
    moved = 0
    for device in {job.out.device: None for job in jobs}:
        here = [job for job in jobs if job.out.device == device]
        engine = _engine(device)
        if engine is cuda:
            moved += cuda.combine_group(here, scale, terms, dense_coef, rounding, counter)
            continue
        for out, x, leaf, start, dense, low in here:
            key = rounding if out.dtype in HALF and low is None else None
            changed = engine.combine(out, x, scale, terms, dense, dense_coef, leaf, start, key, low)
            moved += changed if x is not None and x.data_ptr() == out.data_ptr() else 0
    return moved


def combine_pair(
    plus: Tensor, minus: Tensor, x: Tensor, *, terms: Sequence[Term], leaf: int = 0, start: int = 0
) -> None:
    """plus[i] = round(x[i] + v[i]) and minus[i] = round(x[i] - v[i]), v = sum_j coef_j noise_j(key_j, leaf, start + i).

    Computes the noise once and reads x once. The bits are those of `combine(plus, x, terms=...)` and of
    `combine(minus, x, ...)` with negated coefficients, except for the sign of a zero where terms cancel. Arithmetic and
    arguments are as in `combine`; rounds to nearest even. `plus`, `minus` and `x` must not overlap.

    Cost relative to these two calls, on tiles of 2^18 to 2^20 elements in the cache: signs 0.77 in float32, 0.65 in
    bfloat16; normals 0.63 and 0.55.

    Raises ValueError or TypeError before anything is written.

    >>> x, plus, minus = torch.zeros(2), torch.empty(2), torch.empty(2)
    >>> combine_pair(plus, minus, x, terms=[Term(Kind.SIGN, key=7, coef=0.5)])
    >>> plus, minus
    (tensor([-0.5000,  0.5000]), tensor([ 0.5000, -0.5000]))
    """
    check_pair(plus, minus, x, terms, leaf, start)
    if not x.numel():
        return
    if not terms:
        plus.detach().copy_(x)
        minus.detach().copy_(x)
        return
    _engine(x.device).combine_pair(plus, minus, x, terms, leaf, start)


def move_and_pair(
    plus: Tensor,
    minus: Tensor,
    x: Tensor,
    *,
    scale: float = 1.0,
    move: Sequence[Term],
    rounding: int | None = None,
    terms: Sequence[Term],
    leaf: int = 0,
    start: int = 0,
) -> int:
    """`combine(x, x, scale=scale, terms=move, rounding=rounding)`, then `combine_pair(plus, minus, x, terms=terms)`.

    The bits are those of the two calls. On the CPU both run tile by tile, so the weights are read from memory once.
    Returns the number of elements of x whose bits changed. Raises like both calls, before anything is written.
    """
    check_pair(plus, minus, x, terms, leaf, start)
    if rounding is not None:
        check_rounding(Job(x, x, leaf, start), rounding)
    check_terms(move)
    if _engine(x.device) is native and terms and x.numel():
        return native.move_and_pair(plus, minus, x, scale, move, rounding, terms, leaf, start)
    moved = combine(x, x, scale=scale, terms=move, leaf=leaf, start=start, rounding=rounding)
    combine_pair(plus, minus, x, terms=terms, leaf=leaf, start=start)
    return moved


def combine_rows(out: Tensor, x: Tensor, rows: Tensor, *, terms: Sequence[Term], leaf: int) -> None:
    """out[r, :] = round(x[rows[r], :] + sum_j coef_j noise_j), noise at elements rows[r] * row_len + 0 .. row_len - 1.

    Gives the rows that a lookup in an embedding table perturbed by `combine(..., start=0)` would give, without reading
    the rest of the table. Rounds to nearest even.

    Args:
        out: [R, row_len] (or any shape of R * row_len elements), contiguous, dtype and device of x; no overlap with x.
        x: [num_rows, row_len], contiguous, float32, float64, bfloat16 or float16.
        rows: int64[R], contiguous, 0 <= rows < num_rows; repeated rows get the same noise.

    Raises ValueError, TypeError, or IndexError for a row outside the table (on a GPU: torch's device-side assertion).

    Cost: that of `combine` on R * row_len elements, plus up to one block of noise per row.
    """
    if x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected [num_rows, row_len]. Write x.view(num_rows, -1)")
    num_rows, row_len = x.shape
    if x.dtype not in SUPPORTED:
        raise TypeError(f"x is {x.dtype}; expected float32, float64, bfloat16 or float16. Convert it with x.float()")
    if not x.is_contiguous():
        raise ValueError(strided("x", x))
    if rows.dtype != torch.int64:
        raise TypeError(f"rows is {rows.dtype}; expected int64. Write rows.long()")
    if rows.device != x.device:
        raise ValueError(f"rows is on {rows.device} and x on {x.device}; write rows.to(x.device)")
    if not rows.is_contiguous():
        raise ValueError(strided("rows", rows))
    check_like("out", out, x, rows.numel() * row_len, x.dtype)
    check_overlap("out", out, x, same_allowed=False)
    check_terms(terms)
    check_place(leaf, 0, x.numel())
    if out.numel() == 0:
        return
    if rows.device.type == "cpu":
        least, most = (int(bound) for bound in rows.aminmax())
        if least < 0 or most >= num_rows:
            raise IndexError(
                f"rows reach from {least} to {most}; x has {num_rows} rows, expected 0 <= rows < {num_rows}"
            )
    _engine(out.device).combine_rows(out, x, rows, terms, leaf, row_len)


def gram(keys: Sequence[tuple[Kind, int]], leaf: int, start: int, count: int) -> npt.NDArray[np.object_]:
    """G[j, k] = sum_i z_j[i] z_k[i] over elements start <= i < start + count, exactly, in units of 2^-32.

    keys: `(kind, key)` pairs. Returns Python ints in an object array [n, n]; `G.astype(float) * 2.0**-32` is the Gram
    matrix in floating point. Results for several leaves and ranges can be added exactly. The diagonal of a sign is
    count * 2^32.

    Cost: the noise of n keys, then n^2 / 2 dot products (of two signs: 32 elements per word operation).
    """
    for kind, key in keys:
        check_kind(kind)
        check_key("key", key)
    if count < 0:
        raise ValueError(f"count={count} is negative; expected the number of elements, count >= 0")
    check_place(leaf, start, count)
    engine = native if _use_native() else portable
    total = np.zeros((len(keys), len(keys)), dtype=object)
    if not len(keys):
        return total
    for begin in range(start, start + count, _GRAM_COUNT):
        part = engine.gram(keys, leaf, begin, min(_GRAM_COUNT, start + count - begin))
        lower = np.tril(part.numpy())
        total += (lower + np.tril(lower, -1).T).astype(object)
    return total
