"""Evaluate black boxes on executors: threads, processes, clusters.

Any `concurrent.futures.Executor` works, for example those of loky, `dask.distributed.Client.get_executor()`,
`mpi4py.futures.MPIPoolExecutor` and, through `from_pool`, any pool with the interface of `multiprocessing.Pool`, such
as `ray.util.multiprocessing.Pool`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import torch
from torch import Tensor

from zograd.core.vector import Query
from zograd.distributed.pools import from_pool
from zograd.oracles import Oracle, as_number, reseed_host
from zograd.stores import Store

__all__ = ["from_pool", "gather", "parallel"]


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
