"""Fine-tuning a language model on a task, with a run on disk."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import sys
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zograd import methods, plugins
from zograd.core.run import Method, Record, Run
from zograd.core.schedules import Schedule
from zograd.core.tape import Tape
from zograd.distributed import Peers, shared
from zograd.files import atomic_write, sync_file
from zograd.hub import Example, Task, load_task, select
from zograd.jsons import finite
from zograd.laws import RankOne
from zograd.learning_rate import AutoRate
from zograd.llm import loading
from zograd.llm.compiled import WORTH, CompileError, check, compiled, trial
from zograd.llm.loading import offloaded as offloading
from zograd.llm.scoring.scorer import Batches, Metrics, Scorer
from zograd.llm.settings import SettingsError, TrainSettings, parse
from zograd.methods.defaults import FULL, LORA, SCALES, language_model
from zograd.offload.mapped import Offloaded, Pages
from zograd.offload.streamed import Streamed
from zograd.oracles import Oracle, batched
from zograd.quantized import libraries
from zograd.quantized.infeasible import Probes
from zograd.rules import SGD
from zograd.runs.memory import Peak, keep_freed, settled_objects
from zograd.runs.rundir import (
    CHANGEABLE,
    Follower,
    RunDirectory,
    RunError,
    base_digest,
    check_free,
    check_identity,
    identity,
    read_metrics,
    restarted,
)
from zograd.spaces import PositiveOrthant
from zograd.stores import Store
from zograd.stores.deferred import LIMIT

METERS = ("trace", "cosine", "gap")
"""Meters that the progress bar shows, where a method measures them; all are in metrics.jsonl."""


RUNAWAY = 10.0
"""A run has run away where its loss is above so many times (1 + the held-out loss before the first step)."""


class DivergenceError(RuntimeError):
    """Too many steps in a row that were refused, changed nothing, or had a loss far above the first."""


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
    pages: Offloaded | None = None
    """Where the weights are, when they are offloaded."""


def build_method(s: TrainSettings) -> Method[Any]:
    """The method of the settings: the defaults of `methods.defaults`, then what was asked for."""
    settings = dict(s.method_settings)
    entry = methods.describe(s.method)
    if entry["required"]:
        raise SettingsError(
            f"method {s.method!r} needs {', '.join(entry['required'])}, which language models have no default for; "
            f"use it from Python, or choose another of {', '.join(methods.names())}"
        )
    lr = settings.pop("lr", None) if s.lr is None else s.lr
    mu = settings.pop("mu", None) if s.mu is None else s.mu
    onto_scales = loading.is_scales(s.train) and s.method not in ("hozo", "qzo")
    default = language_model(s.method, LORA if s.train == "lora" else SCALES if onto_scales else FULL)
    lr = default.get("lr") if lr is None else lr
    mu = default["mu"] if mu is None else mu
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


def prepare(s: TrainSettings, folder: Path) -> Prepared:
    """Load the base model, attach adapters, choose the trained tensors, make the store and the run.

    folder: of the run; weights that stay on the disk are trained there.
    """
    if s.train == "prefix":
        raise SettingsError("--train prefix is not available in this release; use full, lora, scales or a pattern")
    method = build_method(s)
    pages: Offloaded | None = None
    mapped: Pages | None = None
    if s.offload == "disk":
        model, tokenizer, mapped = offloading.load(s.model, dtype=s.dtype, scratch=folder)
    else:
        model, tokenizer = loading.load(
            s.model, dtype=s.dtype, device="cpu" if s.offload else s.device, quantized=s.quantized, quantize=s.quantize
        )
    module: nn.Module = model
    layers = s.layers
    if s.train == "lora":
        spec = loading.LoraSpec(s.lora_r, s.lora_alpha, tuple(s.lora_targets), s.layers)
        module, layers = loading.attach_lora(model, spec, s.seed), None
    trained = loading.select(module, s.train, layers=layers)
    module.requires_grad_(False)
    streamed: Streamed | None = None
    if mapped is not None:
        pages = mapped
        check_slots(method, trained, mapped)
        offloading.make_trainable(trained, mapped, folder)
        offloading.stream(module, mapped)
    elif s.offload == "cpu":
        pages = streamed = offloading.to_device(module, s.device, keep=trained.values() if s.train == "lora" else ())
        check_slots(method, trained, streamed)
    store = Store(
        trained, space=method.space, rounding=s.rounding, groups=loading.decay_groups(trained), decays=(1.0, 0.0),
        pages=pages,
    )  # fmt: skip
    if streamed is not None:
        streamed.serve(store)
    return Prepared(s, module, tokenizer, trained, store, Run(store, method, s.seed), pages=pages)


def check_slots(method: Method[Any], trained: Mapping[str, Tensor], pages: Offloaded) -> None:
    """Raise SettingsError for a method with state of the size of offloaded weights: it would not be offloaded."""
    if method.slots and any(t in pages for t in trained.values()):
        raise SettingsError(
            f"method {method.name!r} keeps {', '.join(method.slots)} for all that is trained, and --offload takes "
            f"care of weights alone; choose a method without slots, such as zo_sgd or fzoo, or --train lora"
        )


def resolve(s: TrainSettings, world: int = 1) -> TrainSettings:
    """The settings with what depends on the machine written out: dtype "auto", the number of threads, the parts.

    Batches that are dealt to processes are cut into as many parts; with directions dealt, they stay whole; with both,
    they are cut into the fewest parts that keep all processes busy.
    """
    shards = s.shards
    if shards is None:
        points = build_method(s).evaluations
        shards = {"data": world, "directions": 1, "both": world // math.gcd(world, points)}[s.parallel]
    if shards > s.batch_size:
        raise SettingsError(f"a batch of {s.batch_size} cannot be cut into {shards} parts; raise --batch-size")
    dtype = str(loading.dtype_named(s.dtype)).removeprefix("torch.")
    threads = torch.get_num_threads() if s.threads is None else s.threads
    return s.model_copy(update={"threads": threads, "dtype": dtype, "shards": shards})


def stored_settings(directory: RunDirectory) -> TrainSettings:
    """The settings in a run.json; RunError where they are none."""
    stored = dict(directory.meta["settings"])
    try:
        return parse({"draw": "first"} | stored | {"shards": stored.get("shards") or 1})  # what older runs did not know
    except SettingsError as e:
        raise RunError(f"{directory.path / 'run.json'} has no settings of a run ({e}); restore it from a copy") from e


def fixed(s: TrainSettings) -> tuple[str, ...]:
    """Those of `CHANGEABLE` on which the bits of a run of these settings depend."""
    names = ("steps",) if s.lr_schedule != "constant" else ()
    try:
        return (*names, "eval_every") if ride_along(build_method(s)) else names
    except ValueError:  # edited: the tape says otherwise
        return names


def going_on(given: TrainSettings, stored: TrainSettings, names: Collection[str]) -> tuple[TrainSettings, list[str]]:
    """The settings of a run that goes on: the stored ones with what `given` says otherwise in `names`; those names.

    Raises SettingsError where it says otherwise what cannot change.
    """
    other = [name for name in TrainSettings.model_fields if name in names and _differs(name, given, stored)]
    bad = [name for name in other if name not in CHANGEABLE or name in fixed(stored)]
    if bad:
        listed = ", ".join(f"{_key(n)} = {getattr(given, n)} (the run has {getattr(stored, n)})" for n in bad)
        may = ", ".join(_key(name) for name in CHANGEABLE if name not in fixed(stored))
        raise SettingsError(
            f"--resume goes on with a run as it began, and cannot change {listed}: leave that out, or begin another "
            f"run in another --out. {may} may be changed"
        )
    return stored.model_copy(update={name: getattr(given, name) for name in other}), other


def _differs(name: str, given: TrainSettings, stored: TrainSettings) -> bool:
    """Whether a setting says something else; what is left open ("auto") has been written out in a stored one."""
    mine, its = getattr(given, name), getattr(stored, name)
    if name in ("shards", "threads", "dtype", "compile") and mine in (None, "auto"):
        return False
    return bool(loading.dtype_named(mine) != loading.dtype_named(its) if name == "dtype" else mine != its)


def _key(name: str) -> str:
    return TrainSettings.model_fields[name].alias or name


def resumed(given: TrainSettings, out: Path) -> TrainSettings:
    """The settings with which the run in `out` goes on, when `given` is asked for: see `going_on`."""
    return going_on(given, stored_settings(RunDirectory.open(out)), given.model_fields_set)[0]


def opened(
    s: TrainSettings, out: Path, resume: bool, world: int
) -> tuple[TrainSettings, RunDirectory | None, dict[str, Any]]:
    """What is to be run; the run to go on with, as asked or as torchrun does after a failure; what changes in it."""
    found = RunDirectory.open(out, write=True) if resume else restarted(out)
    if found is None:
        check_free(out)
        return resolve(s, world), None, {}
    try:
        stored = stored_settings(found)
        try:
            s, changed = going_on(s, stored, s.model_fields_set if resume else TrainSettings.model_fields)
        except SettingsError:
            if not resume:
                check_free(out)
            raise
        return resolve(s, world), found, {name: getattr(stored, name) for name in changed}
    except BaseException:
        found.close()
        raise


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
                **({"plugins": used} if (used := plugins.recorded()) else {}),
            )  # fmt: skip
            closing.callback(directory.close)
            header = s.model_dump(mode="json", by_alias=True, exclude={"parallel", "timeout"})  # no bit depends on them
            known = {"base": base_digest(work.base), **({"data": d} if (d := work.data.get("sha256")) else {})}
            directory.start(
                {"seed": s.seed, "method": s.method, "settings": header, "trained": list(p.trained), **known}
            )
            directory.log(finite({"step": 0, "evaluations": 0, **_shown(before), "seconds": 0.0}))
    else:
        before = metrics_before(meta)
        with peers.together("replaying the tape"):
            directory = found if found is not None else Follower(out, meta)
            tape = tape if tape is not None else Tape(directory.tape_path, done)
            directory.resume(p.run, tape, merged(s, tape.steps) if ride_along(p.run.method) else None)
            if changed:
                stored = s.stored()
                directory.meta["settings"] |= {_key(name): stored[_key(name)] for name in changed}
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


@dataclass
class Work:
    """A prepared model with its task: all that a run needs but for a folder."""

    prepared: Prepared
    base: list[dict[str, Any]]
    """Identity of the base model."""
    scorer: Scorer
    batches: Batches
    held_out: list[Any]
    data: dict[str, Any]
    """What the examples are, for run.json."""
    inference: Peak


def _announced(s: TrainSettings, tape: Tape, changed: Mapping[str, Any]) -> str:
    """What a resumed run goes on with, for the log."""
    parts = [f"{_key(name)} = {getattr(s, name)} in place of {before}" for name, before in changed.items()]
    return f"zograd: the run goes on from step {tape.steps}" + (f", with {', '.join(parts)}" if parts else "")


def check_data(meta: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise RunError when the examples are not those that the run began with."""
    before, now = meta.get("data", {}).get("sha256"), found.get("sha256")
    if before is not None and now is not None and before != now:
        raise RunError(
            f"the examples of {found.get('task')!r} are not those that the run began with (SHA-256 {now}, then "
            f"{before}): bring the file back as it was, or begin another run in another --out"
        )


