"""Fine-tune a language model on a task: open the run, load, begin or resume, loop, evaluate, report."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zograd import plugins
from zograd.core.run import Record, Run
from zograd.core.tape import Tape
from zograd.distributed import Peers
from zograd.jsons import finite
from zograd.llm import lora_init
from zograd.llm.build import Work, choose_compiling, set_up
from zograd.llm.loading import ADAPTERS, stable_ranks
from zograd.llm.loop import Loop, last_merge, shown
from zograd.llm.method import ride_along
from zograd.llm.restore import check_trained, fixed_settings
from zograd.llm.resume import check_data, check_metric, metrics_before, open_run, setting_name
from zograd.llm.scoring.metrics import MetricFunction, Metrics
from zograd.llm.settings import SettingsError, TrainSettings, parse
from zograd.llm.stages import Stages
from zograd.runs.identity import base_digest, check_identity
from zograd.runs.memory import Peak
from zograd.runs.rundir import Follower, RunDirectory
from zograd.stores.leaf import tensor_bytes


def train(
    s: TrainSettings,
    out: str | Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    peers: Peers | None = None,
    stages: Stages | None = None,
    metric: MetricFunction | None = None,
) -> dict[str, Any]:
    """Fine-tune, and return the summary that `zograd train --json` prints.

    out: the folder of the run, which is written step by step.
    resume: continue the run in `out` to the bit-identical end. Of the settings that `s` sets, those in `CHANGEABLE` may
        have other values than the run's.
    quiet: no progress bar and no log on stderr.
    stages: what shows the start, if it began before this call.
    peers: the processes that share the evaluations (`zograd.distributed.joined`). All of them call this function and
        get the same summary. Rank 0 decides on the settings and writes the run; each process begins by replaying rank
        0's tape. A process that torchrun restarts continues a run with these settings by itself.
    metric: a function of labels and predictions (arrays of class numbers) that is reported, in place of the setting of
        that name; to be given again with `resume`.

    SIGINT and SIGTERM end the run after the current step, without an evaluation: `metric_after` is then None.

    Raises SettingsError for settings that do not fit the model, the method or the stored run; DivergenceError, with the
    run intact, after `max_failures` steps in a row that were refused, changed nothing or had run away (`RUNAWAY`);
    LockedError if another process writes the run; PeersError and PeersDisagree as `Peers` does.

        train(TrainSettings(model="smollm2-135m", task="trec", train="lora", steps=500), "runs/a")["metric_after"]
    """
    peers = Peers() if peers is None else peers
    stages = Stages(quiet or peers.rank > 0) if stages is None else stages
    with ExitStack() as closing, Peak() as process:
        return _train(s, Path(out), resume, quiet, peers, closing, stages, process, metric)


def _train(
    s: TrainSettings, out: Path, resume: bool, quiet: bool, peers: Peers, closing: ExitStack, stages: Stages,
    process: Peak, metric: MetricFunction | None,
) -> dict[str, Any]:  # fmt: skip
    """See `train`. closing: closes the run directory at the end, which releases its lock. process: its peak so far."""
    # Open: rank 0 finds out whether this is a new run or a stored one, and with which settings.
    opened = agree_on_run(s, out, resume, quiet, peers, closing)
    s, meta = opened.settings, opened.meta
    if s.threads is not None:
        torch.set_num_threads(s.threads)  # the last bits of a matrix product depend on it

    # Load the model and the data, build the method and the store.
    with peers.together("loading the model and the task"):
        work = set_up(
            s, out, stored=meta is not None, stages=stages, why=opened.why, first=not peers.rank, metric=metric
        )
        if meta is not None:
            check_identity(meta["model"], work.base, s.model)
            check_data(meta, work.data)
            check_trained(meta, work.prepared.trained)
    peers.compare(json.dumps(work.base), "the base model and adapters")

    forward = None
    # Begin the run, or bring the weights to the end of its tape.
    if meta is None:
        work, compiling = decide_compiling(work, peers)
        directory = create(out, work, compiling, peers, closing)
        with Peak(s.device) as inference:
            start = time.perf_counter()
            before = baseline(work, stages, peers)
            if before is not None:
                forward = peers.world * (time.perf_counter() - start) / work.scorer.tokens(work.held_out)
            work.scorer.infer(work.batches[0], work.held_out, evaluated=before is not None)
        begin(work, before, directory, peers)
        taken: Sequence[Record] = ()
    else:
        before = metrics_before(meta)
        if before is not None:
            check_metric(before, work.scorer.reports)
        inference = measured_again(out, work, opened, stages)  # before weights have moves that wait for a forward
        directory, taken = replay_tape(out, work, opened, peers)
    run = work.prepared.run
    steps_before = run.step_number

    # Train and evaluate.
    loop = Loop(
        work, directory, quiet or peers.rank > 0, peers, taken, None if before is None else before.loss, forward
    )
    start_seconds = stages.seconds
    with Peak(s.device) as peak:
        loop.go()
        after = loop.last_metrics
        if after is None and not loop.interrupted:
            after = work.scorer.evaluate(work.held_out, peers=peers)
    directory.save_state(run)
    if directory.writer is not None:
        directory.writer.close()
    sha256 = work.prepared.store.digest()
    peers.compare(sha256, "the weights at the end")

    # Report: rank 0 makes the summary for all.
    if peers.rank:
        result: dict[str, Any] = json.loads(peers.broadcast())
        return result
    summary = summarise(work, loop, directory, before, after, peak, peers, run.step_number - steps_before, sha256)
    summary |= {
        "inference_peak_bytes": inference.bytes,
        "process_peak_bytes": process.bytes,
        "start_seconds": start_seconds,
    }
    if not loop.interrupted:
        directory.meta["result"] = summary
        directory.save_meta()
    peers.broadcast(json.dumps(summary).encode())
    return dict(summary)


@dataclass(frozen=True)
class Opened:
    """The run that all processes agree on. On ranks other than 0, `directory` is None and `changed` is empty."""

    settings: TrainSettings
    meta: dict[str, Any] | None
    """The run.json of a run that is continued; None for a new one."""
    tape: Tape | None
    """Its tape; None for a new run, and on ranks other than 0."""
    tape_bytes: bytes
    """The same as bytes, on all ranks."""
    directory: RunDirectory | None
    changed: dict[str, Any]
    """Setting -> its stored value, for settings that change in the stored run."""
    why: str
    """The reason of the method of a new run, if it was chosen."""


def agree_on_run(s: TrainSettings, out: Path, resume: bool, quiet: bool, peers: Peers, closing: ExitStack) -> Opened:
    """Let rank 0 open the run, and tell all processes its settings, its run.json and its tape."""
    found: RunDirectory | None = None
    tape: Tape | None = None
    changed: dict[str, Any] = {}
    why = ""
    with peers.together("opening the run"):
        if peers.rank == 0:
            s, found, changed, why = open_run(s, out, resume, peers.world)
            if found is not None:
                closing.callback(found.close)
                tape = found.tape(fixed=fixed_settings(s))
                if "steps" in changed and s.steps < tape.steps:
                    raise SettingsError(
                        f"--steps {s.steps}: the run has taken {tape.steps} already, and steps are counted from its "
                        f"beginning; give more, or take weights of an earlier step with zograd replay --to {s.steps}"
                    )
                if changed or not quiet:
                    print(_announced(s, tape, changed), file=sys.stderr)
    plan = json.loads(peers.broadcast(json.dumps([s.stored(), None if found is None else found.meta, why]).encode()))
    done = peers.broadcast(b"" if tape is None else tape.bytes())
    return Opened(parse(plan[0]), plan[1], tape, done, found, changed, plan[2])


def _announced(s: TrainSettings, tape: Tape, changed: Mapping[str, Any]) -> str:
    """The line of the log that says where a resumed run continues, and with which other settings."""
    parts = [f"{setting_name(name)} = {getattr(s, name)} in place of {before}" for name, before in changed.items()]
    where = f"continues from step {tape.steps}"
    if s.seconds is None and tape.steps == s.steps:
        where = f"has taken its {s.steps} steps already"
        where += "" if "steps" in fixed_settings(s) else "; a larger --steps continues it"
    return f"zograd: the run {where}" + (f", with {', '.join(parts)}" if parts else "")


def decide_compiling(work: Work, peers: Peers) -> tuple[Work, dict[str, Any]]:
    """The work with the setting `compile` decided by rank 0, and the entry "compile" of run.json (empty without)."""
    s = work.prepared.settings
    if not s.compile:
        return work, {}
    with peers.together("compiling the model"):
        compiling = choose_compiling(work, s) if peers.rank == 0 else {}
    compiling = json.loads(peers.broadcast(json.dumps(compiling).encode()))
    settings = s.model_copy(update={"compile": compiling["on"]})
    return replace(work, prepared=replace(work.prepared, settings=settings)), compiling


def create(out: Path, work: Work, compiling: dict[str, Any], peers: Peers, closing: ExitStack) -> RunDirectory:
    """Create the folder of a new run with its run.json."""
    s, trained, directory = work.prepared.settings, list(work.prepared.trained), None
    with peers.together("beginning the run"):
        make = RunDirectory.create if peers.rank == 0 else Follower.create
        directory = make(
            out, s.stored(), work.base, trained=trained, data=work.data,
            **({"compile": compiling} if compiling else {}),
            **({"plugins": used} if (used := plugins.recorded()) else {}),
        )  # fmt: skip
        closing.callback(directory.close)
        if s.lora_init == "activations" and peers.rank == 0:
            lora_init.save(work.prepared.model, out)
    return directory


def baseline(work: Work, stages: Stages, peers: Peers) -> Metrics | None:
    """The evaluation before the first step; None where the settings leave it out."""
    if not work.prepared.settings.baseline:
        return None
    with stages.counted("evaluating before the first step", len(work.held_out)) as progress:
        return work.scorer.evaluate(work.held_out, progress=progress, peers=peers)


def measured_again(out: Path, work: Work, opened: Opened, stages: Stages) -> Peak:
    """The memory of inference for a run that is continued; the states of its next batch are stored by then."""
    tape = opened.tape if opened.tape is not None else Tape(out / "tape.zo", opened.tape_bytes)
    batch = work.batches[tape.steps]
    with Peak(work.prepared.settings.device) as inference:
        if missing := work.scorer.unknown(batch):
            with stages.counted("computing the states below the trained blocks", missing) as progress:
                work.scorer.remember(batch, progress)
        work.scorer.infer(batch, work.held_out)
    return inference


def begin(work: Work, before: Metrics | None, directory: RunDirectory, peers: Peers) -> None:
    """Begin the run: the evaluation before it, the header of its tape, and the first line of its log."""
    s, trained = work.prepared.settings, list(work.prepared.trained)
    with peers.together("beginning the run"):
        if before is not None:
            directory.meta["metrics_before"] = finite(asdict(before))
            directory.save_meta()
        header = s.model_dump(mode="json", by_alias=True, exclude={"parallel", "timeout"})  # no bit depends on them
        known = {"base": base_digest(work.base), **({"data": d} if (d := work.data.get("sha256")) else {})}
        directory.start({"seed": s.seed, "method": s.method, "settings": header, "trained": trained, **known})
        directory.log(
            finite({"step": 0, "evaluations": 0, **({} if before is None else shown(before)), "seconds": 0.0})
        )


def replay_tape(out: Path, work: Work, opened: Opened, peers: Peers) -> tuple[RunDirectory, Sequence[Record]]:
    """Bring a run to the end of its tape and store its changed settings; its directory, and the steps of the tape."""
    s, run, meta = work.prepared.settings, work.prepared.run, opened.meta
    assert meta is not None
    with peers.together("replaying the tape"):
        directory = opened.directory if opened.directory is not None else Follower(out, meta)
        tape = opened.tape if opened.tape is not None else Tape(directory.tape_path, opened.tape_bytes)
        if not peers.rank or run.method.estimator.replays:
            directory.resume(run, tape, last_merge(s, tape.steps) if ride_along(run.method) else None)
        if opened.changed:
            stored = s.stored()
            directory.meta["settings"] |= {setting_name(name): stored[setting_name(name)] for name in opened.changed}
            directory.save_meta()
    if not run.method.estimator.replays:
        spread(run, peers)
    peers.remember(opened.tape_bytes)
    return directory, tape.records


def spread(run: Run[Any], peers: Peers) -> None:
    """Bring the run in all processes to where rank 0 is: its state, and the bytes of weights and slots, one by one."""
    if peers.world == 1:
        return
    run.load_state_dict(json.loads(peers.broadcast(json.dumps(run.state_dict()).encode())))
    for tensor in run.store.state_dict().values():
        sent = peers.broadcast(b"" if peers.rank else bytes(tensor_bytes(tensor)))
        tensor.copy_(torch.frombuffer(bytearray(sent), dtype=tensor.dtype).view(tensor.shape))


def summarise(
    work: Work, loop: Loop, directory: RunDirectory, before: Metrics | None, after: Metrics | None, peak: Peak,
    peers: Peers, steps: int, sha256: str,
) -> dict[str, Any]:  # fmt: skip
    """What `zograd train --json` prints. Losses are those of the whole tape, times those of this call.

    steps: steps of this call. sha256: of the trained weights.
    """
    s, run = work.prepared.settings, work.prepared.run
    records = Tape(directory.tape_path).records
    losses = [r.loss for r in records if not r.refused]
    refused, failure = len(records) - len(losses), None if after is None else work.scorer.why_not_finite(after)
    if records and not losses:
        failure = "; ".join(
            [f"all {refused} steps were refused: their losses were not finite", *filter(None, [failure])]
        )
    either = before or after
    return dict(finite({
        "steps": run.step_number,
        "evaluations": run.evaluations,
        "loss_first": _mean(losses[:10]),
        "loss_last": _mean(losses[-10:]),
        "metric": None if either is None else either.metric,
        "metric_before": None if before is None else before.value,
        "metric_calibrated": None if before is None else before.calibrated,
        "metric_after": None if after is None else after.value,
        "majority": None if either is None else either.majority,
        **_of_classes(before, after),
        "eval_loss_before": None if before is None else before.loss,
        "eval_loss_after": None if after is None else after.loss,
        "eval_examples": len(work.held_out),
        "trained": work.prepared.store.dim,
        "stable_rank": mean_stable_rank(work.prepared.model) if s.train in ADAPTERS else None,
        "peak_bytes": peak.bytes,
        "memory_method": peak.method,
        "seconds": loop.seconds,
        "steps_this_time": steps,
        "interrupted": loop.interrupted,
        "stopped_by": loop.stopped_by,
        "ranks": peers.world,
        "shards": s.shards,
        "compiled": s.compile,
        "bytes_per_step": peers.sent / steps if steps else 0.0,
        **({} if loop.probes is None else loop.probes.shares()),
        "refused": refused,
        "failure": failure,
        "sha256": sha256,
        "run": str(directory.path),
    }))  # fmt: skip


def mean_stable_rank(model: torch.nn.Module) -> float | None:
    """The mean of `stable_ranks` over the adapters that add something finite; None where none does."""
    ranks = [rank for rank in stable_ranks(model).values() if math.isfinite(rank)]
    return sum(ranks) / len(ranks) if ranks else None


def _of_classes(before: Metrics | None, after: Metrics | None) -> dict[str, Any]:
    """What a summary says of a classification beside its metric: F1 and MCC before and after, and the classes."""
    either = before or after
    if either is None:
        return {}
    if either.majority is None:
        return {"perplexity_before": before and before.perplexity, "perplexity_after": after and after.perplexity}
    found = {
        f"{name}_{when}": None if m is None else getattr(m, name)
        for name in ("accuracy", "macro_f1", "mcc") for when, m in (("before", before), ("after", after))
    }  # fmt: skip
    if either.f1_of is not None:
        found["f1_of"] = either.f1_of
    return {**found, "classes": None if after is None else after.classes}


def _mean(losses: list[float]) -> float | None:
    return sum(losses) / len(losses) if losses else None
