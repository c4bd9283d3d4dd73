"""Keys that are derived from keys: compiled where the kernels are, otherwise in Python, with the same bits."""

from collections.abc import Callable
from functools import cache

from . import format, native


@cache
def _fold_here() -> Callable[..., int]:
    """Decided once per process, without a warning: a step makes a few keys, and they cost microseconds in Python."""
    return format.fold if native.torch_is_wanted() or native.library() is None else native.fold


def fold(key: int, *data: int) -> int:
    """Derives a key from `key` and `data`: for each d, key <- Philox(counter = (d lo, d hi, 0, 3), key)[:2].

    `key` is in [0, 2^64). Each of `data` is in [-2^63, 2^64); negative numbers are taken in two's complement.
    Order matters: fold(k, a, b) == fold(fold(k, a), b). Without data the key itself is returned.
    For one key, the results of two different d collide with probability 2^-64.

    >>> hex(fold(0, 1))
    '0x39c3390a86865c32'
    """
    return _fold_here()(key, *data)
