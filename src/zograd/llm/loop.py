"""The training loop: steps, progress bar, log, refused and diverging steps, clean stops."""

from __future__ import annotations

import math
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import takewhile
from typing import Any

from zograd.blockwise import Blockwise
from zograd.core.run import Record, is_flat
from zograd.distributed import Peers
from zograd.hub import Example
from zograd.jsons import finite
from zograd.llm import loading
from zograd.llm.build import Work
from zograd.llm.clock import Clock, Estimate
from zograd.llm.compiled import compiled
from zograd.llm.inputs import watching
from zograd.llm.method import ride_along
from zograd.llm.oracle import TOGETHER, BatchOracle, from_blocks
from zograd.llm.scoring.metrics import Metrics
from zograd.llm.settings import NO_END, TrainSettings
from zograd.offload.streamed import Streamed
from zograd.oracles import Oracle
from zograd.quantized.infeasible import Probes
from zograd.runs.folder import read_metrics
from zograd.runs.memory import settled_objects
from zograd.runs.rundir import RunDirectory
from zograd.stores.deferred import LIMIT

METERS = ("trace", "cosine", "gap")
"""Meters that the progress bar shows if the method measures them. metrics.jsonl has all meters."""

RUNAWAY = 10.0
"""The loss has run away when it exceeds RUNAWAY (1 + |the loss before the first step|)."""

MU_OF_STEPS = 0.03
"""A radius at which answers flip, for what changes in steps (`--objective accuracy`)."""


SAVE_STEPS = 500
SAVE_SECONDS = 60.0
SAVE_SHARE = 0.05
"""Unless `save_every` says when, the state is written every SAVE_STEPS steps. Where the tape alone does not give the
weights back, it is also written SAVE_SECONDS after the last time, or as much later as keeps writing below SAVE_SHARE of
the time."""


