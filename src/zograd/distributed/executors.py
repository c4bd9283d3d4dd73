"""Black boxes evaluated on executors: threads, processes, clusters.

Any `concurrent.futures.Executor` will do, so also loky's, `dask.distributed.Client.get_executor()`,
`mpi4py.futures.MPIPoolExecutor` and, through `from_pool`, everything with the interface of `multiprocessing.Pool`, such
as `ray.util.multiprocessing.Pool`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Protocol

import torch
from torch import Tensor

from zograd.oracles import Oracle
from zograd.stores.base import Store
from zograd.vector import Query


class Pool(Protocol):
    """What `from_pool` needs of a pool."""

    def apply_async(
        self, func: Callable[..., Any], args: Iterable[Any] = ..., kwds: Any = ..., callback: Any = ...,
        error_callback: Any = ...,
    ) -> Any: ...  # fmt: skip


class PoolExecutor(Executor):
    """A pool with `apply_async`, as an executor; closing it stays with who made the pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self.pool.apply_async(fn, args, kwargs, callback=future.set_result, error_callback=future.set_exception)
        return future


def from_pool(pool: Pool) -> Executor:
    """The executor of a pool in the shape of `multiprocessing.Pool` (ray.util.multiprocessing, pathos, billiard)."""
    return PoolExecutor(pool)


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
    In other processes torch's random state is that of the step in each evaluation, as with `sequential`. Threads share
    the state of their process, which is left alone: a loss that draws random numbers belongs on processes.

    Memory: as many copies of the trained tensors as a yield has points. What the loss raises passes through.
    """

    def evaluate(store: Store, queries: Sequence[Query], key: int) -> list[float]:
        return [
            float(value)
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
        torch.default_generator.manual_seed(key % 2**63)
    with torch.no_grad():
        return float(loss(*arguments))
