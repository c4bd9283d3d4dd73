"""Fine-tuning a language model on a task, with a run on disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from zograd.core.tape import Tape
from zograd.distributed import Peers
from zograd.jsons import finite
from zograd.llm.build import choose_compiling, ride_along, set_up
from zograd.llm.loop import Loop, merged, shown
from zograd.llm.restore import check_data, check_trained, fixed, metrics_before, opened, setting_name
from zograd.llm.settings import TrainSettings, parse
from zograd.runs.identity import base_digest, check_identity
from zograd.runs.memory import Peak
from zograd.runs.rundir import Follower, RunDirectory


def train(
    s: TrainSettings, out: str | Path, *, resume: bool = False, quiet: bool = False, peers: Peers | None = None
) -> dict[str, Any]:
    """Fine-tune and return the summary that `zograd train --json` prints.

    The run is written to `out` as it goes; with `resume` the run there goes on to the bit-identical end, with those of
    `CHANGEABLE` that are set in `s` otherwise; SettingsError where another setting is set otherwise. A signal to stop
    (SIGINT, SIGTERM) ends the run after the step, without an evaluation: `metric_after` is then None. Raises
    DivergenceError after `max_failures` steps in a row that were refused, changed nothing or had run away (`RUNAWAY`),
    with the run intact, and LockedError while another process writes the run in `out`.

    peers: the processes that share the evaluations (`zograd.distributed.joined`). All of them call this, all return the
        same summary; rank 0 decides on the settings and writes the run. Each begins by replaying the tape of rank 0. A
        process that torchrun starts again goes on by itself with a run of these settings. Raises PeersError and
        PeersDisagree as `Peers` does.
    """
    with ExitStack() as closing:
        return _train(s, Path(out), resume, quiet, Peers() if peers is None else peers, closing)


def _train(s: TrainSettings, out: Path, resume: bool, quiet: bool, peers: Peers, closing: ExitStack) -> dict[str, Any]:
    """See `train`. closing: closes the run directory, and so lets go of its lock."""
    found: RunDirectory | None = None
    tape: Tape | None = None
    changed: dict[str, Any] = {}
    with peers.together("opening the run"):
        if peers.rank == 0:
            s, found, changed = opened(s, out, resume, peers.world)
            if found is not None:
                closing.callback(found.close)
                tape = found.tape(fixed=fixed(s))
                if changed or not quiet:
                    print(_announced(s, tape, changed), file=sys.stderr)
    plan = json.loads(peers.broadcast(json.dumps([s.stored(), None if found is None else found.meta]).encode()))
    done = peers.broadcast(b"" if tape is None else tape.bytes())
    s, meta = parse(plan[0]), plan[1]
    if s.threads is not None:
        torch.set_num_threads(s.threads)  # the last bits of a matrix product depend on it
    with peers.together("loading the model and the task"):
        work = set_up(s, out)
        if meta is not None:
            check_identity(meta["model"], work.base, s.model)
            check_data(meta, work.data)
            check_trained(meta, work.prepared.trained)
    peers.compare(json.dumps(work.base), "the base model and adapters")
    p, scorer = work.prepared, work.scorer

    directory: RunDirectory
    compiling: dict[str, Any] = {}
    if meta is None and s.compile:
        with peers.together("compiling the model"):
            compiling = choose_compiling(work, s) if peers.rank == 0 else {}
        compiling = json.loads(peers.broadcast(json.dumps(compiling).encode()))
        p.settings = s = s.model_copy(update={"compile": compiling["on"]})
    if meta is None:
        before = scorer.evaluate(work.held_out, peers=peers)
        with peers.together("beginning the run"):
            begin = RunDirectory.create if peers.rank == 0 else Follower.create
            directory = begin(
                out, s.stored(), work.base, trained=list(p.trained), metrics_before=finite(asdict(before)),
                data=work.data,
                **({"compile": compiling} if compiling else {}),
            )  # fmt: skip
            closing.callback(directory.close)
            header = s.model_dump(mode="json", by_alias=True, exclude={"parallel", "timeout"})  # no bit depends on them
            known = {"base": base_digest(work.base), **({"data": d} if (d := work.data.get("sha256")) else {})}
            directory.start(
                {"seed": s.seed, "method": s.method, "settings": header, "trained": list(p.trained), **known}
            )
            directory.log(finite({"step": 0, "evaluations": 0, **shown(before), "seconds": 0.0}))
    else:
        before = metrics_before(meta)
        with peers.together("replaying the tape"):
            directory = found if found is not None else Follower(out, meta)
            tape = tape if tape is not None else Tape(directory.tape_path, done)
            directory.resume(p.run, tape, merged(s, tape.steps) if ride_along(p.run.method) else None)
            if changed:
                stored = s.stored()
                directory.meta["settings"] |= {setting_name(name): stored[setting_name(name)] for name in changed}
                directory.save_meta()
        peers.remember(done)
    steps_before = p.run.step_number

    loop = Loop(work, directory, quiet or peers.rank > 0, peers, () if tape is None else tape.records, before.loss)
    with Peak(s.device) as peak:
        loop.go()
        after = loop.last_metrics
        if after is None and not loop.interrupted:
            after = scorer.evaluate(work.held_out, peers=peers)
    directory.save_state(p.run)
    if directory.writer is not None:
        directory.writer.close()
    sha256 = p.store.digest()
    peers.compare(sha256, "the weights at the end")
    if peers.rank:
        result: dict[str, Any] = json.loads(peers.broadcast())
        return result
    steps = p.run.step_number - steps_before
    records = Tape(directory.tape_path).records
    losses = [r.loss for r in records if not r.refused]
    refused, failure = len(records) - len(losses), None if after is None else scorer.why_not_finite(after)
    if records and not losses:
        failure = "; ".join(
            [f"all {refused} steps were refused: their losses were not finite", *filter(None, [failure])]
        )
    summary = finite({
        "steps": p.run.step_number,
        "evaluations": p.run.evaluations,
        "loss_first": _mean(losses[:10]),
        "loss_last": _mean(losses[-10:]),
        "metric": before.metric,
        "metric_before": before.value,
        "metric_calibrated": before.calibrated,
        "metric_after": None if after is None else after.value,
        "majority": before.majority,
        "eval_loss_before": before.loss,
        "eval_loss_after": None if after is None else after.loss,
        "eval_examples": before.examples,
        "trained": p.store.dim,
        "peak_bytes": peak.bytes,
        "inference_peak_bytes": work.inference.bytes,
        "memory_method": peak.method,
        "seconds": loop.seconds,
        "steps_this_time": steps,
        "interrupted": loop.interrupted,
        "ranks": peers.world,
        "shards": s.shards,
        "compiled": s.compile,
        "bytes_per_step": peers.sent / steps if steps else 0.0,
        **({} if loop.probes is None else loop.probes.shares()),
        "refused": refused,
        "failure": failure,
        "sha256": sha256,
        "run": str(out),
    })  # fmt: skip
    if not loop.interrupted:
        directory.meta["result"] = summary
        directory.save_meta()
    peers.broadcast(json.dumps(summary).encode())
    return dict(summary)


def _announced(s: TrainSettings, tape: Tape, changed: Mapping[str, Any]) -> str:
    """What a resumed run goes on with, for the log."""
    parts = [f"{setting_name(name)} = {getattr(s, name)} in place of {before}" for name, before in changed.items()]
    return f"zograd: the run goes on from step {tape.steps}" + (f", with {', '.join(parts)}" if parts else "")


def _mean(losses: list[float]) -> float | None:
    return sum(losses) / len(losses) if losses else None
