"""Which parameters of a model require grad: what the user chose, around a training in which none does."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from torch import nn

from zograd.errors import UsageError
from zograd.hf.choosing import trainable


class Marks:
    """`requires_grad` of the parameters of a model: off from the first step of a training to its end."""

    def __init__(self) -> None:
        self._before: list[nn.Parameter] | None = None
        self._told = False

    @property
    def are_off(self) -> bool:
        """Whether a training is under way."""
        return self._before is not None

    def off(self, model: nn.Module, chosen: Collection[int]) -> None:
        """No parameter requires grad from here on: nobody reads a graph.

        chosen: the identities of the tensors that were to be trained when the method was chosen. Raises UsageError
        where they are others now, since directions and slots are those of the first ones.
        """
        if self._before is None:
            now = set(map(id, trainable(model).values()))
            if other := [name for name, p in model.named_parameters() if (id(p) in now) != (id(p) in chosen)]:
                more = f" and {len(other) - 1} more" if len(other) > 1 else ""
                raise UsageError(
                    f"requires_grad of {other[0]}{more} was set after the method was chosen (in on_train_begin?); what "
                    f"is trained is settled then. Set it before trainer.train()"
                )
            self._before = [p for p in model.parameters() if p.requires_grad]
            model.requires_grad_(False)
            return
        released = [p for p in model.parameters() if p.requires_grad]
        if not released:
            return
        model.requires_grad_(False)
        stray = [p for p in released if id(p) not in chosen]  # PEFT marks adapters again behind a reference model
        self._before = [*self._before, *stray]
        if stray and not self._told:
            self._told = True
            warnings.warn(
                f"{len(stray)} parameters got requires_grad during the training and stay as they are: what is "
                f"trained is settled before its first step. Train them in a second trainer.train()",
                stacklevel=3,
            )

    def restore(self) -> None:
        """As before the training."""
        for p in self._before or ():
            p.requires_grad_(True)
        self._before, self._told = None, False
