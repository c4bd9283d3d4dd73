"""Oracles answer queries: they stand at each point and evaluate the loss.

All queries of a step share the batch (the loss closes over it) and the random state: values that differ in either are
not comparable. The random state is that of torch, of `numpy.random` and of `random`; generators that a user made are
not known here. What is not a finite number is a failed evaluation, and never enters a mean.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from zograd.core.query import Query
from zograd.lens.parameters import Unbranchable
from zograd.stores import Store

Loss: TypeAlias = Callable[[], "float | Tensor"]


class SumLoss(Protocol):
    """The mean of the terms `rows` of a finite sum, of all terms when called without."""

    def __call__(self, rows: Sequence[int] | None = None) -> float | Tensor: ...


class Oracle(Protocol):
    """(store, queries, key) -> one loss a query; `key` seeds the randomness that the queries of a step share."""

    def __call__(self, store: Store, queries: Sequence[Query], key: int, /) -> Sequence[float]: ...


def as_number(value: Any) -> float:
    """A loss as a Python float, for every entry point. The TypeError says what was returned and what to return.

    The outputs of a model of transformers that was given labels are their `loss`.
    """
    if isinstance(value, float):  # also NumPy's
        return float(value)
    if isinstance(value, Tensor):
        if value.numel() == 1 and not value.is_complex():
            return float(value.detach())
    elif isinstance(value, np.ndarray):
        if value.size == 1 and value.dtype.kind in "fiub":
            return float(value.item())
    elif isinstance(value, Mapping) and getattr(value, "loss", None) is not None:
        return as_number(value.loss)  # type: ignore[attr-defined]
    elif not isinstance(value, str | bytes | bytearray | complex | np.complexfloating):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise TypeError(f"the loss must return one number, got {_described(value)}")


def _described(value: Any) -> str:
    """What came in the place of a loss, and what to do about it."""
    if value is None:
        return "None; end the function with a return of the loss"
    if isinstance(value, Mapping):
        if hasattr(value, "loss"):
            return f"{type(value).__name__} without a loss; give the model labels, or compute a loss from its logits"
        keys = ", ".join(map(repr, list(value)[:4]))
        return f"{type(value).__name__} with the keys {keys}; return the loss in it, such as outputs['loss']"
    shape = getattr(value, "shape", None)
    if isinstance(value, complex | np.complexfloating) or getattr(getattr(value, "dtype", None), "kind", "") == "c":
        return f"the complex {value!r}; return its real part or its absolute value"
    if isinstance(value, Tensor) and value.is_complex():
        return f"a complex tensor of shape {tuple(value.shape)}; return its real part or its absolute value"
    if shape is not None:
        return f"an array of shape {tuple(shape)}; reduce it with .mean() or .sum()"
    shown = repr(value)
    if isinstance(value, tuple | list):
        kinds = ", ".join(type(v).__name__ for v in value[:4])
        shown = shown if len(shown) <= 40 else f"a {type(value).__name__} of ({kinds})"
        return f"{shown}; return the loss alone, such as its first element"
    shown = shown if len(shown) <= 60 else f"an object of type {type(value).__name__}"
    return f"{shown}; return a float or a tensor with one element"


@contextmanager
def seeded(store: Store, key: int) -> Iterator[Callable[[], None]]:
    """Gives a function that sets the random state to `key`: of torch, of `numpy.random` and of `random`.

    The caller's own state is restored at the end.
    """
    devices = _cuda_devices(store)
    numpy_state, python_state = host_state()
    try:
        with torch.random.fork_rng(devices):
            yield lambda: _reseed(key, devices)
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002  # what the functions of numpy.random draw from
        random.setstate(python_state)


def random_state(store: Store) -> list[Tensor]:
    """States of torch's generators on the CPU and on the devices of the store."""
    return [torch.default_generator.get_state(), *map(torch.cuda.get_rng_state, _cuda_devices(store))]


def host_state() -> tuple[Any, Any]:
    """States of the generators behind `numpy.random` and `random`."""
    return np.random.get_state(), random.getstate()  # noqa: NPY002