def check_trained(meta: Mapping[str, Any], trained: Mapping[str, Tensor]) -> None:
    """Raise RunError when other tensors would be moved than those that the run moved."""
    before = meta.get("trained")
    if before is not None and before != list(trained):
        first = next((a or b for a, b in zip_longest(before, trained) if a != b), "")
        raise RunError(
            f"the run trained {len(before)} tensors, and here {len(trained)} are chosen; the first that differs is "
            f"{first!r}. Use the model and the versions of transformers and peft that run.json names"
        )


def metrics_before(meta: Mapping[str, Any]) -> Metrics:
    """The evaluation before the first step; RunError where run.json holds none."""
    try:
        before = Metrics(**meta["metrics_before"])
        numbers = (before.value, before.loss, before.calibrated, before.majority)
        if all(x is None or isinstance(x, int | float) for x in numbers) and isinstance(before.metric, str):
            return before
    except (KeyError, TypeError):
        pass
    raise RunError("run.json has no evaluation from before the first step ('metrics_before'); restore it from a copy")


def examples_of(s: TrainSettings) -> tuple[Task, list[Example], list[Example]]:
    """The task of a run, the examples that it trains on, and the held-out ones: a function of settings and data."""
    task = load_task(
        s.task,
        prompt_template=s.prompt_template,
        label_words=s.label_words,
        text_column=s.text_column,
        label_column=s.label_column,
        seed=s.seed,
    )
    first = s.draw == "first"
    examples = select(task, "train", s.train_examples, seed=s.seed, first=first)
    return task, examples, select(task, s.eval_split, s.eval_examples, seed=s.seed, first=first)


