"""`lr="auto"` for accelerated proximal descent: a backtracking search whose trials are steps on the tape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from zograd.estimators.base import Estimator
from zograd.estimators.extrapolated import Extrapolated
from zograd.learning_rate.controller import Controller, State

if TYPE_CHECKING:
    from zograd.core.method import Method

A = TypeVar("A")


@dataclass(frozen=True)
class Backtracking(Controller):
    """lr_t: the rate that `estimators.Extrapolated` found by judging the step before (its formulas stand there).

    The state is that one number; it follows from the meter `rate` on the tape. limit: never a larger lr than this.
    """

    limit: float = math.inf
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"limit is the largest learning rate allowed and must be > 0, got {self.limit}")

    @property
    def peak(self) -> float:
        return self.limit

    def wrap(self, estimator: Estimator[A]) -> Estimator[A]:
        return replace(cast(Any, estimator), check=True)  # type: ignore[no-any-return]

    def misfit(self, method: Method[Any]) -> str | None:
        if isinstance(method.estimator, Extrapolated):
            return None
        return (
            f"Backtracking judges steps that Extrapolated knows, and the estimator is "
            f"{type(method.estimator).__name__}; use methods.fd_fista(prox), or give lr a number"
        )

    def initial(self) -> State:
        return {"rate": 0.0}

    def observe(self, state: State, loss: float, meters: Mapping[str, float]) -> None:
        if "rate" in meters:
            state["rate"] = meters["rate"]

    def moved(self, state: State, lr: float) -> None:
        """Nothing: the next step judges this one."""

    def rate(self, state: State, step: int, q: int = 1, beta: float = 0.0, unit: float = 1.0) -> float:
        """The rate of a step; 0 as long as nothing was measured."""
        return min(float(state["rate"]), self.limit) * unit
