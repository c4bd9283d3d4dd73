"""Readable reference of the noise in NumPy: one formula per line, no chunks, slow.

Nothing imports this file at run time. Tests compare all backends with it, bit for bit. float32 and float64 tensors are
NumPy arrays of that type. bfloat16 and float16 tensors are uint16 arrays of bit patterns; a string names the dtype.

The formulas are those of the package docstring: Philox4x32-10 (Salmon et al., SC 2011), key = (key lo, key hi),
counter = (q lo, q hi, leaf, stream).
"""

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SIGN, NORMAL = 0, 1
SIGNS, NORMALS, ROUNDING, FOLD = range(4)


def philox4x32_10(counter: Sequence[Array | int], key: Sequence[int]) -> list[Array]:
    """Four uint64 arrays holding 32-bit words; the counter words broadcast against each other."""
    mask = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, dtype=np.uint64) for c in counter))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)  # 32 x 32 bits fit in 64
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & mask,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & mask,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def words(key: int, leaf: int, stream: int, q: Array, k: Array) -> Array:
    """int64: word k[i] of the Philox block with counter q[i]."""
    q = q.astype(np.uint64)
    block = philox4x32_10((q & np.uint64(0xFFFFFFFF), q >> np.uint64(32), leaf, stream), (key & 0xFFFFFFFF, key >> 32))
    return np.choose(k, block).astype(np.int64)


def fold(key: int, *data: int) -> int:
    """key <- the first two words of Philox(counter = (d lo, d hi, 0, 3), key), for each d."""
    for d in data:
        lo, hi, _, _ = philox4x32_10((d & 0xFFFFFFFF, (d >> 32) & 0xFFFFFFFF, 0, FOLD), (key & 0xFFFFFFFF, key >> 32))
        key = int(hi) << 32 | int(lo)
    return key


def signs(key: int, leaf: int, index: Array) -> Array:
    """int64 +1 and -1 at element indices `index`."""
    b, e = index >> 11, index & 2047
    w = e >> 5
    word = words(key, leaf, SIGNS, q=b * 16 + (w & 15), k=w >> 4)
    return np.asarray(1 - 2 * ((word >> (e & 31)) & 1))


def draws16(key: int, leaf: int, stream: int, index: Array) -> Array:
    """int64 in [0, 65536) at element indices `index`."""
    b, e = index >> 7, index & 127
    word = words(key, leaf, stream, q=b * 16 + (e & 15), k=(e >> 4) & 3)
    return np.asarray((word >> (16 * (e >> 6))) & 0xFFFF)


@cache
def table() -> Array:
    """int64[32768]: quantiles of |N(0, 1)|, rescaled to variance 1, in units of 2^-16."""
    half = [NormalDist().inv_cdf((1 + (idx + 0.5) / 32768) / 2) for idx in range(32768)]
    rescale = math.sqrt(32768 / math.fsum(q * q for q in half))
    return np.array([round(q * rescale * 65536) for q in half], dtype=np.int64)


def integers(kind: int, key: int, leaf: int, index: Array) -> Array:
    """int64 noise in units of 2^-16."""
    if kind == SIGN:
        return signs(key, leaf, index) * 65536
    u = draws16(key, leaf, NORMALS, index)
    return np.asarray(np.where(u >> 15, -1, 1) * table()[u & 0x7FFF])


# ------------------------------------------------------------------------------------------------- number formats


def decode(code: Array, dtype: str) -> Array:
    """The stored values as floats (float32, or float64 for dtype float64)."""
    if dtype == "bfloat16":
        return (code.astype(np.uint32) << 16).view(np.float32)
    return code.view(np.float16).astype(np.float32) if dtype == "float16" else code