def digest(task: Task, examples: Sequence[Example], held_out: Sequence[Example]) -> str:
    """SHA-256 of what a run is trained and evaluated on: prompts, labels, completions, their order, the label words."""
    h = hashlib.sha256(json.dumps([task.kind, *task.label_words]).encode())
    for part in (examples, held_out):
        h.update(b"\n")
        for e in part:
            h.update(json.dumps([e.prompt, e.label, e.completion]).encode())
    return h.hexdigest()


def announce(task: Task, s: TrainSettings, examples: Sequence[Example], held_out: Sequence[Example]) -> None:
    """Say which examples of a file are used, where that is not all of them, and warn of a class that is missing."""
    if not task.own:
        return
    for option, name, part in (("train", "train", examples), ("eval", s.eval_split, held_out)):
        counts = [(c, sum(e.label == k for e in part)) for k, c in enumerate(task.classes)]
        if len(part) < len(task.splits[name]):
            how = "the first ones" if s.draw == "first" else f"drawn by seed {s.seed}"
            of_each = "".join(f", {n:,} of label {c!r}" for c, n in counts)
            line = f"{len(part):,} of the {len(task.splits[name]):,} {name} examples are used, {how}{of_each}"
            print(f"zograd: {line}", file=sys.stderr)
        missing = [repr(c) for c, n in counts if not n]
        if missing and part:
            warnings.warn(
                f"none of the {len(part):,} {name} examples has the label {', '.join(missing)}; raise "
                f"--{option}-examples, or check the data",
                stacklevel=3,
            )


