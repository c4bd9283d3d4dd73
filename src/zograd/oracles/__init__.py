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
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zograd.core.query import Query
from zograd.core.vector import Vector
from zograd.lens.parameters import Unbranchable
from zograd.stores import Store

S = TypeVar("S")
Loss: TypeAlias = Callable[[], "float | Tensor"]
Rows: TypeAlias = Sequence[int] | None
"""The terms of a finite sum that a query names; None for the whole."""


class SumLoss(Protocol):
    """The mean of the terms `rows` of a finite sum, of all terms when called without."""

    def __call__(self, rows: Sequence[int] | None = None) -> float | Tensor: ...


class Oracle(Protocol):
    """(store, queries, key) -> one loss a query; `key` seeds the randomness that the queries of a step share."""

    def __call__(self, store: Store, queries: Sequence[Query], key: int, /) -> Sequence[float]: ...


def as_number(value: Any) -> float:
    """A loss as a Python float, for every entry point. The TypeError says what was returned and what to return.

    The outputs of a model of transformers that was given labels are their `loss`. A masked number of NumPy is NaN.
    """
    if type(value) is float:
        return value
    if isinstance(value, float):  # NumPy's
        return float(value)
    if isinstance(value, Tensor):
        if value.numel() == 1 and not value.is_complex():
            return float(value.detach())
    elif isinstance(value, np.ndarray):
        if value.size == 1 and value.dtype.kind in "fiub":
            return math.nan if np.ma.is_masked(value) else float(value.item())
    elif isinstance(value, Mapping) and getattr(value, "loss", None) is not None:
        return as_number(value.loss)  # type: ignore[attr-defined]
    elif not isinstance(value, str | bytes | bytearray | complex | np.complexfloating):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
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


def drawn_since(before: Sequence[Tensor], store: Store) -> bool:
    """Whether torch has drawn random numbers since `random_state` gave these states."""
    return not all(map(torch.equal, before, random_state(store)))


