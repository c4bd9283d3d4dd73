"""Evaluate black boxes on executors: threads, processes, clusters.

Any `concurrent.futures.Executor` works, for example those of loky, `dask.distributed.Client.get_executor()`,
`mpi4py.futures.MPIPoolExecutor` and, through `from_pool`, any pool with the interface of `multiprocessing.Pool`, such
as `ray.util.multiprocessing.Pool`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

import torch
from torch import Tensor

from zograd.core.vector import Query
from zograd.oracles import Oracle, as_number, reseed_host
from zograd.stores import Store

WATCHED = 0.5
"""Seconds between two checks of the workers of a pool."""


class Pool(Protocol):
    """The part of a pool that `from_pool` needs."""

    def apply_async(
        self, func: Callable[..., Any], args: Iterable[Any] = ..., kwds: Any = ..., callback: Any = ...,
        error_callback: Any = ...,
    ) -> Any: ...  # fmt: skip


class PoolExecutor(Executor):
    """A pool with `apply_async` as an executor. The caller, who made the pool, also closes it.

    `multiprocessing.Pool` replaces a process that died, and the result of its evaluation never arrives. Here a dead
    process breaks the executor, as with `ProcessPoolExecutor`.
    """

    def __init__(self, pool: Pool, timeout: float | None = None) -> None:
        self.pool, self.timeout = pool, timeout
        self.workers: set[Any] = set()
        self.broken()  # remember the workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if (why := self.broken()) is not None:
            raise BrokenProcessPool(why)
        future = PoolFuture(self)
        future.set_running_or_notify_cancel()
        self.pool.apply_async(fn, args, kwargs, callback=future.set_result, error_callback=future.set_exception)
        return future

    def broken(self) -> str | None:
        """Why missing results may never arrive; None if nothing is wrong."""
        exits_are_planned = getattr(self.pool, "_maxtasksperchild", None) is not None
        self.workers.update(getattr(self.pool, "_pool", None) or ())
        for worker in self.workers:
            code = getattr(worker, "exitcode", None)
            if code is not None and not (code == 0 and exits_are_planned):
                return (
                    f"a worker of the pool ended with exit code {code} and took its evaluation with it; a negative "
                    f"code is a signal; -9 mostly means lack of memory. Make a new pool, perhaps of fewer workers"
                )
        handler = getattr(self.pool, "_result_handler", None)
        if handler is not None and not handler.is_alive():
            return "the pool returns no more results: it was closed, or a result could not be unpickled"
        return None


class PoolFuture(Future[Any]):
    """A future that checks the workers of its pool while a caller waits for it."""

    def __init__(self, executor: PoolExecutor) -> None:
        super().__init__()
        self.executor = executor

    def result(self, timeout: float | None = None) -> Any:
        """The result. Raises BrokenProcessPool if it cannot arrive any more, TimeoutError after the timeout."""
        limit = self.executor.timeout if timeout is None else timeout
        end = math.inf if limit is None else time.monotonic() + limit
        last_look = False
        while True:
            try:
                return super().result(min(WATCHED, max(end - time.monotonic(), 0.0)))
            except TimeoutError:
                if self.done():  # the evaluation itself raised TimeoutError
                    return super().result()
                if time.monotonic() >= end:
                    raise TimeoutError(f"an evaluation in the pool took longer than timeout={limit:g} s") from None
                if last_look:  # results under way would have arrived by now
                    raise BrokenProcessPool(self.executor.broken()) from None
                last_look = self.executor.broken() is not None


def from_pool(pool: Pool, *, timeout: float | None = None) -> Executor:
    """An executor for a pool with the interface of `multiprocessing.Pool` (ray.util.multiprocessing, pathos, billiard).

    timeout: seconds that a caller waits for an evaluation before it raises TimeoutError; None: no limit.

    Results raise BrokenProcessPool if a worker dies (killed for lack of memory, or ended by the loss).
    Raises ValueError for timeout <= 0.
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout} must be > 0, in seconds, or None")
    return PoolExecutor(pool, timeout)


def gather(futures: Sequence[Future[Any]]) -> list[Any]:
    """The results in order. The first exception is raised, and evaluations that have not begun are cancelled."""
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def parallel(executor: Executor, loss: Callable[..., Any]) -> Oracle:
    """An oracle that evaluates loss(tensors) at all points of a yield at once, on an executor.

    loss: takes a dict name -> tensor, copies of the trained tensors at the point, and returns a number.
        `torch.func.functional_call(model, tensors, inputs)` evaluates a model there. For a finite sum:
        loss(tensors, rows). For an executor of processes the loss must be picklable; it is copied for each point.

    Random numbers: in other processes each evaluation starts with the random state of the step, as with `sequential`.
    Threads share the random state of their process, which is not set: run a loss that draws random numbers in
    processes.
    Memory: one copy of the trained tensors for each point of a yield. Exceptions of the loss are raised.

        with ThreadPoolExecutor(8) as pool:
            run.step(parallel(pool, lambda tensors: simulate(tensors["x"])))
    """

    def evaluate(store: Store, queries: Sequence[Query], key: int) -> list[float]:
        return [
            as_number(value)
            for value in gather(
                [
                    executor.submit(_evaluated, loss, key, os.getpid(), tensors_at(store, query), *rows(query))
                    for query in queries
                ]
            )
        ]

    return evaluate


def rows(query: Query) -> tuple[tuple[int, ...], ...]:
    """The second argument of the loss of a finite sum, as a tuple; () for other losses."""
    return () if query.rows is None else (query.rows,)


def tensors_at(store: Store, query: Query) -> dict[str, Tensor]:
    """Name -> new tensor at the point; 16-bit vectors become float32: in 16 bits, probes of entries of 1 vanish."""
    tensors = {}
    for leaf in store.leaves:
        dtype = torch.float32 if leaf.low is not None and leaf.tensor.ndim <= 1 else leaf.dtype
        out = torch.empty(leaf.numel, dtype=dtype, device=leaf.tensor.device)
        tensors[leaf.name] = store.point_(out, leaf, query.at).view(leaf.shape)
    return tensors


def _evaluated(loss: Callable[..., Any], key: int, asker: int, *arguments: Any) -> float:
    if os.getpid() != asker:
        reseed_host(key)
    with torch.no_grad():
        return as_number(loss(*arguments))
