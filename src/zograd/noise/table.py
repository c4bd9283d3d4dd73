"""The 32,768 magnitudes of the discretised normal distribution, as integers in units of 2^-16.

Magnitude `idx` is the quantile of |N(0, 1)| at (idx + 1/2) / 32768, times a constant that gives the symmetric
distribution of 65,536 values variance 1, rounded to an integer. The largest is 4.325 (283,441 units), the smallest one
unit. After rounding the variance is 1 - 1.1e-8 and the fourth moment 2.9992.

Integers are the same on every machine and device. The quantiles come from the standard library (Wichura 1988,
algorithm AS 241). C libraries may differ in their last bit; rounding removes these differences, and the hash below
checks that it did.
"""

import hashlib
import math
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

SIZE = 1 << 15
UNIT = 2.0**-16
SHA256 = "664ac76760a232cec689540a3e8564b6780f5ddf8f2c22ad0f294852c9950752"


@cache
def magnitudes() -> Tensor:
    """int32[32768] on the CPU, made at the first call (about 20 ms).

    Raises RuntimeError if this machine computes a table that differs from the frozen one.
    """
    quantile = NormalDist().inv_cdf
    half_normal = [quantile(0.5 + (idx + 0.5) / (2 * SIZE)) for idx in range(SIZE)]
    rescale = math.sqrt(SIZE / math.fsum(q * q for q in half_normal))
    table = np.array([round(q * rescale / UNIT) for q in half_normal], dtype="<i4")
    found = hashlib.sha256(table.tobytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(
            f"the table of normal quantiles has SHA-256 {found}, expected {SHA256}: the C math library of this machine "
            "differs from IEEE double precision beyond rounding, so normal noise would not be reproducible here. "
            "Use Kind.SIGN, or another build of Python."
        )
    return torch.from_numpy(table.astype(np.int32))


@cache
def magnitudes_on(device: torch.device) -> Tensor:
    """`magnitudes()` on `device`, copied once."""
    return magnitudes().to(device)


@cache
def values() -> Tensor:
    """float32[32768] on the CPU: the magnitudes as floats, exact (19 bits)."""
    return magnitudes().to(torch.float32) * UNIT


@cache
def values_on(device: torch.device) -> Tensor:
    """`values()` on `device`, copied once."""
    return values().to(device)
