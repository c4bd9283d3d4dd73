"""Fine-tuning a language model on a task, with a run on disk."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zograd import methods
from zograd.control import AutoRate
from zograd.hub import load_task
from zograd.llm import loading
from zograd.llm.settings import SettingsError, TrainSettings, parse
from zograd.llm.task import Batches, Metrics, Scorer
from zograd.memory import Peak
from zograd.oracles import Oracle, sequential
from zograd.quantized import libraries
from zograd.quantized.feasible import Probes
from zograd.run import Method, Record, Run
from zograd.rundir import RunDirectory, RunError, check_free, check_identity, identity, read_metrics
from zograd.schedules import Schedule
from zograd.spaces import PositiveOrthant
from zograd.stores import Store
from zograd.tape import Tape

LORA_LR = 100.0
"""MeZO's ratio of the learning rate for LoRA (1e-4) to that for full weights (1e-6); its radius for LoRA is 1e-2."""
LORA_MU = 2.0**-7
SCALES_LR = 1000.0
"""Scales move in relative units, as `hozo` does: its learning rate (1e-3) over that of `zo_sgd` (1e-6)."""
SCALES_MU = 2.0**-7


METERS = ("trace", "cosine", "gap")
"""Meters that the progress bar shows, where a method measures them; all are in metrics.jsonl."""


class DivergenceError(RuntimeError):
    """Too many refused steps in a row."""


@dataclass
class Prepared:
    """A base model with its trained part chosen, ready to run or to replay."""

    settings: TrainSettings
    model: nn.Module
    tokenizer: Any
    trained: Mapping[str, Tensor]
    store: Store
    run: Run[Any]
    replay_seconds: float = 0.0


def build_method(s: TrainSettings) -> Method[Any]:
    """The method of the settings: the menu's defaults, then MeZO's for LoRA, then what was asked for."""
    settings = dict(s.method_settings)
    entry = methods.describe(s.method)
    if entry["required"]:
        raise SettingsError(
            f"method {s.method!r} needs {', '.join(entry['required'])}, which language models have no default for; "
            f"use it from Python, or choose another of {', '.join(methods.names())}"
        )
    lr = settings.pop("lr", None) if s.lr is None else s.lr
    mu = settings.pop("mu", None) if s.mu is None else s.mu
    lora, onto_scales = s.train == "lora", loading.is_scales(s.train) and s.method not in ("hozo", "qzo")
    takes_lr = "lr" in entry["defaults"]
    if lr is None and takes_lr:
        lr = entry["defaults"]["lr"] * (LORA_LR if lora else SCALES_LR if onto_scales else 1.0)
    if mu is None:
        mu = LORA_MU if lora else SCALES_MU if onto_scales else entry["defaults"]["mu"]
    if s.weight_decay:
        settings["weight_decay"] = s.weight_decay
    if lr is not None:
        schedule = Schedule(1.0 if lr == "auto" else float(lr), s.lr_schedule, s.steps, s.warmup, s.lr_end)
        settings["lr"] = AutoRate(shape=schedule) if lr == "auto" else schedule
    try:
        method = methods.make(s.method, mu=float(mu), **settings)
    except (TypeError, ValueError) as e:
        raise SettingsError(f"method {s.method!r}: {e}") from e
    if not onto_scales:
        return method
    try:
        return replace(method, space=PositiveOrthant())
    except (TypeError, ValueError) as e:
        raise SettingsError(f"method {s.method!r} does not work on positive scales: {e}") from e


def prepare(s: TrainSettings) -> Prepared:
    """Load the base model, attach adapters, choose the trained tensors, make the store and the run."""
    if s.train == "prefix":
        raise SettingsError("--train prefix is not available in this release; use full, lora, scales or a pattern")
    method = build_method(s)
    model, tokenizer = loading.load(s.model, dtype=s.dtype, device=s.device, quantized=s.quantized, quantize=s.quantize)
    module: nn.Module = model
    layers = s.layers
    if s.train == "lora":
        spec = loading.LoraSpec(s.lora_r, s.lora_alpha, tuple(s.lora_targets), s.layers)
        module, layers = loading.attach_lora(model, spec, s.seed), None
    trained = loading.select(module, s.train, layers=layers)
    module.requires_grad_(False)
    store = Store(
        trained, space=method.space, rounding=s.rounding, groups=loading.decay_groups(trained), decays=(1.0, 0.0)
    )
    return Prepared(s, module, tokenizer, trained, store, Run(store, method, s.seed))


def resolve(s: TrainSettings) -> TrainSettings:
    """The settings with what depends on the machine written out: dtype "auto", and the number of threads.

    Sets torch's thread count, since the last bits of a matrix product depend on it.
    """
    if s.threads is not None:
        torch.set_num_threads(s.threads)
    dtype = str(loading.dtype_named(s.dtype)).removeprefix("torch.")
    return s.model_copy(update={"threads": torch.get_num_threads(), "dtype": dtype})


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


