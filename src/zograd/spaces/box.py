"""Boxes in the logit metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zograd.spaces.base import Extent, Space, length

Bound = float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Box(Space):
    """{x : low < x < high}, made R^d by the isometry y = log((x - low) / (high - x)): flat and complete.

    dx / dy = (x - low) (high - x) / (high - low). mu and lr are in units of y, relative ones near a bound. Where one
    bound is infinite, y is the log of the distance to the other; where both are, y = x.
    low, high: numbers, or one number for each position along the last axis of every leaf. Other bounds for other
    leaves: `Product`.
    """

    low: Bound | Sequence[float] = 0.0
    high: Bound | Sequence[float] = 1.0
    flat: ClassVar[bool] = False
    curvature: ClassVar[float] = 0.0
    complete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        low, high = self._bound("low"), self._bound("high")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        pair = [b if isinstance(b, tuple) else (b,) for b in (low, high)]
        if len({len(b) for b in pair if len(b) > 1}) > 1:
            raise ValueError(f"low has {len(pair[0])} bounds and high {len(pair[1])}; give as many, or one number")
        n = max(map(len, pair))
        for lo, hi in zip(*(b * n if len(b) == 1 else b for b in pair), strict=True):
            if not lo < hi:
                raise ValueError(f"a box needs low < high, got low={lo:g}, high={hi:g}")

    def _bound(self, name: str) -> Bound:
        value = getattr(self, name)
        try:
            return float(value) if not hasattr(value, "__len__") else tuple(float(b) for b in value)
        except (TypeError, ValueError):
            raise ValueError(
                f"{name}={value!r}: a Box takes a number, or a number for each position along the last axis, and inf "
                f"for no bound; for pairs (low, high) and fixed variables pass bounds= to minimize, or sets.Box"
            ) from None

    @property
    def unit(self) -> Extent:
        return "row" if isinstance(self.low, tuple) or isinstance(self.high, tuple) else "element"

    def sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """low and high as tensors like x."""
        low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in (self.low, self.high))
        return low, high

    def chart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """dx / dy, and (x - low) / (high - low), which is 0 (1) where only high (low) is infinite."""
        low, high = self.sides(x)
        a, b = x - low, high - x
        share = torch.where(b.isinf(), 0.0, torch.where(a.isinf(), 1.0, a / (high - low)))
        rate = torch.where(b.isinf(), a, torch.where(a.isinf(), b, a * (b / (high - low))))
        return torch.where(a.isinf() & b.isinf(), 1.0, rate), share

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return z.mul_(self.chart(x)[0])

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        """The sigmoid of y + w with w = v dy/dx, as x + dx so that w = 0 moves nothing; q = e^-|w| cannot overflow."""
        low, high = self.sides(x)
        rate, share = self.chart(x)
        w = v / rate
        q = w.abs().neg_().exp_()
        change = torch.where(w > 0, share + (1.0 - share) * q, share * q + (1.0 - share))
        dx = rate * w.sign() * -torch.expm1(-w.abs()) / change
        x.add_(torch.where(low.isinf() & high.isinf(), v, dx))
        tiny = torch.finfo(x.dtype).tiny  # the number next to 0 has no logit that another move could change
        least = torch.maximum(torch.nextafter(low, high), low + tiny)
        most = torch.minimum(torch.nextafter(high, low), high - tiny)
        return x.copy_(torch.minimum(torch.maximum(x, least), most))

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        rate = self.chart(x)[0]
        return (u / rate * (v / rate)).sum()

    def explain(self, x: Tensor) -> str | None:
        for name in ("low", "high"):
            bound = getattr(self, name)
            if isinstance(bound, tuple) and len(bound) != (x.shape[-1] if x.ndim else 1):
                return f"{name} has {len(bound)} bounds, but the last axis has {x.shape[-1] if x.ndim else 1} elements"
        low, high = self.sides(x)
        if not len(bad := torch.nonzero(~((x > low) & (x < high)).flatten())):
            return None
        i = int(bad[0])
        lo, hi = (bound.expand(x.shape).flatten()[i].item() for bound in (low, high))
        return f"element {i} is {x.flatten()[i].item():g}, but the box needs it strictly between {lo:g} and {hi:g}"

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Where the geodesic from x with velocity v is after unit time."""
        return self.move_(x.clone(), v.clone())

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The v with exp(x, v) = y."""
        return self.chart(x)[0] * (self.coordinates(y) - self.coordinates(x))

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of the logits, over all elements."""
        return length(self.coordinates(y) - self.coordinates(x))

    def transport(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """u, tangent at x, carried in parallel to y."""
        return u / self.chart(x)[0] * self.chart(y)[0]

    def coordinates(self, x: Tensor) -> Tensor:
        """y."""
        low, high = self.sides(x)
        a, b = x - low, high - x
        y = torch.where(b.isinf(), 0.0, -b.log()) + torch.where(a.isinf(), 0.0, a.log())
        return torch.where(a.isinf() & b.isinf(), x, y)
