"""Row 50: kernel weights by consensus of agents, against densities of SciPy, differences, and exact minimization."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from zograd.examples.kernel_weights import agree, rounded, support
from zograd.problems.kernel_weights import KernelWeights


@pytest.fixture(scope="module")
def small() -> KernelWeights:
    return KernelWeights(points=60, agents=2, kernels=6)


def test_the_value_is_that_of_the_normal_density(small: KernelWeights) -> None:
    theta = np.linspace(0.1, 0.6, 6)
    for agent in range(2):
        t, y = small.shares[agent]
        k = np.tensordot(theta, small.gram(t, t), 1) + 0.09 * np.eye(len(t))
        assert small.value(theta, agent) * small.kept == pytest.approx(-multivariate_normal(cov=k).logpdf(y))
    assert sum(len(t) for t, _ in small.shares) == small.kept == 48
    assert len(small.held_out[0]) == 12


def test_the_gradient_is_that_of_differences(small: KernelWeights) -> None:
    theta = np.linspace(0.1, 0.6, 6)
    value, slopes = small.gradient(theta, 1)
    assert value == small.value(theta, 1)
    for q in range(6):
        step = 1e-5 * np.eye(6)[q]
        difference = (small.value(theta + step, 1) - small.value(theta - step, 1)) / 2e-5
        assert slopes[q] == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_outside_of_the_domain_the_value_is_infinite(small: KernelWeights) -> None:
    assert small.value(np.full(6, -1.0), 0) == np.inf


def test_rounded_messages_are_unbiased_and_small() -> None:
    """Multiples of the unit, at most one unit away, and right in the mean within 5 standard errors."""
    rng = np.random.default_rng(0)
    x = np.array([1.27, 0.555, -0.301, 0.0])
    found = np.array([rounded(x, rng) for _ in range(4000)])
    assert np.allclose(found / 0.01, np.rint(found / 0.01))
    assert np.abs(found - x).max() <= 0.01 + 1e-12
    assert np.all(np.abs(found.mean(0) - x) < 5 * 0.005 / np.sqrt(4000))
    assert rounded(np.zeros(3), rng).tolist() == [0, 0, 0]


def test_agents_agree_on_the_minimum_of_the_sum(small: KernelWeights) -> None:
    found = agree(small, 14, 120, 0)
    assert small.total(found["z"]) == pytest.approx(small.total(small.best), rel=0.02)
    exact = agree(small, 14, 120, 0, send=False)
    assert small.total(found["z"]) == pytest.approx(small.total(exact["z"]), rel=0.02)
    assert found["bits"] == 14 * 2 * (8 * 6 + 32)
    assert found["residuals"][-1] < 0.05 < found["residuals"][1]


def test_the_support_is_the_fewest_that_hold_the_share() -> None:
    assert support(np.array([0.0, 0.5, 0.3, 0.2]), 0.75) == [1, 2]
    assert support(np.array([0.0, 0.5, 0.3, 0.2]), 0.95) == [1, 2, 3]
