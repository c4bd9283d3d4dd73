"""Black boxes evaluated on executors: threads, processes, clusters.

Any `concurrent.futures.Executor` will do, so also loky's, `dask.distributed.Client.get_executor()`,
`mpi4py.futures.MPIPoolExecutor` and, through `from_pool`, everything with the interface of `multiprocessing.Pool`, such
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
"""Seconds between two looks at the workers of a pool."""


class Pool(Protocol):
    """What `from_pool` needs of a pool."""

    def apply_async(
        self, func: Callable[..., Any], args: Iterable[Any] = ..., kwds: Any = ..., callback: Any = ...,
        error_callback: Any = ...,
    ) -> Any: ...  # fmt: skip


class PoolExecutor(Executor):
    """A pool with `apply_async`, as an executor; closing it stays with who made the pool.

    A pool in the shape of `multiprocessing.Pool` starts a new process in the place of one that died, and what the old
    one was evaluating is never heard of again. Here that breaks the executor, as it does `ProcessPoolExecutor`.
    """

    def __init__(self, pool: Pool, timeout: float | None = None) -> None:
        self.pool, self.timeout = pool, timeout
        self.workers: set[Any] = set()
        self.broken()  # see who works here

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if (why := self.broken()) is not None:
            raise BrokenProcessPool(why)
        future = PoolFuture(self)
        future.set_running_or_notify_cancel()
        self.pool.apply_async(fn, args, kwargs, callback=future.set_result, error_callback=future.set_exception)
        return future

    def broken(self) -> str | None:
        """Why results that are still missing may never come; None as long as they will."""
        exits_are_planned = getattr(self.pool, "_maxtasksperchild", None) is not None
        self.workers.update(getattr(self.pool, "_pool", None) or ())
        for worker in self.workers:
            code = getattr(worker, "exitcode", None)
            if code is not None and not (code == 0 and exits_are_planned):
                return (
                    f"a worker of the pool ended with exit code {code} and took its evaluation with it; a negative "
                    f"code is a signal, -9 mostly one for lack of memory. Make a new pool, perhaps of fewer workers"
                )
        handler = getattr(self.pool, "_result_handler", None)
        if handler is not None and not handler.is_alive():
            return "the pool hands back no more results: it was closed, or a result could not be unpickled"
        return None


class PoolFuture(Future[Any]):
    """A future that looks after its pool while somebody waits for it."""

    def __init__(self, executor: PoolExecutor) -> None:
        super().__init__()
        self.executor = executor

    def result(self, timeout: float | None = None) -> Any:
        """The result; BrokenProcessPool where it cannot come any more, TimeoutError where it takes too long."""
        limit = self.executor.timeout if timeout is None else timeout
        end = math.inf if limit is None else time.monotonic() + limit
        last_look = False
        while True:
            try:
                return super().result(min(WATCHED, max(end - time.monotonic(), 0.0)))
            except TimeoutError:
                if self.done():  # what was evaluated raised it
                    return super().result()
                if time.monotonic() >= end:
                    raise TimeoutError(f"an evaluation in the pool took longer than timeout={limit:g} s") from None
                if last_look:  # results that were under way have come by now
                    raise BrokenProcessPool(self.executor.broken()) from None
                last_look = self.executor.broken() is not None


def from_pool(pool: Pool, *, timeout: float | None = None) -> Executor:
    """The executor of a pool in the shape of `multiprocessing.Pool` (ray.util.multiprocessing, pathos, billiard).

    timeout: seconds after which an evaluation that is waited for raises TimeoutError; None: never. A worker that dies
    (killed for lack of memory, ended by what it evaluates) raises BrokenProcessPool.
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout} must be > 0, in seconds, or None")
    return PoolExecutor(pool, timeout)


def gather(futures: Sequence[Future[Any]]) -> list[Any]:
    """The results in order. The first exception passes through, and what has not begun is cancelled."""
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def parallel(executor: Executor, loss: Callable[..., Any]) -> Oracle:
    """An oracle that evaluates loss(tensors) for all points of a yield at once, on an executor.

    loss: takes a dict of name -> tensor, copies of the trained tensors at the point, and returns a number; with
        `torch.func.functional_call(model, tensors, inputs)` a model is evaluated there. For a finite sum
        loss(tensors, rows). An executor of processes has to be able to pickle it, and copies it for each point.
    In other processes the random state is that of the step in each evaluation, as with `sequential`. Threads share
    the state of their process, which is left alone: a loss that draws random numbers belongs on processes.

    Memory: as many copies of the trained tensors as a yield has points. What the loss raises passes through.
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
    """The further argument of a loss that is a finite sum."""
    return () if query.rows is None else (query.rows,)


def tensors_at(store: Store, query: Query) -> dict[str, Tensor]:
    """Fresh tensors at the point, by name; 16-bit vectors in float32, since probes of 1 are lost in 16 bits."""
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
