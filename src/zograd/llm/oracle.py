"""The oracle of a batch of text: mean losses at several points, of which several may share one forward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from zograd.blockwise import Around, Blockwise, Terms
from zograd.core.query import Query
from zograd.core.run import Record
from zograd.distributed import Peers, shared
from zograd.hub import Example
from zograd.llm import loading
from zograd.llm.scoring.objectives import Contest
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.oracles import Batched, Oracle, batched, sequential
from zograd.stores import Store

TOGETHER = "together"
"""The meter of a step after which fewer points share a forward than before: how many, 0 for one at a time."""


def points_of(scorer: Scorer, batch: Sequence[Example], together: int | None = None) -> Batched:
    """The oracle of one batch that evaluates up to `together` points in one forward.

    together: None: as many as pay for this batch (`Scorer.together`). The number is a function of settings and batch
    alone, so a resumed run groups its points in the same way.
    """
    halves = (torch.bfloat16, torch.float16)
    dtype = next((p.dtype for p in scorer.base.parameters() if p.dtype in halves), None)
    return batched(partial(scorer.copy_losses, batch), together or scorer.together(batch), dtype=dtype)


class ContestOracle:
    """The oracle of a batch whose points are compared with each other, by the judge of a `Contest`.

    All points draw their answers with the same random numbers, so equal weights write equal answers.
    """

    def __init__(self, scorer: Scorer, batch: Sequence[Example], objective: Contest) -> None:
        self.scorer, self.batch, self.objective = scorer, batch, objective
        self._answers: list[str] = []

    def __call__(self, store: Store, queries: Sequence[Query], key: int) -> list[float]:
        if len(queries) < 2:
            raise SettingsError(
                f"--objective {self.objective.name} compares points, and here is one; use another method"
            )
        one, answers = sequential(self._answer), []
        for query in queries:
            one(store, [query], key)
            answers.append(self._answers)
        return self.objective.compared(self.batch, answers)

    def _answer(self) -> float:
        self._answers = self.objective.answers(self.scorer, self.batch, drawn=True)
        return 0.0


AT_ONCE = 256
"""Tokens of one forward whose blocks are differentiated: the activations of a block for all of them are in memory."""


class BatchOracle:
    """Makes the oracle of each batch of a run: `oracles(batch)`.

    What the forwards of one batch show about the model holds for all later batches: how many points may share a forward
    (memory, or a model that mixes the examples of a batch), and whether a forward draws random numbers.

    peers: each process tells the others its `limit`, and all keep to the smallest.
    taken: the steps on the tape of a resumed run, which keeps the limit that they record. A model that passed the check
    of its first step is not checked again on another batch.
    """

    def __init__(self, scorer: Scorer, settings: TrainSettings, peers: Peers, taken: Iterable[Record] = ()) -> None:
        self.scorer, self.settings, self.peers = scorer, settings, peers
        self._last: Batched | None = None  # of the batch before; it knows what its forwards have shown
        self._first_limit = -1
        self._passed = False
        for step in taken:
            self._passed = True
            if 0 <= (limit := dict(step.meters).get(TOGETHER, -1.0)) < 2**31:
                self._first_limit = int(limit)
        peers.limit, peers.own_limit = self.limit, lambda: self.limit

    def __call__(self, batch: Sequence[Example]) -> Oracle:
        """The oracle of a batch, which is cut into `shards` parts and dealt to the processes."""
        s = self.settings
        parts = self.scorer.parts(batch, s.shards or 1)
        judge = self.scorer.objective
        if isinstance(judge, Contest):
            return shared(
                lambda part, rows=None: self.scorer.loss(parts[part]), self.peers,
                weights=[len(part) / len(batch) for part in parts],
                oracle=lambda part: ContestOracle(self.scorer, parts[part], judge),
            )  # fmt: skip
        one_by_one = s.parallel != "data" or loading.is_scales(s.train)
        return shared(
            lambda part, rows=None: self.scorer.loss(parts[part]),
            self.peers,
            weights=[len(part) / len(batch) for part in parts],
            deal=s.parallel,
            oracle=None if one_by_one else lambda part: self._points(parts[part]),
        )

    @property
    def limit(self) -> int:
        """The largest number of points that share a forward: -1 for no limit, 0 for one at a time."""
        return self._first_limit if self._last is None else self._last.limit

    def keep_to(self, limit: int) -> None:
        """Use this limit from the next batch on."""
        self._first_limit = limit  # in a process without evaluations so far
        if self._last is not None:
            self._last.limit = limit

    def _points(self, part: Sequence[Example]) -> Batched:
        points, before = points_of(self.scorer, part, self.settings.together), self._last
        points.limit = self.limit
        points.trusted = self._passed
        if before is not None:
            points.checked, points.draws = before.checked, before.draws
        self._last = points
        return points


class Forwards:
    """A batch as a source of gradients sees it: its forwards have at most `AT_ONCE` tokens."""

    def __init__(self, scorer: Scorer, batch: Sequence[Example]) -> None:
        self.scorer, self.batch = scorer, batch
        self.most = max(1, AT_ONCE // max(scorer.longest(batch)))

    def loss(self) -> Tensor:
        return self.scorer.loss(self.batch, self.most)

    def terms(self) -> list[Terms]:
        return self.scorer.terms(self.batch, self.most)

    def around(self) -> Around:
        return self.scorer.around

    def owners(self) -> Tensor:
        return self.scorer.owners


def from_blocks(source: Blockwise, scorer: Scorer, batch: Sequence[Example], peers: Peers) -> Oracle:
    """The oracle of a batch for methods whose gradients come from blocks: the losses of the source's forwards.

    The batch is dealt to the processes, each of which draws noise of its own. Traffic: the losses, and for each trained
    tensor the sum of its gradients, one tensor after the other.
    """
    parts = scorer.parts(batch, peers.world)
    shares = [len(part) / len(batch) for part in parts]
    if peers.world > 1:
        source.combine = lambda gradient: peers.total(gradient * shares[peers.rank])

    def own(part: int) -> Oracle:
        return lambda store, queries, key: source.observe(Forwards(scorer, parts[part]), key)

    return shared(lambda part, rows=None: scorer.loss(parts[part]), peers, weights=shares, oracle=own)
