"""`AskTell`: it gives points and takes losses. People, queues, clusters or other languages evaluate them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zograd.api.variables import ArrayStore
from zograd.core.method import Method
from zograd.core.record import Record
from zograd.core.run import Run
from zograd.core.seeds import Seed
from zograd.core.tape_records import named, renamed
from zograd.core.vector import Vector
from zograd.methods.defaults import black_box


class AskTell:
    """The same run as `minimize`, one question at a time.

        loop = AskTell(x0, methods.rank(n=16))
        while not done:
            losses = [f(x) for x in loop.ask()]
            loop.tell(losses)

    All points of one `ask` belong together: evaluate them on the same data and randomness. A NaN or infinite loss
    refuses the step; nothing moves and the next `ask` brings new points. Pickle and deepcopy work at any time.

    method: a name of the menu with the defaults of `zograd.methods.defaults`, or a `zograd.Method`. seed: see
    `zograd.Run`.
    """

    def __init__(self, x0: npt.ArrayLike, method: str | Method[Any] = "zo_sgd", *, seed: Seed = 0) -> None:
        m = black_box(method, int(np.size(x0))) if isinstance(method, str) else method
        self.store = ArrayStore(x0, m.space)
        if (why := m.rule.misplaced(self.store)) is not None:
            raise ValueError(f"x0 {why}")
        self.run = Run(self.store, m, seed)
        self.records: list[Record] = []

    def ask(self) -> list[npt.NDArray[Any]]:
        """The points to evaluate, each a fresh array; the same points again until they are told."""
        return [self.store.point(query.at) for query in self.run.ask()]

    def tell(self, losses: Sequence[float]) -> Record | None:
        """The losses in the order of `ask`. Returns the step's record, or None when the method asks for more points."""
        try:
            told = list(losses) if not isinstance(losses, Mapping | str) else None
        except TypeError:  # a single number, also as an array without axes
            told = None
        if told is None:
            raise TypeError(f"tell() takes the losses in the order of ask(), as a list, got {type(losses).__name__}")
        record = self.run.tell(told)
        if record is not None:
            self.records.append(record)
        return record

    @property
    def x(self) -> npt.NDArray[Any]:
        """The current iterate (a copy)."""
        return self.store.array.copy()

    @property
    def seed(self) -> int:
        """The seed of the run, also where a fresh one was drawn."""
        return self.run.seed

    @property
    def evaluations(self) -> int:
        """Losses told so far in finished steps."""
        return self.run.evaluations

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on elsewhere, between `ask` and `tell` too: arrays, and what JSON holds."""
        tensors = {k: v.clone().numpy() for k, v in self.store.state_dict().items()}
        return {"run": _plain(self.run.state_dict()), "tensors": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; arrays may have become lists."""
        mine = self.store.state_dict()
        arrays = dict(state["tensors"])
        for name in arrays.keys() & mine.keys():
            if not isinstance(arrays[name], np.ndarray):
                arrays[name] = np.array(arrays[name], mine[name].numpy().dtype)
        self.store.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        self.run.load_state_dict(_rebuilt(state["run"]))


def _plain(value: Any) -> Any:
    """Scalars, lists and dicts; a Vector, which rules remember, as the names and coefficients of its terms."""
    if isinstance(value, Vector):
        return {"vector": [[named(e), c] for e, c in value.terms]}
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _rebuilt(value: Any) -> Any:
    """The inverse of `_plain`, but that tuples are lists."""
    if isinstance(value, dict):
        if value.keys() == {"vector"}:
            return Vector(tuple((renamed(e), c) for e, c in value["vector"]))
        return {key: _rebuilt(v) for key, v in value.items()}
    return [_rebuilt(v) for v in value] if isinstance(value, list) else value
