"""Sums over a stream of blocks whose bits do not depend on how the stream was cut, nor on threads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SEGMENT = 4096
"""Elements that are added up in one operation: few enough for one thread."""


class Sum:
    """sum_i a_i b_i over blocks that come in order, in float64.

    The products are gathered to segments of fixed length, counted from the first element of the stream, and each full
    segment is added up at once. A stream may move from device to device where leaves do.
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._segment = torch.empty(0, dtype=torch.float64, device="cpu")
        self._filled = 0

    def add(self, a: Tensor, b: Tensor | None = None) -> None:
        """Append a block: the products of a and b, or the elements of a."""
        if self._segment.device != a.device or not len(self._segment):
            self._flush()
            self._segment = torch.empty(SEGMENT, dtype=torch.float64, device=a.device)
        start = 0
        while start < len(a):
            stop = min(len(a), start + SEGMENT - self._filled)
            part = self._segment[self._filled : self._filled + stop - start].copy_(a[start:stop])
            if b is not None:
                part.mul_(b[start:stop])
            self._filled += stop - start
            start = stop
            if self._filled == SEGMENT:
                self._flush()

    def _flush(self) -> None:
        if self._filled:
            self._total += float(self._segment[: self._filled].sum())
            self._filled = 0

    @property
    def value(self) -> float:
        """The sum so far."""
        rest = float(self._segment[: self._filled].sum()) if self._filled else 0.0
        return self._total + rest


def mean(values: Sequence[float]) -> float:
    """`numpy.mean` of a few numbers, the same bits in a fifth of the time or less."""
    if len(values) >= 8:  # from here on NumPy adds in another order
        return float(np.add.reduce(values)) / len(values)
    total = 0.0
    for value in values:
        total += value
    return float(total) / len(values)


def row_sums_(rows: Tensor) -> Tensor:
    """The sum of each row of a matrix, as a view of its first column; the matrix is overwritten.

    Halves are added elementwise, so that the result depends on the row alone, and rounding grows like log(columns).
    """
    width = rows.shape[1]
    while width > 1:
        half = width // 2
        rows[:, :half] += rows[:, width - half : width]
        width -= half
    return rows[:, 0]
