"""What a server searches: x0, method, bounds and budget, as plain data that the database keeps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from zograd.api.ask_tell import AskTell
from zograd.api.options import with_options
from zograd.api.variables import Variables
from zograd.errors import UsageError


@dataclass(frozen=True)
class Setup:
    """The arguments of `AskTell` as JSON.

    x0: a number, lists of numbers, or numbers and lists by name. settings: of the method. bounds: a pair [low, high]
    for all variables or one for each, null for no bound; for an x0 with names also by name. lease: seconds; infinite
    where a trial that was given out is given to nobody else while the server runs.
    """

    x0: Any
    method: str = "zo_sgd"
    settings: dict[str, Any] = field(default_factory=dict)
    bounds: Any = None
    budget: int | None = None
    maximize: bool = False
    lease: float = 600.0
    seed: int = 0

    def loop(self) -> AskTell:
        """The run at its start. Raises ValueError or TypeError for what cannot be."""
        variables = Variables(self.x0)
        return AskTell(
            self.x0, self._method(variables.dim), bounds=self._bounds(variables), budget=self.budget,
            maximize=self.maximize, lease=self.lease, seed=self.seed,
        )  # fmt: skip

    def _method(self, dim: int) -> Any:
        """The name, or with settings the method of that name; what they leave out is as in `minimize`."""
        return with_options(self.method, self.settings, dim)

    def _bounds(self, variables: Variables) -> Any:
        if not isinstance(self.bounds, dict):
            return self.bounds
        names = variables.names or ()
        if unknown := sorted(self.bounds.keys() - set(names)):
            raise UsageError(f"bounds name {unknown[0]!r}, but x0 has {', '.join(names) or 'no names'}")
        sizes = zip(names, variables.sizes, strict=True)
        return [self.bounds.get(name) or (None, None) for name, size in sizes for _ in range(size)]

    def dumps(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def loads(cls, text: str) -> Setup:
        return cls(**json.loads(text))

    def differs(self, other: Setup) -> str | None:
        """The first setting in which the other is different; None where there is none."""
        mine, its = json.loads(self.dumps()), json.loads(other.dumps())
        return next((f.name for f in fields(self) if mine[f.name] != its[f.name]), None)
