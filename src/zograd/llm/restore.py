"""Runs from the disk: the settings of a resumed run, base model + tape -> weights, and weights as files."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from zograd.files import atomic_write, sync_file
from zograd.llm import loading, lora_init
from zograd.llm.build import Prepared, build_method, prepare, resolve, ride_along
from zograd.llm.loading import offloaded as offloading
from zograd.llm.recipe import chosen
from zograd.llm.scoring.metrics import Metrics
from zograd.llm.settings import SettingsError, TrainSettings, parse
from zograd.quantized import libraries
from zograd.runs.errors import RunError
from zograd.runs.folder import check_free
from zograd.runs.identity import check_identity, identity
from zograd.runs.rundir import CHANGEABLE, RunDirectory, restarted


def stored_settings(directory: RunDirectory) -> TrainSettings:
    """The settings in the run.json of a folder. Raises RunError if they do not parse."""
    stored = dict(directory.meta["settings"])
    try:
        return parse({"draw": "first"} | stored | {"shards": stored.get("shards") or 1})  # defaults of earlier releases
    except SettingsError as e:
        raise RunError(
            f"{directory.path / 'run.json'} does not hold the settings of a run ({e}); restore it from a copy"
        ) from e


def fixed_settings(s: TrainSettings) -> tuple[str, ...]:
    """Names in `CHANGEABLE` that a run with these settings may not change after all: its bits depend on them."""
    names = ("steps",) if s.lr_schedule != "constant" else ()
    try:
        return (*names, "eval_every") if ride_along(build_method(s)) else names
    except ValueError:  # an edited run.json; the comparison with the tape's header names the mistake
        return names


def continued(given: TrainSettings, stored: TrainSettings, names: Collection[str]) -> tuple[TrainSettings, list[str]]:
    """The settings of a resumed run, and the names of those that change.

    They are the stored ones, except for settings in `names` that have another value in `given`. Raises SettingsError if
    one of those cannot be changed by --resume, or if the metric is code that is not given again.
    """
    if stored.metric is not None and ":" in stored.metric and given.metric != stored.metric:
        raise SettingsError(
            f"the run reports the metric {stored.metric!r}, which is code, so run.json may not name it alone: give "
            f"--metric {stored.metric} again"
        )
    other = [name for name in TrainSettings.model_fields if name in names and differs(name, given, stored)]
    bad = [name for name in other if name not in CHANGEABLE or name in fixed_settings(stored)]
    if bad:
        listed = ", ".join(f"{setting_name(n)} = {getattr(given, n)} (the run has {getattr(stored, n)})" for n in bad)
        may = ", ".join(setting_name(name) for name in CHANGEABLE if name not in fixed_settings(stored))
        raise SettingsError(
            f"--resume continues a run with its own settings and cannot change {listed}: leave that out, or begin "
            f"another run in another --out. {may} may be changed"
        )
    return stored.model_copy(update={name: getattr(given, name) for name in other}), other


def differs(name: str, given: TrainSettings, stored: TrainSettings) -> bool:
    """Whether a setting has another value than the stored one, in which "auto" has been replaced by a value."""
    mine, its = getattr(given, name), getattr(stored, name)
    if name in ("method", "shards", "threads", "dtype", "compile") and mine in (None, "auto"):
        return False
    return bool(loading.dtype_named(mine) != loading.dtype_named(its) if name == "dtype" else mine != its)


def setting_name(name: str) -> str:
    """The key of a setting in files and messages."""
    return TrainSettings.model_fields[name].alias or name


def resumed(given: TrainSettings, out: Path) -> TrainSettings:
    """The settings with which --resume continues the run in `out` if `given` is asked for: see `continued`."""
    return continued(given, stored_settings(RunDirectory.open(out)), given.model_fields_set)[0]


def open_run(
    s: TrainSettings, out: Path, resume: bool, world: int
) -> tuple[TrainSettings, RunDirectory | None, dict[str, Any]]:
    """Decide between a new run in `out` and one that is continued: because of `resume`, or by a restart of torchrun.

    Returns the settings to run with, the run to continue (None for a new one), and name -> stored value of the settings
    that change. Raises SettingsError, RunError for a folder that cannot be used, and LockedError.
    """
    found = RunDirectory.open(out, write=True) if resume else restarted(out)
    if not resume:
        s, why = chosen(s, world)
    if found is None:
        check_free(out)
        new = resolve(s, world)
        if why:
            print(f"zograd: {why}", file=sys.stderr)
        return new, None, {}
    try:
        stored = stored_settings(found)
        try:
            s, changed = continued(s, stored, s.model_fields_set if resume else TrainSettings.model_fields)
        except SettingsError:
            if not resume:
                check_free(out)
            raise
        return resolve(s, world), found, {name: getattr(stored, name) for name in changed}
    except BaseException:
        found.close()
        raise


def check_data(meta: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise RunError if the examples are not those that the run began with."""
    before, now = meta.get("data", {}).get("sha256"), found.get("sha256")
    if before is not None and now is not None and before != now:
        raise RunError(
            f"the examples of {found.get('task')!r} are not those that the run began with (SHA-256 {now}, then "
            f"{before}): bring the file back as it was, or begin another run in another --out"
        )


