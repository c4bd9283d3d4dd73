"""Runs on disk again: the settings with which one goes on, base model + tape -> weights, and weights as files."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from zograd.files import atomic_write, sync_file
from zograd.llm import loading
from zograd.llm.build import Prepared, build_method, prepare, resolve, ride_along
from zograd.llm.loading import offloaded as offloading
from zograd.llm.scoring.metrics import Metrics
from zograd.llm.settings import SettingsError, TrainSettings, parse
from zograd.quantized import libraries
from zograd.runs.errors import RunError
from zograd.runs.folder import check_free
from zograd.runs.identity import check_identity, identity
from zograd.runs.rundir import CHANGEABLE, RunDirectory, restarted


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
    other = [name for name in TrainSettings.model_fields if name in names and differs(name, given, stored)]
    bad = [name for name in other if name not in CHANGEABLE or name in fixed(stored)]
    if bad:
        listed = ", ".join(f"{setting_name(n)} = {getattr(given, n)} (the run has {getattr(stored, n)})" for n in bad)
        may = ", ".join(setting_name(name) for name in CHANGEABLE if name not in fixed(stored))
        raise SettingsError(
            f"--resume goes on with a run as it began, and cannot change {listed}: leave that out, or begin another "
            f"run in another --out. {may} may be changed"
        )
    return stored.model_copy(update={name: getattr(given, name) for name in other}), other


def differs(name: str, given: TrainSettings, stored: TrainSettings) -> bool:
    """Whether a setting says something else; what is left open ("auto") has been written out in a stored one."""
    mine, its = getattr(given, name), getattr(stored, name)
    if name in ("shards", "threads", "dtype", "compile") and mine in (None, "auto"):
        return False
    return bool(loading.dtype_named(mine) != loading.dtype_named(its) if name == "dtype" else mine != its)


def setting_name(name: str) -> str:
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
