"""The loss of the batches of one step, as a Trainer computes it, at the points that a method asks for."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zograd.blockwise import Blockwise
from zograd.core.query import Query
from zograd.distributed import Peers, shared
from zograd.llm.inputs import InputsOfLeaves, watching
from zograd.oracles import Oracle, as_number, seeded
from zograd.stores import Store

COUNTERS = ("_metrics", "_stored_metrics", "_total_train_tokens")
"""What trainers of TRL count in `compute_loss`: tokens, accuracies, rewards."""


class StepLoss:
    """The mean of `trainer.compute_loss` over the micro-batches of a step; `parts` has their shares in it.

    As in a first-order Trainer: where the loss was divided by `num_items_in_batch` already, shares are added; otherwise
    each is divided by the number of micro-batches.

    `compute_loss` may change its inputs and count: it gets a copy each time, and `settle` sets TRL's counters to what
    they were after the first evaluation of the step, so that a batch counts once.
    """

    def __init__(self, trainer: Any, model: nn.Module, batches: Sequence[Any], items: Any) -> None:
        self.trainer, self.model, self.items = trainer, model, items
        self.batches = batches
        self.filled: Tensor | None = None
        """Where the micro-batch under way has tokens; None: everywhere."""
        self._counted: dict[str, Any] | None = None

    def __call__(self) -> float:
        """The value at the point where the weights stand now."""
        value = sum(as_number(part()) for part in self.parts)
        if self._counted is None:
            self._counted = {name: copy.deepcopy(vars(self.trainer)[name]) for name in self._counters}
        return value

    @property
    def parts(self) -> list[Callable[[], Any]]:
        """One function a micro-batch; the sum of what they return is the loss."""
        return [lambda batch=batch: self._share(batch) for batch in self.batches]  # type: ignore[misc]

    @property
    def _counters(self) -> list[str]:
        return [name for name in COUNTERS if name in vars(self.trainer)]

    def _share(self, batch: Any) -> Any:
        trainer = self.trainer
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        self.filled = mask.bool() if isinstance(mask, Tensor) else None
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(self.model, _copied(batch), num_items_in_batch=self.items)
        if isinstance(loss, Mapping):  # outputs of a model
            loss = getattr(loss, "loss", loss)
        if not (isinstance(loss, Tensor) and loss.numel() == 1):
            as_number(loss)  # its TypeError says what came
        return loss if self._is_scaled else loss / len(self.batches)

    @property
    def _is_scaled(self) -> bool:
        """Whether `compute_loss` has divided by the items of all micro-batches; as transformers decides it."""
        trainer = self.trainer
        said = getattr(trainer, "loss_is_scaled_for_ga", None)
        by_items = trainer.model_accepts_loss_kwargs and self.items is not None
        return bool(by_items or trainer.compute_loss_func is not None if said is None else said)

    def settle(self) -> None:
        """The end of the step: the batch has been counted once."""
        if self._counted is not None:
            vars(self.trainer).update(self._counted)


def _copied(batch: Any) -> Any:
    """A batch whose entries can be taken out and replaced; the tensors are the same."""
    if isinstance(batch, Mapping):
        return copy.copy(batch)
    return list(batch) if isinstance(batch, list) else batch


def by_values(loss: StepLoss, peers: Peers, store: Store) -> Oracle:
    """The oracle of a step: the mean over the processes, each of which has micro-batches of its own.

    A store that records what enters layers does so where the attention mask of a micro-batch has a token.
    """
    if isinstance(store.inputs, InputsOfLeaves):
        store.inputs.filled = lambda: loss.filled
    return watching(shared(lambda part, rows=None: loss(), peers, weights=[1 / peers.world] * peers.world))


def from_blocks(source: Blockwise, loss: StepLoss, autocast: Callable[[], Any], peers: Peers) -> Oracle:
    """The oracle of a step whose gradients come from blocks: one forward of each micro-batch, kept by the source.

    Losses and gradients are means over the processes. Traffic: the gradients, as in a data-parallel first-order step.
    """
    if peers.world > 1:
        source.combine = lambda gradient: peers.total(gradient) / peers.world

    def own(store: Store, queries: Sequence[Query], key: int) -> list[float]:
        with seeded(store, key) as reseed:
            reseed()
            found = [source.recorded(part, lambda: autocast, any_way=True) for part in loss.parts]
        source.begin([call for _, calls in found for call in calls], key)
        return [sum(value for value, _ in found)] * len(queries)

    return shared(lambda part, rows=None: loss(), peers, weights=[1 / peers.world] * peers.world, oracle=lambda _: own)


def fixed_mode(trainer: Any, model: nn.Module) -> None:
    """Eval mode for all modules, so that every forward of a batch has the same value.

    For TRL the model itself says "training": by that its trainers tell metrics of training from those of evaluations.
    """
    model.eval()
    model.training = any(name in vars(trainer) for name in COUNTERS)


class Losses:
    """The losses of steps. first: that of the first step, before anything has moved."""

    LAST = 10
    """Steps whose mean loss is compared with the first."""

    def __init__(self, first: float) -> None:
        self.first = first
        self.last: deque[float] = deque(maxlen=self.LAST)
        self.told = self.told_of_zero = False

    def risen(self, loss: float) -> float | None:
        """The mean of the last losses where it is half as large again as the first one, once; None otherwise."""
        self.last.append(loss)
        level = sum(self.last) / len(self.last)
        if self.told or len(self.last) < self.LAST or not level - self.first > 0.5 * abs(self.first):
            return None
        self.told = True
        return level


def as_tensor(value: Tensor, device: torch.device) -> Tensor:
    """A loss in float32 on a device: some have no float64."""
    return value.to(torch.float32).to(device)
