"""Rows 15 and 16: semi-gradients of temporal differences against their formulas and exact solutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zograd as zo
from zograd.estimators import Coordinates
from zograd.examples import learning_from_transitions as example

G = example.DISCOUNT


def moved(following, p, ratio, reward, theta, w) -> tuple[np.ndarray, np.ndarray]:
    """The move of one step of rate 1 along exact differences of the frozen loss."""
    x, y = torch.from_numpy(theta.copy()), torch.from_numpy(w.copy())
    method = zo.Method(Coordinates(2 * len(theta), central=True), zo.laws.Rademacher(), zo.rules.SGD(), mu=0.1, lr=1.0)
    run = zo.Run(zo.Store({"theta": x, "w": y}), method, terms=len(reward))
    run.step(example.oracle(*map(torch.from_numpy, (p, ratio, reward)), following, x, y))
    return x.numpy() - theta, y.numpy() - w


def test_a_step_is_that_of_tdc() -> None:
    rng = np.random.default_rng(0)
    p, q, ratio, reward = rng.standard_normal((30, 4)), rng.standard_normal((30, 4)), rng.random(30), rng.random(30)
    theta, w = rng.standard_normal(4), rng.standard_normal(4)
    step, fast = moved(lambda theta: torch.from_numpy(q), p, ratio, reward, theta, w)
    delta = ratio * (reward + G * q @ theta - p @ theta)
    assert step == pytest.approx(np.mean(delta[:, None] * p - G * (ratio * (p @ w))[:, None] * q, axis=0), abs=1e-9)
    assert fast == pytest.approx(np.mean((delta - p @ w)[:, None] * p, axis=0), abs=1e-9)


def test_a_step_of_control_takes_the_greedy_action_at_the_centre() -> None:
    """A probe that would change the greedy action changes nothing: the action is held over the pair."""
    t = example.transitions(5, 2, 200, 3)
    table, theta, w = np.eye(10), np.repeat(np.arange(5.0), 2) + np.tile([0.0, 0.01], 5), np.linspace(-1, 1, 10)
    p = table[t["s"] * 2 + t["a"]]

    def following(theta: torch.Tensor) -> torch.Tensor:
        after = torch.from_numpy(t["after"])
        return torch.from_numpy(table)[after * 2 + theta.view(5, 2)[after].argmax(1)]

    step, _ = moved(following, p, np.ones(200), t["reward"], theta, w)
    q = table[t["after"] * 2 + 1]  # action 1 is better by 0.01, and probes have radius 0.1
    delta = t["reward"] + G * q @ theta - p @ theta
    assert step == pytest.approx(np.mean(delta[:, None] * p - G * (p @ w)[:, None] * q, axis=0), abs=1e-9)


def test_q_iteration_solves_the_equation_of_the_counts() -> None:
    t = example.transitions(5, 2, 500, 1)
    q = example.q_iteration(t, 5, 2)
    for s in range(5):
        for a in range(2):
            here = (t["s"] == s) & (t["a"] == a)
            assert q[s, a] == pytest.approx(np.mean(t["reward"][here] + G * q[t["after"][here]].max(1)))


def test_plain_temporal_differences_share_the_fixed_point() -> None:
    """At the solution of the linear system the step of theta is 0 where w = 0, and so is that of w."""
    rng = np.random.default_rng(2)
    p, q, ratio, reward = rng.standard_normal((60, 3)), rng.standard_normal((60, 3)), rng.random(60), rng.random(60)
    truth = np.linalg.solve((ratio[:, None] * p).T @ (p - G * q), p.T @ (ratio * reward))
    for move in moved(lambda theta: torch.from_numpy(q), p, ratio, reward, truth, np.zeros(3)):
        assert move == pytest.approx(np.zeros(3), abs=1e-9)
