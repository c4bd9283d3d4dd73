"""What --resume continues, and with which settings: a stored run against what is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from zograd.llm import loading
from zograd.llm.build import resolve
from zograd.llm.data import check_found
from zograd.llm.method import check_given_once, check_protected
from zograd.llm.recipe import chosen
from zograd.llm.restore import fixed_settings, stored_settings
from zograd.llm.schedule import SHAPES
from zograd.llm.scoring.metrics import WRITTEN, Metrics
from zograd.llm.scoring.objectives import LOSS
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.runs.errors import RunError
from zograd.runs.folder import check_free, check_writable
from zograd.runs.rundir import CHANGEABLE, RunDirectory, restarted


def continued(given: TrainSettings, stored: TrainSettings, names: Collection[str]) -> tuple[TrainSettings, list[str]]:
    """The settings of a resumed run, and the names of those that change.

    They are the stored ones, except for settings in `names` that have another value in `given`. Raises SettingsError if
    one of those cannot be changed by --resume, or if the metric or objective is code that is not given again.
    """
    for name in ("metric", "objective"):
        code = getattr(stored, name) or ""
        if ":" in code and getattr(given, name) != code:
            raise SettingsError(
                f"the run has the {name} {code!r}, which is code, so run.json may not name it alone: give --{name} "
                f"{code} again"
            )
    other = [name for name in TrainSettings.model_fields if name in names and differs(name, given, stored)]
    bad = [name for name in other if name not in CHANGEABLE or name in fixed_settings(stored)]
    if bad:
        listed = ", ".join(f"{setting_name(n)} = {getattr(given, n)} (the run has {_told(stored, n)})" for n in bad)
        may = ", ".join(setting_name(name) for name in CHANGEABLE if name not in fixed_settings(stored))
        if {"steps", "seconds"} & {*bad} and stored.lr_schedule != "constant":
            listed += f", over which its learning rate follows a {stored.lr_schedule} schedule"
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


def _told(s: TrainSettings, name: str) -> str:
    """The value of a setting in a message; of one that may be left open, that it was."""
    value = getattr(s, name)
    return "none given" if value is None else str(value)


def setting_name(name: str) -> str:
    """The key of a setting in files and messages."""
    return TrainSettings.model_fields[name].alias or name


def resumed(given: TrainSettings, out: Path) -> TrainSettings:
    """The settings with which --resume continues the run in `out` if `given` is asked for: see `continued`."""
    return continued(given, stored_settings(RunDirectory.open(out)), given.model_fields_set)[0]


def open_run(
    s: TrainSettings, out: Path, resume: bool, world: int
) -> tuple[TrainSettings, RunDirectory | None, dict[str, Any], str]:
    """Decide between a new run in `out` and one that is continued: because of `resume`, or by a restart of torchrun.

    Returns the settings to run with, the run to continue (None for a new one), name -> stored value of the settings
    that change, and the reason of a method that was chosen. Raises SettingsError, RunError for a folder that cannot be
    used, and LockedError.
    """
    found, why = RunDirectory.open(out, write=True) if resume else restarted(out), ""
    given = s.model_fields_set
    if not resume:
        s, why = chosen(s, world)
    if found is None:
        check_given_once(s)
        check_free(out)
        check_writable(out)
        loading.check_device(s.device)
        new = resolve(s, world)
        warn_of_unused(given, new)
        return new, None, {}, why
    try:
        stored = stored_settings(found)
        try:
            s, changed = continued(s, stored, s.model_fields_set if resume else TrainSettings.model_fields)
        except SettingsError:
            if not resume:
                check_free(out)
            raise
        check_found(s)
        return resolve(s, world), found, {name: getattr(stored, name) for name in changed}, ""
    except BaseException:
        found.close()
        raise


def warn_of_unused(given: Collection[str], s: TrainSettings) -> None:
    """Warn of settings that were given and that do nothing in a run with these settings."""
    adapters = {"lora_r", "lora_alpha", "lora_targets"} if s.train not in loading.ADAPTERS else set()
    of = {name: f"--train lora or polar, and here is --train {s.train}" for name in adapters}
    if s.train not in loading.PARTS:
        of["tokens"] = f"--train prompt or prefix, and here is --train {s.train}"
    if s.objective == LOSS:
        of["answer_temperature"] = "an --objective of what the model writes, and here is the loss"
        if s.metric not in WRITTEN:
            of["answer_tokens"] = "an --objective or a --metric of what the model writes, and here is the loss"
    if s.lr_schedule == "constant":
        of["lr_end"] = "a linear or cosine --lr-schedule, and here the learning rate is constant"
    elif s.lr_schedule not in SHAPES:
        of["lr_end"] = "a linear or cosine --lr-schedule, and here it is a table of values"
    for name, why in of.items():
        if name in given and getattr(s, name) != TrainSettings.model_fields[name].get_default(
            call_default_factory=True
        ):
            warnings.warn(f"--{name.replace('_', '-')} does nothing here: it is for {why}", stacklevel=2)


def check_data(meta: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise RunError if the examples are not those that the run began with."""
    before, now = meta.get("data", {}).get("sha256"), found.get("sha256")
    if before is not None and now is not None and before != now:
        raise RunError(
            f"the examples of {found.get('task')!r} are not those that the run began with (SHA-256 {now}, then "
            f"{before}): bring the file back as it was, or begin another run in another --out"
        )
    before, now = meta.get("data", {}).get("tokens"), found.get("tokens")
    if before is not None and now is not None and before != now:
        raise RunError(
            "the examples have other tokens than those that the run began with: the tokenizer of the base model or its "
            "chat template has changed; bring it back as it was, or begin another run in another --out"
        )
    check_protected(meta, found.get("protect"), "--protect names")


def check_metric(before: Metrics, metric: str) -> None:
    """Raise RunError if a run reports another metric than the one that is computed now."""
    if before.metric != metric:
        raise RunError(
            f"the run reports {before.metric!r}, and here the metric is {metric!r}; give the metric of the run"
        )


def metrics_before(meta: Mapping[str, Any]) -> Metrics | None:
    """The evaluation before the first step; None for a run without. Raises RunError if run.json does not hold it."""
    if meta["settings"].get("baseline") is False:
        return None
    try:
        before = Metrics(**meta["metrics_before"])
        numbers = (before.value, before.loss, before.calibrated, before.majority)
        if all(x is None or isinstance(x, int | float) for x in numbers) and isinstance(before.metric, str):
            return before
    except (KeyError, TypeError):
        pass
    raise RunError("run.json has no evaluation from before the first step ('metrics_before'); restore it from a copy")
