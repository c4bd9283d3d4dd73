"""Designs against determinants of all subsets, sums over all samples, and the hat matrix."""

from __future__ import annotations

from itertools import combinations, permutations, product

import numpy as np
import pytest
from scipy.stats import chisquare

from zograd.design import Sample, leverage, leverage_sample, volume_sample, weighted_fit


def features(points: int, m: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((points, m)) * np.array([1.0, 10.0, 0.1, 3.0][:m])


def test_leverage_is_the_diagonal_of_the_hat_matrix() -> None:
    x = features(12, 4)
    assert leverage(x) == pytest.approx(np.diag(x @ np.linalg.inv(x.T @ x) @ x.T), rel=1e-10)
    assert leverage(x @ features(4, 4, seed=1)) == pytest.approx(leverage(x), rel=1e-8)  # of the span alone


def test_subsets_have_the_probability_of_their_squared_volume() -> None:
    """All 56 subsets of 3 of 8 points: frequencies of 4,000 draws against det(X_S)^2 / det(X^T X)."""
    x = features(8, 3)
    subsets = list(combinations(range(8), 3))
    p = np.array([np.linalg.det(x[list(s)]) ** 2 for s in subsets]) / np.linalg.det(x.T @ x)
    assert p.sum() == pytest.approx(1, rel=1e-10)  # Cauchy and Binet
    rng = np.random.default_rng(0)
    counts = np.zeros(len(subsets))
    for _ in range(4_000):
        counts[subsets.index(tuple(sorted(volume_sample(x, 3, rng).indices)))] += 1
    expected = 4_000 * p
    assert np.all(np.abs(counts - expected) < 4.5 * np.sqrt(expected) + 4)
    common = expected > 5
    assert chisquare(counts[common], expected[common] * counts[common].sum() / expected[common].sum()).pvalue > 1e-3


def test_the_fit_is_unbiased() -> None:
    """The mean over all ordered samples (2 of 5 by volume, 1 by leverage) is the best approximation on all 5 points."""
    x, y = features(5, 2), np.array([1.0, -2.0, 0.5, 3.0, -1.0])
    scores, total = leverage(x), np.linalg.det(x.T @ x)
    mean, mass = np.zeros(2), 0.0
    for pair, extra in product(permutations(range(5), 2), range(5)):
        p = np.linalg.det(x[list(pair)]) ** 2 / total / 2 * scores[extra] / 2
        indices = np.array([*pair, extra])
        mean += p * weighted_fit(x, y[indices], Sample(indices, 2 / (5 * scores[indices])))
        mass += p
    assert mass == pytest.approx(1, rel=1e-12)
    assert mean == pytest.approx(np.linalg.lstsq(x, y, rcond=None)[0], rel=1e-9)


def test_points_by_leverage_have_its_frequencies_and_weights() -> None:
    x = features(10, 3)
    sample = leverage_sample(x, 40_000, seed=1)
    share = np.bincount(sample.indices, minlength=10) / 40_000
    assert share == pytest.approx(leverage(x) / 3, abs=0.01)
    assert sample.weights == pytest.approx(3 / (10 * leverage(x)[sample.indices]))
    assert sample.weights.mean() == pytest.approx(1, abs=0.05)  # E[w] = 1


def test_a_volume_sample_is_never_singular_and_depends_on_its_seed_alone() -> None:
    t = np.linspace(-1, 1, 400)
    x = np.polynomial.legendre.legvander(t, 9)
    for seed in range(30):
        sample = volume_sample(x, 10, seed)
        assert len(set(sample.indices)) == 10
        assert np.linalg.cond(x[sample.indices]) < 1e6
        assert weighted_fit(x, x[sample.indices] @ np.arange(10.0), sample) == pytest.approx(np.arange(10.0), abs=1e-6)
    assert volume_sample(x, 15, 3).indices.tolist() == volume_sample(x, 15, 3).indices.tolist()
    assert volume_sample(x, 15, 3).indices.tolist() != volume_sample(x, 15, 4).indices.tolist()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda x: volume_sample(x, 2), "n=2 points do not determine 3"),
        (lambda x: volume_sample(np.c_[x, x[:, 0]], 5), "4 columns of features have rank 3"),
        (lambda x: leverage(x[:, 0]), "pass finite numbers"),
        (lambda x: weighted_fit(x, [1.0], volume_sample(x, 4)), "one for each of the 4"),
    ],
)
def test_what_cannot_be_fitted_is_refused(wrong, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong(features(8, 3))
