"""The frozen format of noise: names, constants and key derivation.

Philox4x32-10 is the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import operator
from enum import IntEnum
from typing import NamedTuple

NOISE_VERSION = 1

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK32 = 0xFFFFFFFF
MASK64 = (1 << 64) - 1

# The stream, the fourth counter word: different uses of one key draw from different streams.
SIGNS, NORMALS, ROUNDING, FOLD = range(4)

SIGN_BLOCK = 2048  # elements of one block of 16 counters x 4 words x 32 bits
DRAW_BLOCK = 128  # elements of one block of 16 counters x 4 words x two 16-bit draws

MAX_INDEX = 1 << 40


class Kind(IntEnum):
    """The distribution of one element; mean 0, variance 1."""

    SIGN = 0
    """+1 or -1, each with probability 1/2. One Philox call gives 128 of them."""
    NORMAL = 1
    """A normal number, discretised to the 65,536 values of `table.py`. One Philox call gives 8 of them."""


class Term(NamedTuple):
    """coef * noise(kind, key): one summand of `combine`."""

    kind: Kind
    key: int
    coef: float


def philox(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 of one counter, in Python integers (about 4 microseconds)."""
    m0, m1 = MULTIPLIERS
    w0, w1 = WEYL
    for _ in range(10):
        p0 = m0 * c0
        p1 = m1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK32
        k0 = (k0 + w0) & MASK32
        k1 = (k1 + w1) & MASK32
    return c0, c1, c2, c3


def fold(key: int, *data: int) -> int:
    """`zograd.noise.fold` in Python: for each d, key <- Philox(counter = (d lo, d hi, 0, 3), key)[:2]."""
    key = checked_key(key)
    for d in map(checked_datum, data):
        lo, hi, _, _ = philox(d & MASK32, d >> 32, 0, FOLD, key & MASK32, key >> 32)
        key = hi << 32 | lo
    return key


def checked_key(key: int) -> int:
    """The key as a Python integer (NumPy's would overflow); ValueError when it has not 64 bits."""
    key = operator.index(key)
    if not 0 <= key < 1 << 64:
        raise ValueError(f"key={key} is not a 64-bit key; expected 0 <= key < 2**64, for example fold(0, seed)")
    return key


def checked_datum(d: int) -> int:
    """A datum in [0, 2^64), negative ones in two's complement; ValueError when it does not fit."""
    d = operator.index(d)
    if not -(1 << 63) <= d < 1 << 64:
        raise ValueError(f"datum {d} does not fit in 64 bits; pass it in two parts: fold(key, d >> 64, d % 2**64)")
    return d & MASK64
