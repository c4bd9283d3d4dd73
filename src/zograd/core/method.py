"""A method: law of directions, estimator, space and rule, with the schedules of mu and lr."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from zograd.core.parts import Part, check
from zograd.core.schedules import Schedule, as_schedule
from zograd.core.slots import PerColumn, PerLeaf, PerRow
from zograd.estimators.base import Estimator
from zograd.laws.base import Law
from zograd.learning_rate.auto import as_controller
from zograd.learning_rate.controller import Controller
from zograd.learning_rate.radius import AutoRadius, as_radius
from zograd.rules.base import Rule
from zograd.spaces import Euclidean, Space

A = TypeVar("A")


@dataclass(frozen=True)
class Method(Generic[A]):
    """(law of directions) x (estimator) x (space) x (rule), with the schedules of mu and lr.

    mu: perturbation radius, in units of x (of log x on the positive orthant): a number, a schedule, or "auto", an
    `AutoRadius()`, which fits it to the scale and the noise of the loss. lr: in units of x per unit of direction;
    a number, a schedule, or another controller (`zograd.learning_rate`): "auto" is `AutoRate()`, which measures the
    curvature and stays below the edge of stability, or what the rule declares as `automatic`.
    weight_decay: decoupled, x <- (1 - lr weight_decay) x. name: the menu entry this came from.
    """

    estimator: Estimator[A]
    law: Law
    rule: Rule[A]
    space: Space = Euclidean()
    mu: Schedule | AutoRadius | float | Literal["auto"] = 2.0**-10
    lr: Controller | float | Literal["auto"] = 1e-6
    weight_decay: float = 0.0
    name: str = "custom"

    def __post_init__(self) -> None:
        check(self.estimator, Estimator, "estimator")
        check(self.law, Law, "law")
        check(self.rule, Rule, "rule")
        check(self.space, Space, "space")
        mu = as_radius(self.mu)
        object.__setattr__(self, "mu", mu if isinstance(mu, Controller) else as_schedule(mu))
        object.__setattr__(self, "lr", as_controller(self.lr, self.rule.automatic).suited(self.rule))
        if (why := self.controller.misfit(self)) is not None:
            raise ValueError(why)
        if self.weight_decay and not self.space.flat:
            raise ValueError(
                f"weight decay pulls towards 0, outside of {type(self.space).__name__}; use weight_decay=0"
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay}")
        if not self.radius.peak > 0:
            raise ValueError(f"mu must be > 0, got {self.radius.peak}")
        if self.rule.reads is not None and self.estimator.aux is not self.rule.reads:
            raise TypeError(
                f"{type(self.rule).__name__} reads the {self.rule.reads.__name__} of an estimate, but "
                f"{type(self.estimator).__name__} does not measure it. {self.rule.remedy}"
            )
        for part in self.parts:
            if (why := part.misfit(self)) is not None:
                raise TypeError(why)

    @property
    def controller(self) -> Controller:
        """What chooses the learning rate: lr, as it was read."""
        return self.lr  # type: ignore[return-value]

    @property
    def radius(self) -> Controller:
        """What chooses the radius of the probes: mu, as it was read."""
        return self.mu  # type: ignore[return-value]

    @property
    def measured(self) -> Estimator[A]:
        """The estimator as a run calls it: with the measurements that the controllers of lr and mu need."""
        return self.radius.wrap(self.controller.wrap(self.estimator))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Law, estimator, space and rule."""
        return self.law, self.estimator, self.space, self.rule

    @property
    def slots(self) -> dict[str, float]:
        """All that the parts and the controller keep in the store, by name, with initial values."""
        parts = {name: value for part in self.parts for name, value in part.slots.items()}
        return parts | dict(self.controller.slots(self))

    @property
    def evaluations(self) -> int:
        """Loss evaluations a step, with those of the controller; the most, where steps differ."""
        return self.measured.evaluations

    def why_not_sharded(self) -> str | None:
        """Why the method cannot move weights that are split over processes; None when it can.

        It can when it acts on elements, or on noise alone.
        """
        for part in self.parts:
            if not part.works_on_pieces:
                return f"{type(part).__name__} looks at whole tensors, and other processes hold parts of them"
        if self.space.unit != "element":
            return f"{type(self.space).__name__} couples elements that other processes hold"
        if any(isinstance(initial, PerRow | PerColumn | PerLeaf) for initial in self.slots.values()):
            return "it keeps a number a row or a tensor, of which other processes hold parts"
        return None
