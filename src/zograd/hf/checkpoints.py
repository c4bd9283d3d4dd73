"""The tape beside the weights that a Trainer saves, and the part of the model card that tells of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zograd import __version__
from zograd.core.method import Method
from zograd.core.records import Records
from zograd.core.tape import Tape, TapeWriter
from zograd.runs.errors import RunError
from zograd.runs.identity import base_digest, identity

TAPE = "tape.zo"
HEADING = "## Forward-only training"


def header(
    model: nn.Module, tensors: Mapping[str, Tensor], method: Method[Any], seed: int, weight_decay: float
) -> dict[str, Any]:
    """The header of the tape of a training that begins: the method, and digests of the model before the first step.

    Cost: one read of every weight.
    """
    found = identity(model)
    trained = set(tensors)
    return {
        "zograd": __version__,
        "seed": seed,
        "method": method.name,
        "weight_decay": weight_decay,
        "parts": parts_of(method),
        "trained": list(tensors),
        "base": base_digest(found),
        "frozen": base_digest([entry for entry in found if entry["name"] not in trained]),
    }


def parts_of(method: Method[Any]) -> dict[str, str]:
    """What decides on the directions and moves of a method, as text; learning rates stand in the records."""
    return {
        "estimator": repr(method.estimator),
        "law": repr(method.law),
        "rule": repr(method.rule),
        "space": repr(method.space),
        "mu": repr(method.mu),
    }


def save_tape(folder: Path, about: Mapping[str, Any], records: Records) -> None:
    """Write the tape of all steps so far into a folder, in place of an older one there.

    About 100 bytes a step. The file gets its name when all of it is on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{TAPE}.new"
    new.unlink(missing_ok=True)
    with TapeWriter(new, about) as writer:
        for record in records:
            writer.append(record)
    new.replace(folder / TAPE)


def read_tape(folder: Path) -> Tape:
    """The tape of a checkpoint. Raises RunError without one, TapeError for one that is damaged."""
    if not (folder / TAPE).exists():
        raise RunError(
            f"{folder} has no {TAPE}: it is no checkpoint of a forward-only Trainer, so its directions are not known; "
            f"resume from one that has a tape, or start from these weights without resume_from_checkpoint"
        )
    return Tape(folder / TAPE)


def check_fits(tape: Tape, method: Method[Any], tensors: Mapping[str, Tensor], seed: int, weight_decay: float) -> None:
    """Raise RunError that names the first setting in which a tape differs from the training that would continue it."""
    mine = {"seed": seed, "method": method.name, **parts_of(method), "trained": list(tensors)}
    theirs = {**tape.header, **(tape.header.get("parts") or {})}
    if "weight_decay" in theirs:  # older tapes do not say it
        mine["weight_decay"] = weight_decay
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise RunError(
                f"{tape.path} was recorded with {name} = {_short(theirs.get(name))}, and here it is {_short(value)}: "
                f"resume with the settings of the checkpoint, or start again without resume_from_checkpoint"
            )


def check_frozen(tape: Tape, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise RunError where the weights that adapters are trained on are others than those of the tape.

    Cost: one read of every weight that is not trained.
    """
    trained = set(tensors)
    if base_digest([entry for entry in identity(model) if entry["name"] not in trained]) != tape.header.get("frozen"):
        raise RunError(
            f"{tape.path} belongs to another base model: the weights under the adapters differ from those that the "
            f"checkpoint was trained on; load that base model"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def describe(card: str, about: Mapping[str, Any], line: str, evaluations: int, folder: Path) -> str:
    """A model card with the method and the identity of the tape at its end, in the place of an older such part."""
    kept = re.sub(rf"\n*{HEADING}\n.*?(?=\n## |\Z)", "", card, flags=re.S).rstrip()
    lines = [
        f"{HEADING}",
        "",
        f"- {line}",
        f"- {evaluations:,} evaluations of the loss, no backward pass through the model, seed {about['seed']}, zograd "
        f"{about['zograd']}",
        f"- base model: SHA-256 of its tensors `{about['base']}`",
    ]
    if (folder / TAPE).exists():
        data = (folder / TAPE).read_bytes()
        lines.append(f"- tape: `{TAPE}`, {len(data):,} bytes, SHA-256 `{hashlib.sha256(data).hexdigest()}`")
    return "\n".join([kept, "", *lines, ""])
