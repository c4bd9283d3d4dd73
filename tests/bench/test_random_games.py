"""Games against enumeration: swaps by hand, totals by summing over all paths, equilibria of a known game."""

from __future__ import annotations

import numpy as np
import pytest

from zograd.problems.games import Games, least, random_games, swaps

CHICKEN = np.array([[[6, 2, -9], [7, 0, -9], [-9, -9, -9]]])  # a third action that nobody takes
BOTH = np.concatenate([CHICKEN, CHICKEN.transpose(0, 2, 1)]).astype(float)


def test_swaps_are_gains_of_listening_or_not() -> None:
    rng = np.random.default_rng(0)
    payoffs, mu = rng.random((2, 3, 3)), rng.dirichlet(np.ones(9)).reshape(3, 3)
    gains = []
    for a in range(3):
        for b in range(3):
            if a != b:
                gains.append(sum(mu[a, c] * (payoffs[0, b, c] - payoffs[0, a, c]) for c in range(3)))
    for a in range(3):
        for b in range(3):
            if a != b:
                gains.append(sum(mu[c, a] * (payoffs[1, c, b] - payoffs[1, c, a]) for c in range(3)))
    assert swaps(payoffs) @ mu.ravel() == pytest.approx(gains)


def test_the_program_finds_the_best_correlated_equilibrium_of_chicken() -> None:
    """Aumann's game: welfare 10.5, (0, 0) with probability 1/2; a budget that allows 1/4 of it costs 0.75."""
    assert least(-BOTH.sum(0), BOTH, np.zeros((3, 3))) == pytest.approx(-10.5)
    cost = np.zeros((3, 3))
    cost[0, 0] = 1
    assert least(-BOTH.sum(0), BOTH, cost, budget=0.25) == pytest.approx(-(0.25 * 12 + 0.75 * 9))
    cost[:] = 1
    assert least(-BOTH.sum(0), BOTH, cost, budget=0.5) == np.inf


def test_totals_sum_over_what_follows() -> None:
    games = random_games(2, 3, seed=1)
    joint = np.random.default_rng(2).dirichlet(np.ones(9), (2, 3)).reshape(2, 3, 3, 3)
    payoffs, cost = games.totals(joint)
    assert games.to.sum(-1) == pytest.approx(np.ones((2, 3, 3)))
    for g in range(2):
        expected = games.payoffs[g, 0, 1, 2, 0] + sum(
            games.to[g, 2, 0, s - 1] * np.sum(joint[g, s] * games.payoffs[g, s, 1]) for s in (1, 2)
        )
        assert payoffs[g, 0, 1, 2, 0] == pytest.approx(expected)
        expected = games.cost[g, 0, 0, 1] + sum(
            games.to[g, 0, 1, s - 1] * np.sum(joint[g, s] * games.cost[g, s]) for s in (1, 2)
        )
        assert cost[g, 0, 0, 1] == pytest.approx(expected)
    assert payoffs[:, 1:].tolist() == games.payoffs[:, 1:].tolist()
    one = Games(games.payoffs[:, :1], games.cost[:, :1], games.to[..., :0])
    assert one.totals(joint[:, :1])[1].tolist() == one.cost.tolist()
