"""Keys that are derived from keys: compiled where the kernels are, otherwise in Python, with the same bits."""

from collections.abc import Callable

from . import format, native


def _fold_here() -> Callable[..., int]:
    """Without a warning: a step makes a few keys, and they cost microseconds in Python."""
    return format.fold if native.torch_is_wanted() or native.library() is None else native.fold


_fold: Callable[..., int] | None = None
"""`_fold_here()`, once it was called."""


def fold(key: int, *data: int) -> int:
    """Derives a key from `key` and `data`: for each d, key <- Philox(counter = (d lo, d hi, 0, 3), key)[:2].

    `key` is in [0, 2^64). Each of `data` is in [-2^63, 2^64); negative numbers are taken in two's complement.
    Order matters: fold(k, a, b) == fold(fold(k, a), b). Without data the key itself is returned.
    For one key, the results of two different d collide with probability 2^-64.

    >>> hex(fold(0, 1))
    '0x39c3390a86865c32'
    """
    global _fold
    if _fold is None:
        _fold = _fold_here()
    return _fold(key, *data)
