"""Pairs of two lists, of which the default suite takes some for each of the first, and `make test-slow` the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest


def in_turn(
    first: Sequence[Any], second: Sequence[Any], named: tuple[Callable[[Any], str], Callable[[Any], str]], each: int = 1
) -> list[Any]:
    """Parameters (a, b), all pairs; in the default suite number i of `first` has numbers i, i + 1, ... of `second`."""
    found = []
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            marks = [] if (j - i) % len(second) < each else [pytest.mark.slow]
            found.append(pytest.param(a, b, id=f"{named[0](a)}-{named[1](b)}", marks=marks))
    return found
