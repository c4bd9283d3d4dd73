"""Estimates of gradients from blocks, and their deviations from the exact ones in standard errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zograd import Store
from zograd.blockwise import Blockwise
from zograd.core.vector import Slot, Vector


def gradients(source: Blockwise, store: Store, batch: Any, key: int) -> dict[str, Tensor]:
    """What a pass over the store's blocks finds in the slot "gradient", after the forwards of a step with this key."""
    source.observe(batch, key)
    store.source = source
    found: dict[str, list[Tensor]] = {}
    for block in store.blocks(Vector(((Slot("gradient"), 1.0),))):
        found.setdefault(block.leaf.name, []).append(block.v[0].clone())
    source.end()
    return {name: torch.cat(parts) for name, parts in found.items()}


def deviations(draw: Callable[[int], dict[str, Tensor]], exact: dict[str, Tensor], n: int) -> Tensor:
    """(mean - exact) / standard error of n estimates, along one fixed random direction a tensor."""
    generator = torch.Generator().manual_seed(5)
    along = {name: torch.randn(g.shape, generator=generator) for name, g in exact.items()}
    seen: list[Tensor] = []
    for key in range(n):
        found = draw(key)
        seen.append(torch.stack([found[name] @ along[name] for name in exact]))
    values = torch.stack(seen).double()
    expected = torch.stack([g @ along[name] for name, g in exact.items()]).double()
    return (values.mean(0) - expected) / (values.std(0) / n**0.5)
