"""What a set or a penalty can do: a linear minimiser for Frank-Wolfe, a proximal map for `Proximal`, or both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

Unit: TypeAlias = Literal["element", "row", "leaf"]
"""What has to be seen at once: single elements, rows of a leaf (its first axis by the rest), or whole leaves."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block lies: its first element among those of all leaves, and the matrix shape of its leaf."""

    start: int
    shape: tuple[int, int]


class LinearMinimizer(Protocol):
    """A set over which linear functions are easy to minimise, streamed over blocks in two passes."""

    @property
    def whole_leaf(self) -> bool:
        """Whether blocks must be whole leaves (sets of matrices)."""

    def scan(self, g: Tensor, at: Place, found: Any) -> Any:
        """First pass: what the minimiser depends on, updated by the block g; found is None at the first one."""

    def vertex_(self, out: Tensor, g: Tensor, at: Place, found: Any) -> Tensor:
        """Second pass: out <- this block of argmin_{s in set} <g, s>."""

    def lowest(self, found: Any) -> float:
        """min_{s in set} <g, s>."""

    def explain(self, *leaves: Tensor) -> str | None:
        """None when x, given as its leaves, lies in the set (up to rounding), otherwise why not."""


class Prox(Protocol):
    """A convex function r with a cheap proximal map; the indicator of a set gives the projection."""

    @property
    def unit(self) -> Unit:
        """What `prox_` must be given at once."""

    def prox_(self, y: Tensor, t: float) -> Tensor:
        """y <- argmin_z |z - y|^2 / 2 + t r(z). y: (elements,), or (rows, columns) for rows and whole leaves."""


@runtime_checkable
class Projection(Protocol):
    """A set whose projection needs one number of all elements first."""

    def measure(self, y: Tensor, found: Any) -> Any:
        """First pass: what the projection depends on, updated by the block y; found is None at the first one."""

    def project_(self, y: Tensor, found: Any) -> Tensor:
        """Second pass: y <- this block of the nearest point of the set."""


def positive(owner: object, name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{type(owner).__name__} needs {name} > 0, got {value}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch uses one thread: the bits of a factorisation must not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
