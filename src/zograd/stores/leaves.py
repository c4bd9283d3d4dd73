"""Named tensors as leaves: each tensor once, checked, with its space and its part of a split tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from zograd.core.vector import HALF
from zograd.spaces import Space
from zograd.stores.leaf import SUPPORTED, Leaf
from zograd.stores.sharding import local, portion_of

Rounding: TypeAlias = Literal["stochastic", "split", "nearest"]


def leaves_of(
    tensors: Mapping[str, Tensor], space: Space, rounding: Rounding, groups: Mapping[str, int]
) -> tuple[list[Leaf], dict[int, Leaf], list[Tensor]]:
    """(the leaves in order, the leaf of each tensor by identity, the tensors that share the memory of a leaf).

    Raises ValueError or TypeError for a tensor that cannot be trained, and where there is none.
    """
    leaves: list[Leaf] = []
    by_id: dict[int, Leaf] = {}
    aliases: list[Tensor] = []
    by_memory: dict[tuple[Any, ...], Leaf] = {}
    for name, tensor in tensors.items():
        if id(tensor) in by_id:
            continue
        check(name, tensor, space.of(name))
        portion = portion_of(tensor)
        held = tensor if portion is None else local(tensor)
        memory = (tensor.device, held.data_ptr())
        if held.numel() and memory in by_memory:
            first = by_memory[memory]
            if first.tensor.shape != tensor.shape or first.dtype != tensor.dtype:
                raise ValueError(
                    f"{name!r} and {first.name!r} share memory but differ in shape or dtype; train one of them"
                )
            by_id[id(tensor)] = first
            aliases.append(tensor)
            continue
        group = groups.get(name, 0)
        leaf = Leaf(name, tensor, len(leaves), group, space=space.of(name), portion=portion)
        if leaf.dtype in HALF and (rounding == "split" or tensor.ndim <= 1):
            if portion is not None:
                raise ValueError(
                    f"{name!r} would be kept in two halves (16-bit, {'split' if tensor.ndim > 1 else 'a vector'}), "
                    f"and it is split over processes, which is not supported together; keep it in float32, or "
                    f"leave it out of the selection"
                )
            leaf.low = torch.zeros(tensor.numel(), dtype=torch.int16, device=tensor.device)
        leaves.append(leaf)
        by_id[id(tensor)] = by_memory[memory] = leaf
    if not leaves:
        raise ValueError("there is nothing to train: the selection holds no tensor")
    return leaves, by_id, aliases


def check(name: str, tensor: Tensor, space: Space) -> None:
    """Refuse a tensor that cannot be trained in this space, with a sentence."""
    if tensor.is_meta:
        raise ValueError(
            f"{name!r} is on the meta device, with a shape and no values; load the weights first, for example with "
            f"from_pretrained without init_empty_weights, or with model.to_empty(device='cpu') and load_state_dict"
        )
    if tensor.dtype not in SUPPORTED:
        raise TypeError(
            f"{name!r} has dtype {tensor.dtype}; zograd trains float32, float64, bfloat16 and float16 tensors. "
            f"Leave it out of the selection, or train what scales it."
        )
    held = tensor if portion_of(tensor) is None else local(tensor)
    if is_traceable_wrapper_subclass(held):
        raise TypeError(
            f"{name!r} is of the class {type(held).__name__} ({type(held).__module__}), as libraries keep quantized "
            f"weights; leave it out of the selection, and train adapters beside it (LoRA), or what scales it"
        )
    if not held.is_contiguous():
        raise ValueError(
            f"{name!r} is not contiguous (strides {tensor.stride()}); make it so, a parameter p with "
            f"p.data = p.data.contiguous()"
        )
    if (why := space.explain(tensor.detach())) is not None:
        raise ValueError(f"{name!r} is not in {type(space).__name__}: {why}")
