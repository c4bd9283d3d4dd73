"""The oracle of a batch of text: mean losses at several points, of which several may share one forward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from zograd.core.run import Record
from zograd.distributed import Peers, shared
from zograd.hub import Example
from zograd.llm import loading
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import TrainSettings
from zograd.oracles import Batched, Oracle, batched

TOGETHER = "together"
"""The meter of a step after which fewer points share a forward than before: how many, 0 for one at a time."""


def points_of(scorer: Scorer, batch: Sequence[Example], together: int | None = None) -> Batched:
    """The oracle of one batch that evaluates up to `together` points in one forward.

    together: None: as many as pay for this batch (`Scorer.together`). The number is a function of settings and batch
    alone, so a resumed run groups its points in the same way.
    """
    return batched(partial(scorer.copy_losses, batch), together or scorer.together(batch))


class BatchOracle:
    """Makes the oracle of each batch of a run: `oracles(batch)`.

    What the forwards of one batch show about the model holds for all later batches: how many points share a forward at
    most (memory, or a model that mixes the examples of a batch), and whether a forward draws random numbers.

    taken: the steps of a tape, of a run that is resumed: it keeps the limit that they record. All processes keep to the
    smallest limit among them.
    """

    def __init__(self, scorer: Scorer, settings: TrainSettings, peers: Peers, taken: Iterable[Record] = ()) -> None:
        self.scorer, self.settings, self.peers = scorer, settings, peers
        self.last = batched(lambda copies: scorer.copy_losses([], copies))
        """The oracle of the batch before, with all that is known about the model. The first one is never called."""
        for record in taken:
            if 0 <= (limit := dict(record.meters).get(TOGETHER, -1.0)) < 2**31:
                self.last.limit = int(limit)
        peers.limit, peers.own_limit = self.last.limit, lambda: self.last.limit

    def __call__(self, batch: Sequence[Example]) -> Oracle:
        """The oracle of a batch, which is cut into `shards` parts and dealt to the processes."""
        s = self.settings
        parts = self.scorer.parts(batch, s.shards or 1)
        one_by_one = s.parallel != "data" or loading.is_scales(s.train)
        return shared(
            lambda part, rows=None: self.scorer.loss(parts[part]),
            self.peers,
            weights=[len(part) / len(batch) for part in parts],
            deal=s.parallel,
            oracle=None if one_by_one else lambda part: self._points(parts[part]),
        )

    def keep_to(self, limit: int) -> None:
        """From the next batch on, at most `limit` points share a forward."""
        self.last.limit = limit

    def _points(self, part: Sequence[Example]) -> Batched:
        points, before = points_of(self.scorer, part, self.settings.together), self.last
        points.limit, points.checked, points.draws = before.limit, before.checked, before.draws
        self.last = points
        return points
