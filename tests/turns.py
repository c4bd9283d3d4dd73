"""Pairs of two lists, of which the default suite takes some for each of the first, and `make test-slow` the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest


def in_turn(
    first: Sequence[Any],
    second: Sequence[Any],
    named: tuple[Callable[[Any], str], Callable[[Any], str]],
    each: int = 1,
    slow: Sequence[Any] = (),
) -> list[Any]:
    """Parameters (a, b), all pairs; in the default suite number i of `first` has numbers i, i + 1, ... of `second`.

    slow: more of `second`, which the default suite never takes.
    """
    found = []
    for i, a in enumerate(first):
        for j, b in enumerate((*second, *slow)):
            marks = [] if j < len(second) and (j - i) % len(second) < each else [pytest.mark.slow]
            found.append(pytest.param(a, b, id=f"{named[0](a)}-{named[1](b)}", marks=marks))
    return found


def variants_slow(cases: Sequence[Any], slow: Sequence[str] = ()) -> list[Any]:
    """The cases, of which the default suite takes the first of each method, unless its id is in `slow`."""
    first = {case.name: case.id for case in reversed(cases)}
    quick = set(first.values()) - set(slow)
    return [case if case.id in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
