"""Deal evaluations to several processes: parts of the batch, directions, or both.

The batch is cut into S parts, and f = sum_s w_s f_s with f_s the mean over part s. S is a setting of the run, not the
number of processes: a single process evaluates the S parts one after the other, and every process adds them in the
order of s. So the bits of the losses depend on S, and not on which process evaluated what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Protocol, TypeAlias

from torch import Tensor

from zograd.core.vector import Query
from zograd.distributed.peers import Peers
from zograd.noise import fold
from zograd.oracles import Oracle, sequential
from zograd.stores import Store

Deal: TypeAlias = Literal["data", "directions", "both"]


class PartLoss(Protocol):
    """The mean loss over part `part` of the batch; if S = 1, also over the terms `rows` of a finite sum."""

    def __call__(self, part: int, rows: Sequence[int] | None = None, /) -> float | Tensor: ...


def owner(deal: Deal, query: int, part: int, parts: int) -> int:
    """A number k: rank k mod world evaluates `query` on `part`."""
    return {"data": part, "directions": query, "both": query * parts + part}[deal]


def shared(
    loss: PartLoss,
    peers: Peers,
    *,
    weights: Sequence[float] = (1.0,),
    deal: Deal = "data",
    oracle: Callable[[int], Oracle] | None = None,
) -> Oracle:
    """An oracle whose evaluations are dealt to the processes of `peers`. All of them get the same losses.

    loss: called with the number s of a part, 0 <= s < S = len(weights).
    weights: w_s, the share of each part in the batch; they sum to 1.
    deal: "data": rank r evaluates parts r, r + world, ... of every query; "directions": queries r, r + world, ... with
        all their parts; "both": the pairs (query, part) in turn. No bit depends on it.
    oracle: the oracle of a part, used instead of evaluations of `loss` one after the other. An oracle that evaluates
        several queries together (`batched`) needs deal="data", where one process gets all queries of a part.

    Traffic: one exchange for each `yield` of the estimator: 8 bytes, and 8 for each evaluation, to each other process.
    A non-finite loss refuses the step in all processes. If the loss raises in one process, that process raises the
    exception and the others raise PeersError; no weight has moved in any of them. Every part has its own dropout masks.

    Raises ValueError for weights that do not sum to 1 or an unknown `deal`. The oracle raises TypeError for a query of
    single terms of a sum if S > 1, and ValueError if weights are split over processes that would not have the same
    number of evaluations (their forwards wait for each other).
    """
    parts = len(weights)
    if not parts or not math.isclose(math.fsum(weights), 1.0, rel_tol=1e-9):
        raise ValueError(f"weights are the shares of the parts in the batch and sum to 1, got {list(weights)}")
    if deal not in ("data", "directions", "both"):
        raise ValueError(f"deal={deal!r} is unknown; use 'data', 'directions' or 'both'")

    def answer(store: Store, tasks: Sequence[tuple[int, int]], queries: Sequence[Query], key: int) -> list[float]:
        """The losses of one process, in the order of its tasks; a part's queries share its random state."""
        values: dict[tuple[int, int], float] = {}
        for part in dict.fromkeys(part for _, part in tasks):
            own = [task for task in tasks if task[1] == part]
            evaluator = sequential(partial(loss, part)) if oracle is None else oracle(part)
            found = evaluator(store, [queries[q] for q, _ in own], fold(key, part) if part else key)
            values |= zip(own, found, strict=True)
        return [values[task] for task in tasks]

    def evaluate(store: Store, queries: Sequence[Query], key: int) -> list[float]:
        if parts > 1 and any(query.rows is not None for query in queries):
            raise TypeError("this method asks for terms of a finite sum, which are not cut into parts; use one part")
        tasks: list[list[tuple[int, int]]] = [[] for _ in range(peers.world)]
        for q in range(len(queries)):
            for s in range(parts):
                tasks[owner(deal, q, s, parts) % peers.world].append((q, s))
        width = max(map(len, tasks))
        if store.sharded and min(map(len, tasks)) < width:
            raise ValueError(
                f"{len(queries)} points on {parts} parts do not deal evenly to {peers.world} processes, and with "
                f"weights split over processes each forward waits for all; choose parts or directions that deal evenly"
            )
        try:
            mine = answer(store, tasks[peers.rank], queries, key)
        except BaseException:
            peers.exchange((), width, failed=True)
            raise
        table = peers.exchange(mine, width)
        values = {task: f for own, row in zip(tasks, table, strict=True) for task, f in zip(own, row, strict=False)}
        return [sum((w * values[q, s] for s, w in enumerate(weights)), 0.0) for q in range(len(queries))]

    return evaluate