def train(s: TrainSettings, out: str | Path, *, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Fine-tune and return the summary that `zograd train --json` prints.

    The run is written to `out` as it goes; with `resume` the run there goes on to the bit-identical end. Raises
    DivergenceError after `max_failures` refused steps in a row, with the run intact.
    """
    if not resume:
        check_free(Path(out))
    directory = RunDirectory.open(out) if resume else None
    if directory is not None:
        steps = s.steps
        s = parse(directory.meta["settings"])
        if s.lr_schedule != "constant" and steps != s.steps:
            raise RunError(
                f"the {s.lr_schedule} schedule of this run ends at {s.steps} steps; resume it with --steps {s.steps}"
            )
        s = s.model_copy(update={"steps": steps})
    s = resolve(s)
    task = load_task(
        s.task,
        prompt_template=s.prompt_template,
        label_words=s.label_words,
        text_column=s.text_column,
        label_column=s.label_column,
        seed=s.seed,
    )
    p = prepare(s)
    base = identity(p.model)  # first, so that every weight is resident when the peak of inference is measured
    examples = list(task.splits["train"])[: s.train_examples]
    held_out = list(task.splits[s.eval_split])[: s.eval_examples]
    scorer = Scorer(p.model, p.tokenizer, task, trained=list(p.trained.values()), cache_prefix=s.cache_prefix)
    for example in (*examples, *held_out):
        scorer.encode(example)  # an example that does not fit is refused before anything is written
    batches = Batches(examples, s.batch_size, s.seed)

    with Peak(s.device) as inference:
        scorer.infer(batches[0], held_out)
    scorer.remember([*examples, *held_out])
    if directory is None:
        before = scorer.evaluate(held_out)
        directory = RunDirectory.create(
            out,
            s.stored(),
            base,
            trained=list(p.trained),
            metrics_before=asdict(before),
            data={"task": task.name, "train": len(examples), s.eval_split: len(held_out), "source": task.source},
        )
        directory.start({"seed": s.seed, "method": s.method, "settings": s.stored(), "trained": list(p.trained)})
        directory.log({"step": 0, "evaluations": 0, **_shown(before), "seconds": 0.0})
        done = 0
    else:
        check_identity(directory.meta["model"], base, s.model)
        before = Metrics(**directory.meta["metrics_before"])
        done = directory.resume(p.run)

    loop = Loop(p, scorer, batches, held_out, directory, quiet)
    try:
        with Peak(s.device) as peak:
            loop.go()
            after = loop.last_metrics or scorer.evaluate(held_out)
        directory.save_state(p.run)
    finally:
        directory.close()
    losses = [r.loss for r in Tape(directory.tape_path).records if not r.refused]
    summary = {
        "steps": p.run.step_number,
        "evaluations": p.run.evaluations,
        "loss_first": _mean(losses[:10]),
        "loss_last": _mean(losses[-10:]),
        "metric": after.metric,
        "metric_before": before.value,
        "metric_calibrated": before.calibrated,
        "metric_after": after.value,
        "majority": before.majority,
        "eval_loss_before": before.loss,
        "eval_loss_after": after.loss,
        "eval_examples": after.examples,
        "trained": p.store.dim,
        "peak_bytes": peak.bytes,
        "inference_peak_bytes": inference.bytes,
        "memory_method": peak.method,
        "seconds": loop.seconds,
        "steps_this_time": p.run.step_number - done,
        "interrupted": loop.interrupted,
        **({} if loop.probes is None else loop.probes.shares()),
        "sha256": p.store.digest(),
        "run": str(out),
    }
    if not loop.interrupted:
        directory.meta["result"] = summary
        directory.save_meta()
    return summary


def _mean(losses: list[float]) -> float | None:
    return sum(losses) / len(losses) if losses else None


def _shown(m: Metrics) -> dict[str, Any]:
    return {"metric": m.metric, "value": m.value, "eval_loss": m.loss}


class Loop:
    """The steps of one run, with the progress bar, the log, refusals and clean stops.

    `seconds` of a line of metrics.jsonl is the time spent in steps and their evaluations since the run began. A resumed
    run goes on from its last line: loading, and what a killed process did after that line, do not count.
    """

    def __init__(
        self, p: Prepared, scorer: Scorer, batches: Batches, held_out: list[Any], directory: RunDirectory, quiet: bool
    ) -> None:
        self.p, self.scorer, self.batches, self.held_out = p, scorer, batches, held_out
        self.directory, self.quiet = directory, quiet
        self.interrupted = False
        self.last_metrics: Metrics | None = None
        self.seconds = 0.0
        self.meters: dict[str, float] = {}
        self.probes: Probes | None = None
        if loading.is_scales(p.settings.train):
            self.probes = Probes(lambda *_: [])
        lines, _ = read_metrics(directory.path)
        self.began, self.earlier = 0.0, max((line.get("seconds", 0.0) for line in lines), default=0.0)

    def go(self) -> None:
        from tqdm import tqdm

        s, run = self.p.settings, self.p.run
        self.began = start = time.perf_counter()
        tokens = 0
        bar = tqdm(
            total=s.steps, initial=run.step_number, desc=run.method.name, unit="step", file=sys.stderr,
            disable=self.quiet, dynamic_ncols=True, smoothing=0.1, mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )  # fmt: skip
        with interruptible() as caught, bar:
            while run.step_number < s.steps and not caught:
                batch = self.batches[run.step_number]
                record = run.step(self._oracle(batch))
                self.directory.append(record)
                tokens += self.scorer.tokens(batch) * record.evaluations
                self._after(record, bar, tokens / (time.perf_counter() - start))
        self.interrupted = bool(caught)
        self.seconds = time.perf_counter() - start

    def _oracle(self, batch: list[Any]) -> Oracle:
        answer = sequential(lambda: self.scorer.loss(batch))
        if self.probes is None:
            return answer
        self.probes.inner = answer
        return self.probes

    def _after(self, record: Record, bar: Any, speed: float) -> None:
        s, run = self.p.settings, self.p.run
        self.meters |= dict(record.meters)
        bar.update(1)
        bar.set_postfix(
            loss=f"{record.loss:.3f}", lr=f"{record.rates[0].lr:.1e}", evals=run.evaluations, tok_s=f"{speed:.0f}",
            **({"acc": f"{self.last_metrics.value:.3f}"} if self.last_metrics else {}),
            **({"edge": f"{run.share:.2f}"} if run.share else {}),
            **{name: f"{self.meters[name]:.2g}" for name in METERS if name in self.meters}, refresh=False,
        )  # fmt: skip
        line: dict[str, Any] = {"step": run.step_number, "evaluations": run.evaluations, "loss": _number(record.loss)}
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
        self.last_metrics = None
        if (s.eval_every and run.step_number % s.eval_every == 0) or run.step_number == s.steps:
            self.last_metrics = self.scorer.evaluate(self.held_out)
            line |= _shown(self.last_metrics)
        self._log(line)
        if run.step_number % s.save_every == 0:
            self.directory.save_state(run)

    def _log(self, line: dict[str, Any]) -> None:
        self.directory.log({**line, "seconds": round(self.earlier + time.perf_counter() - self.began, 3)})


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if value == value and abs(value) != float("inf") else None


# ---- base model + tape ------------------------------------------------------------------------------------------


def restore(path: str | Path, model: str | None = None, *, to: int | None = None) -> tuple[Prepared, RunDirectory]:
    """The base model with a run replayed onto it, up to step `to` (all when None); no forward pass is made."""
    directory = RunDirectory.open(path)
    s = parse(directory.meta["settings"])
    tape = Tape(directory.tape_path)
    if to is not None and not 0 <= to <= tape.steps:
        raise RunError(f"--to {to}: the tape of {path} has {tape.steps} steps")
    p = prepare(s if model is None else s.model_copy(update={"model": model}))
    check_identity(directory.meta["model"], identity(p.model), p.settings.model)
    start = time.perf_counter()
    p.run.replay(tape.records[:to])
    p.replay_seconds = time.perf_counter() - start
    return p, directory


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """A model as files that `loading.load` reads: a packed one as the GGUF that it came from, adapters merged.

    A model that another library quantized in that library's format, with its trained scales beside; adapters on it stay
    adapters (files of peft), since merging would round them to its integers.
    """
    if hasattr(model, "merge_and_unload") and not libraries.is_quantized(model):
        model = model.merge_and_unload()
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(out)
    elif libraries.is_quantized(model):
        libraries.save(model, out)
    elif hasattr(model, "packed_file"):
        from zograd.quantized import gguf_file

        out.mkdir(parents=True, exist_ok=True)
        gguf_file.save(model, out / Path(model.packed_file).name)
        model.config.save_pretrained(out)
    else:
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def replay(path: str | Path, model: str | None, out: str | Path, *, to: int | None = None) -> dict[str, Any]:
    """Replay a run and save the model, as `save` does."""
    if Path(out).exists() and any(Path(out).iterdir()):
        raise RunError(f"{out} is not empty; choose a new folder for the weights")
    start = time.perf_counter()
    p, directory = restore(path, model, to=to)
    sha256 = p.store.digest()
    seconds = time.perf_counter() - start
    recorded = directory.meta.get("result", {})
    if recorded.get("steps") == p.run.step_number and recorded["sha256"] != sha256:
        raise RunError(
            f"the replayed weights have SHA-256 {sha256}, but the run ended at {recorded['sha256']}: "
            f"this machine's arithmetic or one of the files differs; nothing was written"
        )
    save(p.model, p.tokenizer, Path(out))
    note = {"run": str(path), "base": p.settings.model, "steps": p.run.step_number, "sha256_trained": sha256}
    (Path(out) / "zograd.json").write_text(json.dumps(note, indent=1))
    return {
        "steps": p.run.step_number,
        "evaluations": p.run.evaluations,
        "sha256": sha256,
        "seconds": seconds,
        "replay_seconds": p.replay_seconds,
        "out": str(out),
    }