class _Masks(TorchFunctionMode):
    """Inside, `others` tells whether random numbers are drawn by other functions than F.dropout."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store, self.state, self.drew = store, random_state(store), False

    @property
    def others(self) -> bool:
        """Whether the state is another one than the last mask left."""
        return self.drew or drawn_since(self.state, self.store)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.dropout:
            return func(*args, **(kwargs or {}))
        self.drew = self.others
        found = func(*args, **(kwargs or {}))
        self.state = random_state(self.store)
        return found


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


def batched(loss: BatchedLoss, together: int | Callable[[], int] = 16, *, dtype: torch.dtype | None = None) -> Batched:
    """Evaluates up to `together` queries in one forward, each on its own copy of the batch (`lens/branches.py`).

    loss(n) repeats the inputs n times along the first axis (`ids.repeat(n, 1)`), runs the model once, and returns one
    loss for each copy, [n]. Directions of low rank (`RankOne`, `LowRank`) cost next to nothing on top of that forward;
    others are regenerated for each branch in turn, which saves reading the weights and the small operations.

    A point of low rank is shown in that way also where it is alone in its forward.

    Values are those of one at a time to rounding. The first two queries are also evaluated alone, and they and their
    difference are compared: a model that mixes the examples of a batch (batch normalisation in train mode, capacities
    of experts), or reads weights in a way that cannot be split, is found there, as is one that draws random numbers by
    other functions than F.dropout, whose masks branches share. Then, and where memory does not suffice, fewer share a
    forward, and a warning says so. (In 16 bits differences are rounding, and values alone are compared.)

    together: a number, or a function that is asked in every step. Memory: the activations of `together` copies of the
    batch. dtype: that of the forward, where it is not that of the trained tensors, such as adapters in float32 on a
    model in bfloat16: losses of two forwards in 16 bits may differ by 2^-6. Raises ValueError for together < 1 and for
    a loss that does not return [n]; TypeError for queries that name terms of a finite sum.
    """
    if not callable(together) and together < 1:
        raise ValueError(f"together={together} evaluations cannot share a forward; use 1 (one at a time) or more")
    return Batched(loss, together if callable(together) else lambda: together, dtype)


def _low_rank(queries: Sequence[Query]) -> bool:
    """Whether the points are along directions of low rank."""
    terms = [e for query in queries for e, _ in query.at.terms]
    return bool(terms) and all(e.low_rank for e in terms)


class Batched:
    """The oracle of `batched`; `limit` falls where the model or the memory wants it."""

    def __init__(self, loss: BatchedLoss, wanted: Callable[[], int], dtype: torch.dtype | None = None) -> None:
        self.loss, self.wanted, self.dtype = loss, wanted, dtype
        self.trusted = False
        """Whether an earlier process has compared one query both ways."""
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
        """One query both ways, or two: what mixing changes is as small as mu, and shows in their difference."""
        if self._as_usual(store, queries):
            return list(self.alone(store, queries, key))
        self.checked = True
        dtypes = {self.dtype, *(leaf.dtype for leaf in store.leaves)}
        half = bool(dtypes & {torch.bfloat16, torch.float16})  # there differences are rounding
        drawn: list[bool] = []
        drawn_otherwise: list[bool] = []
        drawn_elsewhere: list[bool] = []

        def watched() -> Tensor:
            before, elsewhere = random_state(store), host_state()
            with _Masks(store) as masks:
                total = self._one()
            drawn.append(drawn_since(before, store))
            drawn_otherwise.append(masks.others)
            drawn_elsewhere.append(_drew(elsewhere))
            return total

        alone = sequential(watched)(store, queries[: 1 if self.trusted or half else 2], key)
        expected = alone[0]
        self.draws = any(drawn)
        if any(drawn_otherwise):
            self._give_up("it draws random numbers by other functions than F.dropout, whose masks branches can share")
            return [*alone, *self.alone(store, queries[len(alone) :], key)]
        if any(drawn_elsewhere):  # torch's masks are shared by branches, what others draw is not
            self._give_up("its loss draws from numpy.random or random, and copies of the batch would get other numbers")
            return [*alone, *self.alone(store, queries[len(alone) :], key)]
        values = self._values(store, queries, key)
        if self.trusted:
            return values
        same = math.isclose(expected, values[0], rel_tol=2.0**-6 if half else 1e-4)
        if same and len(alone) == 2:
            change, found = alone[1] - alone[0], values[1] - values[0]
            allowed = 0.03 * abs(change) + 1e-5 * max(map(abs, alone))
            if math.isfinite(found - change) and abs(found - change) > allowed:
                self._give_up(f"two losses differ by {change:.3g} alone and by {found:.3g} beside others")
                return list(self.alone(store, queries, key))
        if same or not (math.isfinite(expected) or math.isfinite(values[0])):
            return values
        self._give_up(f"its loss is {expected} alone and {values[0]} beside others")
        return list(self.alone(store, queries, key))

    def _give_up(self, why: object) -> None:
        warnings.warn(
            f"points are evaluated one at a time, not in one forward of this model: {why}. The losses are those of one "
            f"at a time, and a step takes longer",
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


class ByRound:
    """The oracle of `by_round`; it remembers which step asks, and how often that has asked."""

    def __init__(self, losses: Sequence[Loss | SumLoss]) -> None:
        self._oracles = [sequential(loss) for loss in losses]
        self._key: int | None = None
        self._round = 0

    def __call__(self, store: Store, queries: Sequence[Query], key: int) -> Sequence[float]:
        self._round = self._round + 1 if key == self._key else 0
        self._key = key
        try:
            return self._oracles[min(self._round, len(self._oracles) - 1)](store, queries, key)
        except BaseException:  # the step will be asked again from its first round
            self._key = None
            raise


def by_round(*losses: Loss | SumLoss) -> Oracle:
    """The k-th round of questions of a step is answered by losses[k], rounds after the last one by the last.

    For estimators that ask more than once in a step and mean something else each time: `estimators.Players` asks a
    round for each player, and `estimators.SAM` one at x and one at the ascent point. Each loss is a closure as for
    `oracles.sequential`. The oracle counts rounds by the key of the step, so each run needs one of its own. ValueError
    without losses.

    >>> import torch, zograd as zo
    >>> x = torch.ones(3, dtype=torch.float64)
    >>> run = zo.Run(zo.Store({"x": x}), zo.methods.zo_sam(lr=0.1, n=1, rho=0.1))
    >>> record = run.step(zo.oracles.by_round(lambda: x.sum(), lambda: 5.0))  # the second loss has no slope
    >>> record.losses[2:], x.tolist()
    ((5.0, 5.0), [1.0, 1.0, 1.0])
    """
    if not losses:
        raise ValueError("by_round() has no losses: write by_round(first, second), one for each round of a step")
    return ByRound(losses)


def frozen(loss: Callable[[S, Rows], float | Tensor], freeze: Callable[[Rows], S]) -> Oracle:
    """Semi-gradients: loss(held, rows), where held = freeze(rows) is taken at the centre of each pair of probes.

    For a loss l(x, s(x)) of which only the dependence on the first argument is to be differentiated, as in temporal
    differences, target networks and majorisers: at the pair x + mu v, x - mu v both values are l(., s(x)), so that
    their difference is the slope of the partial gradient. freeze(rows) computes s at the weights as they stand, and
    loss(held, rows) the loss at the weights as they stand. rows is None, or the terms of a finite sum that the query
    names, of which both return what belongs to their mean.

    Points must come in pairs (x + v, x - v), as those of `Central`, `Coordinates(central=True)` and `SVRG` do; others
    are refused with a ValueError. Each pair costs its 2 evaluations, and one of `freeze`, which is not counted.

    >>> import torch, zograd as zo
    >>> x = torch.tensor([3.0], dtype=torch.float64)
    >>> method = zo.Method(
    ...     zo.estimators.Central(1), zo.laws.Rademacher(), zo.rules.SGD(), mu=0.5, lr=0.1
    ... )
    >>> record = zo.Run(zo.Store({"x": x}), method).step(
    ...     zo.oracles.frozen(lambda held, rows: (held * x).sum(), lambda rows: x.clone())
    ... )
    >>> round(x.item(), 9)  # the slope of s x at s = 3, and not that of x^2
    2.7
    """

    def at_centre(store: Store, centre: Vector, rows: Rows, reseed: Callable[[], None]) -> S:
        reseed()
        with store.at(centre):
            return freeze(rows)

    def both(store: Store, held: S, plus: Query, minus: Query, reseed: Callable[[], None]) -> list[float]:
        found = []
        for query in (plus, minus):
            reseed()
            with store.at(query.at):
                found.append(as_number(loss(held, query.rows)))
        return found

    def evaluate(store: Store, queries: Sequence[Query], key: int) -> list[float]:
        if len(queries) % 2:
            raise ValueError(_unpaired(len(queries)))
        values: list[float] = []
        known: tuple[Vector, Rows] | None = None
        with torch.no_grad(), seeded(store, key) as reseed:
            for plus, minus in zip(queries[::2], queries[1::2], strict=True):
                if plus.rows != minus.rows:
                    raise ValueError("frozen() holds a part of the loss over pairs, and a pair names different terms")
                centre = Vector(tuple(term for term in (0.5 * (plus.at + minus.at)).terms if term[1]))
                if (centre, plus.rows) != known:
                    known, held = (centre, plus.rows), at_centre(store, centre, plus.rows, reseed)
                pair = both(store, held, plus, minus, reseed)
                if all(map(math.isfinite, pair)) and not store.settled():
                    held = at_centre(store, centre, plus.rows, reseed)
                    pair = both(store, held, plus, minus, reseed)
                values += pair
        return values

    return evaluate


def _unpaired(asked: int) -> str:
    return (
        f"frozen() holds a part of the loss over pairs x + v, x - v, and {asked} points were asked; use an estimator "
        f"of pairs: Central(n), Coordinates(count, central=True) or SVRG(full=Coordinates(count, central=True))"
    )
