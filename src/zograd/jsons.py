"""JSON as the standard has it: a number that is not finite is null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """Plain data with None in place of NaN and of infinities, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value


def dumps(value: Any, *, indent: int | None = None) -> str:
    """JSON that any reader takes: one line, or lines with an indent.

    >>> dumps({"loss": float("nan"), "steps": 3})
    '{"loss": null, "steps": 3}'
    """
    return json.dumps(finite(value), allow_nan=False, indent=indent)