class DivergenceError(RuntimeError):
    """Too many steps in a row were refused, changed nothing, or had a loss far above that before the first step.

    A loss of 0 that nothing changes is no failure, nor is an objective, which changes in steps: of that a run warns.
    """


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Inside, the first SIGINT or SIGTERM is appended to the list and raises nothing; a second one interrupts.

    Outside of the main thread signals cannot be handled: there the list stays empty.
    """
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


def last_merge(s: TrainSettings, step: int) -> int:
    """The last step up to `step` at which the loop makes all deferred moves, whether or not the run is interrupted."""
    return max(step - step % every for every in (LIMIT, s.eval_every) if every)


class _Stopped(Exception):
    """A signal came during an evaluation."""


class Loop:
    """The steps of one run, with progress bar, log, refused steps and clean stops.

    `seconds` in a line of metrics.jsonl is the time spent in steps and their evaluations since the run began. A resumed
    run continues from the value of its last line, so neither loading nor lost work of a killed process counts.

    taken: the steps of the tape, if the run is resumed.
    before: the held-out loss before the first step; None if it is unknown. Then the loss of the first step stands for
        it, as with an objective: what training lowers is not the loss of an evaluation.
    forward: the time of a forward pass, in seconds a token; None if it is unknown.
    """

    def __init__(
        self,
        work: Work,
        directory: RunDirectory,
        quiet: bool,
        peers: Peers,
        taken: Sequence[Record] = (),
        before: float | None = None,
        forward: float | None = None,
    ) -> None:
        self.objective = work.scorer.objective
        if self.objective is not None:
            before = None
        if before is None:
            before = next((r.loss for r in taken if math.isfinite(r.loss)), None)
        self.p, self.scorer, self.batches, self.held_out = work.prepared, work.scorer, work.batches, work.held_out
        self.directory, self.quiet, self.peers = directory, quiet, peers
        self.oracles = BatchOracle(self.scorer, self.p.settings, peers, taken)
        self.source = self.p.store.source if isinstance(self.p.store.source, Blockwise) else None
        self.probes = Probes() if loading.is_scales(self.p.settings.train) else None
        self.interrupted = False
        self.stopped_by: str | None = None
        self.last_metrics: Metrics | None = None
        self.before = math.nan if before is None else before
        self.forward = forward
        self.away_in_a_row = 0
        self.flat_in_a_row = sum(1 for _ in takewhile(self._is_flat, reversed(taken)))
        self.warned = False
        self.seconds = 0.0
        self.meters: dict[str, float] = {}
        self.caught: list[int] = []
        self.saved, self.saving = time.perf_counter(), 0.0
        lines, _ = read_metrics(directory.path)
        seconds = [x for line in lines if isinstance(x := line.get("seconds"), int | float)]
        self.began, self.earlier = 0.0, max(seconds, default=0.0)
        self.clock = Clock(self.p.settings, peers)

    def go(self) -> None:
        """Run to the last step, or to the step after which a signal stops it."""
        from tqdm import tqdm

        s, run, stopped = self.p.settings, self.p.run, False
        self.began = self.saved = start = time.perf_counter()
        tokens = 0
        self.clock.read(self.earlier)
        estimate = Estimate(s, run, self.scorer, self.batches, self.forward, self.clock)
        estimate.say_first(self.quiet)
        bar = tqdm(
            total=s.steps if s.steps < NO_END else None, initial=run.step_number, desc=run.method.name, unit="step",
            file=sys.stderr, disable=self.quiet, dynamic_ncols=True, smoothing=0.1,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )  # fmt: skip
        compiling = compiled(self.p.model) if s.compile else nullcontext()
        with interruptible() as self.caught, bar, compiling, self._deferring(), settled_objects():
            while run.step_number < s.steps and not self.clock.over and not stopped:
                batch = self.batches[run.step_number]
                self._merge(run.step_number == last_merge(s, run.step_number))
                self.remember(batch)
                record = self._step(batch)
                if math.isnan(self.before) and math.isfinite(record.loss):
                    self.before = record.loss
                self.directory.append(record)
                tokens += self.scorer.tokens(batch) * record.evaluations
                estimate.count(bar, self.quiet)
                stopped = self._after(record, bar, tokens / (time.perf_counter() - start))
        self.interrupted = stopped
        self.stopped_by = signal.Signals(self.caught[0]).name if stopped and self.caught else None
        self.seconds = time.perf_counter() - start

    def remember(self, batch: list[Example]) -> None:
        """Store the states of frozen blocks for a batch, outside of what a step evaluates."""
        s, peers = self.p.settings, self.peers
        parts = self.scorer.parts(batch, s.shards or 1)
        own = parts[peers.rank :: peers.world] if s.parallel == "data" else parts
        self.scorer.remember([e for part in own for e in part])

    def _step(self, batch: list[Example]) -> Record:
        """One step on a batch. Its record says so if fewer points share a forward from now on, in all processes."""
        limit = self.peers.limit
        run = self.p.run
        record = run.step(self._oracle(batch), self.clock.rates(run.rates()))
        if self.source is not None:
            self.source.end()
        if self.peers.limit != limit:
            self.oracles.keep_to(self.peers.limit)
            record = replace(record, meters=(*record.meters, (TOGETHER, float(self.peers.limit))))
        self.peers.remember(record)
        return record

    def _oracle(self, batch: list[Example]) -> Oracle:
        if self.source is not None:
            return from_blocks(self.source, self.scorer, batch, self.peers)
        oracle = self.oracles(batch)
        oracle = oracle if self.p.store.inputs is None else watching(oracle)
        return oracle if self.probes is None else self.probes.counted(oracle)

    def _deferring(self) -> AbstractContextManager[None]:
        """Defers moves to the next forward, if a resumed run can tell what the step before has changed."""
        sides = ride_along(self.p.run.method)
        if self.p.run.method.slots or (self.p.settings.offload == "cpu" and not sides):
            return nullcontext()
        return self.p.run.store.deferring(merge=sides)

    def _merge(self, now: bool) -> None:
        """Make moves that are several steps old, if it is time; those of streamed blocks in their next forward."""
        store, pages = self.p.run.store, self.p.pages
        if isinstance(pages, Streamed):
            pages.merging = now
        if now:
            store.make_moves(
                [leaf for leaf in store.leaves if not (isinstance(pages, Streamed) and leaf.tensor in pages)]
            )

    def _after(self, record: Record, bar: Any, speed: float) -> bool:
        """Log a step; evaluate and save when due. Returns whether a signal asks to stop here."""
        s, run = self.p.settings, self.p.run
        self.meters |= dict(record.meters)
        bar.update(1)
        shows: dict[str, Any] = {"loss": f"{record.loss:.3f}", "lr": f"{record.rates[0].lr:.1e}"}
        shows |= {"evals": run.evaluations, "tok_s": f"{speed:.0f}"}
        if self.last_metrics is not None:
            name = _short(self.last_metrics.metric)
            shows |= {f"eval_{name}" if name in shows else name: f"{self.last_metrics.value:.3f}"}
        if run.share:
            shows |= {"edge": f"{run.share:.2f}"}
        shows |= {name: f"{self.meters[name]:.2g}" for name in METERS if name in self.meters}
        bar.set_postfix(shows, refresh=False)
        line: dict[str, Any] = {"step": run.step_number, "evaluations": run.evaluations, "loss": record.loss}
        line |= {"lr": record.rates[0].lr, "moved": record.moved, **dict(record.meters)}
        if run.share:
            line["edge"] = run.share
        if self.probes is not None:
            line |= self.probes.shares()
        if record.refused:
            line["refused"] = True
        if (why := self._diverged(record)) is not None:
            self._log(line)
            self.directory.save_state(run)
            raise DivergenceError(why)
        self.last_metrics = None
        stopped = self.peers.stopping(bool(self.caught))
        self.clock.read(self.earlier + time.perf_counter() - self.began)
        last = run.step_number == s.steps or self.clock.over
        if not stopped and (last or (s.eval_every and run.step_number % s.eval_every == 0)):
            run.store.make_moves()
            with suppress(_Stopped):
                self.last_metrics = self.scorer.evaluate(self.held_out, progress=self._heed, peers=self.peers)
                line |= shown(self.last_metrics)
            stopped = self.peers.stopping(bool(self.caught))
        self._log(line)
        self._save()
        return stopped and not (last and self.last_metrics is not None)

    def _save(self) -> None:
        """Write the state, if it is time."""
        s, run, now = self.p.settings, self.p.run, time.perf_counter()
        due = run.step_number % (s.save_every or SAVE_STEPS) == 0
        if s.save_every is None and not run.method.estimator.replays:
            due = due or now - self.saved >= max(SAVE_SECONDS, self.saving / SAVE_SHARE)
        if due:
            self.directory.save_state(run)
            self.saved = time.perf_counter()
            self.saving = self.saved - now

    def _diverged(self, record: Record) -> str | None:
        """Why the run must end after `max_failures` steps of one kind in a row; None if it continues."""
        s, run, lr = self.p.settings, self.p.run, record.rates[0].lr
        if record.refused and run.refused_in_a_row >= s.max_failures:
            return (
                f"{run.refused_in_a_row} steps in a row had a non-finite loss (the last {record.loss} at step "
                f"{record.step}); lower --lr (now {lr:g}) or --mu, and start again"
            )
        self.flat_in_a_row = self.flat_in_a_row + 1 if self._is_flat(record) else 0
        flat = self.flat_in_a_row
        if flat >= s.max_failures and self.objective is None:
            return (
                f"the loss was {record.loss:g} at every point of {flat} steps in a row: no trained weight changes it. "
                f"Either the steps were so large that the model saturated (lower --lr, now {lr:g}), or --mu "
                f"{record.mu:g} is too small for these weights, or the model does not use them"
            )
        if flat >= s.max_failures:
            self._warn_of_steps(record)
        self.away_in_a_row = self.away_in_a_row + 1 if record.loss > RUNAWAY * (1.0 + abs(self.before)) else 0
        if self.away_in_a_row >= s.max_failures:
            when = "before the first step" if self.objective is None else "in the first step"
            return (
                f"the loss has run away: it is {record.loss:g} at step {record.step}, and was {self.before:.4g} "
                f"{when}; the steps are too large: lower --lr (now {lr:g}), and start again"
            )
        return None

    def _is_flat(self, record: Record) -> bool:
        """Whether all points of a step had one loss, which could be lower."""
        best = 0.0 if self.objective is None else self.objective.best
        return not record.refused and is_flat(record.vector) and record.loss != best

    def _warn_of_steps(self, record: Record) -> None:
        """Warn once of an objective that changes in steps, which are wider than the points of a training step."""
        if self.warned or self.peers.rank:
            return
        self.warned = True
        assert self.objective is not None
        warnings.warn(
            f"no answer changed {self.objective.name} between the points of the last {self.flat_in_a_row} steps, so "
            f"nothing was learned in them: it changes in steps, and --mu {record.mu:g} is too small for them, or the "
            f"steps were too large (--lr {record.rates[0].lr:g}); start again with a larger --mu, such as "
            f"{max(MU_OF_STEPS, 4 * record.mu):.1g}, or a larger --batch-size",
            stacklevel=2,
        )

    def _heed(self, _: float) -> None:
        """End an evaluation after a signal. With several processes it continues, since the others wait for this one."""
        if self.caught and self.peers.world == 1:
            raise _Stopped

    def _log(self, line: dict[str, Any]) -> None:
        self.directory.log(finite({**line, "seconds": round(self.earlier + time.perf_counter() - self.began, 3)}))


def _short(metric: str) -> str:
    """The name of a metric in the progress bar."""
    return "acc" if metric == "accuracy" else metric.rpartition(":")[2]


def shown(m: Metrics) -> dict[str, Any]:
    """The keys of an evaluation in a line of metrics.jsonl."""
    return {"metric": m.metric, "value": m.value, "eval_loss": m.loss}
