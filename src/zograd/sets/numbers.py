"""`Numbers`: an array as a value, for fields of frozen sets. Read-only, equal and hashed by its numbers."""

from __future__ import annotations

import hashlib
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Given: TypeAlias = "float | npt.NDArray[Any] | Tensor | Numbers | list[Any] | tuple[Any, ...]"
"""What a user passes where a set takes numbers: a number, nested lists, an array, a tensor."""


class Numbers:
    """A float64 array that never changes. Two are equal when shape and numbers are; `tensor` is a view to read.

    values: a list, an array or a tensor, which is copied. Raises ValueError for NaN; infinities are allowed. Memory:
    one copy in float64.
    """

    __slots__ = ("_array", "_hash", "tensor")

    def __init__(self, values: Any, what: str = "the numbers of a set") -> None:
        if isinstance(values, Numbers):
            values = values._array
        if isinstance(values, Tensor):
            values = values.detach().cpu().numpy()
        array = np.array(values, dtype=np.float64, copy=True, order="C")
        array += 0.0  # -0.0 and 0.0 are one number
        if np.isnan(array).any():
            raise ValueError(f"{what} hold NaN at element {int(np.flatnonzero(np.isnan(array))[0])}; pass numbers")
        self.tensor = torch.from_numpy(array)
        self._array: npt.NDArray[np.float64] = array
        self._hash = hash((array.shape, array.tobytes()))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    def flat(self) -> Tensor:
        """All numbers end to end."""
        return self.tensor.view(-1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Numbers) and np.array_equal(self._array, other._array)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        """Shape and the first digits of the SHA-256 of the numbers, so that reprs tell two arrays apart."""
        if self._array.size <= 4:
            return repr(self._array.tolist())
        return f"Numbers(shape={self.shape}, sha256={hashlib.sha256(self._array.tobytes()).hexdigest()[:12]})"

    def __reduce__(self) -> Any:
        return Numbers, (self._array,)

    def __deepcopy__(self, memo: Any) -> Numbers:
        return self


def number_or_numbers(value: Given, what: str) -> float | Numbers:
    """A float where one number was given, otherwise `Numbers`."""
    found = Numbers(value, what)
    return float(found.tensor) if found.shape == () else found