def round_nearest(t: Array, dtype: str) -> Array:
    """The stored values nearest to t, ties to even; NaN becomes the canonical NaN."""
    if dtype in ("float32", "float64"):
        return t
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return np.where(np.isnan(t), 0x7E00, t.astype(np.float16).view(np.uint16)).astype(np.uint16)
    u = t.view(np.uint32).astype(np.int64)
    return np.where(np.isnan(t), 0x7FC0, (u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def round_stochastic(t: Array, draws: Array, dtype: str) -> Array:
    """One of the two stored values around t: the one farther from zero with probability (|t| - nearer) / spacing."""
    a = t.view(np.uint32).astype(np.int64) & 0x7FFFFFFF
    if dtype == "bfloat16":
        largest, infinity, nan = 0x7F7F, 0x7F80, 0x7FC0
        code = (a + draws) >> 16
    else:
        largest, infinity, nan = 0x7BFF, 0x7C00, 0x7E00
        normal = (a - (112 << 23) + (draws >> 3)) >> 13
        n_and_f = np.where(np.abs(t) < 2.0**-14, np.abs(t), 0).astype(np.float64) * 2.0**24
        n = np.floor(n_and_f)
        subnormal = n.astype(np.int64) + (draws < (n_and_f - n) * 65536)
        code = np.where(np.abs(t) < 2.0**-14, subnormal, normal)
    code = np.minimum(code, largest)
    code = np.where(np.isinf(t), infinity, code) + np.where(np.signbit(t), 0x8000, 0)
    return np.where(np.isnan(t), nan, code).astype(np.uint16)


def join(hi: Array, low: Array, dtype: str) -> Array:
    """The master held by (16-bit float, low half): float32 for bfloat16, float64 for float16."""
    h, lo = hi.astype(np.int64), low.view(np.uint16).astype(np.int64)
    code = ((h & 0x7FFF) - (lo >> 15)) << 16 | lo
    if dtype == "bfloat16":
        return (code | (h & 0x8000) << 16).astype(np.uint32).view(np.float32)
    exponent, mantissa = code >> 26, code & 0x3FFFFFF
    tiny = mantissa * 2.0**-40
    normal = (1 + mantissa * 2.0**-26) * 2.0 ** (exponent - 15)
    special = np.where(mantissa == 0, np.inf, np.nan)
    value = np.where(exponent == 0, tiny, np.where(exponent == 31, special, normal))
    return np.where(h & 0x8000, -value, value)


def split(x: Array, dtype: str) -> tuple[Array, Array]:
    """(bit patterns, low halves) of master values."""
    magnitude = np.abs(x)
    if dtype == "bfloat16":
        largest, infinity, nan = 0x7F7F7FFF, 0x7F800000, 0x7FC0
        code = magnitude.view(np.uint32).astype(np.int64)
    else:
        largest, infinity, nan = 0x7BFF7FFF, 0x7C000000, 0x7E00
        finite = np.where(np.isfinite(x), magnitude, 1.0)
        e = np.frexp(finite)[1].astype(np.int64) - 1  # floor(log2)
        normal = ((e + 15) << 26) + np.rint((finite / 2.0**e - 1) * 2.0**26).astype(np.int64)
        tiny = np.rint(np.minimum(finite, 1.0) * 2.0**40).astype(np.int64)
        code = np.where(finite < 2.0**-14, tiny, normal)
    code = np.minimum(code, largest)
    code = np.where(np.isfinite(x), code, infinity)
    hi = ((code + 0x8000) >> 16) + np.where(np.signbit(x), 0x8000, 0)
    hi = np.where(np.isnan(x), nan, hi).astype(np.uint16)
    return hi, (code & 0xFFFF).astype(np.uint16).view(np.int16)


# ------------------------------------------------------------------------------------------------------ the update


def combine(
    x: Array | None,
    n: int,
    dtype: str,
    *,
    scale: float = 1.0,
    terms: Sequence[tuple[int, int, float]] = (),
    dense: Array | None = None,
    dense_coef: float = 1.0,
    leaf: int = 0,
    start: int = 0,
    rounding: int | None = None,
    low: Array | None = None,
) -> tuple[Array, Array | None]:
    """(out, new low): out = round(scale * x + (dense_coef * dense + sum_j coef_j z_j))."""
    real: Any = np.float64 if dtype == "float64" else np.float32
    index = np.arange(start, start + n, dtype=np.int64)

    v = None
    if dense is not None:
        v = real(dense_coef) * dense
    for kind, key, coef in terms:
        z = integers(kind, key, leaf, index).astype(real) * real(2.0**-16)
        v = real(coef) * z if v is None else v + real(coef) * z

    if low is not None:
        assert x is not None
        t = join(x, low, dtype)
        if scale != 1.0:
            t = t.dtype.type(scale) * t
        return split(t if v is None else t + v.astype(t.dtype), dtype)

    if x is None:
        t = np.zeros(n, dtype=real) if v is None else v
    else:
        t = decode(x, dtype)
        t = t if scale == 1.0 else real(scale) * t
        t = t if v is None else t + v
    if rounding is None:
        return round_nearest(t, dtype), None
    return round_stochastic(t, draws16(rounding, leaf, ROUNDING, index), dtype), None


def gram(keys: Sequence[tuple[int, int]], leaf: int, start: int, count: int) -> list[list[int]]:
    """sum_i z_j z_k in units of 2^-32, in Python integers."""
    index = np.arange(start, start + count, dtype=np.int64)
    z = [integers(kind, key, leaf, index).tolist() for kind, key in keys]
    return [[sum(a * b for a, b in zip(zj, zk, strict=True)) for zk in z] for zj in z]
