"""Rows 22 and 42: the binomial sum by enumeration, and targets against their fit and scikit-learn's score."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from zograd.examples import meta_gradients as meta
from zograd.examples import targets_before_weights as targets

A = 0.3


@pytest.fixture
def hessians() -> tuple[list[torch.Tensor], torch.Tensor]:
    rng = np.random.default_rng(0)
    made = [torch.from_numpy(m + m.T) / 4 for m in rng.standard_normal((5, 4, 4))]
    return made, torch.from_numpy(rng.standard_normal(4))


def test_the_binomial_sum_is_that_of_all_ordered_products(hessians) -> None:
    """sum over k1 < .. < kl, l <= L, of (-a H_k1) .. (-a H_kl) v, written out."""
    h, v = hessians
    for order in range(6):
        expected = torch.zeros(4, dtype=torch.float64)
        for length in range(order + 1):
            for chosen in combinations(range(5), length):
                term = v
                for k in reversed(chosen):
                    term = -A * h[k] @ term
                expected = expected + term
        assert torch.allclose(meta.binomial(h, v, A, order), expected, atol=1e-12)


def test_all_orders_are_the_exact_product(hessians) -> None:
    h, v = hessians
    product = torch.eye(4, dtype=torch.float64)
    for h_k in h:
        product = product @ (torch.eye(4) - A * h_k)
    assert torch.allclose(meta.exact(h, v, A), product @ v, atol=1e-12)
    assert torch.allclose(meta.binomial(h, v, A, 5), product @ v, atol=1e-12)
    assert torch.allclose(meta.truncated(h, v, A, 5), product @ v, atol=1e-12)
    assert torch.equal(meta.binomial(h, v, A, 0), v)
    assert torch.equal(meta.truncated(h, v, A, 0), v)


def test_the_product_is_the_derivative_through_the_inner_steps() -> None:
    """By automatic differentiation of the loss after ten inner steps."""
    rng = np.random.default_rng(1)
    task, weights = meta.Task.drawn(rng), torch.from_numpy(0.5 * rng.standard_normal(meta.SIZE)).requires_grad_()
    a = 0.01
    (derivative,) = torch.autograd.grad(task.outer(task.adapted(weights, a)[-1]), weights)
    path = task.adapted(weights.detach(), a)
    h, v = [torch.func.hessian(task.inner)(phi) for phi in path[:-1]], torch.func.grad(task.outer)(path[-1])
    assert torch.allclose(meta.exact(h, v, a), derivative, atol=1e-10)


def test_the_judge_is_the_score_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    for share in (0.0, 0.3, 1.0):
        labels, outputs = rng.random(50) < 0.5, rng.standard_normal(50) + share - 0.5
        assert targets.judge(outputs, labels) == pytest.approx(1 - f1_score(labels, outputs > 0))


def test_a_fit_to_targets_moves_the_outputs_there() -> None:
    """One step with an estimate of the judge's slope: outputs move by eta g up to the ridge of the fit."""
    train, labels, _, _ = targets.data(0)
    assert train.shape == (targets.TRAIN, targets.FEATURES)
    assert 60 < labels.sum() < 140
    g = np.random.default_rng(3).standard_normal(targets.TRAIN)
    theta = np.linalg.solve(train @ train.T + 1e-3 * np.eye(targets.TRAIN), train).T @ g
    exact = np.linalg.lstsq(
        np.vstack([train, np.sqrt(1e-3) * np.eye(targets.FEATURES)]), np.r_[g, np.zeros(targets.FEATURES)], rcond=None
    )[0]
    assert theta == pytest.approx(exact, abs=1e-6)
