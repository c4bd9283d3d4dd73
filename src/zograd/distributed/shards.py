"""Weights that are split over processes: FSDP2 (`fully_shard`) and tensor parallelism (`DTensor`).

A store takes such weights like any others (`stores/sharding.py`). Only weights are split: every process of a mesh takes
the same steps with the same losses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from zograd.stores import Leaf, Store


def follow(model: nn.Module, store: Store) -> None:
    """Make the lens of a store work on a model that FSDP2 has sharded (`fully_shard`). Call it once, after both.

    FSDP2 gathers the weights of a block for its forward into new tensors. From now on the lens shows these tensors at
    the point, regenerated in tiles, like weights that are not split. After each forward of the model all blocks release
    their gathered weights, which are out of date once the weights move.

    Memory: one gathered block, as in any forward under FSDP2. A forward raises TypeError if FSDP2 casts the gathered
    weights (`MixedPrecisionPolicy`): rounding would lose the probes.
    """
    from torch.distributed.fsdp import FSDPModule

    owned: dict[nn.Module, list[tuple[str, Leaf]]] = {}
    for module in model.modules():
        mine = [(name, store.by_id.get(id(p))) for name, p in module.named_parameters(recurse=False)]
        if own := [(name, leaf) for name, leaf in mine if leaf is not None and leaf.portion is not None]:
            owned[module] = own
    gathered: dict[int, Tensor] = {}

    def show(module: nn.Module, args: Any) -> None:
        for name, leaf in owned[module]:
            whole = module._parameters[name]
            assert whole is not None
            if whole is gathered.get(leaf.index) or whole is leaf.tensor:
                continue
            if whole.dtype != leaf.dtype:
                raise TypeError(
                    f"{leaf.name!r} is {leaf.dtype} and gathered as {whole.dtype}, in which probes would be rounded; "
                    f"use fully_shard without a param_dtype"
                )
            store.by_id.pop(id(gathered.get(leaf.index)), None)
            gathered[leaf.index] = whole
            store.by_id[id(whole)] = leaf.gathered(whole)

    def let_go(module: nn.Module, args: Any, output: Any) -> None:
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.reshard()

    for module in owned:
        module.register_forward_pre_hook(show)
    model.register_forward_hook(let_go)
