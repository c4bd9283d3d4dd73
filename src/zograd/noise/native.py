"""Loads the compiled kernels (`_native.cpp`) and calls them through ctypes.

torch must be imported first: the kernels use OpenMP, and then share the runtime that torch has loaded, instead of
loading a second one. All arguments of a call are packed into one buffer; a call then costs about 2 microseconds.
"""

import ctypes
import os
import struct
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .format import MASK64, Kind, checked_datum, checked_key
from .table import values

ABI = 6
SUFFIXES = (".so", ".pyd", ".dylib")

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
NEAREST, STOCHASTIC, SPLIT, PAIR = range(4)

# The structs Call and Term of _native.cpp.
_CALL = struct.Struct("=7q 2Q 2d 7Q")
_TERM = struct.Struct("=qQd")


ENVIRONMENT = "ZOGRAD_BACKEND"


def torch_is_wanted() -> bool:
    """Whether the environment asks for torch in place of compiled kernels."""
    wanted = os.environ.get(ENVIRONMENT, "")
    if wanted not in ("", "native", "torch"):
        raise ValueError(f"{ENVIRONMENT}={wanted!r} is not a backend; expected 'torch', 'native' or nothing")
    return wanted == "torch"


def newest_build(beside: str, abi_function: str, abi: int) -> ctypes.CDLL | None:
    """The library `_native*` in the folder of the file `beside` whose `abi_function` returns `abi`; else None."""
    found = [path for path in Path(beside).parent.glob("_native*") if path.suffix in SUFFIXES]
    tag = sysconfig.get_config_var("EXT_SUFFIX") or ""
    # The ABI is plain C, so a build for any Python works. Of several, that of the running Python is the newest.
    for path in sorted(found, key=lambda path: (not path.name.endswith(tag), path.name)):
        try:
            lib = ctypes.CDLL(str(path))
            version = getattr(lib, abi_function)
        except (OSError, AttributeError):
            continue
        version.restype = ctypes.c_int64
        if version() == abi:
            return lib
    return None


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None if they were not built, or were built from another version of the source."""
    lib = newest_build(__file__, "zograd_noise_abi", ABI)
    if lib is None:
        return None
    lib.zograd_noise_fold.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
    lib.zograd_noise_fold.restype = ctypes.c_uint64
    lib.zograd_noise_combine.argtypes = [ctypes.c_char_p]
    lib.zograd_noise_combine.restype = ctypes.c_int64
    lib.zograd_noise_chain.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    lib.zograd_noise_chain.restype = ctypes.c_int64
    lib.zograd_noise_signs.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_char_p]
    lib.zograd_noise_signs.restype = None
    lib.zograd_noise_combine_rows.argtypes = [ctypes.c_char_p]
    lib.zograd_noise_combine_rows.restype = None
    i64, u64, address = ctypes.c_int64, ctypes.c_uint64, ctypes.c_void_p
    lib.zograd_noise_gram.argtypes = [i64, address, address, u64, address, i64, i64, i64, address]
    lib.zograd_noise_gram.restype = None
    return lib


def fold(key: int, *data: int) -> int:
    """`zograd.noise.fold`, compiled: 0.5 microseconds a datum, 7 in Python."""
    lib = library()
    assert lib is not None
    if type(key) is not int or not 0 <= key <= MASK64:
        key = checked_key(key)
    for d in data:
        key = lib.zograd_noise_fold(key, d if isinstance(d, int) and 0 <= d <= MASK64 else checked_datum(d))
    return key


def _pack_terms(terms: Sequence[tuple[Kind, int, float]]) -> bytes:
    if len(terms) == 1:
        return _TERM.pack(*terms[0])
    return b"".join([_TERM.pack(kind, key, coef) for kind, key, coef in terms])


def _table_for(terms: Sequence[tuple[Kind, int, float]]) -> int:
    """Address of the table of normals, or 0 if no term is normal, so that signs do not compute the table."""
    for kind, _, _ in terms:
        if kind:
            return values().data_ptr()
    return 0


def combine(
    out: Tensor,
    x: Tensor | None,
    scale: float,
    terms: Sequence[tuple[Kind, int, float]],
    dense: Tensor | None,
    dense_coef: float,
    leaf: int,
    start: int,
    rounding: int | None,
    low: Tensor | None,
) -> int:
    """`zograd.noise.combine` on checked arguments; returns the number of elements whose bits differ from x's."""
    lib = library()
    assert lib is not None
    mode = NEAREST if rounding is None and low is None else STOCHASTIC if low is None else SPLIT
    call = _packed(
        mode,
        out,
        terms,
        leaf,
        start,
        x=x,
        round_key=rounding or 0,
        scale=scale,
        dense=dense,
        dense_coef=dense_coef,
        low=low,
    )
    moved: int = lib.zograd_noise_combine(call)
    return moved


