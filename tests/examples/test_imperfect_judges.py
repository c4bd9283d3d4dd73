"""Row 28: the closed form of the best policy, and the fit of preferences, against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize
from scipy.special import softmax

from zograd.examples import imperfect_judges as example


def test_the_policy_maximises_the_regularised_value() -> None:
    truth, _ = example.rewards(3)
    found = minimize(lambda z: -example.value(softmax(z), truth), np.zeros(example.ANSWERS), tol=1e-12)
    best = example.policy(truth)
    assert example.value(best, truth) == pytest.approx(-found.fun, abs=1e-8)
    assert softmax(found.x) == pytest.approx(best, abs=1e-4)
    for other in np.random.default_rng(0).dirichlet(np.ones(example.ANSWERS), 50):
        assert example.value(other, truth) < example.value(best, truth)


def test_the_fit_is_stationary_for_its_likelihood() -> None:
    rng = np.random.default_rng(1)
    wins = rng.integers(0, 4, (example.ANSWERS, example.ANSWERS)).astype(float)
    np.fill_diagonal(wins, 0)
    q = example.fitted(wins, np.zeros(example.ANSWERS))

    def loss(q: np.ndarray) -> float:
        p = 1 / (1 + np.exp(q[None, :] - q[:, None]))  # p[a, b]: a beats b
        return float(-np.sum(wins * np.log(p)) + q @ q / 2)

    assert approx_fprime(q, loss, 1e-6) == pytest.approx(np.zeros(example.ANSWERS), abs=2e-3)


def test_many_labels_bring_the_policy_to_the_best_one() -> None:
    truth, sources = example.rewards(4)
    gaps, regret = example.run_of(truth, sources, 150, 0)
    assert gaps[-1] < 0.5 * gaps[5]
    assert regret > 0


def test_one_source_is_opposite() -> None:
    truth, sources = example.rewards(5)
    assert sources[3] == pytest.approx(-truth)
    assert example.value(example.policy(sources[3]), truth) < example.value(np.full(20, 0.05), truth)
