"""Runs from the disk: base model + tape -> weights, and weights as files."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from zograd.core.tape import Tape
from zograd.files import atomic_write, share, sync_file, whole_folder
from zograd.hub.wheels import sha256_of
from zograd.llm import loading, lora_init
from zograd.llm.build import Prepared, prepare
from zograd.llm.loading import offloaded as offloading
from zograd.llm.merging import (
    add_runs,
    average_last,
    check_average,
    check_independent,
    check_linear,
    without,
)
from zograd.llm.method import build_method, check_protected, ride_along
from zograd.llm.settings import SettingsError, TrainSettings, parse
from zograd.llm.stages import Stages
from zograd.quantized import libraries
from zograd.runs.errors import RunError
from zograd.runs.identity import base_digest, check_identity, identity
from zograd.runs.packed import Packed, opened
from zograd.runs.rundir import RunDirectory
from zograd.stores import Store


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
    names: tuple[str, ...] = ()
    if s.lr_schedule != "constant":
        names = ("seconds",) if s.seconds is not None else ("steps", "seconds")
    try:
        return (*names, "eval_every") if ride_along(build_method(s)) else names
    except ValueError:  # an edited run.json; the comparison with the tape's header names the mistake
        return names


def check_trained(meta: Mapping[str, Any], trained: Mapping[str, Tensor]) -> None:
    """Raise RunError if the settings choose other tensors than those that the run trained."""
    before = meta.get("trained")
    if before is not None and before != list(trained):
        first = next((a or b for a, b in zip_longest(before, trained) if a != b), "")
        raise RunError(
            f"the run trained {len(before)} tensors, and here {len(trained)} are chosen; the first that differs is "
            f"{first!r}. Use the model and the versions of transformers and peft that run.json names"
        )


def base_of(directory: RunDirectory, *, model: str | None = None, device: str | None = None) -> Prepared:
    """The base model of a run as the run began: adapters attached, trained tensors chosen, no step taken.

    Arguments: see `restore`. Raises RunError for another base model than the recorded one, ModelError.
    """
    s = stored_settings(directory)
    here = {name: value for name, value in (("model", model), ("device", device)) if value is not None}
    if model is None and s.model.startswith((".", "/", "~")) and not Path(s.model).expanduser().exists():
        raise RunError(
            f"the run was trained on the base model {s.model}, which is not to be found from {Path.cwd()}: say where "
            f"it is now with --model"
        )
    if s.protect is not None:
        if not Path(s.protect).exists():
            raise RunError(
                f"the run was trained with --protect {s.protect}, which is not to be found from {Path.cwd()}: its "
                f"directions depend on that file; bring it back"
            )
        check_protected(directory.meta, sha256_of(Path(s.protect)), f"--protect {s.protect} of the run is")
    p = prepare(s.model_copy(update=here), directory.scratch)
    if s.lora_init == "activations":
        matrices = directory.attachment(lora_init.FILE)
        if matrices is None:
            raise RunError(
                f"{directory.path} has no {lora_init.FILE}, the matrices A of its adapters; restore it from a copy, or "
                f"run zograd train --resume --out {directory.path}, which computes them again"
            )
        lora_init.set_to(p.model, matrices, directory.path / lora_init.FILE)
    found = identity(p.model, p.pages)
    check_identity(directory.meta["model"], found, p.settings.model)
    if isinstance(directory, Packed):
        check_base(directory, found, p.settings.model)
    check_trained(directory.meta, p.trained)
    return p


def check_base(pack: Packed, found: Sequence[Mapping[str, Any]], model: str) -> None:
    """Raise RunError unless all digests of the base model are those of a packed run, which names only their starts."""
    by_name = {entry["name"]: dict(entry) for entry in found}
    if base_digest([by_name[entry["name"]] for entry in pack.meta["model"]]) != pack.base:
        raise RunError(f"{model} is not the base model of this run: a digest of its tensors differs behind its start")


def restore(
    path: str | Path,
    model: str | None = None,
    *,
    to: int | None = None,
    salvage: bool = False,
    device: str | None = None,
    undo: Collection[int] = (),
    average: int = 0,
    stages: Stages | None = None,
) -> tuple[Prepared, RunDirectory]:
    """The base model with a run replayed onto it, without forward passes.

    path: the folder of the run, or a packed run. model: where the base model is now; None: where the run found it.
    to: the last step to replay; None: all of them.
    salvage: replay the steps before the damage of a damaged tape, with a warning.
    device: where the weights are to be; None: where the run had them.
    undo: steps that are left out, as if they had been refused; 1 is the first. See `zograd.llm.merging.without`.
    average: the weights become their mean after each of the last `average` steps; 0: those after the last one.
    stages: what shows the loading and the replay; None: they are not shown.

    Cost: loading the model, and one move for each step: the time of the run without its evaluations.
    Raises RunError for a folder or a base model that does not fit, TapeError for a damaged tape, ModelError.
    """
    stages = Stages(quiet=True) if stages is None else stages
    directory = opened(path)
    s = stored_settings(directory)
    tape = directory.tape(salvage=salvage, fixed=fixed_settings(s))
    if to is not None and not 0 <= to <= tape.steps:
        raise RunError(f"--to {to}: the tape of {path} has {tape.steps} steps")
    wanted = tape.steps if to is None else to
    records = tape.records[:wanted]
    differs = isinstance(directory, Packed) and directory.has_difference
    if differs and (undo or average):
        raise RunError(f"{path} holds a difference of weights, not their steps; --undo and --average need the run")
    if undo or average:
        method = build_method(s)
        records = without(records, undo, method) if undo else records
        check_average(method, average, wanted)
    loading.import_transformers(stages)
    with stages.stage(f"loading {model or s.model}"):
        p = base_of(directory, model=model, device=device)
    start = time.perf_counter()
    with stages.stage(f"replaying {wanted:,} step{'s' * (wanted != 1)}"):
        if average:
            average_last(p.run, records, average)
        elif p.run.method.estimator.replays and not differs:
            p.run.replay(records)
        else:
            load_weights(directory, p, tape, wanted)
        if undo:
            check_independent(p.run)
    return replace(p, replay_seconds=time.perf_counter() - start), directory


def load_weights(directory: RunDirectory, p: Prepared, tape: Tape, wanted: int) -> None:
    """Bring the weights to step `wanted` of a run whose tape does not give them back. Raises RunError."""
    if isinstance(directory, Packed):
        done = tape.steps
        if done == wanted:
            directory.apply_difference(p.store)
            p.run.step_number, p.run.evaluations = done, tape.evaluations
    else:
        done = directory.load_state(p.run, tape)
    if done != wanted:
        path, here = directory.path, f"; zograd replay takes --to {done}" if done else ""
        more = (
            "" if isinstance(directory, Packed) else f"; finish the run with zograd train --resume --out {path}{here}"
        )
        what = (
            "the file holds the weights of its end alone"
            if isinstance(directory, Packed)
            else (f"a tape of {p.settings.method} does not give the weights back")
        )
        raise RunError(f"{what}, and the saved state of {path} is of step {done}, not {wanted}{more}")


def check_own_model(given: Sequence[str]) -> None:
    """Raise SettingsError for settings of a model, given beside a run, which loads its base model as it was trained."""
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise SettingsError(
            f"{options} cannot be chosen for a run: its base model is loaded as it was trained; leave it out"
        )


def merged_model(model: Any) -> Any:
    """The model with its adapters merged. On a quantized model they stay separate: its integers would round them.

    There, PoLAR adapters become LoRA adapters with the same product, which peft reads.
    """
    quantized = libraries.is_quantized(model) or hasattr(loading.plain_model(model), "packed_file")
    if any(loading.polar_layers(model)):
        return loading.as_lora(model) if quantized else loading.merge_polar(model)
    return model if quantized or not hasattr(model, "merge_and_unload") else model.merge_and_unload()


def run_or_model(
    run: Path | None, model: str | None, *, dtype: str, device: str, stages: Stages | None = None
) -> tuple[Any, Any]:
    """A model with its tokenizer: of a run, with adapters merged, whose base is at `model`; or without a run `model`.

    dtype: of a model; a run has its own. Without both, it is the model that `zograd train` has by default.
    """
    stages = Stages(quiet=True) if stages is None else stages
    if run is not None:
        p, _ = restore(run, model, device=device, stages=stages)
        return merged_model(p.model), p.tokenizer
    name = model or TrainSettings.model_fields["model"].default
    loading.import_transformers(stages)
    with stages.stage(f"loading {name}"):
        return loading.load(name, dtype=dtype, device=device)


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
    share(out)


def replay(
    path: str | Path | Sequence[str | Path],
    model: str | None,
    out: str | Path,
    *,
    to: int | None = None,
    salvage: bool = False,
    undo: Collection[int] = (),
    average: int = 0,
    merge: Literal["sum", "mean"] | None = None,
    stages: Stages | None = None,
) -> dict[str, Any]:
    """Replay a run and write the model to `out`; returns what `zograd replay --json` prints.

    Arguments and errors: see `restore`; format of the files: see `save`. Raises RunError, and writes nothing, if `out`
    is not empty or if the weights differ from those at the end of the run.

    path: a run, or with `merge` several runs of one base model: the weights are then the base model plus the sum or the
        mean of what the runs have changed (`zograd.llm.merging.add_runs`).
    stages: what shows the loading, the replay and the writing; None: they are not shown.
    """
    stages = Stages(quiet=True) if stages is None else stages
    paths = [path] if isinstance(path, str | Path) else list(path)
    check_out(Path(out))
    if len(paths) > 1 and merge is None:
        raise SettingsError(f"{len(paths)} runs give one model with --merge sum or --merge mean; choose one")
    if merge is not None and (len(paths) < 2 or to is not None or undo or average):
        raise SettingsError("--merge takes several runs, each whole: without --to, --undo and --average")
    start = time.perf_counter()
    if merge is None:
        p, directory = restore(paths[0], model, to=to, salvage=salvage, undo=undo, average=average, stages=stages)
        sha256, recorded = p.store.digest(), directory.meta.get("result", {})
        whole = recorded.get("steps") == p.run.step_number and not (undo or average)
        if whole and recorded.get("sha256") != sha256:
            raise RunError(
                f"the replayed weights have SHA-256 {sha256}, but the run ended with {recorded.get('sha256')}: "
                f"this machine's arithmetic or one of the files differs; nothing was written"
            )
        steps, evaluations = p.run.step_number, p.run.evaluations
    else:
        p, steps, evaluations = merged_runs(paths, model, merge, salvage, stages)
        directory = opened(paths[0])
        sha256 = p.store.digest()
    seconds = time.perf_counter() - start
    loading.name_classes(p.model, directory.meta.get("data", {}).get("asks", {}).get("classes", ()))
    done: dict[str, Any] = {"undo": sorted(undo)} if undo else {}
    done |= {"average": average} if average else {}
    done |= {"merge": merge} if merge else {}
    run: Any = str(paths[0]) if merge is None else [str(one) for one in paths]
    note = {"run": run, "base": p.settings.model, "steps": steps, "sha256_trained": sha256, **done}
    with stages.stage(f"writing {out}"), whole_folder(Path(out)) as folder:
        if p.pages is not None:
            offloading.save(p.model, p.tokenizer, p.pages, folder)
        else:
            save(p.model, p.tokenizer, folder)
        for file in filter(Path.is_file, folder.rglob("*")):
            sync_file(file)
        atomic_write(folder / "zograd.json", json.dumps(note, indent=1).encode())
    return {
        "steps": steps,
        "evaluations": evaluations,
        "sha256": sha256,
        "seconds": seconds,
        "replay_seconds": p.replay_seconds,
        **done,
        "out": str(out),
    }


def check_out(out: Path) -> None:
    """Raise RunError where weights cannot be written to a new folder `out`."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; choose a new folder for the weights")
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty; choose a new folder for the weights")


