"""Games of two players with three actions, in one state or two stages; the linear program over their equilibria."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from zograd.core.vector import Array

ACTIONS = 3


@dataclass(frozen=True, eq=False)
class Games:
    """Games side by side. State 0 comes first; then state s > 0 with a probability that depends on the joint action.

    payoffs: (games, states, 2 players, a, b). cost: of a resource, (games, states, a, b). to: the probabilities of
    states 1, 2, ..., (games, a, b, states - 1).
    """

    payoffs: Array
    cost: Array
    to: Array

    def totals(self, joint: Array) -> tuple[Array, Array]:
        """Payoffs and costs with those of the state that follows, under the joint play (games, states, a, b)."""
        payoffs, cost = self.payoffs.copy(), self.cost.copy()
        later = np.einsum("gsiab,gsab->gsi", self.payoffs[:, 1:], joint[:, 1:])
        payoffs[:, 0] += np.einsum("gabs,gsi->giab", self.to, later)
        cost[:, 0] += np.einsum("gabs,gs->gab", self.to, np.einsum("gsab,gsab->gs", self.cost[:, 1:], joint[:, 1:]))
        return payoffs, cost


def random_games(count: int, states: int, seed: int) -> Games:
    """Payoffs and costs uniform in [0, 1]; the probabilities of what follows uniform and normalized."""
    rng = np.random.default_rng([seed, states])
    to = rng.random((count, ACTIONS, ACTIONS, states - 1))
    to = to / np.maximum(to.sum(-1, keepdims=True), 1e-12)
    payoffs = rng.random((count, states, 2, ACTIONS, ACTIONS))
    return Games(payoffs, rng.random((count, states, ACTIONS, ACTIONS)), to)


def swaps(payoffs: Array) -> Array:
    """(12, 9): rows g such that g mu is the gain of a player who plays b whenever mu tells a, for the joint play mu.

    payoffs: (2, a, b), of one state. mu is a correlated equilibrium exactly if no gain is positive (Aumann 1974).
    """
    rows = []
    for r, turned in ((payoffs[0], False), (payoffs[1].T, True)):
        for a, b in permutations(range(ACTIONS), 2):
            gain = np.zeros((ACTIONS, ACTIONS))
            gain[a] = r[b] - r[a]
            rows.append((gain.T if turned else gain).ravel())
    return np.array(rows)


def least(goal: Array, payoffs: Array, cost: Array, budget: float = np.inf, slack: float = 0.0) -> float:
    """min goal mu over correlated equilibria of one state with cost mu <= budget; infinity where there are none.

    slack: how much a swap may gain, and the budget be exceeded. A linear program (SciPy, HiGHS).
    """
    from scipy.optimize import linprog

    rows = np.vstack([swaps(payoffs), cost.ravel()])
    right = np.r_[np.full(len(rows) - 1, slack), min(budget, float(cost.max())) + slack]
    found = linprog(goal.ravel(), rows, right, np.ones((1, ACTIONS**2)), [1.0])
    return float(found.fun) if found.status == 0 else np.inf
