"""`Generator`: `AskTell` in the generator standard of gest-api, which libEnsemble, Xopt and Optimas speak."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from zograd.api.ask_tell import AskTell
from zograd.api.trials import Trial
from zograd.core.method import Method
from zograd.core.seeds import Seed
from zograd.errors import needs

try:
    from gest_api import Generator as Standard
    from gest_api.vocs import ContextualVariable, ContinuousVariable, ExploreObjective, MaximizeObjective
except ImportError:
    raise needs("zograd.api.gest", "gest-api", "gest") from None


class Generator(Standard):  # type: ignore[misc]
    """Points for the continuous variables of a VOCS, from the values of its one objective.

    The search runs in the unit cube: u = (x - low) / (high - low), so that variables of different sizes are alike. It
    starts at the default values of the variables, and in the middle of those that have none.

    vocs: `gest_api.vocs.VOCS` with continuous variables and one objective, to be minimized or maximized. Constants are
        part of each point; observables are ignored. ValueError for constraints and for other kinds of variables.
    method, budget, lease, seed: see `zograd.AskTell`. A method whose step has many points (`rank`, "cma") suits an
        ensemble.

    `suggest(n)` gives n points, each with an "_id", or raises ValueError where fewer are open: the next ones depend on
    answers that are missing. `suggest()` gives all that are open. `ingest` takes results in any order; one whose
    objective is missing or not finite is a failed evaluation. Results that this generator did not suggest cannot be
    used, and are left out with a warning.

        >>> from gest_api.vocs import VOCS
        >>> vocs = VOCS(variables={"a": [0.0, 10.0], "b": [-1.0, 1.0]}, objectives={"f": "MINIMIZE"})
        >>> generator = Generator(vocs, "rank")
        >>> points = generator.suggest()
        >>> generator.ingest([{**p, "f": p["a"] ** 2 + p["b"] ** 2} for p in points])
    """

    returns_id = True

    def __init__(
        self,
        vocs: Any,
        method: str | Method[Any] | Any = "zo_sgd",
        *,
        budget: int | None = None,
        lease: float = 0.0,
        seed: Seed = 0,
    ) -> None:
        super().__init__(vocs)
        self.vocs = vocs
        self.names = list(vocs.variables)
        (self.objective,) = vocs.objectives
        domains = np.array([vocs.variables[name].domain for name in self.names], dtype=np.float64)
        self.low, self.width = domains[:, 0], domains[:, 1] - domains[:, 0]
        given = [vocs.variables[name].default_value for name in self.names]
        start = [0.5 if x is None else (x - a) / w for x, a, w in zip(given, self.low, self.width, strict=True)]
        self.loop = AskTell(
            np.array(start, dtype=np.float64),
            method,
            bounds=[(0.0, 1.0)],
            budget=budget,
            maximize=isinstance(vocs.objectives[self.objective], MaximizeObjective),
            lease=lease,
            seed=seed,
        )

    def _validate_vocs(self, vocs: Any) -> None:
        for name, variable in vocs.variables.items():
            if not isinstance(variable, ContinuousVariable) or isinstance(variable, ContextualVariable):
                raise ValueError(
                    f"variable {name!r} is a {type(variable).__name__}; zograd searches continuous variables, given "
                    f"as [low, high]"
                )
            if not all(map(math.isfinite, variable.domain)):
                raise ValueError(f"the domain of variable {name!r} is {variable.domain}; give two finite numbers")
        if len(vocs.objectives) != 1 or any(isinstance(o, ExploreObjective) for o in vocs.objectives.values()):
            raise ValueError(f"zograd takes one objective, MINIMIZE or MAXIMIZE; the VOCS has {dict(vocs.objectives)}")
        if vocs.constraints:
            raise ValueError(
                f"zograd takes no constraints here; the VOCS has {', '.join(vocs.constraints)}. Give bounds by the "
                f"domains of variables"
            )

    def suggest(self, num_points: int | None = None) -> list[dict[str, Any]]:
        """The next points, each with its "_id"."""
        if num_points is not None:
            free = self.loop.free
            if free < num_points:
                raise ValueError(
                    f"{num_points} points were asked for, and {free} are open; ingest results first, or take a method "
                    f"whose step has more points, such as methods.rank(n={max(num_points, 2)})"
                )
        return [self._point(trial) for trial in self.loop.trials(num_points)]

    def ingest(self, results: list[dict[str, Any]]) -> None:
        """Values of suggested points. ValueError for an unknown "_id"; results of others are left out."""
        left_out = 0
        for result in results:
            number = result.get("_id")
            if number is None:
                left_out += 1
                continue
            value = result.get(self.objective)
            number = int(number)
            receipt = self.loop.report_failure(number) if value is None else self.loop.report(number, value)
            if receipt.status == "unknown":
                raise ValueError(f"no point with the _id {number} was suggested")
        if left_out:
            warnings.warn(f"{left_out} results have no _id: zograd learns from points of its own only", stacklevel=2)

    def recommend(self) -> dict[str, float]:
        """The point to use now."""
        return self._named(self.loop.recommend())

    def _named(self, u: Any) -> dict[str, float]:
        x = np.clip(self.low + u * self.width, self.low, self.low + self.width)
        return {name: float(value) for name, value in zip(self.names, x, strict=True)}

    def _point(self, trial: Trial) -> dict[str, Any]:
        constants = {name: constant.value for name, constant in self.vocs.constants.items()}
        return {**self._named(trial.x), **constants, "_id": trial.id}
