"""Two players who learn a Markov game from their own rewards, and certify what they end with against a worse world.

Rows      17
Paper     decentralised robust V-learning, JMLR 2023; Jin, Liu, Wang and Yu 2021 (V-learning); weights are theirs
Formula   V(s) <- (1 - a) V + a (r + (1 - R) V'(s') + R min V' + bonus), a = (H + 1) / (H + n); each player a bandit on
          (H - target) / H; the output replays the policies of past visits with the weights of a
Evidence  dynamic programming on the game: the value of the output, and of the best deviation of either player
Extent    3 states, 2 actions, 3 steps; a deviation may see which visit is replayed, so the gap is an upper bound
Needs     nothing more
Seconds   25
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zograd.control import TsallisINF
from zograd.examples import Claim, Figure, Finding, Line

STATES, ACTIONS, STEPS = 3, 2, 3
Array = np.ndarray


# %% The game: rewards in [0, 1] for each player, a kernel, and a share R of steps that an adversary sends anywhere.
@dataclass
class Game:
    reward: Array  # player, step, state, own action, other's action
    kernel: Array  # step, state, first action, second action, next state
    share: float = 0.1

    @classmethod
    def drawn(cls, seed: int) -> Game:
        rng = np.random.default_rng(seed)
        reward = rng.uniform(0, 1, (2, STEPS, STATES, ACTIONS, ACTIONS))
        return cls(reward, rng.dirichlet(np.ones(STATES) / 2, (STEPS, STATES, ACTIONS, ACTIONS)))

    def ahead(self, h: int, s: int, later: Array) -> Array:
        """What each pair of actions is worth afterwards under the worst kernel, from the values of the next states."""
        worth = self.kernel[h, s] @ later
        return np.asarray((1 - self.share) * worth + self.share * later.min())

    def table(self, player: int, h: int, s: int, later: Array) -> Array:
        """Reward and worth afterwards, by own action and the other's."""
        worth = self.ahead(h, s, later)
        return np.asarray(self.reward[player, h, s] + (worth if player == 0 else worth.T))


# %% The certificate: values of the replayed policies, and of deviations, by the same running weights as the learning.
@dataclass
class Certificate:
    game: Game
    value: Array = field(default_factory=lambda: np.zeros((2, STEPS + 1, STATES)))
    deviating: Array = field(default_factory=lambda: np.zeros((2, STEPS, STATES, ACTIONS)))

    def best(self, player: int, h: int) -> Array:
        if h == STEPS:
            return np.zeros(STATES)
        return np.asarray(self.deviating[player, h].max(1))

    def visit(self, h: int, s: int, played: tuple[Array, Array], a: float) -> None:
        """The policies that are played at (h, s) enter with weight a. Called before later steps of the episode do."""
        for i in (0, 1):
            own, other = played[i], played[1 - i]
            q = self.game.table(i, h, s, self.value[i, h + 1])
            self.value[i, h, s] += a * (own @ q @ other - self.value[i, h, s])
            q = self.game.table(i, h, s, self.best(i, h + 1))
            self.deviating[i, h, s] += a * (q @ other - self.deviating[i, h, s])

    @property
    def gap(self) -> float:
        return float(max(self.best(i, 0)[0] - self.value[i, 0, 0] for i in (0, 1)))


class Uniform:
    """A player who does not learn."""

    def __init__(self, arms: int) -> None:
        self.arms = arms

    def initial(self) -> dict[str, Any]:
        return {}

    def probabilities(self, state: Any) -> Array:
        return np.full(self.arms, 1 / self.arms)

    def observe(self, state: Any, arm: int, loss: float) -> None:
        """Nothing is remembered."""


# %% The learning. Each player sees the state, its own action and its own reward.
def learned(game: Game, rule: Any, share: float, episodes: int, seed: int) -> tuple[Certificate, list[float]]:
    """The certificate, and the gap after each hundredth of the episodes. share: what the players take R to be."""
    rng, certificate = np.random.default_rng(seed), Certificate(game)
    states = {(i, h, s): rule.initial() for i in (0, 1) for h in range(STEPS) for s in range(STATES)}
    upper = np.zeros((2, STEPS + 1, STATES))
    upper[:, :STEPS] = (STEPS - np.arange(STEPS))[None, :, None]
    visits = np.zeros((STEPS, STATES), int)
    gaps = []
    for episode in range(episodes):
        s = 0
        for h in range(STEPS):
            visits[h, s] += 1
            n = int(visits[h, s])
            a = (STEPS + 1) / (STEPS + n)
            played = tuple(rule.probabilities(states[i, h, s]) for i in (0, 1))
            certificate.visit(h, s, (played[0], played[1]), a)
            pair = [int(rng.random() > p[0]) for p in played]
            later = int(np.searchsorted(np.cumsum(game.kernel[h, s, pair[0], pair[1]]), rng.random()))
            for i in (0, 1):
                worth = (1 - share) * upper[i, h + 1, min(later, STATES - 1)] + share * upper[i, h + 1].min()
                target = game.reward[i, h, s, pair[i], pair[1 - i]] + worth
                rule.observe(states[i, h, s], pair[i], max(0.0, STEPS - target) / STEPS)
                raised = (1 - a) * upper[i, h, s] + a * (target + 0.1 * np.sqrt(STEPS / n))
                upper[i, h, s] = min(STEPS - h, raised)
            s = min(later, STATES - 1)
        if (episode + 1) % max(1, episodes // 100) == 0:
            gaps.append(certificate.gap)
    return certificate, gaps


def run(seed: int = 0, quick: bool = False) -> Finding:
    episodes, games = (1_000, 1) if quick else (8_000, 2)
    numbers: dict[str, float] = {}
    curves, ends, starts, robust = [], [], [], []
    for k in range(games):
        game = Game.drawn(10 * seed + k)
        still, _ = learned(game, Uniform(ACTIONS), game.share, 300, k)
        found, gaps = learned(game, TsallisINF(ACTIONS), game.share, episodes, k)
        plain, _ = learned(game, TsallisINF(ACTIONS), 0.0, episodes // 4, k)
        starts.append(still.gap)
        ends.append(found.gap)
        robust.append(float(found.value[:, 0, 0].sum() - plain.value[:, 0, 0].sum()))
        curves.append(Line(f"game {k}", (episodes // 100 * np.arange(1, len(gaps) + 1)).tolist(), gaps))
        numbers |= {f"gap of uniform play, game {k}": starts[-1], f"gap at the end, game {k}": ends[-1]}
        numbers[f"what knowing R gains under the worst kernel, game {k}"] = robust[-1]
    claims = (
        Claim("the gap ends below 0.7 of uniform play's", all(e < 0.7 * s for e, s in zip(ends, starts, strict=True))),
        Claim("it ends at most at 0.2", max(ends) <= 0.2, full_only=True),
    )
    figure = Figure("Gap of the certified output", "episodes", "gap", tuple(curves), log="xy")
    return Finding(numbers, claims, (figure,))
