"""A checkpoint of a forward-only Trainer as one small file, which `zograd replay` takes as it takes a packed run."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zograd import __version__, methods
from zograd.core.record import Record
from zograd.core.tape import Tape, TapeWriter
from zograd.hf.checkpoints import TAPE, parts_of, read_tape
from zograd.llm.build import Prepared, prepare
from zograd.llm.loading import load
from zograd.llm.method import build_method
from zograd.llm.pack import free_file
from zograd.llm.settings import TrainSettings
from zograd.runs.errors import RunError
from zograd.runs.identity import base_digest, identity
from zograd.runs.packed import bits_of, write_pack
from zograd.runs.rundir import RunDirectory

PLAIN = "zo_sgd"
"""The method of the settings where the tape is not replayed, so that they name one."""


def is_checkpoint(path: str | Path) -> bool:
    """Whether a folder is a checkpoint or a saved model of a forward-only Trainer, and no run of `zograd train`."""
    return (Path(path) / TAPE).exists() and not (Path(path) / "run.json").exists()


def pack_checkpoint(path: str | Path, out: str | Path | None, model: str | None) -> dict[str, Any]:
    """Write a checkpoint as one file; returns what `zograd pack --json` prints. See `zograd.llm.pack.pack`.

    path: a checkpoint, or a folder of `save_model`, with its tape and weights. model: the model with which the training
    began; its tensors are compared with those that the tape names. out: the file; None: the name of the folder with
    `.zopack`.

    Where a menu method with its default settings replays the tape to the weights of the checkpoint, bit by bit, the
    file holds the tape (some 20 bytes a step of two evaluations); otherwise the exact difference of the trained weights
    and the base model. Memory: three models.

    Raises RunError for a checkpoint of adapters, without a model, and for another model than the training's.
    """
    start, folder = time.perf_counter(), Path(path)
    file = free_file(folder, out)
    if (folder / "adapter_config.json").exists():
        raise RunError(f"{folder} holds adapters, which are small as they are; copy adapter_model.safetensors")
    if model is None:
        raise RunError(f"{folder} does not hold the model with which its training began; give it with --model")
    tape = read_tape(folder)
    names = list(tape.header.get("trained") or ())
    after = {name: p.detach() for name, p in load(str(folder), dtype=dtype_of(folder))[0].named_parameters()}
    if missing := [name for name in names if name not in after]:
        raise RunError(f"{folder} has no weights {missing[0]!r}, which its tape names; copy the checkpoint again")
    p = _base(model, tape, names, after, folder)
    kind, s = "difference", p.settings
    if replayed(p, tape, after):
        kind = "tape"
    else:
        s = s.model_copy(update={"method": PLAIN, "method_settings": {}, "mu": None, "steps": tape.steps})
        p = prepare(s, folder)
    weights = 0
    difference: list[tuple[str, Tensor]] = []
    if kind == "difference":
        weights = p.store.dim
        difference = [(leaf.name, bits_of(leaf.tensor) ^ bits_of(after[leaf.name])) for leaf in p.store.leaves]
        for leaf in p.store.leaves:
            leaf.tensor.copy_(after[leaf.name])
    sha256 = p.store.digest()
    about = _about(s, p, tape, model)
    with tempfile.TemporaryDirectory() as temporary:
        new = _with_header(Path(temporary) / TAPE, tape, about)
        write_pack(file, RunDirectory(folder, about), new, sha256, difference=difference)
    return {
        "path": str(file),
        "bytes": file.stat().st_size,
        "kind": kind,
        "method": tape.header.get("method"),
        "steps": tape.steps,
        "weights": weights,
        "sha256": sha256,
        "base": model,
        "seconds": time.perf_counter() - start,
    }


def dtype_of(folder: Path) -> str:
    """The dtype of the weights in a folder that transformers wrote."""
    from safetensors import safe_open

    file = next(iter(sorted(folder.glob("*.safetensors"))), None)
    if file is None:
        raise RunError(f"{folder} has no weights (.safetensors) beside its tape; give a folder that a Trainer saved")
    with safe_open(file, framework="pt") as f:
        found = next(t.dtype for t in map(f.get_tensor, f.keys()) if t.dtype.is_floating_point)
    return str(found).removeprefix("torch.")


def _base(model: str, tape: Tape, names: list[str], after: Mapping[str, Tensor], folder: Path) -> Prepared:
    """The model of the beginning with a store of the trained tensors. Raises RunError for another model."""
    name = str(tape.header.get("method"))
    known = name in methods.names() and not methods.describe(name)["required"]
    radius = _number((tape.header.get("parts") or {}).get("mu"))
    given = {
        "model": model, "method": name if known else PLAIN, "dtype": str(after[names[0]].dtype).removeprefix("torch."),
        "seed": tape.header.get("seed", 0), "train": f"^({'|'.join(map(re.escape, names))})$",
        "steps": max(tape.steps, 1), "task": f"the data of {folder.name}",
    }  # fmt: skip
    p = prepare(TrainSettings.model_validate(given | ({"mu": radius} if known and radius else {})), folder)
    if base_digest(identity(p.model)) != tape.header.get("base"):
        raise RunError(
            f"{model} is not the model with which the training of {folder} began: the digest of its tensors is another "
            f"one. A head that was drawn for the task belongs to it; save that model before training"
        )
    return p


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def replayed(p: Prepared, tape: Tape, after: Mapping[str, Tensor]) -> bool:
    """Whether the tape brings the weights of `p` to those of the checkpoint, bit by bit; they are changed."""
    method = build_method(p.settings)
    if not method.estimator.replays or parts_of(method) != tape.header.get("parts"):
        return False
    if [leaf.name for leaf in p.store.leaves] != list(tape.header.get("trained") or ()):
        return False
    p.run.replay(map(in_two_groups, tape.records))
    return all(torch.equal(bits_of(leaf.tensor), bits_of(after[leaf.name])) for leaf in p.store.leaves)


def in_two_groups(record: Record) -> Record:
    """A record with a rate for each of the two groups of a run; a Trainer without weight decay has one."""
    return replace(record, rates=record.rates * 2) if len(record.rates) == 1 else record


def _about(s: TrainSettings, p: Prepared, tape: Tape, model: str) -> dict[str, Any]:
    """What run.json would say of such a run; it knows no data, so it asks nothing and has no labels."""
    fresh = load(model, dtype=s.dtype)[0]
    asks = {"template": "", "classes": [], "label_words": [], "records": ""}
    return {
        "zograd": __version__,
        "settings": s.stored() | {"shards": 1},
        "trained": list(p.trained),
        "model": identity(fresh),
        "data": {"task": s.task, "asks": asks, "trainer": {"method": tape.header.get("method")}},
    }


def _with_header(path: Path, tape: Tape, about: Mapping[str, Any]) -> Tape:
    """The steps of a tape under the header of a run."""
    settings = about["settings"]
    header = {"seed": settings["seed"], "method": settings["method"], "settings": settings, "trained": about["trained"]}
    with TapeWriter(path, json.loads(json.dumps(header))) as writer:
        for record in map(in_two_groups, tape.records):
            writer.append(record)
    return Tape(path)