def _drew(before: tuple[Any, Any]) -> bool:
    """Whether the generators behind `numpy.random` or `random` have been used since."""
    (numpy_before, python_before), (numpy_now, python_now) = before, host_state()
    return python_before != python_now or not all(map(np.array_equal, numpy_before, numpy_now))


def _cuda_devices(store: Store) -> list[int]:
    """The CUDA devices that hold weights, by number."""
    return sorted({leaf.tensor.device.index or 0 for leaf in store.leaves if leaf.tensor.device.type == "cuda"})


def reseed_host(key: int) -> None:
    """Set the random state of this process on the CPU to `key`."""
    torch.default_generator.manual_seed(key % 2**63)
    np.random.seed(key % 2**32)  # noqa: NPY002
    random.seed(key)


def _reseed(key: int, devices: Sequence[int]) -> None:
    reseed_host(key)
    for device in devices:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(key % 2**63)


def sequential(loss: Loss | SumLoss) -> Oracle:
    """One evaluation after the other, without gradients, each under the same random state (`seeded`).

    loss: returns one number, as a tensor or float. For a finite sum it takes `rows`: the numbers of the terms whose
        mean is wanted, None for all of them.
    """

    def value_at(store: Store, query: Query) -> float:
        with store.at(query.at):
            return as_number(loss() if query.rows is None else loss(query.rows))  # type: ignore[call-arg]

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


class BatchedLoss(Protocol):
    """n -> n losses: of n copies of the batch, repeated along the first axis, branch after branch."""

    def __call__(self, copies: int, /) -> Tensor: ...


def batched(loss: BatchedLoss, together: int | Callable[[], int] = 16) -> Batched:
    """Evaluates up to `together` queries in one forward, each on its own copy of the batch (`lens/branches.py`).

    loss(n) repeats the inputs n times along the first axis (`ids.repeat(n, 1)`), runs the model once, and returns one
    loss for each copy, [n]. Directions of low rank (`RankOne`, `LowRank`) cost next to nothing on top of that forward;
    others are regenerated for each branch in turn, which saves reading the weights and the small operations.

    A point of low rank is shown in that way also where it is alone in its forward.

    Values are those of one at a time to rounding. The first query is also evaluated alone and compared: a model that
    mixes the examples of a batch (batch normalisation in train mode, capacities of experts), or reads weights in a way
    that cannot be split, is found there. Then, and where memory does not suffice, fewer share a forward, and a warning
    says so.

    together: a number, or a function that is asked in every step. Memory: the activations of `together` copies of the
    batch. Raises ValueError for together < 1 and for a loss that does not return [n]; TypeError for queries that name
    terms of a finite sum.
    """
    if not callable(together) and together < 1:
        raise ValueError(f"together={together} evaluations cannot share a forward; use 1 (one at a time) or more")
    return Batched(loss, together if callable(together) else lambda: together)


def _low_rank(queries: Sequence[Query]) -> bool:
    """Whether the points are along directions of low rank."""
    terms = [e for query in queries for e, _ in query.at.terms]
    return bool(terms) and all(e.low_rank for e in terms)


