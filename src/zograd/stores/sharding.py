"""The part of a tensor that a process holds, when torch splits it over several (`DTensor`).

Noise is addressed by the element of the whole tensor, so a process draws exactly the noise of its part. Split weights
move, and replay, as the whole weights do, bit for bit, without communication.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Portion:
    """The part of a tensor of `shape` that a process holds: elements begin .. end along each axis, in order."""

    shape: tuple[int, ...]
    box: tuple[tuple[int, int], ...]
    wrap: Callable[[Tensor], Tensor]
    """The part as a distributed tensor like the one it comes from."""

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(end - begin for begin, end in self.box)

    @cached_property
    def run(self) -> int:
        """Elements of the part that also follow each other in the whole tensor: all for rows, one row for columns."""
        run = 1
        for (begin, end), size in zip(reversed(self.box), reversed(self.shape), strict=True):
            run *= end - begin
            if end - begin < size:
                break
        return max(run, 1)

    def place(self, element: int) -> int:
        """Number in the whole tensor of an element of the part."""
        at, stride = 0, 1
        for (begin, end), size in zip(reversed(self.box), reversed(self.shape), strict=True):
            element, offset = divmod(element, max(end - begin, 1))
            at += (begin + offset) * stride
            stride *= size
        return at


def portion_of(tensor: Tensor) -> Portion | None:
    """The part that this process holds of a DTensor; None for an ordinary tensor.

    Raises ValueError for placements that are no box of the tensor (partial sums, strided shards of two-way sharding).
    """
    if (library := sys.modules.get("torch.distributed.tensor")) is None or not isinstance(tensor, library.DTensor):
        return None
    whole: Any = tensor
    mesh, placements = whole.device_mesh, whole.placements
    box = [(0, size) for size in whole.shape]
    where = mesh.get_coordinate()
    if where is None:
        raise ValueError("this process is not in the mesh of a distributed tensor; make the store where it is")
    for axis, placement in enumerate(placements):
        if type(placement) is library.Shard:
            begin, end = box[placement.dim]
            size = -(-(end - begin) // mesh.size(axis))  # as torch.chunk cuts
            first = min(begin + where[axis] * size, end)
            box[placement.dim] = (first, min(first + size, end))
        elif type(placement) is not library.Replicate:
            raise ValueError(f"a tensor placed as {placements} cannot be trained; use Shard and Replicate")

    def wrap(part: Tensor) -> Tensor:
        shared: Tensor = library.DTensor.from_local(
            part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
        )
        return shared

    portion = Portion(tuple(whole.shape), tuple(box), wrap)
    if tuple(local(tensor).shape) != portion.sizes:
        raise ValueError(
            f"a tensor of shape {portion.shape} placed as {placements} ought to be {portion.sizes} here, it is "
            f"{tuple(local(tensor).shape)}; split it with distribute_tensor or fully_shard"
        )
    return portion


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a DTensor, sharing memory."""
    with torch.no_grad():
        part: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part
