"""Bandit controllers against their formulas, a root finder, and the best arm in hindsight."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import brentq

from zograd.control import InverseGap, RelativeGap, TsallisINF, UpperBound


def entropic(losses: np.ndarray, eta: float) -> np.ndarray:
    """The weights of Tsallis-INF by Brent's method in place of Newton's."""
    low, high = losses.min() - 2 * np.sqrt(len(losses)) / eta - 1, losses.min() - 1e-9 / eta
    z = brentq(lambda z: np.sum(4 / (eta * (losses - z)) ** 2) - 1, low, high, xtol=1e-14, rtol=1e-15)
    return 4 / (eta * (losses - z)) ** 2


@pytest.mark.parametrize("arms", [2, 7, 40])
def test_tsallis_weights_are_those_of_a_root_finder(arms: int) -> None:
    rng = np.random.default_rng(arms)
    rule = TsallisINF(arms, least=1.0)
    state, losses, total = rule.initial(), np.zeros(arms), 0.0
    for t in range(200):
        p = rule.probabilities(state)
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
        expected = entropic(losses * t / total if t else losses, 2 / np.sqrt(t + 1))
        assert p == pytest.approx(expected, rel=1e-8)
        arm = rng.choice(arms, p=p)
        loss = 1 + 50 * rng.random() * (1 + (arm > 0))
        losses[arm] += (loss - 1) / expected[arm]
        total += loss - 1
        rule.observe(state, int(arm), loss)
    assert json.loads(json.dumps(state)) == state
    assert state["losses"] == pytest.approx(losses, rel=1e-7)


def test_tsallis_minimizes_losses_with_entropy() -> None:
    """p = argmin <p, L> - (4 / eta) sum sqrt(p) over the simplex: no other p has a lower value."""
    rng = np.random.default_rng(0)
    rule = TsallisINF(4)
    state = {"losses": [3.0, 0.5, 9.0, 1.0], "total": 8.0, "t": 8}
    p, losses, eta = rule.probabilities(state), np.array(state["losses"]), 2 / 3

    def value(q):
        return q @ losses - 4 / eta * np.sum(np.sqrt(q))

    assert np.all(np.array([value(q) for q in rng.dirichlet(np.ones(4), 2000)]) > value(p))
    step = 1e-4 * np.array([1, -1, 0, 0])
    assert value(p + step) == pytest.approx(value(p - step), abs=1e-8)


def test_tsallis_does_not_depend_on_the_unit_of_losses() -> None:
    first, second = TsallisINF(3), TsallisINF(3)
    a, b = first.initial(), second.initial()
    for arm, loss in zip([0, 1, 2, 1, 0, 2], [1.0, 5.0, 2.0, 4.0, 1.5, 3.0], strict=True):
        first.observe(a, arm, loss)
        second.observe(b, arm, 1e-6 * loss)
        assert first.probabilities(a) == pytest.approx(second.probabilities(b), rel=1e-9)


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "chosen"])
def test_tsallis_excess_over_the_best_arm(drawn: bool) -> None:
    """10 arms, 4,000 rounds: below sqrt(K T) = 200, and below a third of what uniform draws lose."""
    excess, uniform = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        means = np.full((4000, 10), 0.5)
        means[:, 3] = 0.3
        if not drawn:
            means[2500:, 3], means[:1000, 7], means[1000:, 7] = 0.6, 0.8, 0.35
        losses = (rng.random(means.shape) < means).astype(float)
        rule = TsallisINF(10)
        state, paid = rule.initial(), 0.0
        for row in losses:
            arm = int(rng.choice(10, p=rule.probabilities(state)))
            rule.observe(state, arm, row[arm])
            paid += row[arm]
        excess.append(paid - losses.sum(0).min())
        uniform.append(losses.mean(1).sum() - losses.sum(0).min())
    assert np.mean(excess) < min(200, np.mean(uniform) / 3)


def test_gap_rules_are_their_formulas() -> None:
    y = np.array([0.6, 0.25, 0.5, 0.9])
    p, q = InverseGap(20.0).probabilities(y), RelativeGap(20.0).probabilities(y)
    for a in (0, 2, 3):
        assert p[a] == pytest.approx(1 / (4 + 20 * (y[a] - 0.25)), rel=1e-14)
        assert q[a] == pytest.approx(0.25 / (4 * 0.25 + 20 * (y[a] - 0.25)), rel=1e-14)
    assert [p.sum(), q.sum()] == pytest.approx([1, 1], abs=1e-15)
    assert np.argmax(p) == np.argmax(q) == 1
    assert InverseGap(0.0).probabilities(y) == pytest.approx(np.full(4, 0.25))
    assert RelativeGap(3.0).probabilities([0.0, 0.4, 0.0]).tolist() == [1.0, 0.0, 0.0]
    assert RelativeGap(5.0).probabilities(3 * y) == pytest.approx(RelativeGap(5.0).probabilities(y), rel=1e-12)


def test_upper_bound_is_its_formula_and_finds_the_best_arm() -> None:
    rng = np.random.default_rng(1)
    means, rule = np.array([0.3, 0.5, 0.8, 0.6]), UpperBound(4, width=0.5)
    state, taken = rule.initial(), []
    assert np.all(np.isinf(rule.scores(state)))
    for _ in range(1500):
        taken.append(int(np.argmax(rule.scores(state))))
        rule.observe(state, taken[-1], float(rng.random() < means[taken[-1]]))
    assert sorted(taken[:4]) == [0, 1, 2, 3]
    n = np.bincount(taken)
    assert state["rounds"] == n.tolist()
    assert n[2] > 1200
    assert rule.scores(state) == pytest.approx(np.array(state["rewards"]) / n + 0.5 * np.sqrt(np.log(1500) / n))
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: TsallisINF(1), "at least 2 arms"),
        (lambda: TsallisINF(3, least=float("nan")), "smallest loss"),
        (lambda: InverseGap(-1.0), "gamma >= 0"),
        (lambda: RelativeGap(1.0).probabilities([-0.1, 0.2]), "shift them"),
        (lambda: InverseGap(1.0).probabilities([0.5]), "one finite loss for each"),
        (lambda: UpperBound(3, width=-1.0), "width >= 0"),
        (lambda: UpperBound(3).observe(UpperBound(3).initial(), 3, 1.0), "there are 3 arms"),
    ],
)
def test_bad_input_is_refused(wrong, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()


def test_a_refused_loss_changes_nothing() -> None:
    rule = TsallisINF(2, least=1.0)
    state = rule.initial()
    for arm, loss in ((0, 0.5), (0, float("nan")), (2, 3.0)):
        with pytest.raises(ValueError, match=r"at least least=1|there are 2 arms"):
            rule.observe(state, arm, loss)
    assert state == rule.initial()
