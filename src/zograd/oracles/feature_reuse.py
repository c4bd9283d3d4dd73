"""Feature reuse: a perturbation of one layer leaves everything below that layer as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from zograd.core.query import Query
from zograd.core.vector import Vector
from zograd.laws.coordinate import Unit
from zograd.oracles import Oracle, as_number, drawn_since, random_state, seeded
from zograd.stores import Store

Stage: TypeAlias = nn.Module


def reusing(stages: Sequence[Stage], features: Tensor, loss: Callable[[Tensor], Tensor]) -> Oracle:
    """An oracle of f = loss(stages[-1](... stages[0](features))) that starts each evaluation where it differs.

    The activations at x in front of each stage are computed once a step. A query along coordinates (`Coordinates`)
    then begins at the first stage that owns one of its leaves; other queries are whole forwards. The values are those
    of the whole forward bit for bit. With coordinates spread evenly over L stages of equal cost, half the work.

    loss: takes the output of the last stage; trained weights that no stage owns are taken to be in there.
    Memory: the activations between the stages. Stages that draw random numbers of torch (dropout) are refused: begun
    in the middle, they would draw others. Batch normalisation has to be in eval mode.
    Raises ValueError for such stages, TypeError for a query of single terms of a sum. DeepZero (arXiv 2310.02025).
    """
    for k, stage in enumerate(stages):
        for module in stage.modules():
            name = type(module).__name__
            if module.training and (isinstance(module, nn.modules.batchnorm._BatchNorm) or "Dropout" in name):
                raise ValueError(f"stage {k} has {name} in train mode, whose result differs by call; use .eval()")

    def first_stage(store: Store, at: Vector, owners: dict[int, int]) -> int:
        """Where a forward at this point leaves the one at x."""
        if not all(isinstance(e, Unit) for e, _ in at.terms):
            return 0
        return min((owners.get(e.leaf, len(stages)) for e, _ in at.terms if isinstance(e, Unit)), default=0)

    def forward(inputs: list[Tensor], start: int) -> float:
        """From stage `start` to the loss; `inputs[k]` is set to what stage k is given."""
        h = inputs[start]
        for k in range(start, len(stages)):
            inputs[k] = h
            h = stages[k](h)
        inputs[len(stages)] = h
        return as_number(loss(h))

    def evaluate(store: Store, queries: Sequence[Query], key: int) -> list[float]:
        owners: dict[int, int] = {}
        for k, stage in enumerate(stages):
            for parameter in stage.parameters():
                if (leaf := store.by_id.get(id(parameter))) is not None:
                    owners.setdefault(leaf.index, k)
        inputs = [features] * (len(stages) + 1)
        values: list[float] = []
        with torch.no_grad(), seeded(store, key) as reseed:
            reseed()
            before = random_state(store)
            # 0 times a coordinate is x, read by the same kernels as any other point: equal bits further down.
            with store.at(Vector(((Unit(0, 0), 0.0),))):
                base = forward(inputs, 0)
            if drawn_since(before, store):
                raise ValueError(
                    "a stage or the loss draws random numbers, and begun in the middle it would draw others; call "
                    ".eval(), or take sequential(...)"
                )
            if math.isfinite(base) and not store.settled():
                with store.at(Vector(((Unit(0, 0), 0.0),))):
                    forward(inputs, 0)
            for query in queries:
                if query.rows is not None:
                    raise TypeError("reusing() evaluates whole losses, and this method asks for terms of a finite sum")
                reseed()
                with store.at(query.at):
                    start = first_stage(store, query.at, owners)
                    values.append(forward(list(inputs), start))
        return values

    return evaluate
