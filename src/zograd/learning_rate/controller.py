"""The protocol of learning-rate controllers, which choose the rate of each step. Schedules are those without state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.core.query import Estimate
    from zograd.core.record import Record
    from zograd.estimators.base import Estimator
    from zograd.rules.base import Rule
    from zograd.stores import Rate

A = TypeVar("A")
State: TypeAlias = dict[str, Any]
"""Plain numbers and lists of them. The run owns it, and a replay makes it anew from the losses, meters and rates."""


@runtime_checkable
class Controller(Protocol):
    """Chooses the learning rate of each step. Frozen: all that changes is in the state, which the run hands in.

    In a step that is taken, `observe` gets what was measured, `rate` answers, and `moved` gets the rate that was used.
    Derive a controller of your own from this class: what it does not define is as for a schedule.
    """

    @property
    def peak(self) -> float:
        """No rate is larger."""
        ...

    @property
    def measures(self) -> bool:
        """Whether rates follow from measurements. If not they depend on the step alone, and the state stays empty."""
        return False

    @property
    def standstill(self) -> str:
        """What a run is told whose rates were all 0."""
        return ""

    def rate(self, state: State, step: int, q: int = 1, beta: float = 0.0, unit: float = 1.0) -> float:
        """The learning rate of a step. q: directions that the estimate is a mean over; beta: momentum of the rule;
        unit: what lr is worth in the rule (`Rule.units`)."""
        ...

    def initial(self) -> State:
        """The state before the first step."""
        return {}

    def observe(self, state: State, loss: float, meters: Mapping[str, float]) -> None:
        """Take in what a step measured, before its rate is chosen (live, and when a tape is replayed)."""

    def moved(self, state: State, lr: float) -> None:
        """Take in how far the step then moves along the estimate, with momentum in the end: lr / (unit (1 - beta))."""

    def share(self, state: State) -> float:
        """The share of the largest stable learning rate that steps now take; 0 where that is not known."""
        return 0.0

    def suited(self, rule: Rule[Any]) -> Controller:
        """The controller for this rule: itself, or one that knows what the rule makes of an estimate."""
        return self

    def wrap(self, estimator: Estimator[A]) -> Estimator[A]:
        """The estimator as the run calls it: one that also measures what the controller needs."""
        return estimator

    def slots(self, method: Method[Any]) -> Mapping[str, float]:
        """What it keeps of the size of the weights, by name, with initial values (`zograd.core.slots`)."""
        return {}

    def repeats(self, state: State, step: int) -> int:
        """How often f(x) is evaluated where a measuring estimator evaluates it: twice shows the noise."""
        return 1

    def ready(self, state: State) -> bool:
        """Whether steps may move: a radius that is still looked for says no."""
        return True

    def failed(self, state: State) -> None:
        """Take in, in place of `observe`, a step that has no estimate, because its losses were not finite."""
        return None

    def revise(
        self, state: State, method: Method[Any], estimate: Estimate[A], rates: tuple[Rate, ...]
    ) -> tuple[Estimate[A], tuple[Rate, ...]]:
        """The step as it is taken, after `observe` and `rate`: another one where the last step is to be taken back."""
        return estimate, rates

    def taken(self, state: State, method: Method[Any], record: Record) -> None:
        """Take in the step that was taken, as the tape keeps it (live, and when a tape is replayed)."""
        return None

    def misfit(self, method: Method[Any]) -> str | None:
        """Why this controller cannot choose the rates of this method, as a sentence; None when it can."""
        return None
