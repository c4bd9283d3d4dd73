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
from bases import dct
from small_problems import LAWS, dense

from zograd.laws import Draw
from zograd.stores import Store

SIDE, D = 4, 16
G = np.cos(np.arange(D)) * np.linspace(0.2, 2.0, D)
G /= np.linalg.norm(G)
by_name = pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
FACTORED = ("RankOne", "LowRank", "Components", "Subspace", "Projected", "DCT")
SLOW = ("SmallWeights", "TopScores", "Scattered", "Orthogonal", *FACTORED)
"""Laws whose directions take 0.1 ms and more: fewer of them are drawn."""


def name(law) -> str:
    return type(law).__name__


def prepared(law, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Store:
    """A store with the law's slots set, as a run has it; the weights have various sizes."""
    weights = {f"w{k}": torch.linspace(-1, 1, math.prod(s), dtype=dtype).view(s) for k, s in enumerate(shapes)}
    store = Store(weights)
    store.require(law.slots)
    law.prepare(store)
    return store


def draw(store: Store, k: int, seed: int = 2024) -> Draw:
    """What a run hands to its law for the first direction of step k."""
    return Draw(seed, k, 0, tuple(leaf.shape for leaf in store.leaves), store.gram)


def draws_from(law, store: Store, k: int) -> Draw:
    """A draw in which everything is random: of a run of its own, since some factors are kept for a whole run.

    Masks are given, as `support` says: where there is one, steps of one run.
    """
    return draw(store, k, 2024 if hasattr(law, "support") else 2024 + k)


def elements(store: Store, vector) -> np.ndarray:
    return np.concatenate([b.v[0].double().numpy().copy() for b in store.blocks(vector)])


@cache
def draws(law) -> np.ndarray:
    """Directions on a 4 x 4 matrix, one a row."""
    store = prepared(law, (SIDE, SIDE))
    count = 4_000 if name(law) in SLOW else 16_000
    return np.stack([elements(store, law(draws_from(law, store, k))) for k in range(count)])


def support(law) -> np.ndarray:
    """The diagonal of E[v v^T] that the law declares: 1 on its mask, 1 everywhere without one."""
    if not hasattr(law, "support"):
        return np.ones(D)
    store = prepared(law, (SIDE, SIDE))
    return elements(store, law.support(draw(store, 0)))


# ---- E[<v, G>^2 v_i^2], from which the variances follow --------------------------------------------------------------


def pairs(identity: float, crossed: float, n: int = SIDE) -> np.ndarray:
    """T[i, j, k, l] = identity d_ij d_kl + crossed (d_ik d_jl + d_il d_jk): E[S_ij S_kl] of an isotropic matrix S."""
    d = np.eye(n)
    straight = np.einsum("ij,kl->ijkl", d, d)
    return identity * straight + crossed * (np.einsum("ik,jl->ijkl", d, d) + np.einsum("il,jk->ijkl", d, d))


def projection(rank: int, n: int = SIDE) -> np.ndarray:
    """The same for S = (n / rank) P, P a uniform projection: from E[(tr P)^2] = rank^2 and E[tr P^2] = rank."""
    a, b = np.linalg.solve([[n * n, 2 * n], [n, n + n * n]], [rank * rank, rank])
    return (n / rank) ** 2 * pairs(a, b)


def cosines(rank: int, n: int = SIDE) -> np.ndarray:
    """The same for P on `rank` of the n columns of the DCT, all choices alike."""
    q = dct(n)
    both = np.full((n, n), rank * (rank - 1) / (n * (n - 1)))
    np.fill_diagonal(both, rank / n)
    return (n / rank) ** 2 * np.einsum("st,is,js,kt,lt->ijkl", both, q, q, q, q)


def gaussian_given(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """v Gaussian with covariance S_rows x S_columns, both random: E[(G S G) S_ii + 2 (S G)_i^2]."""
    g = G.reshape(SIDE, SIDE)
    whole = np.einsum("aacd,bbef,ce,df->ab", rows, columns, g, g)
    return (whole + 2 * np.einsum("acad,bebf,ce,df->ab", rows, columns, g, g)).ravel()


def fourth_moment(law) -> np.ndarray:
    """E[<v, G>^2 v_i^2] of every law, from its docstring's definition."""
    apart = pairs(1.0, 0.0)
    on = support(law)
    return {
        "Rademacher": lambda: np.ones(D),
        "Walsh": lambda: np.ones(D),
        "RankOne": lambda: np.ones(D),
        "Gaussian": lambda: 1 + 2 * G**2,
        "Sphere": lambda: D * (1 + 2 * G**2) / (D + 2),
        "Orthogonal": lambda: D * (1 + 2 * G**2) / (D + 2),
        "Coordinate": lambda: D * G**2,
        "LowRank": lambda: gaussian_given(apart, pairs(1.0, 1 / law.rank)),
        "Components": lambda: (
            3 / law.rank * gaussian_given(apart, pairs(1.0, 1.0)) + (1 - 1 / law.rank) * (1 + 2 * G**2)
        ),
        "Subspace": lambda: gaussian_given(projection(law.rank), projection(law.rank)),
        "Projected": lambda: gaussian_given(projection(law.rank), apart),
        "DCT": lambda: gaussian_given(apart, cosines(law.rank)),
        "SmallWeights": lambda: on * (on @ G**2 + 2 * G**2),
        "TopScores": lambda: on * (on @ G**2 + 2 * G**2),
        "Scattered": lambda: on * (on @ G**2 + 2 * G**2),
    }[name(law)]()


def stated_total(law) -> float | None:
    """The total variance that docstrings state, in units of |g|^2."""
    m = n = SIDE
    r = getattr(law, "rank", 1)
    return {
        "Rademacher": D - 1,
        "Walsh": D - 1,
        "RankOne": D - 1,
        "Sphere": D - 1,
        "Orthogonal": D - 1,
        "Coordinate": D - 1,
        "Gaussian": D + 1,
        "LowRank": m * n + 1 + 2 * (m + n + 1) / r,
        "Components": (3 * (m + 2) * (n + 2) + (r - 1) * (m * n + 2)) / r - 1,
        "Subspace": m * n - 1 + 2 * m * n / r**2,
        "Projected": m * n - 1 + 2 * m / r,
        "DCT": m * n - 1 + 2 * n / r,
    }.get(name(law), support(law).sum() + 1)


@by_name
def test_directions_are_white(law) -> None:
    """E[v v^T] = I on the mask, 0 outside: every entry within 4.5 standard errors (136 entries: odds of 1 in 1000)."""
    v = draws(law)
    mean = v.T @ v / len(v)
    error = np.sqrt(np.maximum((v**2).T @ v**2 / len(v) - mean**2, 0) / len(v))  # s.e. of the mean of v_i v_j
    assert np.all(np.abs(mean - np.diag(support(law))) <= 4.5 * error + 1e-12)


@by_name
def test_directions_are_centred(law) -> None:
    """E[v] = 0 and E[v_i v_j v_k] = 0: odd moments vanish, which cancels the curvature in one-sided estimates."""
    v = draws(law)
    assert np.all(np.abs(v.mean(0)) <= 4.5 * v.std(0) / math.sqrt(len(v)))
    third = (v[:, 0] * v[:, 1] * v[:, 2], v[:, 0] * v[:, 1] ** 2, v[:, 3] ** 3)
    for moment in third:
        assert abs(moment.mean()) <= 4.5 * moment.std() / math.sqrt(len(v))


@by_name
def test_norm_is_fixed_where_the_law_says_so(law) -> None:
    """|v|^2 = d exactly for a law of fixed norm (to rounding), and varies otherwise."""
    squared = (draws(law)[:1000] ** 2).sum(1)
    assert law.fixed_norm == (np.ptp(squared) < 1e-10)
    if law.fixed_norm:
        np.testing.assert_allclose(squared, D, rtol=1e-13)


@by_name
def test_the_mask_is_the_support(law) -> None:
    """Elements outside of the declared support are exactly 0, those inside are not."""
    np.testing.assert_array_equal((draws(law) != 0).any(0), support(law) == 1)


@by_name
def test_total_variance_of_the_two_point_estimate(law) -> None:
    """E|D_v v - g|^2 as stated, within 1.5 % (or 4.5 standard errors, for the laws of which fewer are drawn)."""
    v = draws(law)
    on = support(law)
    estimate = (v @ G)[:, None] * v
    squares = ((estimate - on * G) ** 2).sum(1) / (on @ G**2)
    stated = stated_total(law)
    assert (fourth_moment(law) - on * G**2).sum() / (on @ G**2) == pytest.approx(stated, rel=1e-12)
    allowed = 4.5 * squares.std() / math.sqrt(len(v)) if name(law) in SLOW else 0.015 * stated
    assert squares.mean() == pytest.approx(stated, abs=allowed)


@by_name
def test_variance_of_each_coordinate(law) -> None:
    """From the fourth moments, within 4.5 standard errors; the estimate is unbiased on the mask."""
    v = draws(law)
    g = support(law) * G
    estimate = (v @ G)[:, None] * v
    assert np.all(np.abs(estimate.mean(0) - g) <= 4.5 * estimate.std(0) / math.sqrt(len(v)))
    squares = (estimate - g) ** 2
    gap = np.abs(squares.mean(0) - (fourth_moment(law) - g**2))
    assert np.all(gap <= 4.5 * squares.std(0) / math.sqrt(len(v)) + 1e-12)


@by_name
def test_different_keys_steps_and_leaves_are_independent(law) -> None:
    """Directions of neighbouring keys, and two leaves of one shape under one key, have correlation 0 within 4.5 s.e."""
    v = draws(law)
    for lag in (1, 2, 8):
        inner = (v[lag:] * v[:-lag]).sum(1)
        assert abs(inner.mean()) <= 4.5 * inner.std() / math.sqrt(len(inner))
    store = prepared(law, (400, 500), (400, 500), dtype=torch.float32)
    a, b = np.split(elements(store, law(draw(store, 99))), 2)
    assert abs(np.mean(a * b)) <= 4.5 / math.sqrt(len(a))
    if name(law) not in FACTORED:  # elements of a row share a factor in those
        assert abs(np.mean(a[1:] * a[:-1])) <= 4.5 / math.sqrt(len(a))


@by_name
def test_a_direction_is_a_function_of_its_key(law) -> None:
    store = prepared(law, (D,))
    assert law(draw(store, 5)) == law(draw(store, 5))
    assert law(draw(store, 5)) != law(draw(store, 6))
    assert hash(law(draw(store, 5))) == hash(law(draw(store, 5)))


@by_name
def test_the_formula_in_numpy_gives_the_same_elements(law) -> None:
    """`tests/reference/bases.py` against the store, on a matrix, a vector, a row, a convolution kernel and a scalar."""
    shapes = ((5, 7), (6,), (1, 5), (3, 2, 2), ())
    store = prepared(law, *shapes)
    slots = {"x": np.concatenate([leaf.flat.numpy() for leaf in store.leaves])}
    for slot in law.slots:
        whole = [np.broadcast_to(leaf.slots[slot].numpy().ravel(), leaf.numel) for leaf in store.leaves]
        slots[slot] = np.concatenate(whole)
    for j in (0, 1, 6):
        vector = law(draw(store, 3).number(j))
        np.testing.assert_allclose(elements(store, vector), dense(vector, shapes, slots), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("law", [law for law in LAWS if not law.slots], ids=name)
def test_gram_gives_the_norm_that_the_elements_have(law) -> None:
    """Store.gram agrees with the written-out vectors."""
    store = prepared(law, (40, 25), (33,))
    v = [law(draw(store, k)) for k in range(3)]
    rows = np.stack([elements(store, x) for x in v])
    np.testing.assert_allclose(store.gram(v), rows @ rows.T, rtol=1e-12, atol=1e-9)
    if law.fixed_norm:
        np.testing.assert_allclose(np.diag(store.gram(v)), 1033, rtol=1e-12)
