"""Split master weights: a 16-bit float (the high half, which the forward uses) and the 16 bits below it.

The pair is a 32-bit code, high half rounded half away from zero. For bfloat16 the code is a float32. For float16 it is
sign, 5 exponent bits and 26 mantissa bits. `noise.combine(..., low=...)` moves such weights; this reads them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expand(x: Tensor, low: Tensor | None) -> Tensor:
    """The weights in the accumulation dtype: float64 for float64, else float32 (a float16 master is rounded to it).

    x: any trained dtype, flat. low: int16 of the same length, or None when x is all there is. A fresh tensor.
    """
    if low is None:
        return x.to(torch.float64 if x.dtype == torch.float64 else torch.float32, copy=True)
    below = low.to(torch.int32) & 0xFFFF
    code = ((x.view(torch.int16).to(torch.int32) - (below >> 15)) << 16) | below
    if x.dtype == torch.bfloat16:
        return code.view(torch.float32)
    magnitude = code & 0x7FFFFFFF
    exponent, mantissa = magnitude >> 26, (magnitude & 0x3FFFFFF).double()
    smallest = torch.tensor(-40, device=x.device)
    value = torch.where(
        exponent == 0, torch.ldexp(mantissa, smallest), torch.ldexp(mantissa * 2.0**-26 + 1.0, exponent - 15)
    )
    return torch.where(code < 0, -value, value).float()
