"""The optimizer that a forward-only Trainer holds: its `step` does nothing, since the step was made by then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zograd.api.torch_optimizer import ZOOptimizer
from zograd.blockwise import Blockwise
from zograd.core.method import Method
from zograd.core.records import Records
from zograd.core.seeds import Seed
from zograd.errors import UsageError
from zograd.estimators import FromBlocks
from zograd.laws.inputs import OnLayerInputs
from zograd.learning_rate import AutoRate
from zograd.llm.inputs import InputsOfLeaves
from zograd.llm.parts import Parts
from zograd.stores import Store


class TrainerOptimizer(ZOOptimizer):
    """A `ZOOptimizer` over named tensors, in the place where a Trainer expects a first-order optimizer.

    tensors: name -> tensor, in the order of the model; all are trained. undecayed: names without weight decay.
    weight_decay: of the others. model: where a method looks at what enters its layers. parts: of the model, for methods
    whose gradients come from its blocks.

    `records` has the record of every step since the base model, `given` the identities of the tensors.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        method: Method[Any],
        *,
        seed: Seed,
        weight_decay: float = 0.0,
        undecayed: Sequence[str] = (),
        model: nn.Module | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.model, self.parts = model, parts or Parts()
        self.records = Records()
        self.given = {id(t) for t in tensors.values()}
        decay = weight_decay or method.weight_decay
        free = set(undecayed) if decay else set()
        groups = [
            {"params": [(name, t) for name, t in tensors.items() if (name in free) == without], "weight_decay": of}
            for without, of in ((False, decay), (True, 0.0))
        ]
        super().__init__(
            [group for group in groups if group["params"]],
            method,
            seed=seed,
            frozen=True,
            record=lambda record: self.records.append(record),
        )
        if method.controller.measures:  # schedulers take the shape of a schedule from groups that have a rate
            for group in (self.defaults, *self.param_groups):
                group["lr"] = 1.0

    def equip(self, store: Store) -> None:
        """Give the store what the method takes from the model: gradients from its blocks, what enters its layers."""
        estimator, law = self.method.estimator, self.method.law
        if self.model is not None and isinstance(law, OnLayerInputs):
            try:
                store.inputs = InputsOfLeaves(self.model, store.leaves, law.rank)
            except ValueError as e:
                raise UsageError(
                    f"method={self.method.name!r} looks at what enters linear layers, and {e}; use 'lozo'"
                ) from e
        if isinstance(estimator, FromBlocks):
            store.source = estimator.source(self.parts.blocks, store.leaves, self.parts.ends)

    @property
    def source(self) -> Blockwise | None:
        """Where gradients come from, for methods that take them from blocks."""
        source = self.store.source
        return source if isinstance(source, Blockwise) else None

    @property
    def resumed_lr(self) -> float | None:
        """The rate that a loaded state brought, before its schedule; None where it is that of the method."""
        rates = {float(group.get("initial_lr", group["lr"])) for group in self.param_groups}
        return None if self.method.controller.measures or rates == {self.defaults["lr"]} else max(rates)

    def follow(self, shape: Callable[[int], float]) -> None:
        """Multiply measured learning rates by shape(k), k = 0, 1, ... from the next step on.

        Rates that are numbers stand in the param groups, where a torch scheduler multiplies them itself.
        """
        assert self.run is not None
        controller, start = self.method.controller, self.run.step_number
        if isinstance(controller, AutoRate):
            shaped = replace(controller, shape=lambda step: shape(max(step - start, 0)))
            self.method = self.run.method = replace(self.method, lr=shaped)

    def train(self) -> None:
        """Nothing to do; a Trainer calls it."""

    def step(self, closure: Callable[[], float | Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Nothing to do: `training_step` has made the step."""
        return torch.zeros(())
