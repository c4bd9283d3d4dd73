"""A problem with a domain: one loss, in the coordinates of a space and in flat coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zograd.api.variables import ArrayStore
from zograd.core.run import Method, Record, Run
from zograd.core.vector import Array
from zograd.errors import UsageError
from zograd.laws import Draw, Rademacher
from zograd.oracles import Oracle
from zograd.spaces import Euclidean, Space


def half_decades(low: float, high: float) -> tuple[float, ...]:
    """The grid low, 10^(1/2) low, 10 low, ... up to high, rounded to three digits."""
    if not 0 < low <= high:
        raise UsageError(f"a grid of learning rates needs 0 < low <= high, got {low:g} and {high:g}")
    count = math.floor(2 * math.log10(high / low) + 1e-9)  # never past high
    return tuple(float(f"{low * 10 ** (k / 2):.3g}") for k in range(count + 1))


OUTSIDE = float("nan")
"""The value of an undefined loss; a step that meets it is refused."""

RADII = (1e-4, 1e-3, 1e-2, 1e-1)
"""The radii at which `leaving` counts the probes that leave the domain."""


@dataclass(frozen=True)
class View:
    """A loss in one choice of coordinates, with its start, its space and its domain.

    x0: the start. value: the loss, NaN where it is undefined. inside: whether a point lies in the domain. mu: the
    radius of probes. rates: the learning rates that tuning may choose from, in units of the space. project: the nearest
    point of the domain; None if no formula for it is known.
    """

    x0: Array = field(repr=False)
    value: Callable[[Array], float] = field(repr=False)
    inside: Callable[[Array], bool] = field(repr=False)
    mu: float
    rates: tuple[float, ...] = half_decades(1e-2, 1e2)
    space: Space = field(default_factory=Euclidean)
    project: Callable[[Array], Array] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class GeometryProblem:
    """min f over a domain, in coordinates of a space that fits the domain (`curved`) and in those of R^d (`flat`).

    facts: the definition of the problem, as text. minimum: min f, or 0 if it is unknown and f >= 0. budget: evaluations
    per run. others: more spaces by name, each with the name of the view whose coordinates it uses. flatten: maps
    coordinates of the space to flat ones. measure: further measurements of a point, such as an independent score or the
    distance from the constraint; it takes a view's name and coordinates. picture: the numbers from which the page draws
    a point; same arguments.
    """

    name: str
    title: str
    facts: str
    curved: View
    flat: View
    minimum: float = 0.0
    budget: int = 2000
    others: Mapping[str, tuple[str, View]] = field(default_factory=dict, repr=False)
    flatten: Callable[[Array], Array] = field(default=lambda x: x, repr=False)
    measure: Callable[[str, Array], Mapping[str, float]] = field(default=lambda view, x: {}, repr=False)
    picture: Callable[[str, Array], list[float]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.curved.rates) != len(self.flat.rates):
            raise ValueError(f"{self.name} must give both views as many rates, so that both are tuned alike")

    @property
    def x0(self) -> Array:
        return self.curved.x0

    @property
    def space(self) -> Space:
        return self.curved.space

    @property
    def value(self) -> Callable[[Array], float]:
        return self.curved.value

    @property
    def dim(self) -> int:
        return int(self.x0.size)

    def view(self, name: str) -> View:
        return self.flat if name == "flat" else self.curved

    def about(self) -> str:
        """The complete definition of the problem, as one line of text."""
        start = self.value(self.x0) - self.minimum
        ends = [f"{v.rates[0]:g} .. {v.rates[-1]:g}" for v in (self.curved, self.flat)]
        return (
            f"{self.facts}; {self.dim} numbers, mu = {self.curved.mu:g}, rates {ends[0]} in the space; "
            f"{self.flat.x0.size}, {self.flat.mu:g}, {ends[1]} flat; starts at f - min f = {start:.4g}"
        )


@dataclass
class Census:
    """Counts of the points of a run, and of those outside of the domain.

    probes: points that the method evaluated. iterates: points that it moved to. refused: steps that met an undefined
    loss. reverted: moves that were undone.
    """

    probes: int = 0
    probes_outside: int = 0
    iterates: int = 0
    iterates_outside: int = 0
    refused: int = 0
    reverted: int = 0

    def lines(self) -> dict[str, int]:
        return dict(vars(self))

    def __add__(self, other: Census) -> Census:
        return Census(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def leaving(view: View, x: Array, radii: Sequence[float] = RADII, n: int = 100) -> dict[float, float]:
    """For each radius mu, the share of 2 n probes x +- mu v, with random signs v, that leave the domain."""
    store = ArrayStore(x, view.space)
    found = {}
    for mu in radii:
        v = [mu * Rademacher()(Draw(0, 0, j, store.shapes, store.gram)) for j in range(n)]
        found[mu] = sum(not view.inside(store.point(at)) for u in v for at in (u, -1.0 * u)) / (2 * n)
    return found


FLAT_RATES = half_decades(1e-5, 1e-1)


class Walk:
    """Runs a method on a view, one step at a time, with one of four treatments of points outside of the domain.

    outside: "never" and "leave" do nothing ("never" is for spaces, which never leave the domain). "project" evaluates
    the loss at the nearest point of the domain, and moves each iterate there. "revert" undoes a move out of the domain.
    Raises ValueError for "project" if the view has no projection.
    """

    def __init__(self, view: View, method: Method[Any], outside: str = "never", seed: int = 0) -> None:
        if outside == "project" and view.project is None:
            raise ValueError("this problem has no projection onto its domain; use outside='revert'")
        self.view, self.outside, self.census = view, outside, Census()
        self.store = ArrayStore(view.x0, method.space)
        self.run: Run[Any] = Run(self.store, method, seed)

    @property
    def x(self) -> Array:
        """The iterate, as a copy."""
        return self.store.array.copy()

    @property
    def value(self) -> float:
        return self.view.value(self.x)

    def step(self) -> Record:
        before = self.x
        record = self.run.step(self.oracle)
        if record.refused:
            self.census.refused += 1
            return record
        self.census.iterates += 1
        if not self.view.inside(self.x):
            self.census.iterates_outside += 1
            if self.outside == "project" and self.view.project is not None:
                self.store.array[:] = self.view.project(self.x)
            elif self.outside == "revert":
                self.store.array[:] = before
                self.census.reverted += 1
        return record

    @property
    def oracle(self) -> Oracle:
        def evaluate(store: Any, queries: Any, key: int) -> list[float]:
            with np.errstate(all="ignore"):
                return [self.loss(store.point(query.at)) for query in queries]

        return evaluate

    def loss(self, x: Array) -> float:
        """f at a probe; counts the probe."""
        self.census.probes += 1
        if not self.view.inside(x):
            self.census.probes_outside += 1
            if self.outside == "project" and self.view.project is not None:
                x = self.view.project(x)
        return float(self.view.value(x))
