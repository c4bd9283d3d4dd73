"""The pole on a cart: its equations, step for step, and disturbances that policies feel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zograd.problems.control import LONGEST, Disturbance, pole_returns, pole_step

GOOD = np.array([0.1, 0.3, 3.0, 1.0])


def reference(x: float, v: float, angle: float, turn: float, force: float, half: float = 0.5) -> tuple[float, ...]:
    """Florian 2007, Eq. 23 and 24 without friction, cart 1 kg, pole 0.1 kg; explicit Euler of 0.02 s."""
    total, m = 1.1, 0.1
    inner = (-force - m * half * turn**2 * math.sin(angle)) / total
    turning = (9.8 * math.sin(angle) + math.cos(angle) * inner) / (half * (4 / 3 - m * math.cos(angle) ** 2 / total))
    driven = (force + m * half * (turn**2 * math.sin(angle) - turning * math.cos(angle))) / total
    return x + 0.02 * v, v + 0.02 * driven, angle + 0.02 * turn, turn + 0.02 * turning


def test_a_step_is_its_equations() -> None:
    rng = np.random.default_rng(0)
    states, right = rng.standard_normal((50, 4)), rng.random(50) < 0.5
    for half in (0.5, 0.9):
        moved = pole_step(states, right, half)
        for state, push, after in zip(states, right, moved, strict=True):
            assert after == pytest.approx(reference(*state, 10.0 if push else -10.0, half), abs=1e-12)


def test_episodes_are_those_of_gymnasium() -> None:
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    env = gymnasium.make("CartPole-v1").unwrapped
    state, rng = env.reset(seed=0)[0].astype(float), np.random.default_rng(1)
    for _ in range(60):
        action = int(rng.integers(2))
        env.state = tuple(state)
        seen, _, over, _, _ = env.step(action)
        state = pole_step(state, np.array(action == 1))
        assert np.asarray(env.state) == pytest.approx(state, abs=1e-12)
        assert seen == pytest.approx(state, abs=1e-6)
        if over:
            break


def test_returns_count_the_steps_until_the_pole_falls() -> None:
    """Beside a plain loop over the reference, from the same start."""
    for seed in range(5):
        w = np.random.default_rng(seed).standard_normal(4)
        state = tuple(np.random.default_rng(seed).uniform(-0.05, 0.05, 4))
        steps = 0
        while steps < LONGEST and abs(state[0]) <= 2.4 and abs(state[2]) <= 12 * 2 * math.pi / 360:
            state = reference(*state, 10.0 if float(w @ state) > 0 else -10.0)
            steps += 1
        assert pole_returns(w, seed)[0] == steps
    assert pole_returns(GOOD, 0)[0] == LONGEST


def test_policies_share_the_noise_of_their_seed() -> None:
    noisy = Disturbance(observation=0.3, flipped=0.3, pole=0.3)
    together = pole_returns(np.stack([GOOD, -GOOD, GOOD]), 7, noisy)
    assert together[0] == together[2] != together[1]
    assert pole_returns(GOOD, 7, noisy)[0] == together[0]
    assert len({pole_returns(GOOD, seed, noisy)[0] for seed in range(8)}) > 1


@pytest.mark.parametrize(
    "disturbance", [Disturbance(observation=1.0), Disturbance(flipped=0.45), Disturbance(broken=1.0)], ids=str
)
def test_each_disturbance_is_felt(disturbance: Disturbance) -> None:
    clean = [pole_returns(GOOD, seed)[0] for seed in range(6)]
    assert [pole_returns(GOOD, seed, disturbance)[0] for seed in range(6)] != clean


def test_a_longer_pole_falls_later_without_a_push_that_helps() -> None:
    falls = {pole_returns(-GOOD, seed, Disturbance(pole=2.0))[0] for seed in range(10)}
    assert len(falls) > 2


def test_shares_and_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"flipped is a share and must lie in \[0, 1\], got 2"):
        Disturbance(flipped=2)
    with pytest.raises(ValueError, match="observation is a deviation and must be >= 0, got -1"):
        Disturbance(observation=-1)
    with pytest.raises(ValueError, match=r"policies has shape \(1, 3\), and expected are finite numbers"):
        pole_returns([1.0, 2.0, 3.0], 0)
