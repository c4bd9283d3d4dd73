"""Oracles answer queries: they stand at each point and evaluate the loss.

All queries of a step share the batch (the loss closes over it) and the random state: values that differ in either are
not comparable. What is not a finite number is a failed evaluation, and never enters a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from zograd.stores.base import Store
from zograd.vector import Query

Loss: TypeAlias = Callable[[], "float | Tensor"]


class SumLoss(Protocol):
    """The mean of the terms `rows` of a finite sum, of all terms when called without."""

    def __call__(self, rows: Sequence[int] | None = None) -> float | Tensor: ...


class Oracle(Protocol):
    """(store, queries, key) -> one loss a query; `key` seeds the randomness that the queries of a step share."""

    def __call__(self, store: Store, queries: Sequence[Query], key: int, /) -> Sequence[float]: ...


@contextmanager
def seeded(store: Store, key: int) -> Iterator[Callable[[], None]]:
    """Gives a function that sets torch's random state to `key`; the caller's own state comes back at the end."""
    devices = sorted({leaf.tensor.device.index or 0 for leaf in store.leaves if leaf.tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        yield lambda: _reseed(key, devices)


def _reseed(key: int, devices: Sequence[int]) -> None:
    torch.default_generator.manual_seed(key % 2**63)
    for device in devices:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(key % 2**63)


def sequential(loss: Loss | SumLoss) -> Oracle:
    """One evaluation after the other, without gradients, each with the same dropout masks.

    For a finite sum the loss takes `rows`: the numbers of the terms whose mean is wanted, None for all of them.
    """

    def value_at(store: Store, query: Query) -> float:
        with store.at(query.at):
            return float(loss() if query.rows is None else loss(query.rows))  # type: ignore[call-arg]

    def evaluate(store: Store, queries: Sequence[Query], key: int) -> list[float]:
        values = []
        with torch.no_grad(), seeded(store, key) as reseed:
            for query in queries:
                reseed()
                value = value_at(store, query)
                if math.isfinite(value) and not store.settled():  # only ever on a first query
                    reseed()
                    value = value_at(store, query)
                values.append(value)
        return values

    return evaluate
