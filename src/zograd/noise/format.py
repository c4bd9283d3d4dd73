"""What noise is: names, constants and key derivation of the frozen format.

Philox4x32-10 is the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import operator
from enum import IntEnum
from typing import NamedTuple

NOISE_VERSION = 1

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK32 = 0xFFFFFFFF

# The fourth counter word keeps the uses of one key apart.
SIGNS, NORMALS, ROUNDING, FOLD = range(4)

SIGN_BLOCK = 2048  # elements of one block of 16 counters x 4 words x 32 bits
DRAW_BLOCK = 128  # elements of one block of 16 counters x 4 words x two 16-bit draws

MAX_INDEX = 1 << 40


class Kind(IntEnum):
    """Law of one element: mean 0, variance 1."""

    SIGN = 0
    """+1 or -1, each with probability 1/2. One Philox call gives 128 of them."""
    NORMAL = 1
    """The 65,536-atom normal law of `table.py`. One Philox call gives 8 of them."""


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
    """The key derived from `key` by `data`: for each d, key <- Philox(counter = (d lo, d hi, 0, 3), key)[:2].

    `key` is in [0, 2^64); each of `data` in [-2^63, 2^64), negative numbers in two's complement. The result is a key.
    Order matters: fold(k, a, b) == fold(fold(k, a), b). With no data the key itself is returned.
    For one key, different d give different results except with the probability of a random collision, 2^-64 per pair.

    >>> hex(fold(0, 1))
    '0x39c3390a86865c32'
    """
    key = operator.index(key)  # NumPy's integers would overflow
    if not 0 <= key < 1 << 64:
        raise ValueError(f"key={key} is not a 64-bit key; expected 0 <= key < 2**64, for example fold(0, seed)")
    for d in map(operator.index, data):
        if not -(1 << 63) <= d < 1 << 64:
            raise ValueError(f"datum {d} does not fit in 64 bits; pass it in two parts: fold(key, d >> 64, d % 2**64)")
        lo, hi, _, _ = philox(d & MASK32, (d >> 32) & MASK32, 0, FOLD, key & MASK32, key >> 32)
        key = hi << 32 | lo
    return key
