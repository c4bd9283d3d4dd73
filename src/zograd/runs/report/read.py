"""Read the folder of a run: steps from the tape, clock and held-out values from metrics.jsonl, and run.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zograd.core.method import Method
from zograd.core.record import Record
from zograd.core.tape import Tape
from zograd.core.vector import Array
from zograd.learning_rate import AutoRate, lr_bounds
from zograd.llm.method import build_method
from zograd.llm.oracle import TOGETHER
from zograd.llm.settings import parse
from zograd.runs.errors import RunError
from zograd.runs.folder import read_metrics
from zograd.runs.identity import base_digest
from zograd.runs.rundir import RunDirectory

KNOWN = {"step", "evaluations", "loss", "lr", "moved", "refused", "seconds", "metric", "value", "eval_loss", TOGETHER}


@dataclass(frozen=True)
class HeldOut:
    """An evaluation on held-out examples after `step` steps."""

    step: int
    evaluations: float
    seconds: float
    loss: float
    value: float


@dataclass(frozen=True)
class Margin:
    """Learning rate over the edge of stability, for each step; NaN before the first measurement.

    A step with `low` >= 1 is unstable on every Hessian with the measured trace. A step with `high` < 1 is stable on
    every Hessian with the measured trace and largest eigenvalue.
    """

    low: Array
    high: Array

    @property
    def last(self) -> tuple[float, float] | None:
        """(low, high) of the last step with a measurement; None without one."""
        known = np.flatnonzero(np.isfinite(self.high))
        return (float(self.low[known[-1]]), float(self.high[known[-1]])) if known.size else None


@dataclass(frozen=True)
class Recorded:
    """A run. Arrays have one entry for each step, NaN without a value."""

    path: str
    meta: dict[str, Any]
    steps: int
    evaluations: Array
    seconds: Array
    loss: Array
    refused: Array
    lr: Array
    moved: Array
    meters: dict[str, Array]
    held_out: list[HeldOut]
    margin: Margin | str
    """The stability margin, or why it is unknown."""
    tape_bytes: int
    notes: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """The stored settings."""
        settings: dict[str, Any] = self.meta["settings"]
        return settings

    @property
    def before(self) -> dict[str, Any]:
        """The held-out evaluation before the first step; empty without one."""
        return dict(self.meta.get("metrics_before") or {})

    @property
    def result(self) -> dict[str, Any]:
        """The summary of the last call that finished; it may be older than the last step if the run was stopped."""
        return dict(self.meta.get("result") or {})

    @property
    def finished(self) -> bool:
        """Whether the last step on the tape is the end of a call that finished."""
        return self.result.get("steps") == self.steps

    @property
    def metric(self) -> str:
        """Name of the metric of the task."""
        return str(self.before.get("metric", "value"))

    @property
    def status(self) -> str:
        """One phrase: finished, or how far the run is."""
        if self.finished:
            return "finished"
        if seconds := self.settings.get("seconds"):
            return f"stopped or under way: {self.steps:,} steps, of {seconds:g} s"
        planned = max(int(self.settings.get("steps") or 0), self.steps)
        return f"stopped or under way: {self.steps:,} of {planned:,} steps"

    @property
    def identity(self) -> str:
        """SHA-256 over name, shape, dtype and digest of each tensor of the base model."""
        return base_digest(self.meta["model"])

    @property
    def after(self) -> HeldOut | None:
        """The last held-out evaluation after the start; None without one."""
        return self.held_out[-1] if self.held_out and self.held_out[-1].step > 0 else None

    def summary(self) -> dict[str, Any]:
        """The numbers of the first table; None for those that the run does not have."""
        seconds = self.seconds[np.isfinite(self.seconds)]
        losses = self.loss[np.isfinite(self.loss)]
        peak, inference = self.result.get("peak_bytes"), self.result.get("inference_peak_bytes")
        edge = self.margin.last if isinstance(self.margin, Margin) else None
        values = {
            "run": self.path,
            "status": self.status,
            "steps": self.steps,
            "refused": int(self.refused.sum()),
            "evaluations": int(self.evaluations[-1]) if self.steps else 0,
            "seconds": float(seconds[-1]) if seconds.size else _first_seconds(self),
            "loss_first": float(losses[:10].mean()) if losses.size else None,
            "loss_last": float(losses[-10:].mean()) if losses.size else None,
            "metric": self.metric,
            "majority": self.before.get("majority"),
            "before": self.before.get("value"),
            "calibrated": self.before.get("calibrated"),
            "after": self.after.value if self.after else None,
            "after_step": self.after.step if self.after else None,
            "eval_loss_before": self.before.get("loss"),
            "eval_loss_after": self.after.loss if self.after else None,
            "examples": self.before.get("examples"),
            "trained": self.result.get("trained"),
            "peak_bytes": peak,
            "inference_peak_bytes": inference,
            "memory_ratio": peak / inference if peak and inference else None,
            "tape_bytes": self.tape_bytes,
            "edge_share": edge[1] if edge else None,
            "sha256": self.result.get("sha256") if self.finished else None,
        }
        return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


def _first_seconds(run: Recorded) -> float | None:
    """The time of a run by a release that logged no clock, if one call made all of it."""
    whole = run.finished and run.result.get("steps_this_time") == run.steps
    return run.result.get("seconds") if whole else None


def read(folder: Path) -> Recorded:
    """Read the folder of a run, finished or not. Raises RunError for a folder without a run, TapeError for damage."""
    if not folder.is_dir():
        raise RunError(f"{folder} is not the folder of a run; give the folder that --out of `zograd train` named")
    directory = RunDirectory.open(folder)
    meta = directory.meta
    if not directory.tape_path.exists():
        raise RunError(f"{folder} has no tape.zo: the run was never started, there is nothing to report")
    tape = Tape(directory.tape_path)
    logged, unread = read_metrics(folder)
    lines = {line["step"]: line for line in logged if isinstance(k := line.get("step"), int) and 0 <= k <= tape.steps}
    notes = []
    if tape.torn:
        notes.append(f"The last record of the tape is torn ({tape.torn} bytes) and left out.")
    try:
        directory.check_header(tape.header)
    except RunError as e:
        notes.append(f"{e}.")
    if unread:
        notes.append(f"Lines of metrics.jsonl that do not parse and are left out: {unread}.")
    records, steps = tape.records, range(1, tape.steps + 1)
    refused = np.array([r.refused for r in records], dtype=bool)
    evaluations = np.cumsum([r.evaluations for r in records], dtype=np.float64)
    names = dict.fromkeys(name for r in records for name, _ in r.meters if name not in KNOWN)
    names |= dict.fromkeys(k for x in lines.values() for k, v in x.items() if k not in KNOWN and _is_number(v))
    measured = [{**lines.get(i, {}), **dict(r.meters)} for i, r in zip(steps, records, strict=True)]
    return Recorded(
        path=str(folder),
        meta=meta,
        steps=tape.steps,
        evaluations=evaluations,
        seconds=_column([lines.get(i, {}).get("seconds") for i in steps]),
        loss=np.where(refused, np.nan, _column([r.loss for r in records])),
        refused=refused,
        lr=_column([r.rates[0].lr if r.rates else None for r in records]),
        moved=np.where(refused, np.nan, _column([r.moved for r in records])),
        meters={name: _column([m.get(name) for m in measured]) for name in names},
        held_out=_held_out(meta, lines, evaluations),
        margin=_margin(meta["settings"], records),
        tape_bytes=directory.tape_path.stat().st_size,
        notes=notes,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _column(values: Sequence[Any]) -> Array:
    column = np.array([float(v) if _is_number(v) else math.nan for v in values], dtype=np.float64)
    return np.where(np.isfinite(column), column, math.nan)


def _held_out(meta: dict[str, Any], lines: dict[int, dict[str, Any]], evaluations: Array) -> list[HeldOut]:
    """The evaluations in metrics.jsonl, with those of start and end in run.json if metrics.jsonl lacks them."""
    found = {step: dict(line) for step, line in lines.items() if "eval_loss" in line or "value" in line}
    before, result = meta.get("metrics_before") or {}, meta.get("result") or {}
    if before:
        found.setdefault(0, {"seconds": 0.0, "value": before.get("value"), "eval_loss": before.get("loss")})
    if result.get("steps") == len(evaluations) and len(evaluations):
        last = {"value": result.get("metric_after"), "eval_loss": result.get("eval_loss_after")}
        found.setdefault(len(evaluations), {**lines.get(len(evaluations), {}), **last})
    out = []
    for step, line in sorted(found.items()):
        seconds, loss, value = _column([line.get(key) for key in ("seconds", "eval_loss", "value")]).tolist()
        out.append(HeldOut(step, float(evaluations[step - 1]) if step else 0.0, seconds, loss, value))
    return out


# ---- stability -------------------------------------------------------------------------------------------------------


def _margin(settings: dict[str, Any], records: Sequence[Record]) -> Margin | str:
    try:
        method = build_method(parse(settings))
    except (ValueError, TypeError, KeyError, OSError) as e:
        return f"not known: this zograd cannot build the method of the run ({' '.join(str(e).split())})"
    if AutoRate().misfit(method) is not None:
        return (
            f"not known: the edge is that of moves along an estimate of the gradient, and {method.name} "
            f"({type(method.estimator).__name__}, {type(method.rule).__name__}) makes another move"
        )
    traced = any(name == "trace" for r in records for name, _ in r.meters)
    if not traced or (method.rule.preconditions and not method.controller.measures):  # then it is not that of P^-1 H
        return "not measured: this run did not record the trace of the Hessian; --lr auto measures it on the way"
    return margin(method, records)


def margin(method: Method[Any], records: Sequence[Record]) -> Margin:
    """lr over the bounds of `lr_bounds`, with T and L from the last measurements as in `AutoRate`.

    If only the trace is measured, L = T: no eigenvalue of a positive Hessian is larger.
    """
    auto = AutoRate()
    state, traces = auto.initial(), list[float]()
    q, beta = method.estimator.n, method.rule.momentum or 0.0
    low, high = np.full((2, len(records)), math.nan)
    for i, record in enumerate(records):
        meters = dict(record.meters)
        if record.refused:
            continue
        auto.observe(state, record.loss, meters)
        traces = [*traces, *([meters["trace"]] if "trace" in meters else [])][-auto.window :]
        if state["seen"]:
            trace, largest = auto.curvature(state, q)
        else:
            trace = largest = float(np.mean(traces)) if traces else 0.0
        unit = method.rule.units(record.aux)
        if trace > 0 and largest > 0 and unit > 0 and "trace" in meters:
            stable, unstable = lr_bounds(trace, largest, q=q, beta=beta)
            low[i], high[i] = (record.rates[0].lr / unit / bound for bound in (unstable, stable))
    return Margin(low, high)