def merged_runs(
    paths: Sequence[str | Path], model: str | None, how: Literal["sum", "mean"], salvage: bool, stages: Stages
) -> tuple[Prepared, int, int]:
    """The base model of several runs with the sum or mean of their changes; their steps and evaluations in all."""
    first = opened(paths[0])
    for path in paths:
        check_linear(build_method(stored_settings(opened(path))), "--merge")
    steps = evaluations = 0

    def load(path: str | Path) -> tuple[Store, Any]:
        nonlocal steps, evaluations
        found, directory = restore(path, model, salvage=salvage, stages=stages)
        if [e["name"] for e in directory.meta["model"]] != [e["name"] for e in first.meta["model"]]:
            kinds = [stored_settings(each).train for each in (first, directory)]
            if kinds[0] != kinds[1]:
                raise RunError(
                    f"--merge: {paths[0]} trained {kinds[0]}, and {path} trained {kinds[1]}: only runs that trained "
                    f"tensors of one kind can be merged"
                )
            raise RunError(f"--merge: {path} and {paths[0]} were trained from different base models")
        check_identity(first.meta["model"], directory.meta["model"], f"the base model of {path}")
        steps, evaluations = steps + found.run.step_number, evaluations + found.run.evaluations
        return found.store, found.model

    p = base_of(first, model=model)
    add_runs(p.store, p.model, [partial(load, path) for path in paths], how)
    return p, steps, evaluations
