"""What a set or a penalty can do: a linear minimiser for Frank-Wolfe, a proximal map for `Proximal`, or both.

Optimizers stream a set over blocks of all leaves, in two passes. On a single tensor every set has `project_(x)`,
`prox_(x, t)`, which is the same for a set, and `lmo_(g)`, all in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from zograd.core.sums import Sum

Extent: TypeAlias = Literal["element", "row", "leaf", "all"]
"""What has to be seen at once: single elements, rows of a leaf (its first axis by the rest), whole leaves, or all
leaves end to end as one vector (in float64)."""


@dataclass(frozen=True)
class Ball:
    """{center + r : |r| <= radius}, inside of a set. center: [d], or 0 for the origin."""

    center: Tensor | float
    radius: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block lies: its first element among those of all leaves, and the matrix shape of its leaf."""

    start: int
    shape: tuple[int, int]


@runtime_checkable
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
    def unit(self) -> Extent:
        """What `prox_` must be given at once."""

    def prox_(self, y: Tensor, t: float) -> Tensor:
        """y <- argmin_z |z - y|^2 / 2 + t r(z). y: (elements,), or (rows, columns) for rows and whole leaves."""


@runtime_checkable
class Penalty(Protocol):
    """A penalty whose value is cheap, so that `Proximal` shows it and `lr="auto"` watches f + r instead of f."""

    def add_value(self, total: Sum, y: Tensor) -> None:
        """total += r(y), y a block of what `unit` says."""


@runtime_checkable
class Projection(Protocol):
    """A set whose projection needs one number of all elements first."""

    @property
    def unit(self) -> Extent:
        """What `measure` and `project_block_` must be given at once."""

    def measure(self, y: Tensor, found: Any) -> Any:
        """First pass: what the projection depends on, updated by the block y; found is None at the first one."""

    def project_block_(self, y: Tensor, found: Any) -> Tensor:
        """Second pass: y <- this block of the nearest point of the set."""


class OneTensor:
    """The maps of a set on a single tensor of any shape: both passes, one after the other.

    A set of matrices takes the first axis by the rest.
    """

    __slots__ = ()

    @property
    def unit(self) -> Extent:
        """What the maps must be given at once."""
        return "element"

    def ball(self, dim: int) -> Ball:
        """A ball inside of the set, for queries that stay inside; ValueError where there is none, or none is known."""
        raise ValueError(f"no ball inside of {type(self).__name__} is known; use queries='relaxed'")

    def project_(self: Any, x: Tensor) -> Tensor:
        """x <- argmin_{s in set} |s - x|."""
        y = self._seen(x)
        return x.copy_(self.project_block_(y, self.measure(y, None)).view(x.shape))

    def prox_(self, x: Tensor, t: float) -> Tensor:
        """The proximal map of the indicator of the set, for any t: the projection."""
        return self.project_(x)

    def lmo_(self: Any, g: Tensor) -> Tensor:
        """g <- argmin_{s in set} <g, s>, the linear minimisation oracle."""
        flat = g.detach().clone(memory_format=torch.contiguous_format).view(-1)
        at = Place(0, matrix_shape(g))
        return g.copy_(self.vertex_(torch.empty_like(flat), flat, at, self.scan(flat, at, None)).view(g.shape))

    def _seen(self, x: Tensor) -> Tensor:
        x = x.detach().clone(memory_format=torch.contiguous_format)
        return x.view(matrix_shape(x)) if self.unit == "leaf" else x.view(-1)


class Whole(OneTensor):
    """The maps of a set that is projected onto as one vector of all leaves: it defines `nearest`, and nothing else."""

    __slots__ = ()

    @property
    def unit(self) -> Extent:
        return "all"

    def project_(self: Any, x: Tensor) -> Tensor:
        """x <- argmin_{s in set} |s - x|, computed in float64 by one thread."""
        with one_thread():
            return x.copy_(self.nearest(x.detach().double().reshape(-1)).view(x.shape))


def misplaced(the_set: Any, *leaves: Tensor) -> str | None:
    """Why x, given as its leaves, is no start in the set, as the end of a sentence; None where it lies in the set."""
    why = the_set.explain(*leaves)
    if why is None:
        return None
    zero = the_set.explain(*(torch.zeros_like(x) for x in leaves)) is None
    return f"is not in {type(the_set).__name__}: {why}; start inside{', for example at 0' if zero else ''}"


def matrix_shape(x: Tensor) -> tuple[int, int]:
    """First axis by the rest; a scalar is 1 x 1."""
    rows = x.shape[0] if x.ndim else 1
    return rows, x.numel() // max(rows, 1)


FAR = 2.0**16
"""Times the radius above which a threshold in the dtype of x would be rounding."""


class Gathered:
    """Copies of all blocks of a first pass, for projections that need the order of all elements: d numbers.

    `threshold(radius)` is the theta with sum_i max(y_i - theta, 0) = radius (Duchi et al. 2008), by one sort of all.
    """

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._sum = Sum()
        self._theta: dict[float, float] = {}
        self._below: dict[float, float] = {}
        self._top = 0.0

    def add(self, block: Tensor) -> None:
        self._blocks.append(block.detach().double().clone())
        self._sum.add(self._blocks[-1])

    def threshold(self, radius: float) -> float:
        if radius not in self._theta:
            with one_thread():
                y = torch.cat([block.to(self._blocks[0].device) for block in self._blocks])
                y = y.sort(descending=True).values
                counts = torch.arange(1, len(y) + 1, dtype=y.dtype, device=y.device)
                self._theta[radius] = _last(y, (y.cumsum(0) - radius) / counts)
                if not abs(self._theta[radius]) <= FAR * radius:
                    self._top = float(y[0])
                    y = y - self._top
                    self._below[radius] = _last(y, (y.cumsum(0) - radius) / counts)
                    self._theta[radius] = self._top + self._below[radius]
        return self._theta[radius]

    def over_(self, y: Tensor, radius: float) -> Tensor:
        """y <- max(y - theta, 0) in float64. Where |theta| is far above the radius it is y_max - b, and b is exact."""
        theta = self.threshold(radius)
        if radius not in self._below:
            return y.copy_((y.double() - theta).clamp_(min=0.0))
        return y.copy_((y.double() - self._top - self._below[radius]).clamp_(min=0.0))

    @property
    def total(self) -> float:
        return self._sum.value


def _last(y: Tensor, above: Tensor) -> float:
    """The last of the numbers `above` that y exceeds; NaN where none is, as with NaN in y."""
    where = torch.nonzero(y > above)
    return float(above[int(where[-1])]) if len(where) else math.nan


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
