"""Seeds as users give them."""

from __future__ import annotations

import operator
import secrets
from typing import TypeAlias

import numpy as np

Seed: TypeAlias = int | np.integer | np.random.Generator | np.random.RandomState | None
"""An integer in 0 .. 2^64 - 1; a NumPy generator, which is asked for one; None for a fresh one."""


def as_seed(seed: Seed) -> int:
    """The seed of a run as a Python int. Raises TypeError or ValueError with a sentence that names `seed`.

    None draws a fresh one from the operating system, below 2^32 so that it is easily written down.
    """
    if seed is None:
        return secrets.randbits(32)
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(2**32))
    if isinstance(seed, np.random.RandomState):
        return int(seed.randint(2**32, dtype=np.uint64))
    try:
        if isinstance(seed, bool | np.bool_):
            raise TypeError
        number = operator.index(seed)
    except TypeError:
        raise TypeError(
            f"seed={seed!r} is no seed; pass an integer, a NumPy Generator, or None for a fresh seed"
        ) from None
    if not 0 <= number < 2**64:
        raise ValueError(f"seed={number} is out of range; a seed is an integer from 0 to 2**64 - 1 (64 bits)")
    return number
