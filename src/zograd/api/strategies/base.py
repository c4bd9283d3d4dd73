"""What a strategy is: a generator that yields points and receives their values, as an estimator does within a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from zograd.api.ending import End
from zograd.api.variables import Flat, Variables
from zograd.core.messages import message
from zograd.core.record import Record
from zograd.core.vector import Slot, Vector

Values: TypeAlias = Sequence[float]
Routine: TypeAlias = "Generator[Points, Values, End]"
"""Yields points, receives a value for each (NaN or infinity: a failed evaluation), returns why it ended."""


UNLIKE = 1e3
"""Ratio of the widths of bounds from which they are taken for units of the variables."""


VANISHING = 1e-100
"""Widths of bounds below which their squares, or products of them, leave the range of numbers."""

ELSEWHERE = Vector(((Slot("strategy"), 1.0),))
"""In the records of strategies that are not of the menu: a move that no seed gives back, which a replay refuses. A step
in which all values were equal has an empty vector there as well."""


@message()
class Points:
    """Points of one request, made when they are read; each is a fresh flat array. They share data and randomness.

    rows: for each point the terms of a finite sum that are wanted, None: all of them.
    """

    make: Callable[[int], Flat]
    n: int
    rows: Sequence[Sequence[int] | None] | None = None

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Flat]:
        return (self.make(i) for i in range(self.n))

    def cost(self, terms: int) -> int:
        """Evaluations that the request counts for: with a finite sum, the number of terms that are taken."""
        whole = max(terms, 1)
        if self.rows is None:
            return whole * self.n
        return sum(whole if rows is None else len(rows) for rows in self.rows)


def points(arrays: Sequence[Flat]) -> Points:
    """Points that are there already; readers get copies."""
    return Points(lambda i: arrays[i].copy(), len(arrays))


def rms(x: Flat) -> float:
    """The root mean square of x in float64."""
    with np.errstate(over="ignore"):
        size = float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
    if math.isfinite(size):
        return size
    most = float(np.max(np.abs(x)))  # squares leave the range of numbers
    return most * float(np.sqrt(np.mean(np.square(x / most, dtype=np.float64))))


def uneven(seed: int, dim: int) -> Flat:
    """A direction along which no formula leaves f as it is: random signs, of sizes from 1/2 to 3/2.

    With equal sizes, x[0] - x[1] is the same along every second direction.
    """
    rng = np.random.default_rng(seed)
    return rng.choice([-1.0, 1.0], dim) * rng.uniform(0.5, 1.5, dim)


@dataclass(frozen=True)
class Problem:
    """What a strategy may know of a problem.

    variables: x0. lower, upper: bounds of each variable, or None. seed: of all randomness. terms: of a finite sum, 0
    when f is none. shared: whether the points of a request share data or randomness that the next one does not;
    batches: whether these are batches of data.
    """

    variables: Variables
    lower: Flat | None = None
    upper: Flat | None = None
    seed: int = 0
    terms: int = 0
    shared: bool = False
    batches: bool = False
    budget: int = 10_000
    thorough: bool = False
    """Whether the whole budget may be used to look for a better minimum than the first."""

    @property
    def x0(self) -> Flat:
        return self.variables.flat

    @property
    def dim(self) -> int:
        return self.variables.dim

    @property
    def radius(self) -> float:
        """A length to start from: 0.3 of the bounds' mean width, without bounds 0.3 max(1, root mean square of x0)."""
        if self.lower is not None and self.upper is not None:
            width = float(np.mean(self.upper - self.lower))
            if math.isfinite(width) and width > 0:
                return 0.3 * width
        return 0.3 * max(1.0, rms(self.x0))

    @property
    def fixed(self) -> bool:
        """Whether bounds fix all variables."""
        return self.lower is not None and self.upper is not None and bool(np.all(self.lower == self.upper))

    @property
    def widths(self) -> Flat | None:
        """The widths of finite bounds where some are a thousand times others, or squares of all of them would vanish.

        1 for fixed variables; None elsewhere.
        """
        if self.lower is None or self.upper is None:
            return None
        width = self.upper.astype(np.float64) - self.lower
        free = width > 0
        least, most = np.min(width[free], initial=math.inf), np.max(width)
        if not math.isfinite(most) or (most <= UNLIKE * least and most > VANISHING):
            return None
        return np.where(free, width, 1.0)

    def inside(self, x: Flat) -> Flat:
        """x with each variable moved to its nearest bound."""
        return x if self.lower is None or self.upper is None else np.clip(x, self.lower, self.upper)


@dataclass
class Trace:
    """What a run has come to; strategies write it, drivers and results read it.

    left: evaluations that may still be asked for. position: the point that is recommended now, as a callable, so that
    nothing of the size of x is copied before it is wanted. fun: the value there where it is known.
    """

    problem: Problem
    left: int
    position: Callable[[], Flat]
    fun: float | None = None
    values_at_start: list[float] = field(default_factory=list)
    noise: float = math.nan
    """Standard deviation of a value; 0 where values repeat, NaN where that is not known."""
    rough: bool = False
    """Whether values repeat, but were found to be rough."""
    mu: float | None = None
    lr: float | None = None
    stationary: bool | None = None
    """Whether the slope has gone at the recommended point, by the strategy's own measure; None where it has none."""
    strategies: list[str] = field(default_factory=list)
    reason: str = ""
    method: Any = None
    """The `Method`, where one of the menu is at work."""
    control: dict[str, Any] = field(default_factory=dict)
    standing: Any = None
    """With constraints: the recommended point with f and c there, see `zograd.api.strategies.constrained.Standing`."""
    on_step: Callable[[Record], None] = lambda record: None
    steps: int = 0

    def began(self, name: str) -> None:
        """A strategy starts to work."""
        self.strategies.append(name)

    def step(self, record: Record) -> None:
        """A step of a method of the menu is done."""
        self.steps += 1
        self.on_step(record)

    def counted(self, losses: Values) -> None:
        """An iteration of another strategy is done."""
        finite = [f for f in losses if math.isfinite(f)]
        loss = min(finite) if finite else math.nan
        move = ELSEWHERE if finite and min(finite) < max(finite) else Vector()
        self.step(Record(self.steps, move, loss, (), None, (), len(losses), not finite, tuple(losses)))


class Strategy(Protocol):
    """A way to search: `strategy(trace)` is a `Routine`.

    Two runs that are told the same values ask for the same points, so that the values alone are the tape of a run.
    """

    @property
    def name(self) -> str:
        """What the result calls it, with the library that it is from."""

    def __call__(self, trace: Trace, /) -> Routine: ...
