"""Linear programs over bits, small enough to be enumerated: knapsacks, independent sets, tours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise, permutations
from typing import Literal

import numpy as np
import numpy.typing as npt

from zograd.core.vector import Array

MOST = 20
"""Bits up to which all points are enumerated."""


@dataclass(frozen=True, eq=False)
class BinaryProgram:
    """min cost x over x in {0, 1}^n with c(x) = rows x - right <= 0 ("at most"), or c(x) = 0 ("equal").

    cost: (n,). rows: (constraints, n). right: (constraints,).
    """

    cost: Array
    rows: Array
    right: Array
    kind: Literal["at most", "equal"] = "at most"

    @property
    def bits(self) -> int:
        """n."""
        return len(self.cost)

    def violation(self, x: Array) -> Array:
        """c(x), for one point or for a point a row."""
        return np.asarray(x @ self.rows.T - self.right)

    def feasible(self, x: Array) -> npt.NDArray[np.bool_]:
        """Whether a point, or the point of each row, meets the constraints (to 1e-9)."""
        c = self.violation(x)
        return np.asarray(np.all(c <= 1e-9 if self.kind == "at most" else np.abs(c) <= 1e-9, axis=-1))

    @cached_property
    def points(self) -> Array:
        """All 2^n points, a row each. Raises ValueError above 20 bits."""
        if self.bits > MOST:
            raise ValueError(f"{self.bits} bits have {2**self.bits} points; enumeration is for at most {MOST} bits")
        return (np.arange(2**self.bits)[:, None] >> np.arange(self.bits) & 1).astype(np.float64)

    def optimum(self) -> float:
        """The least cost of a feasible point, by enumeration; infinity where there is none."""
        return float(np.min(self.points @ self.cost, where=self.feasible(self.points), initial=np.inf))

    def dual(self, multipliers: npt.ArrayLike) -> float:
        """q(lam) = min_x cost x + lam c(x), by enumeration. For lam >= 0 ("equal": any lam) it is at most `optimum`."""
        return float(np.min(self.points @ self.cost + self.violation(self.points) @ np.asarray(multipliers)))


def knapsack(seed: int, items: int = 16, limits: int = 2) -> BinaryProgram:
    """Values 10 .. 30 and weights 1 .. 20, uniform whole numbers; each limit is half of all weights, rounded down."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 21, (limits, items))
    right = (weights.sum(1) // 2).astype(np.float64)
    return BinaryProgram(-rng.integers(10, 31, items).astype(np.float64), weights.astype(np.float64), right)


def independent_set(seed: int, vertices: int = 14, density: float = 0.3) -> BinaryProgram:
    """The largest set of vertices without an edge between two of them; each edge is there with this probability."""
    rng = np.random.default_rng(seed)
    edges = [pair for pair in combinations(range(vertices), 2) if rng.random() < density]
    rows = np.array([[float(i in edge) for i in range(vertices)] for edge in edges]).reshape(-1, vertices)
    return BinaryProgram(-np.ones(vertices), rows, np.ones(len(edges)))


def salesman(seed: int) -> BinaryProgram:
    """The shortest tour of five uniform points of a square: a bit an edge, two edges at each point.

    Five points have no two disjoint cycles, so the degrees suffice. `shortest_tour` enumerates the tours.
    """
    places = np.random.default_rng(seed).random((5, 2))
    edges = list(combinations(range(5), 2))
    cost = np.array([np.linalg.norm(places[a] - places[b]) for a, b in edges])
    rows = np.array([[float(i in edge) for edge in edges] for i in range(5)])
    return BinaryProgram(cost, rows, np.full(5, 2.0), "equal")


def shortest_tour(program: BinaryProgram) -> float:
    """The length of the shortest of the 12 tours of a program of `salesman`."""
    length = dict(zip(combinations(range(5), 2), program.cost.tolist(), strict=True))
    tours = [(0, *rest, 0) for rest in permutations(range(1, 5))]
    return min(float(sum(length[min(a, b), max(a, b)] for a, b in pairwise(tour))) for tour in tours)
