"""Laws of directions: E[v v^T] = I, the norm, and the variance that each law's docstring promises.

Each statement about a mean comes with its standard error, estimated from the same draws; the seeds are fixed, so a
test either always passes or always fails. Directions are taken through the law and a store, as a run takes them.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from small_problems import LAWS

from zograd.laws import Draw, Rademacher, Sphere
from zograd.stores import Store
from zograd.vector import Address, fill_

D, N = 16, 60_000
G = np.cos(np.arange(D)) * np.linspace(0.2, 2.0, D)
G /= np.linalg.norm(G)
by_name = pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)


def draw(store: Store, k: int) -> Draw:
    """What a run hands to its law for the first direction of step k."""
    return Draw(2024, k, 0, tuple(leaf.shape for leaf in store.leaves), store.gram)


@cache
def draws(law) -> np.ndarray:
    """N directions of dimension D, one a row."""
    store = Store({"x": torch.zeros(D, dtype=torch.float64)})
    out, rows = torch.zeros(D, dtype=torch.float64), np.empty((N, D))
    for k in range(N):
        fill_(out, law(draw(store, k)), Address(0, 0, (D,)), {})
        rows[k] = out.numpy()
    return rows


def total_variance(law) -> float:
    """E|D_v v - g|^2 / |g|^2 of one direction, mu -> 0."""
    return {"Rademacher": D - 1, "Gaussian": D + 1, "Sphere": D - 1}[type(law).__name__]


def coordinate_variance(law) -> np.ndarray:
    return {"Rademacher": 1 - G**2, "Gaussian": 1 + G**2, "Sphere": (D + (D - 2) * G**2) / (D + 2)}[type(law).__name__]


@by_name
def test_directions_are_white(law) -> None:
    """E[v v^T] = I, every entry within 4.5 standard errors (with 136 entries a law, odds of 1 in 1000)."""
    v = draws(law)
    mean = v.T @ v / N
    error = np.sqrt(np.maximum((v**2).T @ v**2 / N - mean**2, 0) / N)  # s.e. of the mean of v_i v_j
    assert np.all(np.abs(mean - np.eye(D)) <= 4.5 * error + 1e-12)


@by_name
def test_directions_are_centred(law) -> None:
    """E[v] = 0 and E[v_i v_j v_k] = 0: odd moments vanish, which cancels the curvature in one-sided estimates."""
    v = draws(law)
    assert np.all(np.abs(v.mean(0)) <= 4.5 / math.sqrt(N))
    third = (v[:, 0] * v[:, 1] * v[:, 2], v[:, 0] * v[:, 1] ** 2, v[:, 3] ** 3)
    for moment in third:
        assert abs(moment.mean()) <= 4.5 * moment.std() / math.sqrt(N)


@by_name
def test_norm_is_fixed_where_the_law_says_so(law) -> None:
    """|v|^2 = d exactly for a law of fixed norm (to rounding), and varies otherwise."""
    squared = (draws(law)[:1000] ** 2).sum(1)
    assert law.fixed_norm == (np.ptp(squared) < 1e-10)
    if law.fixed_norm:
        np.testing.assert_allclose(squared, D, rtol=1e-13)


@by_name
def test_total_variance_of_the_two_point_estimate(law) -> None:
    """E|D_v v - g|^2 = (d - 1)|g|^2 for fixed norms, (d + 1)|g|^2 for the Gaussian, within 1.5 %."""
    v = draws(law)
    estimate = (v @ G)[:, None] * v
    measured = ((estimate - G) ** 2).sum(1).mean()
    assert measured == pytest.approx(total_variance(law), rel=0.015)


@by_name
def test_variance_of_each_coordinate(law) -> None:
    """The second column of the docstrings' table, within 4.5 standard errors; the estimate is unbiased."""
    v = draws(law)
    estimate = (v @ G)[:, None] * v
    assert np.all(np.abs(estimate.mean(0) - G) <= 4.5 * estimate.std(0) / math.sqrt(N))
    squares = (estimate - G) ** 2
    assert np.all(np.abs(squares.mean(0) - coordinate_variance(law)) <= 4.5 * squares.std(0) / math.sqrt(N))


@by_name
def test_different_keys_steps_and_leaves_are_independent(law) -> None:
    """Directions of neighbouring keys, and of two leaves under one key, have correlation 0 within 4.5 s.e."""
    v = draws(law)
    for lag in (1, 2, 8):
        inner = (v[lag:] * v[:-lag]).sum(1)
        assert abs(inner.mean()) <= 4.5 * inner.std() / math.sqrt(len(inner))
    n = 200_000
    store = Store({"a": torch.zeros(n), "b": torch.zeros(n)})
    direction = law(draw(store, 99))
    a, b = (fill_(torch.empty(n), direction, Address(leaf, 0), {}).numpy() for leaf in (0, 1))
    assert abs(np.mean(a * b)) <= 4.5 / math.sqrt(n)
    assert abs(np.mean(a[1:] * a[:-1])) <= 4.5 / math.sqrt(n)


@by_name
def test_a_direction_is_a_function_of_its_key(law) -> None:
    store = Store({"x": torch.zeros(D)})
    assert law(draw(store, 5)) == law(draw(store, 5))
    assert law(draw(store, 5)) != law(draw(store, 6))
    assert hash(law(draw(store, 5))) == hash(law(draw(store, 5)))


@pytest.mark.parametrize("law", [Rademacher(), Sphere()], ids=lambda law: type(law).__name__)
def test_gram_gives_the_norm_that_the_elements_have(law) -> None:
    """Store.gram needs no tensor, and agrees with the written-out vectors."""
    store = Store({"a": torch.zeros(1000, dtype=torch.float64), "b": torch.zeros(33, dtype=torch.float64)})
    v = [law(draw(store, k)) for k in range(3)]
    rows = np.stack([np.concatenate([b.v[0].numpy().copy() for b in store.blocks(x)]) for x in v])
    np.testing.assert_allclose(store.gram(v), rows @ rows.T, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(np.diag(store.gram(v)), 1033, rtol=1e-12)
