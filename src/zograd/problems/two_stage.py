"""A robust knapsack in two stages: choose orders, see which items are degraded, then repair or outsource."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zograd.core.vector import Array


@dataclass(frozen=True)
class TwoStageKnapsack:
    """max_x min_xi V(x, xi): x the orders that are accepted, xi which items are degraded, at most `gamma` of them.

        V(x, xi) = max over y, r:  sum_i (p_i - f_i) x_i + (f_i - d_i xi_i) y_i + d_i xi_i r_i
                   with  r_i <= y_i <= x_i  and  sum_i c_i y_i + t_i r_i <= C:

    an accepted item earns p, and is outsourced at the cost f, or made within the capacity; a degraded one loses d
    unless it is repaired with t more of the capacity (Arslan and Detienne 2022). All integers, so V is exact by dynamic
    programming over the capacity.
    """

    items: int = 10
    gamma: int = 2
    seed: int = 0

    @cached_property
    def data(self) -> dict[str, Array]:
        """c, p, f, d, t of each item, and C of all."""
        rng = np.random.default_rng(self.seed)
        c = rng.integers(3, 12, self.items)
        p = np.round(c * rng.uniform(1.5, 3.0, self.items)).astype(int) + 3
        return {
            "c": c, "p": p, "f": np.round(p * rng.uniform(1.05, 1.5, self.items)).astype(int),
            "d": np.round(p * rng.uniform(0.4, 0.9, self.items)).astype(int),
            "t": np.maximum(1, np.round(c * rng.uniform(0.3, 0.8, self.items))).astype(int),
            "C": np.array(int(0.45 * c.sum())),
        }  # fmt: skip

    @cached_property
    def choices(self) -> Array:
        """(2^items, items): every x."""
        return np.array(list(itertools.product((0, 1), repeat=self.items)))

    @cached_property
    def scenarios(self) -> Array:
        """(scenarios, items): every xi; the first one degrades nothing."""
        rows = [np.zeros(self.items, int)]
        for k in range(1, self.gamma + 1):
            for chosen in itertools.combinations(range(self.items), k):
                row = np.zeros(self.items, int)
                row[list(chosen)] = 1
                rows.append(row)
        return np.array(rows)

    def second_stage(self, x: Array, xi: Array) -> Array:
        """(pairs,): V of each pair of rows. O(pairs items C)."""
        d = self.data
        room = int(d["C"])
        best = np.zeros((len(x), room + 1))
        for i in range(self.items):
            kept = d["f"][i] - d["d"][i] * xi[:, i]
            ways = [(np.zeros(len(x)), 0), (kept, int(d["c"][i]))]
            ways.append((kept + d["d"][i] * xi[:, i], int(d["c"][i] + d["t"][i])))
            new = np.full_like(best, -np.inf)
            for value, size in ways:
                moved = np.full_like(best, -np.inf)
                if size <= room:
                    moved[:, size:] = best[:, : room + 1 - size] + value[:, None]
                if size:
                    moved[x[:, i] == 0] = -np.inf  # what was not accepted is neither made nor repaired
                new = np.maximum(new, moved)
            best = new
        return np.asarray(x @ (d["p"] - d["f"]) + best.max(1))

    def worst(self, x: Array) -> Array:
        """(choices,): min over all scenarios of V, for rows x."""
        number = len(self.scenarios)
        found = [
            self.second_stage(np.repeat(rows, number, 0), np.tile(self.scenarios, (len(rows), 1)))
            .reshape(-1, number)
            .min(1)
            for rows in np.array_split(x, -(-len(x) // 64))
        ]
        return np.concatenate(found)

    @cached_property
    def values(self) -> Array:
        """(2^items,): `worst` of every choice."""
        return self.worst(self.choices)

    @cached_property
    def optimum(self) -> float:
        """max_x min_xi V by enumeration of both."""
        return float(self.values.max())
