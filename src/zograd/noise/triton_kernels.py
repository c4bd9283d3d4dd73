# mypy: ignore-errors
# (Triton compiles these functions; to mypy the decorators are untyped)
"""The Triton kernel of `combine`: one launch for a group of leaves, any number of noise terms, the bits of the CPU.

A program computes one tile: TILE consecutive element indices of one leaf, starting at a multiple of TILE. One Philox
call gives 128 signs, or 8 normals or rounding draws. Words reach the threads that own their elements through shared
memory. Weights are read once and written once.

Everything that changes from step to step (keys, coefficients, scale, rounding key) is loaded from memory, so a CUDA
graph can be replayed with other values. Number formats, rounding, and which arguments are given are fixed at compile
time.

Arithmetic is that of `_native.cpp`, line by line; `enable_fp_fusion=False` prevents fused multiply-adds. bfloat16 is
rounded by integer operations, because the conversion truncates in Triton's interpreter, which the tests use. This file
imports triton at its top; only `device.py` imports it, when a kernel is needed.
"""

import triton
import triton.language as tl
from triton.language.random import philox_impl

F32 = tl.constexpr(0)
F64 = tl.constexpr(1)
BF16 = tl.constexpr(2)
F16 = tl.constexpr(3)

NEAREST = tl.constexpr(0)
STOCHASTIC = tl.constexpr(1)
SPLIT = tl.constexpr(2)
PAIR = tl.constexpr(3)

SIGNS = tl.constexpr(0)
NORMALS = tl.constexpr(1)
ROUNDING = tl.constexpr(2)

# Columns of the table of jobs, int64. Addresses are those of element 0 of the leaf, extrapolated. In a pair, `low` is
# the tensor that receives x - v.
JOB = ("out", "x", "dense", "low", "leaf", "start", "stop", "tile")
OUT, X, DENSE, LOW, LEAF, START, STOP, FIRST_TILE = (tl.constexpr(i) for i in range(len(JOB)))
JOB_SIZE = tl.constexpr(len(JOB))

# Columns of the knobs, int64; three more follow for each term: kind, key, coef. Reals are float64 bit patterns.
KNOBS = ("scale", "dense_coef", "round_key")
SCALE, DENSE_COEF, ROUND_KEY = (tl.constexpr(i) for i in range(len(KNOBS)))
FIRST_TERM = tl.constexpr(len(KNOBS))
TERM_SIZE = tl.constexpr(3)

WITH_SIGNS = tl.constexpr(1)
WITH_NORMALS = tl.constexpr(2)


# ------------------------------------------------------------------------------------------------------- Philox, draws