def _packed(
    mode: int,
    out: Tensor,
    terms: Sequence[tuple[Kind, int, float]],
    leaf: int,
    start: int,
    *,
    n: int | None = None,
    round_key: int = 0,
    scale: float = 1.0,
    dense_coef: float = 1.0,
    x: Tensor | None = None,
    dense: Tensor | None = None,
    low: Tensor | None = None,
    rows: Tensor | None = None,
    minus: Tensor | None = None,
) -> bytes:
    """A struct Call and its terms. n: the number of elements, or of elements per row (default: that of `out`)."""
    return _CALL.pack(
        DTYPES[out.dtype], mode, torch.get_num_threads(), len(terms), out.numel() if n is None else n, start,
        0 if rows is None else rows.numel(), leaf, round_key, scale, dense_coef,
        out.data_ptr(),
        x.data_ptr() if x is not None else 0,
        dense.data_ptr() if dense is not None else 0,
        low.data_ptr() if low is not None else 0,
        rows.data_ptr() if rows is not None else 0,
        minus.data_ptr() if minus is not None else 0,
        _table_for(terms),
    ) + _pack_terms(terms)  # fmt: skip


def signs(out: Tensor, key: int, runs: Sequence[tuple[int, int, int]]) -> None:
    """`zograd.noise.signs` into `out`."""
    lib = library()
    assert lib is not None
    call = _packed(NEAREST, out, ((Kind.SIGN, key, 1.0),), 0, 0)
    flat = [number for run in runs for number in run]
    lib.zograd_noise_signs(call, len(runs), struct.pack(f"{len(flat)}q", *flat))


def combine_pair(
    plus: Tensor, minus: Tensor, x: Tensor, terms: Sequence[tuple[Kind, int, float]], leaf: int, start: int
) -> None:
    """`zograd.noise.combine_pair` on checked arguments, at least one term."""
    lib = library()
    assert lib is not None
    lib.zograd_noise_combine(_packed(PAIR, plus, terms, leaf, start, x=x, minus=minus))


def move_and_pair(
    plus: Tensor,
    minus: Tensor,
    x: Tensor,
    scale: float,
    move: Sequence[tuple[Kind, int, float]],
    rounding: int | None,
    terms: Sequence[tuple[Kind, int, float]],
    leaf: int,
    start: int,
) -> int:
    """`zograd.noise.move_and_pair` on checked arguments, at least one term; returns the number of changed elements."""
    lib = library()
    assert lib is not None
    mode = NEAREST if rounding is None else STOCHASTIC
    moved: int = lib.zograd_noise_chain(
        _packed(mode, x, move, leaf, start, x=x, round_key=rounding or 0, scale=scale),
        _packed(PAIR, plus, terms, leaf, start, x=x, minus=minus),
    )
    return moved


def combine_rows(
    out: Tensor, x: Tensor, rows: Tensor, terms: Sequence[tuple[Kind, int, float]], leaf: int, row_len: int
) -> None:
    """`zograd.noise.combine_rows` on checked arguments."""
    lib = library()
    assert lib is not None
    call = _packed(NEAREST, out, terms, leaf, 0, n=row_len, x=x, rows=rows)
    lib.zograd_noise_combine_rows(call)


def gram(keys: Sequence[tuple[Kind, int]], leaf: int, start: int, count: int) -> Tensor:
    """int64[n, n], lower triangle: sum_i z_j z_k in units of 2^-32, for count <= 2^24 elements."""
    lib = library()
    assert lib is not None
    n = len(keys)
    kinds = (ctypes.c_int64 * n)(*(kind for kind, _ in keys))
    words = (ctypes.c_uint64 * n)(*(key for _, key in keys))
    table = values().data_ptr() if any(kind for kind, _ in keys) else 0
    sums = torch.zeros((n, n), dtype=torch.int64, device="cpu")
    lib.zograd_noise_gram(n, kinds, words, leaf, table, start, count, torch.get_num_threads(), sums.data_ptr())
    return sums
