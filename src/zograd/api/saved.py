"""What `AskTell` knows as plain data for JSON: numbers that are not finite, vectors, points and x0."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from zograd.api.variables import Variables
from zograd.core.tape_records import named, renamed
from zograd.core.vector import Vector


def plain(value: Any) -> Any:
    """Scalars, lists and dicts; a Vector, which rules remember, as the names and coefficients of its terms."""
    if isinstance(value, Vector):
        return {"vector": [[named(e), c] for e, c in value.terms]}
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def rebuilt(value: Any) -> Any:
    """The inverse of `plain` and of `strict`, but that tuples and arrays are lists."""
    if isinstance(value, dict):
        if value.keys() == {"vector"}:
            return Vector(tuple((renamed(e), float(rebuilt(c))) for e, c in value["vector"]))
        if value.keys() == {"float"}:
            return float(value["float"])
        return {key: rebuilt(v) for key, v in value.items()}
    return [rebuilt(v) for v in value] if isinstance(value, list) else value


def strict(value: Any) -> Any:
    """Plain data as JSON has it: arrays are lists, and a number that is not finite is {"float": "nan"}, "inf", "-inf".

    >>> strict({"a": [1.0, float("inf")]})
    {'a': [1.0, {'float': 'inf'}]}
    """
    if isinstance(value, np.ndarray):
        listed = value.tolist()
        return listed if np.all(np.isfinite(value)) else strict(listed)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, dict):
        return {key: strict(v) for key, v in value.items()}
    return [strict(v) for v in value] if isinstance(value, list | tuple) else value


def listed(x: Any) -> Any:
    """A point as numbers, lists and dicts.

    >>> listed({"a": np.zeros(2), "b": np.float64(1.0)})
    {'a': [0.0, 0.0], 'b': 1.0}
    """
    if isinstance(x, dict):
        return {name: listed(value) for name, value in x.items()}
    return x.tolist()


def described(variables: Variables) -> dict[str, Any]:
    """x0 with its form, as plain data. TypeError for names that are neither strings nor numbers."""
    for key in variables.keys:
        if not isinstance(key, str | int | float):
            raise TypeError(f"save() writes names that are strings or numbers, but x0 has the name {key!r}")
    arrays, start = [], 0
    parts = zip(variables.shapes, variables.dtypes, variables.sizes, variables.likes, strict=True)
    for shape, dtype, size, like in parts:
        part = variables.flat[start : start + size].astype(dtype, copy=False)
        device = None if like is None else str(like.device)
        arrays.append({"dtype": dtype.name, "shape": list(shape), "values": part.tolist(), "device": device})
        start += size
    return {"names": None if variables.names is None else list(variables.keys), "arrays": arrays}


def x0_from(told: dict[str, Any]) -> Any:
    """The inverse of `described`."""
    arrays: list[Any] = []
    for a in told["arrays"]:
        array = np.array(a["values"], a["dtype"]).reshape(a["shape"])
        arrays.append(array if a["device"] is None else torch.from_numpy(array).to(a["device"]))
    if told["names"] is not None:
        return dict(zip(told["names"], arrays, strict=True))
    return arrays[0]
