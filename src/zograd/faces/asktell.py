"""`AskTell`: points go out, losses come back, whoever evaluates: people, queues, clusters, other languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from zograd.faces.minimize import ArrayStore, array_method, check_set, scalar
from zograd.run import Method, Record, Run


class AskTell:
    """The same run as `minimize`, one question at a time.

        loop = AskTell(x0, methods.rank(n=16))
        while not done:
            losses = [f(x) for x in loop.ask()]
            loop.tell(losses)

    All points of one `ask` belong together: evaluate them on the same data and randomness. A NaN or infinite loss
    refuses the step; nothing moves and the next `ask` brings new points.
    """

    def __init__(self, x0: npt.ArrayLike, method: str | Method[Any] = "zo_sgd", *, seed: int = 0) -> None:
        m = array_method(method)
        self.store = ArrayStore(x0, m.space)
        check_set(m, self.store)
        self.run = Run(self.store, m, seed)
        self.records: list[Record] = []

    def ask(self) -> list[npt.NDArray[Any]]:
        """The points to evaluate, each a fresh array; the same points again until they are told."""
        return [self.store.point(query.at) for query in self.run.ask()]

    def tell(self, losses: Sequence[float]) -> Record | None:
        """The losses in the order of `ask`. Returns the step's record, or None when the method asks for more points."""
        record = self.run.tell([scalar(f) for f in losses])
        if record is not None:
            self.records.append(record)
        return record

    @property
    def x(self) -> npt.NDArray[Any]:
        """The current iterate (a copy)."""
        return self.store.array.copy()

    @property
    def evaluations(self) -> int:
        """Losses told so far in finished steps."""
        return self.run.evaluations

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on elsewhere, also between `ask` and `tell`."""
        tensors = {k: v.clone().numpy() for k, v in self.store.state_dict().items()}
        return {"run": self.run.state_dict(), "tensors": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        import torch

        self.store.load_state_dict({k: torch.from_numpy(v) for k, v in state["tensors"].items()})
        self.run.load_state_dict(state["run"])