class Batched:
    """The oracle of `batched`; `limit` falls where the model or the memory wants it."""

    def __init__(self, loss: BatchedLoss, wanted: Callable[[], int]) -> None:
        self.loss, self.wanted = loss, wanted
        self.most: float = math.inf
        self.given_up = False
        self.alone = sequential(self._one)
        self.checked = False
        self.draws = False
        """Whether the forward draws random numbers, which branches then share."""

    def __call__(self, store: Store, queries: Sequence[Query], key: int) -> list[float]:
        if any(query.rows is not None for query in queries):
            raise TypeError("batched() evaluates whole losses, and this method asks for terms of a finite sum")
        if not self.checked:
            return self._first(store, queries, key)
        return self._values(store, queries, key)

    def _one(self) -> Tensor:
        """The loss of the batch as it is."""
        return _of_copies(self.loss(1), 1).sum()

    @property
    def limit(self) -> int:
        """The most that share a forward where fewer than wanted do: 0 for one at a time as usual, -1 for no limit."""
        return 0 if self.given_up else -1 if math.isinf(self.most) else int(self.most)

    @limit.setter
    def limit(self, most: int) -> None:
        """Go on as an oracle does that was found to have this limit."""
        self.given_up, self.most = most == 0, most if most > 0 else math.inf

    @property
    def together(self) -> int:
        """How many queries share a forward now."""
        return int(min(self.wanted(), self.most))

    def _first(self, store: Store, queries: Sequence[Query], key: int) -> list[float]:
        """One query both ways."""
        if self._as_usual(store, queries):
            return list(self.alone(store, queries, key))
        self.checked = True
        drawn: list[bool] = []
        drawn_elsewhere: list[bool] = []

        def watched() -> Tensor:
            before, elsewhere = random_state(store), host_state()
            total = self._one()
            drawn.append(not all(map(torch.equal, before, random_state(store))))
            drawn_elsewhere.append(_drew(elsewhere))
            return total

        (expected,) = sequential(watched)(store, queries[:1], key)
        self.draws = any(drawn)
        if any(drawn_elsewhere):  # torch's masks are shared by branches, what others draw is not
            self._give_up("its loss draws from numpy.random or random, and copies of the batch would get other numbers")
            return [expected, *self.alone(store, queries[1:], key)]
        values = self._values(store, queries, key)
        dtypes = {leaf.dtype for leaf in store.leaves}
        tolerance = 2.0**-6 if dtypes & {torch.bfloat16, torch.float16} else 1e-4
        same = math.isclose(expected, values[0], rel_tol=tolerance, abs_tol=tolerance)
        if same or not (math.isfinite(expected) or math.isfinite(values[0])):
            return values
        self._give_up(f"its loss is {expected} alone and {values[0]} beside others")
        return list(self.alone(store, queries, key))

    def _give_up(self, why: object) -> None:
        warnings.warn(
            f"points are evaluated one at a time, not in one forward of this model: {why}. The losses are the same, "
            f"and a step takes longer",
            stacklevel=4,
        )
        self.given_up = True

    def _as_usual(self, store: Store, queries: Sequence[Query]) -> bool:
        """Whether each query needs a forward of its own, which reads the weights at the point."""
        if self.given_up or store.escaped or store.sharded:
            return True
        return min(self.together, len(queries)) == 1 and not _low_rank(queries)

    def _values(self, store: Store, queries: Sequence[Query], key: int) -> list[float]:
        values: list[float] = []
        while len(values) < len(queries):
            if self._as_usual(store, queries[len(values) :]):
                return [*values, *self.alone(store, queries[len(values) :], key)]
            group = queries[len(values) : len(values) + self.together]
            try:
                values += self._forward(store, group, key)
            except Unbranchable as e:
                self._give_up(e)
            except torch.OutOfMemoryError:
                if len(group) == 1:
                    raise
                self.most = max(1, len(group) // 2)
                warnings.warn(f"{len(group)} points in one forward need too much memory: now {self.most}", stacklevel=3)
        return values

    def _forward(self, store: Store, group: Sequence[Query], key: int) -> list[float]:
        from zograd.lens.branches import Branches

        n = len(group)
        with torch.no_grad(), seeded(store, key) as reseed:
            reseed()
            with Branches(store, [query.at for query in group], everywhere=self.draws):
                losses = self.loss(n)
        return [float(f) for f in _of_copies(losses, n).double()]


def _of_copies(losses: Tensor, n: int) -> Tensor:
    """The losses of n copies of a batch, checked."""
    if not isinstance(losses, Tensor):
        raise TypeError(
            f"the loss of n copies of the batch must return a tensor with one loss a copy, got {_described(losses)}"
        )
    if losses.shape != (n,) and not (n == 1 and losses.ndim == 0):
        raise ValueError(f"the loss of {n} copies of the batch has shape {tuple(losses.shape)}; expected [{n}]")
    return losses