@triton.jit
def words(key, leaf, stream: tl.constexpr, q, COUNT: tl.constexpr):
    """[COUNT / 16, 2, 2, 16] (block, word >> 1, word & 1, lane): the words at counters q .. q + COUNT - 1.

    q is a multiple of COUNT, so all counters have the same upper half.
    """
    c0 = tl.arange(0, COUNT).to(tl.uint32) + (q & 0xFFFFFFFF).to(tl.uint32)
    zero = tl.zeros([COUNT], tl.uint32)
    k0, k1 = (key & 0xFFFFFFFF).to(tl.uint32), ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c1, c2 = zero + (q >> 32).to(tl.uint32), zero + leaf.to(tl.uint32)
    w0, w1, w2, w3 = philox_impl(c0, c1, c2, zero + stream, k0, k1, 10)
    w = tl.join(tl.join(w0, w1), tl.join(w2, w3))  # [counter, word & 1, word >> 1]
    return tl.permute(tl.reshape(w, [COUNT // 16, 16, 2, 2]), [0, 3, 2, 1])


@triton.jit
def sign_bits(key, leaf, base, TILE: tl.constexpr):
    """uint32[TILE / 32, 32]: bit 31 is set where the sign is -1."""
    w = tl.reshape(words(key, leaf, SIGNS, base >> 7, TILE // 128), [TILE // 32, 1])
    return (w << (31 - tl.arange(0, 32).to(tl.uint32))[None, :]) & 0x80000000


@triton.jit
def draws16(key, leaf, stream: tl.constexpr, base, TILE: tl.constexpr):
    """uint32[TILE / 32, 32] in [0, 65536)."""
    w = words(key, leaf, stream, base >> 3, TILE // 8)
    halves = tl.join(w.to(tl.uint16), (w >> 16).to(tl.uint16))  # [block, word >> 1, word & 1, lane, half]
    return tl.reshape(tl.permute(halves, [0, 4, 1, 2, 3]), [TILE // 32, 32]).to(tl.uint32)


@triton.jit
def normals(key, leaf, base, table, TILE: tl.constexpr):
    """float32[TILE / 32, 32]."""
    u = draws16(key, leaf, NORMALS, base, TILE)
    magnitude = tl.load(table + (u & 0x7FFF)).to(tl.uint32, bitcast=True)
    return (magnitude ^ ((u << 16) & 0x80000000)).to(tl.float32, bitcast=True)


# ------------------------------------------------------------------------------------------------------ number formats


@triton.jit
def load(code, FORMAT: tl.constexpr):
    """The value of a bit pattern, in the precision of the arithmetic."""
    if FORMAT == F32:
        return code.to(tl.float32, bitcast=True)
    elif FORMAT == F64:
        return code.to(tl.float64, bitcast=True)
    elif FORMAT == BF16:
        return (code.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return code.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def nearest(t, FORMAT: tl.constexpr):
    """The bit pattern of t rounded half to even; a 16-bit NaN becomes the canonical NaN."""
    if FORMAT == F32:
        return t.to(tl.int32, bitcast=True)
    elif FORMAT == F64:
        return t.to(tl.int64, bitcast=True)
    elif FORMAT == BF16:
        u = t.to(tl.uint32, bitcast=True)
        code = tl.where(t != t, 0x7FC00000, u + 0x7FFF + ((u >> 16) & 1))
        return (code >> 16).to(tl.uint16).to(tl.int16, bitcast=True)
    else:
        code = t.to(tl.float16).to(tl.uint16, bitcast=True)
        return tl.where(t != t, 0x7E00, code).to(tl.uint16).to(tl.int16, bitcast=True)


@triton.jit
def pack16(code, sign, special, FORMAT: tl.constexpr):
    """int16 patterns from 15-bit codes; `special` is 1 where infinite, 2 where NaN."""
    infinity: tl.constexpr = 0x7F80 if FORMAT == BF16 else 0x7C00
    nan: tl.constexpr = 0x7FC0 if FORMAT == BF16 else 0x7E00
    code = tl.where(special == 1, infinity, code) | sign << 15
    return tl.where(special == 2, nan, code).to(tl.uint16).to(tl.int16, bitcast=True)


@triton.jit
def stochastic(t, draw, FORMAT: tl.constexpr):
    """The bit pattern of float32 t rounded away from zero with probability (|t| - below) / spacing."""
    u = t.to(tl.uint32, bitcast=True)
    a = u & 0x7FFFFFFF
    if FORMAT == BF16:
        code = tl.minimum((a + draw) >> 16, 0x7F7F)
    else:
        tiny = a < 0x38800000  # |t| < 2^-14
        s = tl.where(tiny, a, 0).to(tl.float32, bitcast=True) * 16777216.0
        n = s.to(tl.int32)
        up = draw.to(tl.int32).to(tl.float32) < (s - n.to(tl.float32)) * 65536.0
        normal = tl.minimum((a - (112 << 23) + (draw >> 3)) >> 13, 0x7BFF)
        code = tl.where(tiny, n.to(tl.uint32) + up.to(tl.uint32), normal)
    special = (a >= 0x7F800000).to(tl.uint32) + (a > 0x7F800000).to(tl.uint32)
    return pack16(code, u >> 31, special, FORMAT)


@triton.jit
def join_master(high, low, FORMAT: tl.constexpr):
    """The master of (16-bit float, low half): float32 for bfloat16, float64 for float16."""
    h = high.to(tl.uint16, bitcast=True).to(tl.uint32)
    lo = low.to(tl.uint16, bitcast=True).to(tl.uint32)
    code = ((((h & 0x7FFF) - (lo >> 15)) << 16) | lo) & 0x7FFFFFFF
    if FORMAT == BF16:
        return (code | (h & 0x8000) << 16).to(tl.float32, bitcast=True)
    else:
        wide = code.to(tl.uint64)
        subnormal = (code.to(tl.int32).to(tl.float64) * 9.094947017729282379150390625e-13).to(tl.uint64, bitcast=True)
        normal = (wide + (1008 << 26)) << 26
        infinite = ((wide & 0x3FFFFFF) << 26) | (2047 << 52)
        a = tl.where(code < (1 << 26), subnormal, tl.where(code >= (31 << 26), infinite, normal))
        return (a | (h & 0x8000).to(tl.uint64) << 48).to(tl.float64, bitcast=True)


@triton.jit
def split_master(t, FORMAT: tl.constexpr):
    """(high, low), both int16, of a master."""
    if FORMAT == BF16:
        u = t.to(tl.uint32, bitcast=True)
        sign = u >> 31
        a = u & 0x7FFFFFFF
        code = tl.minimum(a, 0x7F7F7FFF)
        special = (a >= 0x7F800000).to(tl.uint32) + (a > 0x7F800000).to(tl.uint32)
        code = tl.where(special > 0, 0x7F800000, code)
    else:
        u = t.to(tl.uint64, bitcast=True)
        sign = (u >> 63).to(tl.uint32)
        a = u & 0x7FFFFFFFFFFFFFFF
        tiny = a < (1009 << 52)  # |t| < 2^-14; adding 2^52 then rounds to an integer
        positive = tl.where(tiny, a, 0).to(tl.float64, bitcast=True)
        subnormal = (positive * 1099511627776.0 + 4503599627370496.0).to(tl.uint64, bitcast=True) & 0xFFFFFFFF
        normal = ((a + ((1 << 25) - 1) + ((a >> 26) & 1)) >> 26) - (1008 << 26)
        code = tl.minimum(tl.where(tiny, subnormal, normal), 0x7BFF7FFF).to(tl.uint32)
        special = (a >= (2047 << 52)).to(tl.uint32) + (a > (2047 << 52)).to(tl.uint32)
        code = tl.where(special > 0, 0x7C000000, code)
    high = pack16((code + 0x8000) >> 16, sign, special, FORMAT)
    return high, (code & 0xFFFF).to(tl.uint16).to(tl.int16, bitcast=True)


# ----------------------------------------------------------------------------------------------------------- the kernel


@triton.jit
def at(address, base, e, SIZE: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to elements base + e of the tensor whose element 0 is at `address`."""
    first = (address + base * SIZE).to(tl.pointer_type(TYPE))
    if ALIGNED:
        first = tl.multiple_of(first, 16)
    return first + e


@triton.jit
def tile_of_combine(
    job,
    knobs,
    n_terms,
    table,
    changed,
    base,
    start,
    stop,
    leaf,
    FORMAT: tl.constexpr,
    MODE: tl.constexpr,
    KINDS: tl.constexpr,
    TERMS: tl.constexpr,
    HAS_X: tl.constexpr,
    HAS_DENSE: tl.constexpr,
    SCALED: tl.constexpr,
    COUNT: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
    out,
    x,
):
    """Computes elements base .. base + TILE - 1 of one leaf that lie in start .. stop - 1."""
    real: tl.constexpr = tl.float64 if FORMAT == F64 else tl.float32
    bits: tl.constexpr = tl.int64 if FORMAT == F64 else (tl.int32 if FORMAT == F32 else tl.int16)
    size: tl.constexpr = 8 if FORMAT == F64 else (4 if FORMAT == F32 else 2)
    vector: tl.constexpr = 16 // size

    e = tl.arange(0, TILE // 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    inside = (e >= tl.maximum(start - base, 0).to(tl.int32)) & (e < tl.minimum(stop - base, TILE).to(tl.int32))
    if ALIGNED:
        inside = tl.max_constancy(inside, [1, vector])

    # Sums start from -0.0, because t + (-0.0) == t for every t, zeros included.
    # It is written as a product, because tl.full loses the sign of zero in triton 3.7.
    v = tl.zeros([TILE // 32, 32], real) * (1.0 if KINDS == 0 and not HAS_X else -1.0)
    if HAS_DENSE:
        dense = at(tl.load(job + DENSE), base, e, 8 if FORMAT == F64 else 4, real, ALIGNED)
        dense_coef = tl.load(knobs + DENSE_COEF).to(tl.float64, bitcast=True).to(real)
        v = dense_coef * tl.load(dense, mask=inside, other=0.0)
    if TERMS:
        for j in tl.static_range(TERMS):
            v += noise(knobs, j, leaf, base, table, KINDS, FORMAT, TILE)
    elif KINDS:
        for j in range(n_terms):
            v += noise(knobs, j, leaf, base, table, KINDS, FORMAT, TILE)

    out_at = at(out, base, e, size, bits, ALIGNED)
    scale = tl.load(knobs + SCALE).to(tl.float64, bitcast=True)
    differ = tl.zeros([TILE // 32, 32], tl.int1)
    if MODE == SPLIT:
        low_at = at(tl.load(job + LOW), base, e, 2, tl.int16, ALIGNED)
        high0, low0 = tl.load(out_at, mask=inside, other=0), tl.load(low_at, mask=inside, other=0)
        t = join_master(high0, low0, FORMAT)
        if SCALED:
            t = scale.to(t.dtype) * t
        high, low = split_master(t + v.to(t.dtype), FORMAT)
        differ = (high != high0) | (low != low0)
        tl.store(out_at, high, mask=inside)
        tl.store(low_at, low, mask=inside)
    elif MODE == PAIR:
        t = load(tl.load(at(x, base, e, size, bits, ALIGNED), mask=inside, other=0), FORMAT)
        tl.store(out_at, nearest(t + v, FORMAT), mask=inside)
        tl.store(at(tl.load(job + LOW), base, e, size, bits, ALIGNED), nearest(t - v, FORMAT), mask=inside)
    else:
        if HAS_X:
            before = tl.load(at(x, base, e, size, bits, ALIGNED), mask=inside, other=0)
            t = load(before, FORMAT)
            if SCALED:
                t = scale.to(real) * t
            t = t + v
        else:
            t = v
        if MODE == STOCHASTIC:
            after = stochastic(t, draws16(tl.load(knobs + ROUND_KEY), leaf, ROUNDING, base, TILE), FORMAT)
        else:
            after = nearest(t, FORMAT)
        if HAS_X:
            differ = after != before
        tl.store(out_at, after, mask=inside)
    if COUNT:
        tl.atomic_add(changed, tl.sum((differ & inside).to(tl.int32)).to(tl.int64))


@triton.jit
def noise(knobs, j, leaf, base, table, KINDS: tl.constexpr, FORMAT: tl.constexpr, TILE: tl.constexpr):
    """coef_j z_j on one tile, float32 (float64 for float64 weights)."""
    real: tl.constexpr = tl.float64 if FORMAT == F64 else tl.float32
    term = knobs + FIRST_TERM + TERM_SIZE * j
    kind, key = tl.load(term), tl.load(term + 1)
    coef = tl.load(term + 2).to(tl.float64, bitcast=True).to(real)
    if KINDS == WITH_SIGNS:
        cz = signed(coef, sign_bits(key, leaf, base, TILE), FORMAT)
    elif KINDS == WITH_NORMALS:
        cz = coef * normals(key, leaf, base, table, TILE).to(real)
    elif kind == 0:
        cz = signed(coef, sign_bits(key, leaf, base, TILE), FORMAT)
    else:
        cz = coef * normals(key, leaf, base, table, TILE).to(real)
    return cz


@triton.jit
def signed(coef, sign_bit, FORMAT: tl.constexpr):
    """coef with its sign flipped where bit 31 of sign_bit is set."""
    if FORMAT == F64:
        return tl.where(sign_bit != 0, coef * -1.0, coef)  # not -coef, which may be compiled as 0 - coef
    else:
        return (coef.to(tl.uint32, bitcast=True) ^ sign_bit).to(tl.float32, bitcast=True)


@triton.jit
def combine_kernel(
    jobs,
    first_tiles,
    knobs,
    table,
    changed,
    n_jobs,
    n_terms,
    FORMAT: tl.constexpr,
    MODE: tl.constexpr,
    KINDS: tl.constexpr,
    TERMS: tl.constexpr,
    HAS_X: tl.constexpr,
    HAS_DENSE: tl.constexpr,
    SCALED: tl.constexpr,
    COUNT: tl.constexpr,
    ALIGNED: tl.constexpr,
    JOBS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes one tile. Its job is the last one whose first tile is not beyond this program's number."""
    tile = tl.program_id(0)
    if JOBS == 1:
        job = jobs
    else:
        every = tl.arange(0, JOBS)
        begun = tl.load(first_tiles + every, mask=every < n_jobs, other=0x7FFFFFFF) <= tile
        job = jobs + JOB_SIZE * (tl.sum(begun.to(tl.int32)) - 1)
    start, stop = tl.load(job + START), tl.load(job + STOP)
    base = tl.multiple_of((start // TILE + (tile - tl.load(job + FIRST_TILE))) * TILE, TILE)
    tile_of_combine(
        job, knobs, n_terms, table, changed, base, start, stop, tl.load(job + LEAF),
        FORMAT, MODE, KINDS, TERMS, HAS_X, HAS_DENSE, SCALED, COUNT, ALIGNED, TILE,
        tl.load(job + OUT), tl.load(job + X),
    )  # fmt: skip


@triton.jit
def rows_kernel(
    out,
    x,
    rows,
    knobs,
    table,
    leaf,
    row_len,
    n_terms,
    FORMAT: tl.constexpr,
    KINDS: tl.constexpr,
    TERMS: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
):
    """One tile (program_id(1)) of one row (program_id(0)): out[r, :] = x[rows[r], :] + noise of that row."""
    size: tl.constexpr = 8 if FORMAT == F64 else (4 if FORMAT == F32 else 2)
    r = tl.program_id(0).to(tl.int64)
    start = tl.load(rows + r) * row_len
    base = tl.multiple_of((start // TILE + tl.program_id(1)) * TILE, TILE)
    if base < start + row_len:
        tile_of_combine(
            knobs, knobs, n_terms, table, knobs, base, start, start + row_len, leaf,
            FORMAT, NEAREST, KINDS, TERMS, True, False, False, False, ALIGNED, TILE,
            out + (r * row_len - start) * size, x,
        )  # fmt: skip