def check_trained(meta: Mapping[str, Any], trained: Mapping[str, Tensor]) -> None:
    """Raise RunError if the settings choose other tensors than those that the run trained."""
    before = meta.get("trained")
    if before is not None and before != list(trained):
        first = next((a or b for a, b in zip_longest(before, trained) if a != b), "")
        raise RunError(
            f"the run trained {len(before)} tensors, and here {len(trained)} are chosen; the first that differs is "
            f"{first!r}. Use the model and the versions of transformers and peft that run.json names"
        )


def check_metric(before: Metrics, metric: str) -> None:
    """Raise RunError if a run reports another metric than the one that is computed now."""
    if before.metric != metric:
        raise RunError(
            f"the run reports {before.metric!r}, and here the metric is {metric!r}; give the metric of the run"
        )


def metrics_before(meta: Mapping[str, Any]) -> Metrics:
    """The evaluation before the first step. Raises RunError if run.json does not hold it."""
    try:
        before = Metrics(**meta["metrics_before"])
        numbers = (before.value, before.loss, before.calibrated, before.majority)
        if all(x is None or isinstance(x, int | float) for x in numbers) and isinstance(before.metric, str):
            return before
    except (KeyError, TypeError):
        pass
    raise RunError("run.json has no evaluation from before the first step ('metrics_before'); restore it from a copy")


def restore(
    path: str | Path, model: str | None = None, *, to: int | None = None, salvage: bool = False
) -> tuple[Prepared, RunDirectory]:
    """The base model with a run replayed onto it, without forward passes.

    path: the folder of the run. model: where the base model is now; None: where the run found it.
    to: the last step to replay; None: all of them.
    salvage: replay the steps before the damage of a damaged tape, with a warning.

    Cost: loading the model, and one move for each step: the time of the run without its evaluations.
    Raises RunError for a folder or a base model that does not fit, TapeError for a damaged tape, ModelError.
    """
    directory = RunDirectory.open(path)
    s = stored_settings(directory)
    tape = directory.tape(salvage=salvage, fixed=fixed_settings(s))
    if to is not None and not 0 <= to <= tape.steps:
        raise RunError(f"--to {to}: the tape of {path} has {tape.steps} steps")
    p = prepare(s if model is None else s.model_copy(update={"model": model}), Path(path))
    if s.lora_init == "activations" and not lora_init.load(p.model, Path(path)):
        raise RunError(
            f"{path} has no {lora_init.FILE}, the matrices A of its adapters; restore it from a copy, or run zograd "
            f"train --resume --out {path}, which computes them again"
        )
    check_identity(directory.meta["model"], identity(p.model, p.pages), p.settings.model)
    check_trained(directory.meta, p.trained)
    start = time.perf_counter()
    if p.run.method.estimator.replays:
        p.run.replay(tape.records[:to])
    elif (done := directory.load_state(p.run, tape)) != (wanted := tape.steps if to is None else to):
        raise RunError(
            f"a tape of {s.method} does not give the weights back, and the saved state of {path} is of step {done}, "
            f"not {wanted}; finish the run with zograd train --resume --out {path}"
            + (f", or pass --to {done}" if done else "")
        )
    return replace(p, replay_seconds=time.perf_counter() - start), directory


def merged_model(model: Any) -> Any:
    """The model with its adapters merged. On a quantized model they stay separate: its integers would round them."""
    quantized = libraries.is_quantized(model) or hasattr(loading.plain_model(model), "packed_file")
    return model if quantized or not hasattr(model, "merge_and_unload") else model.merge_and_unload()


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a model with merged adapters as files that `loading.load` reads.

    A packed model becomes a copy of its GGUF with the trained scales. A model quantized by a library is written in that
    library's format, with its trained scales in a file of their own. Adapters on either stay adapters (files of peft).
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
    """Replay a run and write the model to `out`; returns what `zograd replay --json` prints.

    Arguments and errors: see `restore`; format of the files: see `save`. Raises RunError, and writes nothing, if `out`
    is not empty or if the weights differ from those at the end of the run.
    """
    if Path(out).exists() and any(Path(out).iterdir()):
        raise RunError(f"{out} is not empty; choose a new folder for the weights")
    start = time.perf_counter()
    p, directory = restore(path, model, to=to, salvage=salvage)
    sha256 = p.store.digest()
    seconds = time.perf_counter() - start
    recorded = directory.meta.get("result", {})
    if recorded.get("steps") == p.run.step_number and recorded.get("sha256") != sha256:
        raise RunError(
            f"the replayed weights have SHA-256 {sha256}, but the run ended with {recorded.get('sha256')}: "
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
