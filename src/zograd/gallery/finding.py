"""What a script of the gallery finds: numbers, claims that the numbers prove or not, and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Values: TypeAlias = Sequence[float] | npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence, and whether the numbers of this run prove it. `full_only`: it needs the size of the full run."""

    text: str
    holds: bool | np.bool_
    full_only: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "holds", bool(self.holds))  # what NumPy compares is no bool


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a figure: y over x, joined, or as `points`; `low` and `high` are the edges of a band around it."""

    name: str
    x: Values
    y: Values
    low: Values = ()
    high: Values = ()
    points: bool = False

    def __post_init__(self) -> None:
        sizes = {len(self.x), len(self.y), *(len(edge) for edge in (self.low, self.high) if len(edge))}
        if len(sizes) != 1 or not len(self.x):
            raise ValueError(
                f"line {self.name!r}: x has {len(self.x)} values, y {len(self.y)}, low {len(self.low)}, high "
                f"{len(self.high)}; pass as many of each, at least one (low and high may be left out)"
            )


@dataclass(frozen=True, slots=True)
class Figure:
    """Curves in one frame. `log`: axes with a logarithmic scale, "", "x", "y" or "xy". `equal`: one scale for both."""

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    log: str = ""
    equal: bool = False

    def __post_init__(self) -> None:
        if self.log not in ("", "x", "y", "xy"):
            raise ValueError(f"figure {self.title!r}: log={self.log!r}; pass '', 'x', 'y' or 'xy'")
        if not self.lines:
            raise ValueError(f"figure {self.title!r} has no lines; pass at least one Line")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a script. `numbers` by name, finite or NaN where something could not be measured."""

    numbers: Mapping[str, float]
    claims: tuple[Claim, ...]
    figures: tuple[Figure, ...] = field(default=())

    def __post_init__(self) -> None:
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in self.numbers.items()}
        object.__setattr__(self, "numbers", plain)  # what NumPy counts is no number of JSON
        bad = [name for name, value in self.numbers.items() if math.isinf(value)]
        if bad:
            raise ValueError(f"numbers {', '.join(bad)} are infinite; say in a claim what diverged")
        if not self.claims:
            raise ValueError("a finding without a claim shows nothing; pass at least one Claim")
