"""The identity of a base model: name, shape, dtype and SHA-256 of each of its tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn

from zograd.offload.mapped import Offloaded, Pages
from zograd.runs.errors import RunError
from zograd.stores.leaf import tensor_bytes

SHOWN = 16
"""Hexadecimal digits that a packed run keeps of the SHA-256 of a tensor: enough to name one that differs."""


def identity(model: nn.Module, pages: Offloaded | None = None) -> list[dict[str, Any]]:
    """Name, shape, dtype and SHA-256 of each tensor of a model, by which a run recognises its base model.

    pages: where offloaded weights are; they are read piece by piece.
    Cost: one read of every weight.
    """
    offloaded: Offloaded = pages if pages is not None else Pages()

    @cache  # tied weights are hashed once
    def digest(t: Tensor) -> str:
        h = hashlib.sha256()
        if t in offloaded:
            for start, stop in offloaded.walk(t):
                h.update(tensor_bytes(t.view(-1)[start:stop]))
        else:
            h.update(tensor_bytes(t))
        return h.hexdigest()

    return [
        {
            "name": name,
            "shape": list(t.shape),
            "dtype": str(t.dtype).removeprefix("torch."),
            "sha256": digest(t),
        }
        for key, value in model.state_dict(keep_vars=True).items()
        for name, t in plain_tensors(key, value)
    ]


def base_digest(model: list[dict[str, Any]]) -> str:
    """SHA-256 of an `identity`, for the header of the tape."""
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()


def plain_tensors(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A tensor with its name; for a wrapper subclass (a quantized tensor), the plain tensors inside it."""
    if not hasattr(value, "__tensor_flatten__"):
        yield name, value
        return
    for part in value.__tensor_flatten__()[0]:
        yield from plain_tensors(f"{name}.{part}", getattr(value, part))


def check_identity(expected: list[dict[str, Any]], found: list[dict[str, Any]], what: str) -> None:
    """Raise RunError that names the first tensor in which the model `what` differs from the recorded base model.

    expected: the recorded identity, whose digests may be cut to `SHOWN` digits. found: that of `what`.
    """
    by_name = {entry["name"]: entry for entry in found}
    for entry in expected:
        name = entry["name"]
        if name not in by_name:
            raise RunError(
                f"{what} has no tensor {name!r}, which the run was started from; use the recorded base model"
            )
        for key in ("shape", "dtype", "sha256"):
            here, there = by_name[name][key], entry[key]
            if key == "sha256" and isinstance(there, str) and len(there) == SHOWN:
                here = here[:SHOWN]
            if here != there:
                raise RunError(
                    f"{what} is not the base model of this run: tensor {name!r} has {key} {here}, the run was started "
                    f"from {there}. Use the recorded base model and dtype."
                )
