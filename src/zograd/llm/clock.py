"""A run that ends on the clock: --seconds, a schedule that follows the elapsed time, and estimates of the time."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zograd.core.run import Run
from zograd.distributed import Peers
from zograd.estimators import FromBlocks
from zograd.llm.schedule import shaped
from zograd.llm.settings import TrainSettings
from zograd.stores import Rate

if TYPE_CHECKING:
    from tqdm import tqdm

    from zograd.llm.scoring import Batches, Scorer

PARTS = 1 << 20
"""The share of the time that has passed is rounded to one in so many parts."""
MEASURED = 3
"""Steps that are looked at; what is said is the time of all but the first."""


class Clock:
    """Ends a run after `seconds` of training, and gives each step the learning rate of the share that has passed.

    The time is that of rank 0, in steps and the evaluations between them, over all sessions of a run. The rates stand
    on the tape, so a replay has the same bits, and a resumed run goes on with the time that is left. Another run of the
    same settings takes another number of steps.
    """

    def __init__(self, s: TrainSettings, peers: Peers) -> None:
        self.limit, self.peers = s.seconds, peers
        self.shape = shaped(s.lr_schedule, 1.0, PARTS, 0, s.lr_end) if s.seconds else None
        self.elapsed = 0.0

    def read(self, elapsed: float) -> None:
        """Take the time of rank 0, in seconds since the first step."""
        if self.limit is not None:
            (self.elapsed,) = struct.unpack("<d", self.peers.broadcast(struct.pack("<d", elapsed)))

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.limit is not None and self.elapsed >= self.limit

    def rates(self, rates: Sequence[Rate]) -> tuple[Rate, ...] | None:
        """The rates of the next step, made of those at the peak; None where the method's own schedule holds."""
        if self.shape is None or self.shape.shape == "constant":
            return None
        assert self.limit is not None
        factor = self.shape(min(PARTS, round(PARTS * self.elapsed / self.limit)))
        return tuple(Rate(rate.lr * factor, rate.weight_decay) for rate in rates)


class Estimate:
    """Says how long a run will take: before the first step, and again when the time of a step is known.

    The first steps also run the frozen blocks below, and store the states behind them (`Scorer.remember`).

    forward: the time of a forward pass, in seconds a token; None if it is unknown.
    """

    def __init__(
        self, s: TrainSettings, run: Run[Any], scorer: Scorer, batches: Batches, forward: float | None, clock: Clock
    ) -> None:
        self.s, self.run, self.scorer, self.batches = s, run, scorer, batches
        self.forward, self.clock = forward, clock
        self.storing = 0 if scorer.prefix is None else min(-(-len(batches.examples) // batches.size), self._left)
        """Steps in which states are stored."""
        self.first = 1 + (self.storing if self.storing < self._left / 2 else 0)
        """The step from which on their time is measured."""
        self.taken, self.start = 0, 0.0

    @property
    def _left(self) -> int:
        return max(self.s.steps - self.run.step_number, 0)

    def say_first(self, quiet: bool) -> None:
        """What the evaluation before the first step tells; moves come on top."""
        if quiet or self.forward is None or not self._left or self.clock.over:
            return
        share, seconds = self.scorer.share, self.forward * self.scorer.tokens(self.batches[self.run.step_number])
        estimator, counted = self.run.method.estimator, "forward passes alone"
        passes = self.run.most_evaluations
        if isinstance(estimator, FromBlocks):
            passes, counted = estimator.passes, "a derivative as two forward passes"
        length = self._length(share * seconds * passes, self.storing * (1 - share) * seconds)
        print(f"zograd: {length}, counting {counted}", file=sys.stderr)

    def count(self, bar: tqdm[Any], quiet: bool) -> None:
        """After a step; says how long the rest will take when `MEASURED` of them are taken, behind those that store."""
        self.taken += 1
        if self.taken == self.first:
            self.start = time.perf_counter()  # the first one also pays for what is made once
        elif self.taken == self.first + MEASURED - 1 and self._left and not quiet:
            seconds = (time.perf_counter() - self.start) / (MEASURED - 1)
            bar.write(f"zograd: {seconds:.2g} s a step: {self._length(seconds)}", file=sys.stderr)

    def _length(self, step: float, once: float = 0.0) -> str:
        """How long the rest takes, or how many steps the time allows. step: seconds of each; once: beside them."""
        if self.clock.limit is None or once + step * self._left < self.clock.limit - self.clock.elapsed:
            return f"about {about(once + step * self._left)} for {self._left:,} steps"
        time_left = self.clock.limit - self.clock.elapsed
        return f"about {max(1, round((time_left - once) / step)):,} steps in the {about(time_left)} that are left"


def about(seconds: float) -> str:
    """A length of time in words, to two digits.

    >>> about(7.31), about(80), about(4000), about(200_000)
    ('7 s', '1 min 20 s', '1 h 6 min', '2 days 7 h')
    """
    s = round(seconds)
    if s < 60:
        return f"{s} s" if seconds >= 1 else f"{seconds:.1g} s"
    for unit, larger, smaller, part in (
        (60, 3600, "s", "min"),
        (3600, 86400, "min", "h"),
        (86400, 1 << 60, "h", "days"),
    ):
        if s < larger:
            rest = (s % unit) // {60: 1, 3600: 60, 86400: 3600}[unit]
            return f"{s // unit} {part}" + (f" {rest} {smaller}" if rest else "")
    raise AssertionError(seconds)
