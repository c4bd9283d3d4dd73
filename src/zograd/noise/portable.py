"""Noise in torch integer operations: any device, no compiler, the same bits as the compiled kernels.

32-bit words are held in int64 tensors. A product of two words may exceed 2^63 and wrap; both halves are still correct:
low = p & mask, high = (p >> 32) & mask. Tensors are processed in chunks, so temporaries take about 10 MB, whatever the
size of the tensor.
"""

import ctypes
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .format import DRAW_BLOCK, MASK32, MULTIPLIERS, NORMALS, ROUNDING, SIGN_BLOCK, SIGNS, WEYL, Kind
from .table import UNIT, magnitudes_on

CHUNK = 1 << 17  # elements; about 10 MB of temporaries
GRAM_CHUNK = 1 << 14  # |z_j z_k| < 2^38 in integer units, so sums of 2^14 are exact in float64

_CANONICAL_NAN = {torch.bfloat16: 0x7FC0, torch.float16: 0x7E00}
_INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


# ----------------------------------------------------------------------------------------------------- Philox, draws


def philox(c0: Tensor, c1: Tensor, c2: int, c3: int, key: int) -> list[Tensor]:
    """The four words of Philox4x32-10 at counters (c0, c1, c2, c3); c0 and c1: int64 of equal shape, < 2^32."""
    w: list[Tensor] = [c0, c1, torch.full_like(c0, c2), torch.full_like(c0, c3)]
    k0, k1 = key & MASK32, key >> 32
    for _ in range(10):
        p0, p1 = w[0] * MULTIPLIERS[0], w[2] * MULTIPLIERS[1]
        w = [((p1 >> 32) & MASK32) ^ w[1] ^ k0, p1 & MASK32, ((p0 >> 32) & MASK32) ^ w[3] ^ k1, p0 & MASK32]
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return w


def _blocks(key: int, leaf: int, stream: int, starts: Tensor, count: int, block: int) -> tuple[Tensor, Tensor]:
    """The Philox words of the blocks that cover elements starts[r] + (0 .. count - 1), for each row r.

    Returns int64[R, blocks, 4, 16], word k of lane l of each block (counters q = 16 block + lane), and int64[R, count],
    the position of each wanted element within its row's blocks.
    """
    first = torch.div(starts, block, rounding_mode="floor")
    spanned = (count + block - 2) // block + 1
    arange = partial(torch.arange, dtype=torch.int64, device=starts.device)
    q = ((first[:, None] + arange(spanned)) * 16)[:, :, None] + arange(16)
    words = torch.stack(philox(q & MASK32, q >> 32, leaf, stream, key), dim=2)
    return words, (starts - first * block)[:, None] + arange(count)


def signs(key: int, leaf: int, starts: Tensor, count: int) -> Tensor:
    """int64[R, count] of +1 and -1: elements starts[r] + (0 .. count - 1)."""
    words, where = _blocks(key, leaf, SIGNS, starts, count, SIGN_BLOCK)
    words = words.view(len(starts), -1).gather(1, where >> 5)
    return 1 - 2 * ((words >> (where & 31)) & 1)


def draws16(key: int, leaf: int, stream: int, starts: Tensor, count: int) -> Tensor:
    """int64[R, count] uniform in [0, 65536)."""
    words, where = _blocks(key, leaf, stream, starts, count, DRAW_BLOCK)
    words = words.view(len(starts), -1).gather(1, ((where >> 7) << 6) | (where & 63))
    return (words >> (((where >> 6) & 1) << 4)) & 0xFFFF


def integers(kind: Kind, key: int, leaf: int, starts: Tensor, count: int) -> Tensor:
    """int64[R, count]: noise in units of 2^-16."""
    if kind == Kind.SIGN:
        return signs(key, leaf, starts, count) << 16
    u = draws16(key, leaf, NORMALS, starts, count)
    return magnitudes_on(starts.device)[u & 0x7FFF].to(torch.int64) * (1 - 2 * (u >> 15))


# --------------------------------------------------------------------------------------------------------- rounding


def _patterns(t: Tensor) -> tuple[Tensor, Tensor]:
    """(sign, magnitude) of float32 bit patterns, int64."""
    u = t.view(torch.int32).to(torch.int64)
    return (u >> 31) & 1, u & 0x7FFFFFFF


def _pack16(code: Tensor, sign: Tensor, nan: Tensor, dtype: torch.dtype) -> Tensor:
    """16-bit patterns as int16, from 15-bit magnitudes; every NaN becomes the canonical NaN."""
    code = torch.where(nan, _CANONICAL_NAN[dtype], code | sign << 15)
    return torch.where(code >= 1 << 15, code - (1 << 16), code).to(torch.int16)


