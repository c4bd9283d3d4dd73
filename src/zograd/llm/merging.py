"""Weights from several points of runs: steps left out, the mean of the last steps, the mean or sum of several runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zograd.core.method import Method
from zograd.core.record import Record
from zograd.core.run import Run
from zograd.llm.settings import SettingsError
from zograd.spaces import Euclidean
from zograd.stores import Store

REPLAYED = "a tape of {name} does not give the weights back, so no step of it can be {what}"


DEPEND = (
    "a step of {name} changes what later steps do (momentum, moments, or another state), so it cannot be taken out; "
    "--to stops before it"
)


def check_linear(method: Method[Any], what: str) -> None:
    """Raise SettingsError where weights cannot be added and averaged: in a space that is curved or has borders."""
    if not isinstance(method.space, Euclidean):
        raise SettingsError(
            f"{what}: the weights of this run lie in {type(method.space).__name__}, where sums and means of weights "
            f"are not defined; leave it out"
        )


def without(records: Sequence[Record], undo: Collection[int], method: Method[Any]) -> list[Record]:
    """The records with those of the steps `undo` (1 is the first) made void, as if these steps had been refused.

    The other steps move as they did, along the same directions by the same lengths; `check_independent` says afterwards
    whether that holds for this method.

    Raises SettingsError for a step that is not there, and for a method with state in slots.
    """
    if missing := sorted(set(undo) - {record.step + 1 for record in records}):
        raise SettingsError(f"--undo {missing[0]}: there are the steps 1 to {len(records)}")
    if not method.estimator.replays:
        raise SettingsError(f"--undo: {REPLAYED.format(name=method.name, what='left out')}")
    check_linear(method, "--undo")
    if method.slots or any(record.writes for record in records):
        raise SettingsError(f"--undo: {DEPEND.format(name=method.name)}")
    return [replace(record, refused=True) if record.step + 1 in undo else record for record in records]


def check_independent(run: Run[Any]) -> None:
    """Raise SettingsError where the rule of a run has carried something from step to step, such as a momentum."""
    if run.state:
        raise SettingsError(f"--undo: {DEPEND.format(name=run.method.name)}")


class Mean:
    """The running mean of the weights of a store, in float32 (float64 for float64).

    Memory: one number a trained weight.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.count = store, 0
        self.means: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self) -> None:
        """Count the weights as they are now."""
        self.store.make_moves()
        self.count += 1
        for leaf in self.store.leaves:
            now = self.store.master(leaf)
            if self.count == 1:
                self.means[leaf.name] = now.clone()
            else:
                self.means[leaf.name].lerp_(now, 1.0 / self.count)

    @torch.no_grad()
    def write(self) -> None:
        """Set the weights to the mean, rounded to nearest."""
        for leaf in self.store.leaves:
            leaf.tensor.copy_(self.means[leaf.name].view(leaf.tensor.shape))


def check_average(method: Method[Any], last: int, steps: int) -> None:
    """Raise SettingsError where there is no mean of the weights after each of the last `last` of so many steps."""
    if last:
        check_linear(method, "--average")
        if not method.estimator.replays:
            raise SettingsError(f"--average: {REPLAYED.format(name=method.name, what='averaged')}")
        if not 1 <= last <= steps:
            raise SettingsError(f"--average {last}: there are {steps} steps; average 1 to {steps} of them")


def average_last(run: Run[Any], records: Sequence[Record], last: int) -> None:
    """Replay a tape, and set the weights to their mean after each of the last `last` steps.

    Cost: beyond the replay, one pass over the weights for each of these steps, and one number a trained weight.
    """
    run.replay(records[: len(records) - last])
    mean = Mean(run.store)
    for record in records[len(records) - last :]:
        run.replay([record])
        mean.add()
    mean.write()


@torch.no_grad()
def add_runs(base: Store, model: nn.Module, others: Sequence[Callable[[], tuple[Store, nn.Module]]], how: str) -> None:
    """Set the weights of `base`, a run's base model, to it plus the sum ("sum") or mean ("mean") of what runs changed.

    Of LoRA, what a run changed is the product of its factors: it goes into the weights W themselves, and the factors
    stay as they began. others: each loads the store and the model of one run, with the weights at its end, when it is
    called. Memory: the trained weights three times (of LoRA the weights W in float32), and one more model. Raises
    SettingsError for runs that train other tensors, in a curved space, or adapters of a quantized model.
    """
    total: dict[str, Tensor] = {}
    start = {leaf.name: base.master(leaf).clone() for leaf in base.leaves}
    adapted = _adapted(model)
    first, products = _products(adapted), dict[str, Tensor]()
    for load in others:
        store, changed = load()
        mine, there = [leaf.name for leaf in base.leaves], [leaf.name for leaf in store.leaves]
        if mine != there:
            other = next((a for a in [*mine, *there] if (a in mine) != (a in there)), mine[0])
            raise SettingsError(f"--merge: the runs train different tensors; {other!r} is in only one of them")
        store.make_moves()
        for name, product in _products(_adapted(changed)).items():
            change = product - first[name].to(product.device)
            products[name] = products[name].add_(change) if name in products else change
        for leaf in store.leaves:
            if ".lora_" in leaf.name:
                continue
            change = store.master(leaf).to(start[leaf.name].device) - start[leaf.name]
            total[leaf.name] = total[leaf.name].add_(change) if leaf.name in total else change
    scale = 1.0 if how == "sum" else 1.0 / len(others)
    for leaf in base.leaves:
        if leaf.name in total:
            leaf.tensor.copy_((start[leaf.name] + scale * total[leaf.name]).view(leaf.tensor.shape))
    for name, product in products.items():
        w = adapted[name].get_base_layer().weight
        w.copy_(w.float() + scale * product.to(w.device))


def _adapted(model: nn.Module) -> dict[str, Any]:
    """The layers with LoRA. SettingsError where their weights are integers."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer

    found = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, module in found.items():
        weight = getattr(module.get_base_layer(), "weight", None)
        if not (isinstance(weight, Tensor) and weight.is_floating_point()):
            raise SettingsError(
                f"--merge: {name} has integers for weights, to which the sum of several adapters cannot be added; "
                f"merge runs of the dense model"
            )
    return found


def _products(adapted: dict[str, Any]) -> dict[str, Tensor]:
    """What the factors of each layer add to its W, in float32."""
    return {name: layer.get_delta_weight(layer.active_adapters[0]).float() for name, layer in adapted.items()}