def set_up(s: TrainSettings, folder: Path) -> Work:
    """Load model and task for a run in `folder`; examples that do not fit are refused."""
    task, examples, held_out = examples_of(s)
    announce(task, s, examples, held_out)
    p = prepare(s, folder)
    if not s.offload:
        keep_freed()
    base = identity(p.model, p.pages)  # first, so that every weight is resident when the peak of inference is measured
    scorer = Scorer(p.model, p.tokenizer, task, trained=list(p.trained.values()), cache_prefix=s.cache_prefix)
    for example in (*examples, *held_out):
        scorer.encode(example)
    batches = Batches(examples, s.batch_size, s.seed)
    with Peak(s.device) as inference:
        scorer.infer(batches[0], held_out)
    scorer.remember([*examples, *held_out])
    data = {
        "task": task.name, "train": len(examples), s.eval_split: len(held_out), "source": task.source,
        "sha256": digest(task, examples, held_out),
    }  # fmt: skip
    return Work(p, base, scorer, batches, held_out, data, inference)


def choose_compiling(work: Work, s: TrainSettings) -> dict[str, Any]:
    """Whether the run compiles its blocks ("on"), as asked or as a `Trial` on its first batch tells, and "why".

    Raises SettingsError where it was asked for and does not work.
    """
    run, scorer = work.prepared.run, work.scorer
    part = scorer.parts(work.batches[0], s.shards or 1)[0]
    points = batched(lambda n: scorer.copy_losses(part, n), s.together or scorer.together(part))
    queries = run.ask()
    try:
        if s.compile is True:
            points(run.store, queries, 0)
            check(work.prepared.model, lambda: points(run.store, queries, 0))
            return {"on": True, "why": "asked for"}
        found = trial(work.prepared.model, lambda: points(run.store, queries, 0), s.steps)
    except CompileError as e:
        if s.compile is True:
            raise SettingsError(f"{e}; leave --compile out") from e
        return {"on": False, "why": str(e)}
    finally:
        run.abandon()
    if found is None:
        return {"on": False, "why": f"all evaluations take less than {WORTH:.0f} s"}
    return {"on": found.ratio < 1.0, "why": "measured", **asdict(found)}


def _mean(losses: list[float]) -> float | None:
    return sum(losses) / len(losses) if losses else None


def _shown(m: Metrics) -> dict[str, Any]:
    return {"metric": m.metric, "value": m.value, "eval_loss": m.loss}


