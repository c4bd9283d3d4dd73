"""The file state.safetensors: weights and d-sized slots of a run at one step of its tape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zograd.core.tape import Tape
from zograd.stores.leaf import tensor_bytes


def digest(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the texts and of the tensors with their names, dtypes and shapes."""
    h = hashlib.sha256(json.dumps([about["run"], about["tape"]]).encode())
    for name in sorted(tensors):
        t = tensors[name]
        h.update(json.dumps([name, str(t.dtype), list(t.shape)]).encode())
        h.update(tensor_bytes(t))
    return h.hexdigest()


def read_state(source: Path, tape: Tape) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The scalars and tensors of a state. Raises ValueError if it is damaged or belongs to no step of this tape."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, "pt") as f:
            about = f.metadata() or {}
            state = json.loads(about.get("run", "null"))
            if not isinstance(state, dict) or "tape" not in about or "sha256" not in about:
                raise ValueError("it does not say to which tape it belongs")
            step = state.get("step")
            if not isinstance(step, int) or not 0 <= step <= tape.steps:
                raise ValueError(f"it is of step {str(step)[:20]}, and the tape ends at step {tape.steps}")
            if about["tape"] != str(tape.checksum(step)):
                raise ValueError(f"at step {step} it belongs to another tape")
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, RecursionError) as e:
        raise ValueError(f"it does not parse: {e}") from e
    if about["sha256"] != digest(about, tensors):
        raise ValueError("its digest is another: a part of it was changed")
    return state, tensors
