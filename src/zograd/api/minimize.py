"""`minimize`: a black box of NumPy arrays, with SciPy's shape of result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zograd.api.verdict import failure
from zograd.core.method import Method
from zograd.core.query import Query
from zograd.core.record import Record
from zograd.core.run import Run
from zograd.core.seeds import Seed
from zograd.core.vector import Vector
from zograd.distributed.executors import gather
from zograd.methods.defaults import black_box
from zograd.oracles import as_number
from zograd.spaces import Space
from zograd.stores import Store


@dataclass
class Result:
    """What `minimize` found.

    x, fun: the last iterate and the loss there. best: not kept, since a single noisy value proves nothing. nfev:
    evaluations of f, failed ones included. nit: steps. success: whether f came down, by more than its noise, and the
    run ended well; message says why not, and what to do. tape: the records, from which the run can be replayed.
    seed: of the run.
    """

    x: npt.NDArray[Any]
    fun: float
    nfev: int
    nit: int
    success: bool
    message: str
    tape: list[Record] = field(repr=False)
    seed: int = 0


class ArrayStore(Store):
    """One NumPy array as the iterate."""

    def __init__(self, x0: npt.ArrayLike, space: Space) -> None:
        x = np.array(x0, copy=True, order="C")  # ours
        if x.size == 0:
            raise ValueError("x0 is empty; pass an array with at least one element")
        if x.dtype.kind in "biu":
            x = x.astype(np.float64)
        if x.dtype not in (np.float32, np.float64):
            raise TypeError(f"x0 has dtype {x.dtype}; pass float64 or float32")
        if not np.all(np.isfinite(x)):
            raise ValueError("x0 holds NaN or infinite values; pass a finite starting point")
        super().__init__({"x": torch.from_numpy(x)}, space=space)

    @property
    def array(self) -> npt.NDArray[Any]:
        """The iterate itself, not a copy."""
        array: npt.NDArray[Any] = self.leaves[0].tensor.numpy()
        return array

    def point(self, at: Vector) -> npt.NDArray[Any]:
        """A fresh array at Retr_x(at); the caller may keep or overwrite it."""
        leaf = self.leaves[0]
        out = torch.empty(leaf.numel, dtype=leaf.dtype, device=leaf.tensor.device)
        array: npt.NDArray[Any] = self.point_(out, leaf, at).view(leaf.tensor.shape).numpy()
        return array


def minimize(
    f: Callable[..., float],
    x0: npt.ArrayLike,
    method: str | Method[Any] = "zo_sgd",
    *,
    args: Sequence[Any] = (),
    budget: int = 10_000,
    seed: Seed = 0,
    callback: Callable[[Record], object] | None = None,
    max_failures: int = 20,
    terms: int = 0,
    executor: Executor | None = None,
) -> Result:
    """Minimize f(x, *args) over arrays of the shape of x0, from values alone.

    f: takes a float array of x0's shape and dtype, returns a number. NaN or infinity is a failed evaluation: its step
        is refused and the next one draws new directions. An exception from f passes through.
    terms: N, when f is a finite sum (1/N) sum_i f_i. It is then called as f(x, rows, *args) and returns the mean of
        the terms whose numbers are in the integer array `rows`.
    method: a name of the menu with the defaults of `zograd.methods.defaults` (lr="auto" where it can be measured), or
        a `zograd.Method`.
    budget: evaluations of f, at most. Where it is more than one step, two are spent on f(x0), whose difference is its
        noise (one with a finite sum); the last one is spent on f at the result. With a finite sum, evaluations of a
        single term: the whole f costs N.
    seed: see `zograd.Run`; `Result.seed` holds the number.
    callback: called with the `Record` of each step; returning something true ends the run.
    max_failures: refused steps in a row after which the run gives up.
    executor: evaluates the points of a step at once, where the method asks for several (`concurrent.futures`, loky,
        dask, mpi4py, or `zograd.distributed.from_pool(pool)`); processes have to be able to pickle f. The trajectory
        is the same, bit for bit. What f raises passes through.

    Costs O(d) memory for one point at a time, or for those of a step with an executor. Raises ValueError for a budget
    too small for a single step, an empty or non-finite x0, or an x0 outside of the method's space or set.
    """
    m = black_box(method, int(np.size(x0))) if isinstance(method, str) else method
    store = ArrayStore(x0, m.space)
    check_start(m, store)
    run = Run(store, m, seed, terms=terms)
    whole = max(terms, 1)
    most = run.most_evaluations
    if not math.isfinite(budget):
        raise ValueError(f"budget={budget} would never be used up; pass a number of evaluations")
    if budget < most + whole:
        raise ValueError(f"budget={budget} is less than one step and the final value: use at least {most + whole}")
    repeats = int(min(1 if terms else 2, (budget - most - whole) // whole))
    first = repeats * whole
    tape: list[Record] = []

    def oracle(store: Any, queries: Sequence[Query], key: int) -> list[float]:
        return values(arguments(store.point(query.at), query.rows) for query in queries)

    def values(calls: Iterable[tuple[Any, ...]]) -> list[float]:
        if executor is None:
            return [as_number(f(*call)) for call in calls]
        return [as_number(value) for value in gather([executor.submit(f, *call) for call in calls])]

    def arguments(x: npt.NDArray[Any], rows: Sequence[int] | None) -> tuple[Any, ...]:
        if not terms:
            return (x, *args)
        return (x, np.arange(terms) if rows is None else np.array(rows, dtype=np.intp), *args)

    before = store.array.copy()
    at_start = values(arguments(before.copy(), None) for _ in range(repeats))
    message, gave_up = "budget used", False
    while first + run.evaluations + most + whole <= budget:
        record = run.step(oracle)
        tape.append(record)
        if callback is not None and callback(record):
            message = "stopped by the callback"
            break
        if run.refused_in_a_row >= max_failures:
            gave_up = True
            message = (
                f"{max_failures} steps in a row had a non-finite value, the last {record.loss} at step {record.step}"
            )
            break
    (final,) = values([arguments(store.array.copy(), None)])
    why = None if gave_up else failure(m, tape, at_start, final, moved=not np.array_equal(before, store.array))
    if why is not None:
        message = why if message == "budget used" else f"{message}; {why}"
    nfev = first + run.evaluations + whole
    return Result(store.array, final, nfev, run.step_number, not gave_up and why is None, message, tape, run.seed)


def check_start(method: Method[Any], store: Store) -> None:
    """Raise ValueError where a run of the method cannot start, such as outside of a set into which no step leads."""
    if (why := method.rule.misplaced(store)) is not None:
        raise ValueError(f"x0 {why}")
