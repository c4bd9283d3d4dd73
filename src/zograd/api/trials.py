"""Trials: points with a number, which are given out, answered in any order, and each counted once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from zograd.core.record import Record

Status: TypeAlias = Literal["counted", "repeated", "late", "unknown"]


class FeedbackError(TypeError):
    """An order was told to a method that needs values, or a comparison to one that ranks."""


@dataclass(frozen=True)
class Trial:
    """A point that is to be evaluated.

    id: its number, 0, 1, 2, ... over the whole run; the same seed gives the same points the same numbers. x: in the
    form of x0. group: id of the first trial of its request; trials of a group belong together and are to be evaluated
    under the same conditions. rival: id of the trial with which the method compares this one; None where it does not
    compare pairs.
    """

    id: int
    x: Any
    group: int
    rival: int | None = None


@dataclass(frozen=True)
class Receipt:
    """What became of an answer.

    status: "counted"; or one of three reasons why it was not, and nothing changed: "repeated" (the trial has an answer
    already), "late" (its step is finished), "unknown" (no such trial was given out). trials: the ids that it is for.
    record: of the step that this answer finished, None where it finished none.
    """

    status: Status
    trials: tuple[int, ...]
    record: Record | None = None

    @property
    def counted(self) -> bool:
        return self.status == "counted"


@dataclass(frozen=True)
class Answer:
    """A value as it is kept: NaN for a failed evaluation. ranked: it is a rank, 0 for the best, and not a value."""

    id: int
    value: float
    ranked: bool = False


class Desk:
    """The trials of the open request: who has them, and what was answered.

    lease: seconds for which a trial that was given out is not given to somebody else.
    """

    def __init__(self, lease: float) -> None:
        if not lease >= 0:
            raise ValueError(f"lease={lease} must be >= 0, in seconds")
        self.lease = lease
        self.first = self.size = 0
        self.asked = -1
        """The first trial of the request of which somebody was given trials last."""
        self.answers: dict[int, Answer] = {}
        self._given: dict[int, tuple[int, float]] = {}

    def open(self, first: int, size: int) -> None:
        """The request with the trials first, ..., first + size - 1; the same one again keeps its answers."""
        if (first, size) != (self.first, self.size):
            self.first, self.size = first, size
            self.answers.clear()
            self._given.clear()

    def status(self, number: int) -> Status:
        """What an answer to this trial would be."""
        if not 0 <= number < self.first + self.size:
            return "unknown"
        if number < self.first:
            return "late"
        return "repeated" if number in self.answers else "counted"

    @property
    def unanswered(self) -> list[int]:
        return [i for i in range(self.first, self.first + self.size) if i not in self.answers]

    def free(self, now: float) -> list[int]:
        """Unanswered trials that nobody has: those first that were given out least often, and longest ago."""
        times = [(*self._given.get(i, (0, -math.inf)), i) for i in self.unanswered]
        return [i for _, since, i in sorted(times) if since == -math.inf or since + self.lease <= now]

    def give(self, numbers: Sequence[int], now: float) -> None:
        """Note who was given out."""
        if numbers:
            self.asked = self.first
        for i in numbers:
            self._given[i] = (self._given.get(i, (0, 0.0))[0] + 1, now)

    def wait(self, now: float) -> float | None:
        """Seconds until the next unanswered trial is free; None where none is unanswered."""
        ends = [self._given[i][1] + self.lease - now if i in self._given else 0.0 for i in self.unanswered]
        return max(min(ends), 0.0) if ends else None

    def complete(self) -> list[Answer] | None:
        """The answers in order, once all are there."""
        if self.size == 0 or len(self.answers) < self.size:
            return None
        return [self.answers[i] for i in range(self.first, self.first + self.size)]

    def __getstate__(self) -> dict[str, Any]:
        """Without who has which trial: a clock counts in its own process only."""
        return {**self.__dict__, "_given": {}}


now = time.monotonic
