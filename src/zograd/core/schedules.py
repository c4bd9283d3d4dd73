"""Schedules of the learning rate and of the radius mu: frozen functions of the step number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

E = TypeVar("E")
R = TypeVar("R")
Shape: TypeAlias = Literal["constant", "linear", "cosine", "table"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """peak * w(t) * s(t): warm-up w(t) = min(1, (t+1)/warmup), then the shape s from 1 to `end` over `total` steps.

    constant: s = 1.   linear: s = 1 - (1 - end) u.   cosine: s = end + (1 - end) (1 + cos(pi u)) / 2,
    with u = (t - warmup) / (total - warmup) clipped to [0, 1].
    """

    peak: float
    shape: Shape = "constant"
    total: int = 0
    warmup: int = 0
    end: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        if self.shape not in ("constant", "linear", "cosine"):
            raise ValueError(
                f"unknown schedule shape {self.shape!r}; use 'constant', 'linear' or 'cosine', or a `Table` of values"
            )
        if self.shape != "constant" and self.total <= self.warmup:
            raise ValueError(
                f"a {self.shape} schedule needs total > warmup steps, got total={self.total}, warmup={self.warmup}"
            )

    def __call__(self, step: int) -> float:
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.shape == "constant":
            return self.peak * rise
        u = min(max((step - self.warmup) / (self.total - self.warmup), 0.0), 1.0)
        fall = 1.0 - u if self.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * u))
        return self.peak * rise * (self.end + (1.0 - self.end) * fall)

    # A schedule of the learning rate is a controller (`zograd.learning_rate.Controller`) that measures nothing.

    measures: ClassVar[bool] = False
    standstill: ClassVar[str] = ""

    def rate(self, state: dict[str, Any], step: int, q: int = 1, beta: float = 0.0, unit: float = 1.0) -> float:
        return self(step)

    def initial(self) -> dict[str, Any]:
        return {}

    def observe(self, state: dict[str, Any], loss: float, meters: Mapping[str, float]) -> None:
        """Nothing that happens changes a schedule."""

    def moved(self, state: dict[str, Any], lr: float) -> None:
        """Nothing that happens changes a schedule."""

    def share(self, state: dict[str, Any]) -> float:
        return 0.0

    def suited(self, rule: object) -> Schedule:
        return self

    def wrap(self, estimator: E) -> E:
        return estimator

    def slots(self, method: object) -> Mapping[str, float]:
        return {}

    def repeats(self, state: dict[str, Any], step: int) -> int:
        return 1

    def ready(self, state: dict[str, Any]) -> bool:
        return True

    def failed(self, state: dict[str, Any]) -> None:
        """Nothing that happens changes a schedule."""

    def revise(self, state: dict[str, Any], method: object, estimate: E, rates: R) -> tuple[E, R]:
        return estimate, rates

    def taken(self, state: dict[str, Any], method: object, record: object) -> None:
        """Nothing that happens changes a schedule."""

    def misfit(self, method: object) -> str | None:
        return None


@dataclass(frozen=True, slots=True)
class Table(Schedule):
    """peak * w(t) * values, interpolated: the first value holds at the end of warm-up, the last at step total - 1.

        >>> shape = Table(0.5, total=5, values=(1.0, 0.5, 0.25))
        >>> [shape(t) for t in range(6)]
        [0.5, 0.375, 0.25, 0.1875, 0.125, 0.125]

    `zograd.learning_rate.refined` makes one from a run.
    """

    shape: Shape = "table"
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check(self)
        if not self.values or not all(0 <= v < math.inf for v in self.values):
            raise ValueError(f"values={self.values!r}; a table needs at least one value, all finite and >= 0")
        if self.total <= self.warmup:
            raise ValueError(f"a table needs total > warmup steps, got total={self.total}, warmup={self.warmup}")

    def __call__(self, step: int) -> float:
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        last = len(self.values) - 1
        at = last * min(max((step - self.warmup) / max(self.total - 1 - self.warmup, 1), 0.0), 1.0)
        k = min(int(at), max(last - 1, 0))
        value = self.values[k] + (at - k) * (self.values[min(k + 1, last)] - self.values[k])
        return self.peak * rise * value


def _check(schedule: Schedule) -> None:
    """ValueError where a rate would be negative or no number."""
    for name, value in (("peak", schedule.peak), ("end", schedule.end), ("warmup", schedule.warmup)):
        if not 0 <= value < math.inf:
            raise ValueError(f"a schedule needs a finite {name} >= 0, got {value}")


def as_schedule(value: Any) -> Schedule:
    """A number is a constant schedule."""
    if isinstance(value, str):
        raise ValueError(f"expected a number or a Schedule, got {value!r}")
    return value if isinstance(value, Schedule) else Schedule(float(value))


def constant(value: float, warmup: int = 0) -> Schedule:
    """value, after a linear rise over `warmup` steps."""
    return Schedule(value, "constant", 0, warmup)


def linear(peak: float, total: int, *, warmup: int = 0, end: float = 0.0) -> Schedule:
    """From `peak` to `end * peak` along a line."""
    return Schedule(peak, "linear", total, warmup, end)


def cosine(peak: float, total: int, *, warmup: int = 0, end: float = 0.0) -> Schedule:
    """From `peak` to `end * peak` along half a cosine."""
    return Schedule(peak, "cosine", total, warmup, end)
