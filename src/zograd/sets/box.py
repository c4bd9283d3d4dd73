"""Boxes: bounds on every element, one pair for all or one pair for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zograd.core.sums import Sum
from zograd.sets.base import Ball, Extent, OneTensor, Place
from zograd.sets.numbers import Given, Numbers, number_or_numbers


@dataclass(frozen=True, slots=True)
class Box(OneTensor):
    """{x : low_i <= x_i <= high_i}. The projection clips; argmin <g, s> = low_i where g_i > 0, high_i elsewhere.

    low, high: a number for all elements, or one number for each element: a list, a NumPy array or a tensor with as many
        elements as x, taken in memory order over all leaves end to end. -inf and inf leave a side open; then linear
        functions have no minimiser. Equal bounds fix a variable.

    Frozen: arrays are copied, and two boxes with the same numbers are equal. Arrays cost two float64 copies of them,
    and a projection in `Proximal` then gathers x in float64. Raises ValueError for NaN, and where low > high.

    >>> import torch, zograd as zo
    >>> box = zo.sets.Box([0.0, -1.0, 2.0], [1.0, float("inf"), 2.0])
    >>> box.project_(torch.tensor([3.0, -5.0, 0.0]))
    tensor([ 1., -1.,  2.])
    """

    low: Given
    high: Given
    whole_leaf: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, number_or_numbers(getattr(self, name), f"the {name} bounds of a Box"))
        low, high = self._bounds(None, None)
        if low.numel() > 1 and high.numel() > 1 and low.numel() != high.numel():
            raise ValueError(
                f"a box needs as many lower as upper bounds, got {low.numel()} and {high.numel()}; pass a number where "
                f"all are alike"
            )
        if bool(wrong := (low > high).any()) or bool((low == math.inf).any()) or bool((high == -math.inf).any()):
            i = int((low > high).nonzero()[0, 0]) if wrong else 0
            pair = [float(side[min(i, side.numel() - 1)]) for side in (low, high)]
            where = f" at element {i}" if self.size else ""
            raise ValueError(
                f"a box needs low <= high, got low={pair[0]:g}, high={pair[1]:g}{where}; inf is for high, -inf for low"
            )

    @property
    def size(self) -> int | None:
        """The number of elements that x must have; None: any."""
        return next((side.flat().numel() for side in (self.low, self.high) if isinstance(side, Numbers)), None)

    @property
    def unit(self) -> Extent:
        return "element" if self.size is None else "all"

    def _bounds(self, like: Tensor | None, at: Place | None) -> tuple[Tensor, Tensor]:
        """Both bounds as tensors that broadcast over a block; at: where it lies (None: it is everything)."""
        found = []
        for side in (self.low, self.high):
            flat = side.flat() if isinstance(side, Numbers) else torch.tensor([side], dtype=torch.float64, device="cpu")
            if like is not None:
                if isinstance(side, Numbers):
                    if at is None and flat.numel() != like.numel():
                        raise ValueError(
                            f"the box has bounds for {flat.numel()} elements, and x has {like.numel()}; pass a bound "
                            f"for each, or one number for all"
                        )
                    start = 0 if at is None else at.start
                    flat = flat[start : start + like.numel()]
                flat = flat.to(like)
            found.append(flat)
        return found[0], found[1]

    def project_(self, x: Tensor) -> Tensor:
        """x <- min(max(x, low), high)."""
        if self.size is None:
            return x.clamp_(self.low, self.high)  # type: ignore[arg-type]
        low, high = (side.expand(x.numel()).view(x.shape) for side in self._bounds(x, None))
        return x.copy_(x.clamp(low, high))

    def scan(self, g: Tensor, at: Place, found: Sum | None) -> Sum:
        if not all(bool(side.isfinite().all()) for side in self._bounds(None, None)):
            mine = "this Box" if self.size else f"Box({self.low:g}, {self.high:g})"
            raise ValueError(f"no point of {mine} minimises a linear function; bound the box")
        lowest = Sum() if found is None else found
        lowest.add(self.vertex_(torch.empty_like(g), g, at, lowest), g)
        return lowest

    def vertex_(self, out: Tensor, g: Tensor, at: Place, found: Sum) -> Tensor:
        low, high = self._bounds(g, at)
        return torch.where(g > 0, low, high, out=out)

    def lowest(self, found: Sum) -> float:
        return found.value

    def explain(self, *leaves: Tensor) -> str | None:
        """None when every element lies between its bounds, otherwise the first that does not."""
        if self.size is None:
            for x in leaves:
                if not x.numel():
                    continue
                least, most = float(x.min()), float(x.max())
                lower, upper = (float(side) for side in self._bounds(x, None))
                if not (least >= lower and most <= upper):
                    mine = f"{self.low:g} to {self.high:g}"
                    return f"its elements reach from {least:g} to {most:g}, but the box from {mine}"
            return None
        x = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
        if x.numel() != self.size:
            return f"it has {x.numel()} elements, but the box has bounds for {self.size}"
        low, high = (side.expand(x.numel()) for side in self._bounds(x, None))
        outside = (~((x >= low) & (x <= high))).nonzero()
        if not len(outside):
            return None
        i = int(outside[0])
        return f"its element {i} is {float(x[i]):g}, but the box there reaches from {low[i]:g} to {high[i]:g}"

    def ball(self, dim: int) -> Ball:
        """The middle, and half of the least width; where a side is open, as wide as the least width, or 1 from it."""
        low, high = (side.expand(dim) for side in self._bounds(None, None))
        radius = float((high - low).min()) / 2
        if not radius > 0:
            i = int((high - low).argmin())
            raise ValueError(
                f"{type(self).__name__} has no interior: element {i} is fixed at {float(low[i]):g}; leave fixed "
                f"variables out of x, or use queries='relaxed'"
            )
        radius = radius if math.isfinite(radius) else 1.0
        center = torch.where(low.isfinite() & high.isfinite(), (low + high) / 2, torch.zeros_like(low))
        center = torch.where(low.isfinite() & ~high.isfinite(), low + radius, center)
        center = torch.where(~low.isfinite() & high.isfinite(), high - radius, center)
        return Ball(center, radius)
