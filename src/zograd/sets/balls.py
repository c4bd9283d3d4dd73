"""Constraint sets: what a method may ask of one is what the set can do (`lmo_`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class LinearMinimizer(Protocol):
    """A set over which linear functions are easy to minimise, streamed over blocks in two passes."""

    def scan(self, g: Tensor, best: tuple[float, int] | None, start: int) -> tuple[float, int]:
        """First pass: update what the minimiser depends on with the block g that begins at element `start`."""

    def vertex_(self, out: Tensor, found: tuple[float, int], start: int) -> Tensor:
        """Second pass: out <- this block of argmin_{s in set} <g, s>."""

    def explain(self, x: Tensor) -> str | None:
        """None when x lies in the set, otherwise why not."""


@dataclass(frozen=True, slots=True)
class L1Ball:
    """{x : sum_i |x_i| <= radius}. argmin <g, s> = -radius sign(g_k) e_k with k = argmax |g_k|."""

    radius: float

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"an l1 ball needs radius > 0, got {self.radius}")

    def scan(self, g: Tensor, best: tuple[float, int] | None, start: int) -> tuple[float, int]:
        k = int(torch.argmax(g.abs()))
        value = float(g[k])
        return (value, start + k) if best is None or abs(value) > abs(best[0]) else best

    def vertex_(self, out: Tensor, found: tuple[float, int], start: int) -> Tensor:
        out.zero_()
        value, k = found
        if start <= k < start + out.numel() and value != 0.0:
            out[k - start] = -self.radius if value > 0 else self.radius
        return out

    def explain(self, x: Tensor) -> str | None:
        size = float(x.double().abs().sum())
        if size <= self.radius * (1 + 1e-6):
            return None
        return f"sum |x_i| = {size:g}, but the l1 ball has radius {self.radius:g}"