def ride_along(method: Method[Any]) -> bool:
    """Whether the moves of a method are along one product of signs each: few may wait and ride along with probes."""
    one = type(method.rule) is SGD and getattr(method.estimator, "n", 0) == 1
    return one and isinstance(method.law, RankOne) and not method.slots and not method.weight_decay


def merged(s: TrainSettings, step: int) -> int:
    """The last step up to `step` before which all moves are made, whatever interrupts a run."""
    return max(step - step % every for every in (LIMIT, s.eval_every) if every)


class _Stopped(Exception):
    """A signal came during an evaluation."""


TOGETHER = "together"
"""The meter of a step after which fewer points share a forward than before: how many, 0 for one at a time."""


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
        return self.p.run.store.deferring(merge=sides)

    def _merge(self, now: bool) -> None:
        """Make the moves that have waited for several steps, in a block that visits the device when it does."""
        store, pages = self.p.run.store, self.p.pages
        if isinstance(pages, Streamed):
            pages.merging = now
        if now:
            store.make_moves(
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
            run.store.make_moves()
            with suppress(_Stopped):
                self.last_metrics = self.scorer.evaluate(self.held_out, progress=self._heed, peers=self.peers)
                line |= _shown(self.last_metrics)
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


# ---- base model + tape ------------------------------------------------------------------------------------------


def restore(
    path: str | Path, model: str | None = None, *, to: int | None = None, salvage: bool = False
) -> tuple[Prepared, RunDirectory]:
    """The base model with a run replayed onto it, up to step `to` (all when None); no forward pass is made.

    salvage: of a damaged tape, take the steps before the damage, with a warning.
    """
    directory = RunDirectory.open(path)
    s = stored_settings(directory)
    tape = directory.tape(salvage=salvage, fixed=fixed(s))
    if to is not None and not 0 <= to <= tape.steps:
        raise RunError(f"--to {to}: the tape of {path} has {tape.steps} steps")
    p = prepare(s if model is None else s.model_copy(update={"model": model}), Path(path))
    check_identity(directory.meta["model"], identity(p.model, p.pages), p.settings.model)
    check_trained(directory.meta, p.trained)
    start = time.perf_counter()
    p.run.replay(tape.records[:to])
    p.replay_seconds = time.perf_counter() - start
    return p, directory


def merged_model(model: Any) -> Any:
    """The model with its adapters merged into it; they stay beside a quantized one, whose integers would round them."""
    return (
        model.merge_and_unload() if hasattr(model, "merge_and_unload") and not libraries.is_quantized(model) else model
    )


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """A model as files that `loading.load` reads: a packed one as the GGUF that it came from, adapters merged.

    A model that another library quantized in that library's format, with its trained scales beside; adapters on it stay
    adapters (files of peft).
    """
    model = merged_model(model)
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


def replay(
    path: str | Path, model: str | None, out: str | Path, *, to: int | None = None, salvage: bool = False
) -> dict[str, Any]:
    """Replay a run and save the model, as `save` does. salvage: see `restore`."""
    if Path(out).exists() and any(Path(out).iterdir()):
        raise RunError(f"{out} is not empty; choose a new folder for the weights")
    start = time.perf_counter()
    p, directory = restore(path, model, to=to, salvage=salvage)
    sha256 = p.store.digest()
    seconds = time.perf_counter() - start
    recorded = directory.meta.get("result", {})
    if recorded.get("steps") == p.run.step_number and recorded.get("sha256") != sha256:
        raise RunError(
            f"the replayed weights have SHA-256 {sha256}, but the run ended at {recorded.get('sha256')}: "
            f"this machine's arithmetic or one of the files differs; nothing was written"
        )
    if p.pages is not None:
        offloading.save(p.model, p.tokenizer, p.pages, Path(out))
    else:
        save(p.model, p.tokenizer, Path(out))
    note = {"run": str(path), "base": p.settings.model, "steps": p.run.step_number, "sha256_trained": sha256}
    for file in filter(Path.is_file, Path(out).rglob("*")):
        sync_file(file)
    atomic_write(Path(out) / "zograd.json", json.dumps(note, indent=1).encode())
    return {
        "steps": p.run.step_number,
        "evaluations": p.run.evaluations,
        "sha256": sha256,
        "seconds": seconds,
        "replay_seconds": p.replay_seconds,
        "out": str(out),
    }