def nearest(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Bit patterns of t rounded half to even into dtype."""
    r = t.to(dtype)
    if dtype not in _CANONICAL_NAN:
        return r.view(_BITS[r.element_size()])
    return torch.where(t.isnan(), torch.tensor(_CANONICAL_NAN[dtype], device=t.device), r.view(torch.int16)).to(
        torch.int16
    )


def stochastic(t: Tensor, draws: Tensor, dtype: torch.dtype) -> Tensor:
    """Bit patterns of float32 t, rounded away from zero with probability (|t| - below) / spacing, else towards zero.

    float16 subnormals are compared with 16 random bits, so their bias is at most 2^-16 of the spacing. For all other
    values the rounding is exactly unbiased.
    """
    sign, a = _patterns(t)
    if dtype == torch.bfloat16:
        code = ((a + draws) >> 16).clamp_max(0x7F7F)
    else:
        tiny = a < 0x38800000  # |t| < 2^-14
        s = torch.where(tiny, t.abs(), 0.0) * 2.0**24
        n = s.floor()
        up = draws.to(torch.float32) < (s - n) * 2.0**16
        normal = ((a - (112 << 23) + (draws >> 3)) >> 13).clamp_max(0x7BFF)
        code = torch.where(tiny, n.to(torch.int64) + up, normal)
    code = torch.where(a >= 0x7F800000, _INFINITY[dtype], code)
    return _pack16(code, sign, a > 0x7F800000, dtype)


# ---------------------------------------------------------------------------------------------------- split weights


def join(hi: Tensor, low: Tensor) -> Tensor:
    """The master value of (16-bit float, int16 low half): float32 for bfloat16, float64 for float16."""
    h, lo = hi.view(torch.int16).to(torch.int64) & 0xFFFF, low.to(torch.int64) & 0xFFFF
    code = (((h & 0x7FFF) - (lo >> 15)) << 16 | lo) & 0x7FFFFFFF
    if hi.dtype == torch.bfloat16:
        u = code | (h & 0x8000) << 16
        return torch.where(u >= 1 << 31, u - (1 << 32), u).to(torch.int32).view(torch.float32)
    exponent, mantissa = code >> 26, code & 0x3FFFFFF
    finite = torch.where(exponent == 0, code << 26, (code + (1008 << 26)) << 26)  # the latter is a float64 pattern
    value = torch.where(exponent == 0, code.to(torch.float64) * 2.0**-40, finite.view(torch.float64))
    value = torch.where(exponent == 31, torch.where(mantissa == 0, torch.inf, torch.nan).to(torch.float64), value)
    return torch.where(h >= 0x8000, -value, value)


def split(t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(bit patterns of the 16-bit half, low half), both int16, of master values t."""
    if dtype == torch.bfloat16:
        sign, a = _patterns(t)
        code = a
        top, infinite, infinity = 0x7F7F7FFF, a >= 0x7F800000, 0x7F800000
    else:
        u = t.view(torch.int64)
        sign, a = (u >> 63) & 1, u & 0x7FFFFFFFFFFFFFFF
        tiny = a < 1009 << 52  # |t| < 2^-14
        subnormal = (torch.where(tiny, t.abs(), 0.0) * 2.0**40).round().to(torch.int64)
        normal = ((a + ((1 << 25) - 1) + ((a >> 26) & 1)) >> 26) - (1008 << 26)
        code = torch.where(tiny, subnormal, normal)
        top, infinite, infinity = 0x7BFF7FFF, a >= 0x7FF0000000000000, 0x7C000000
    code = torch.where(infinite, infinity, code.clamp_max(top))
    low = code & 0xFFFF
    low = torch.where(low >= 1 << 15, low - (1 << 16), low).to(torch.int16)
    return _pack16((code + 0x8000) >> 16, sign, t.isnan(), dtype), low


# ----------------------------------------------------------------------------------------------------- entry points


Terms = Sequence[tuple[Kind, int, float]]


def rounded(value: float, dtype: torch.dtype) -> float:
    """value rounded to float32 unless dtype is float64."""
    return value if dtype == torch.float64 else ctypes.c_float(value).value


def _increment(
    terms: Terms, dense: Tensor | None, dense_coef: float, leaf: int, starts: Tensor, count: int, dtype: torch.dtype
) -> Tensor | None:
    """dtype[R, count]: v = dense_coef * dense + sum_j coef_j z_j, in this order; None if there is nothing to add.

    The first contribution is assigned, not added to 0. Every product and every sum is rounded to dtype.
    """
    v = None if dense is None else dense * rounded(dense_coef, dtype)
    for kind, key, coef in terms:
        z = integers(kind, key, leaf, starts, count).to(dtype) * UNIT  # exact: 19 bits
        cz = z * rounded(coef, dtype)
        v = cz if v is None else v + cz
    return v


def combine(
    out: Tensor,
    x: Tensor | None,
    scale: float,
    terms: Terms,
    dense: Tensor | None,
    dense_coef: float,
    leaf: int,
    start: int,
    rounding: int | None,
    low: Tensor | None,
) -> int:
    """`zograd.noise.combine` on checked arguments; returns the number of elements whose bits differ from x's."""
    n, device, dtype = out.numel(), out.device, out.dtype
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    out = out.detach().view(1, -1)
    x, dense, low = (None if a is None else a.detach().view(1, -1) for a in (x, dense, low))
    codes = out.view(_BITS[out.element_size()])
    moved = torch.zeros((), dtype=torch.int64, device=device)
    for begin in range(0, n, CHUNK):
        here = (slice(None), slice(begin, min(begin + CHUNK, n)))
        count = min(CHUNK, n - begin)
        starts = torch.tensor([start + begin], dtype=torch.int64, device=device)
        v = _increment(terms, None if dense is None else dense[here], dense_coef, leaf, starts, count, acc)
        if low is not None:
            t = join(out[here], low[here])
            t = t if scale == 1.0 else t * rounded(scale, t.dtype)
            high, rest = split(t if v is None else t + v.to(t.dtype), dtype)
            moved += ((high != codes[here]) | (rest != low[here])).sum()
            codes[here] = high
            low[here] = rest
            continue
        if x is None:
            t = torch.zeros((1, count), dtype=acc, device=device) if v is None else v
        else:
            t = x[here].to(acc)
            t = t if scale == 1.0 else t * rounded(scale, acc)
            t = t if v is None else t + v
        if rounding is None:
            new = nearest(t, dtype)
        else:
            new = stochastic(t, draws16(rounding, leaf, ROUNDING, starts, count), dtype)
        if x is not None:
            moved += (new != x[here].view(new.dtype)).sum()
        codes[here] = new
    return int(moved.item())


def combine_pair(plus: Tensor, minus: Tensor, x: Tensor, terms: Terms, leaf: int, start: int) -> None:
    """`zograd.noise.combine_pair` on checked arguments, at least one term."""
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    plus, minus, x = plus.detach().view(1, -1), minus.detach().view(1, -1), x.detach().view(1, -1)
    bits = _BITS[x.element_size()]
    for begin in range(0, x.numel(), CHUNK):
        here = (slice(None), slice(begin, min(begin + CHUNK, x.numel())))
        t = x[here].to(acc)
        starts = torch.tensor([start + begin], dtype=torch.int64, device=x.device)
        v = _increment(terms, None, 1.0, leaf, starts, t.shape[1], acc)
        assert v is not None
        plus.view(bits)[here] = nearest(t + v, x.dtype)
        minus.view(bits)[here] = nearest(t - v, x.dtype)


def combine_rows(out: Tensor, x: Tensor, rows: Tensor, terms: Terms, leaf: int, row_len: int) -> None:
    """`zograd.noise.combine_rows` on checked arguments."""
    out, x, rows = out.detach().view(-1, row_len), x.detach().view(-1, row_len), rows.view(-1)
    acc = torch.float64 if out.dtype == torch.float64 else torch.float32
    codes = out.view(_BITS[out.element_size()])
    width = min(row_len, CHUNK)
    height = max(1, CHUNK // width)
    for r in range(0, len(rows), height):
        some = rows[r : r + height]
        for c in range(0, row_len, width):
            count = min(width, row_len - c)
            v = _increment(terms, None, 1.0, leaf, some * row_len + c, count, acc)
            t = x[some, c : c + count].to(acc)
            codes[r : r + height, c : c + count] = nearest(t if v is None else t + v, out.dtype)


def gram(keys: Sequence[tuple[Kind, int]], leaf: int, start: int, count: int) -> Tensor:
    """int64[n, n]: sum_i z_j z_k in units of 2^-32, for count <= 2^24 elements; on the CPU."""
    sums = torch.zeros((len(keys), len(keys)), dtype=torch.int64, device="cpu")
    for begin in range(start, start + count, GRAM_CHUNK):
        first = torch.tensor([begin], device="cpu")
        size = min(GRAM_CHUNK, start + count - begin)
        z = torch.cat([integers(kind, key, leaf, first, size) for kind, key in keys]).to(torch.float64)
        sums += (z @ z.T).to(torch.int64)
    return sums
