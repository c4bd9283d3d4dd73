"""Row 17: the certificate of replayed policies against dynamic programming on the game."""

from __future__ import annotations

import numpy as np
import pytest

from zograd.examples import play_without_a_centre as example
from zograd.examples.play_without_a_centre import ACTIONS, STATES, STEPS, Game, Uniform, learned


def exact(game: Game, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of fixed policies [player, step, state, action] under the worst kernel, and of best responses."""
    value, best = np.zeros((2, STATES)), np.zeros((2, STATES))
    for h in reversed(range(STEPS)):
        new, better = np.zeros((2, STATES)), np.zeros((2, STATES))
        for s in range(STATES):
            for i in (0, 1):
                for target, later in ((new, value[i]), (better, best[i])):
                    q = np.zeros((ACTIONS, ACTIONS))
                    for a in range(ACTIONS):
                        for b in range(ACTIONS):
                            pair = (a, b) if i == 0 else (b, a)
                            mean = game.kernel[h, s, pair[0], pair[1]] @ later
                            q[a, b] = game.reward[i, h, s, a, b]
                            q[a, b] += (1 - game.share) * mean + game.share * later.min()
                    own, other = policy[i, h, s], policy[1 - i, h, s]
                    target[i, s] = own @ q @ other if target is new else (q @ other).max()
        value, best = new, better
    return value[:, 0], best[:, 0]


def test_the_certificate_of_uniform_play_is_dynamic_programming() -> None:
    """Each state is visited until its running means forget the start; policies never change."""
    game = Game.drawn(0)
    found, gaps = learned(game, Uniform(ACTIONS), game.share, 1500, 0)
    value, best = exact(game, np.full((2, STEPS, STATES, ACTIONS), 1 / ACTIONS))
    assert found.value[:, 0, 0] == pytest.approx(value, abs=1e-3)
    assert found.gap == pytest.approx(max(best - value), abs=2e-3)
    assert gaps[-1] == found.gap


def test_a_policy_without_a_better_answer_has_no_gap() -> None:
    """The best response to a best response of one player: the certificate's deviation of that player is its value."""
    game = Game.drawn(2)
    game.reward[0, :, :, 0] = 1.0  # action 0 dominates for player 0
    game.reward[0, :, :, 1] = 0.0
    game.kernel[:] = 1 / STATES

    class First(Uniform):
        def probabilities(self, state) -> np.ndarray:
            return np.array([1.0, 0.0])

    found, _ = learned(game, First(ACTIONS), game.share, 400, 0)
    assert found.best(0, 0)[0] == pytest.approx(found.value[0, 0, 0], abs=1e-2)
    assert found.value[0, 0, 0] == pytest.approx(STEPS, abs=1e-2)


def test_the_worst_kernel_is_at_most_the_given_one() -> None:
    game = Game.drawn(1)
    later = np.array([0.2, 1.0, 0.5])
    robust = game.ahead(0, 0, later)
    game.share = 0.0
    assert np.all(robust <= game.ahead(0, 0, later))
    assert robust == pytest.approx(0.9 * game.ahead(0, 0, later) + 0.1 * 0.2)


def test_learning_lowers_the_gap() -> None:
    game = Game.drawn(0)
    _, gaps = learned(game, example.TsallisINF(ACTIONS), game.share, 600, 0)
    assert gaps[-1] < gaps[2]
