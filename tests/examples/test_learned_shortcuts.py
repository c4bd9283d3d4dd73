"""Row 24: routes of a deep linear net, against the product of its layers, and evaluations against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zograd as zo
from zograd.examples.learned_shortcuts import WIDTH, course, matrix, softmax_rows


def test_residual_routes_give_the_product_of_the_layers() -> None:
    """h_k = (I + W_k) h_(k-1) with all weight on the last state, and W_k h_(k-1) without any."""
    weights = 0.3 * torch.randn(4, WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    identity = torch.eye(WIDTH, dtype=torch.float64)
    product = plain = identity
    for w in weights:
        product, plain = (identity + w) @ product, w @ plain
    torch.testing.assert_close(matrix(weights, torch.eye(4).double()), product)
    torch.testing.assert_close(matrix(weights, torch.zeros(4, 4).double()), plain)


def test_routes_are_points_of_simplices() -> None:
    c = softmax_rows(torch.randn(5, 5, dtype=torch.float64))
    torch.testing.assert_close(c.sum(1), torch.ones(5).double())
    assert torch.equal(c, c.tril())
    assert bool((c.tril() >= 0).all())


def test_evaluations_of_routes_have_the_mean_of_autograd() -> None:
    """The estimate in the routes alone, against the gradient of autograd, within 5 standard errors."""
    generator = torch.Generator().manual_seed(1)
    weights = 0.3 * torch.randn(3, WIDTH, WIDTH, dtype=torch.float64, generator=generator)
    a = torch.randn(3, 3, dtype=torch.float64, generator=generator).requires_grad_(True)
    loss = matrix(weights, softmax_rows(a)).square().mean()
    (exact,) = torch.autograd.grad(loss, a)
    f = lambda x: float(matrix(weights, softmax_rows(torch.from_numpy(x.reshape(3, 3)))).square().mean())  # noqa: E731
    found = np.array([zo.gradient(f, a.detach().numpy().ravel(), mu=1e-3, step=k).value for k in range(300)])
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(0) - exact.numpy().ravel()) < 5 * error + 1e-7)


def test_both_ways_to_learn_routes_lower_the_loss_alike() -> None:
    ends = {way: course(way, 5, 60, 0) for way in ("no shortcut", "routes by autograd", "routes by evaluations")}
    assert ends["routes by evaluations"][-1] == pytest.approx(ends["routes by autograd"][-1], rel=0.2)
    assert ends["routes by evaluations"][-1] < 0.5 * ends["no shortcut"][-1]
