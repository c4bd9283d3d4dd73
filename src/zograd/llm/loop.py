"""The training loop: steps, progress bar, log, refusals and clean stops."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

from zograd.core.run import Record
from zograd.distributed import Peers, shared
from zograd.jsons import finite
from zograd.llm import loading
from zograd.llm.build import Work, ride_along
from zograd.llm.compiled import compiled
from zograd.llm.scoring.metrics import Metrics
from zograd.llm.settings import TrainSettings
from zograd.offload.streamed import Streamed
from zograd.oracles import Oracle, batched
from zograd.quantized.infeasible import Probes
from zograd.runs.folder import read_metrics
from zograd.runs.memory import settled_objects
from zograd.runs.rundir import RunDirectory
from zograd.stores.store import MERGE

METERS = ("trace", "cosine", "gap")
"""Meters that the progress bar shows, where a method measures them; all are in metrics.jsonl."""

RUNAWAY = 10.0
"""A run has run away where its loss is above so many times (1 + the held-out loss before the first step)."""

TOGETHER = "together"
"""The meter of a step after which fewer points share a forward than before: how many, 0 for one at a time."""


class DivergenceError(RuntimeError):
    """Too many steps in a row that were refused, changed nothing, or had a loss far above the first."""


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM fill the list instead of raising; a second signal raises KeyboardInterrupt."""
    caught: list[int] = []

    def handle(number: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def merged(s: TrainSettings, step: int) -> int:
    """The last step up to `step` before which all moves are made, whatever interrupts a run."""
    return max(step - step % every for every in (MERGE, s.eval_every) if every)


class _Stopped(Exception):
    """A signal came during an evaluation."""


class Loop:
    """The steps of one run, with the progress bar, the log, refusals and clean stops.

    `seconds` of a line of metrics.jsonl is the time spent in steps and their evaluations since the run began. A resumed
    run goes on from its last line: loading, and what a killed process did after that line, do not count.
    """

    def __init__(
        self,
        work: Work,
        directory: RunDirectory,
        quiet: bool,
        peers: Peers,
        taken: Sequence[Record] = (),
        before: float | None = None,
    ) -> None:
        """taken: the steps of the tape. before: the held-out loss before the first step, None where it is not known."""
        self.p, self.scorer, self.batches, self.held_out = work.prepared, work.scorer, work.batches, work.held_out
        self.directory, self.quiet, self.peers = directory, quiet, peers
        self.interrupted = False
        self.last_metrics: Metrics | None = None
        self.before = math.nan if before is None else before
        self.away_in_a_row = 0
        self.seconds = 0.0
        self.meters: dict[str, float] = {}
        self.now: list[Any] = []
        """The part of the batch that is evaluated."""
        self.points = batched(lambda n: self.scorer.copy_losses(self.now, n), self._together)
        for record in taken:
            if 0 <= (limit := dict(record.meters).get(TOGETHER, -1.0)) < 2**31:
                self.points.limit = int(limit)
        peers.limit, peers.own_limit = self.points.limit, lambda: self.points.limit
        self.caught: list[int] = []
        self.probes: Probes | None = None
        if loading.is_scales(self.p.settings.train):
            self.probes = Probes(lambda *_: [])
        lines, _ = read_metrics(directory.path)
        seconds = [x for line in lines if isinstance(x := line.get("seconds"), int | float)]
        self.began, self.earlier = 0.0, max(seconds, default=0.0)

    def go(self) -> None:
        from tqdm import tqdm

        s, run, stopped = self.p.settings, self.p.run, False
        self.began = start = time.perf_counter()
        tokens = 0
        bar = tqdm(
            total=s.steps, initial=run.step_number, desc=run.method.name, unit="step", file=sys.stderr,
            disable=self.quiet, dynamic_ncols=True, smoothing=0.1, mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )  # fmt: skip
        blocks_ = compiled(self.p.model) if s.compile else nullcontext()
        with interruptible() as self.caught, bar, blocks_, self._moving(), settled_objects():
            while run.step_number < s.steps and not stopped:
                batch = self.batches[run.step_number]
                self._merge(run.step_number == merged(s, run.step_number))
                limit = self.peers.limit
                record = run.step(self._oracle(batch))
                if self.peers.limit != limit:  # all processes, and a run that is resumed, go on with as many
                    self.points.limit = self.peers.limit
                    record = replace(record, meters=(*record.meters, (TOGETHER, float(self.peers.limit))))
                self.peers.remember(record)
                self.directory.append(record)
                tokens += self.scorer.tokens(batch) * record.evaluations
                stopped = self._after(record, bar, tokens / (time.perf_counter() - start))
        self.interrupted = stopped
        self.seconds = time.perf_counter() - start

    def _moving(self) -> AbstractContextManager[None]:
        """Moves wait for the next forward, where a resumed run can tell what the step before has changed."""
        sides = ride_along(self.p.run.method)
        if self.p.run.method.slots or (self.p.settings.offload == "cpu" and not sides):
            return nullcontext()
        return self.p.run.store.lazily(sides=sides)

    def _merge(self, now: bool) -> None:
        """Make the moves that have waited for several steps, in a block that visits the device when it does."""
        store, pages = self.p.run.store, self.p.pages
        if isinstance(pages, Streamed):
            pages.merging = now
        if now:
            store.catch_up(
                [leaf for leaf in store.leaves if not (isinstance(pages, Streamed) and leaf.tensor in pages)]
            )

    def _together(self) -> int:
        """How many points share a forward, as a function of the settings and the batch alone: a resumed run agrees."""
        return self.p.settings.together or self.scorer.together(self.now)

    def _oracle(self, batch: list[Any]) -> Oracle:
        s = self.p.settings
        parts = self.scorer.parts(batch, s.shards or 1)
        apart = s.parallel != "data" or loading.is_scales(s.train)

        def of_part(part: int) -> Oracle:
            self.now = parts[part]
            return self.points

        answer = shared(
            lambda part, rows=None: self.scorer.loss(parts[part]),
            self.peers,
            weights=[len(part) / len(batch) for part in parts],
            deal=s.parallel,
            oracle=None if apart else of_part,
        )
        if self.probes is None:
            return answer
        self.probes.inner = answer
        return self.probes

    def _after(self, record: Record, bar: Any, speed: float) -> bool:
        """Log a step, evaluate when it is time, save; whether to stop, as a signal wishes."""
        s, run = self.p.settings, self.p.run
        self.meters |= dict(record.meters)
        bar.update(1)
        bar.set_postfix(
            loss=f"{record.loss:.3f}", lr=f"{record.rates[0].lr:.1e}", evals=run.evaluations, tok_s=f"{speed:.0f}",
            **({"acc": f"{self.last_metrics.value:.3f}"} if self.last_metrics else {}),
            **({"edge": f"{run.share:.2f}"} if run.share else {}),
            **{name: f"{self.meters[name]:.2g}" for name in METERS if name in self.meters}, refresh=False,
        )  # fmt: skip
        line: dict[str, Any] = {"step": run.step_number, "evaluations": run.evaluations, "loss": record.loss}
        line |= {"lr": record.rates[0].lr, "moved": record.moved, **dict(record.meters)}
        if run.share:
            line["edge"] = run.share
        if self.probes is not None:
            line |= self.probes.shares()
        if record.refused:
            line["refused"] = True
            if run.refused_in_a_row >= s.max_failures:
                self._log(line)
                raise DivergenceError(
                    f"{run.refused_in_a_row} steps in a row had a non-finite loss (the last {record.loss} at step "
                    f"{record.step}); lower --lr (now {record.rates[0].lr:g}) or --mu, and start again"
                )
        if run.flat_in_a_row >= s.max_failures:
            self._log(line)
            raise DivergenceError(
                f"the loss was {record.loss:g} at every point of {run.flat_in_a_row} steps in a row: nothing that is "
                f"trained changes it. Either the steps were so large that the model saturated (lower --lr, now "
                f"{record.rates[0].lr:g}), or --mu {record.mu:g} is too small for these weights, or they are not used"
            )
        self.away_in_a_row = self.away_in_a_row + 1 if record.loss > RUNAWAY * (1.0 + self.before) else 0
        if self.away_in_a_row >= s.max_failures:
            self._log(line)
            raise DivergenceError(
                f"the loss has run away: it is {record.loss:g} at step {record.step}, and was {self.before:.4g} before "
                f"the first; the steps are too large: lower --lr (now {record.rates[0].lr:g}), and start again"
            )
        self.last_metrics = None
        stopped = self.peers.stopping(bool(self.caught))
        last = run.step_number == s.steps
        if not stopped and (last or (s.eval_every and run.step_number % s.eval_every == 0)):
            run.store.catch_up()
            with suppress(_Stopped):
                self.last_metrics = self.scorer.evaluate(self.held_out, progress=self._heed, peers=self.peers)
                line |= shown(self.last_metrics)
            stopped = self.peers.stopping(bool(self.caught))
        self._log(line)
        if run.step_number % s.save_every == 0:
            self.directory.save_state(run)
        return stopped and not (last and self.last_metrics is not None)

    def _heed(self, _: int) -> None:
        """End an evaluation that a signal would otherwise wait for; of several processes none may leave the others."""
        if self.caught and self.peers.world == 1:
            raise _Stopped

    def _log(self, line: dict[str, Any]) -> None:
        self.directory.log(finite({**line, "seconds": round(self.earlier + time.perf_counter() - self.began, 3)}))


def shown(m: Metrics) -> dict[str, Any]:
    return {"metric": m.metric, "value": m.value, "eval_loss": m.loss}
