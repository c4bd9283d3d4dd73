"""The noise behaves like independent draws of its law. Keys are fixed, so these tests cannot flake.

Every bound is a number of standard errors, written out where it is used. The bound on correlations is |rho| < 4 /
sqrt(n): among the few hundred pairs below, chance alone passes it with probability above 98 %, and the keys are fixed.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from zograd.noise import Kind, Term, combine, fold, format, portable

N = 1 << 18
SEED = fold(0, 20240229)
both_kinds = pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)


def draw(kind: Kind, key: int, leaf: int = 0, start: int = 0, count: int = N) -> np.ndarray:
    out = torch.empty(count, dtype=torch.float64)
    combine(out, terms=[Term(kind, key, 1.0)], leaf=leaf, start=start)
    return out.numpy()


def assert_uncorrelated(series: list[np.ndarray]) -> None:
    for a, b in itertools.combinations(series, 2):
        rho = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
        assert abs(rho) < 4 / math.sqrt(len(a))


@both_kinds
def test_moments(kind):
    z = draw(kind, SEED, count=1 << 20)
    n = len(z)
    fourth, sixth, eighth = (1, 1, 1) if kind == Kind.SIGN else (3, 15, 105)
    # standard error of the mean of z^p: sqrt((E z^2p - (E z^p)^2) / n)
    assert abs(z.mean()) < 4 * math.sqrt(1 / n)
    assert abs((z**2).mean() - 1) <= 4 * math.sqrt((fourth - 1) / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(sixth / n)
    assert abs((z**4).mean() - fourth) <= 4 * math.sqrt((eighth - fourth**2) / n)


def test_signs_are_signs():
    assert set(np.unique(draw(Kind.SIGN, SEED))) == {-1.0, 1.0}


def test_normals_follow_the_normal_law():
    z = draw(Kind.NORMAL, SEED)
    # The law has 65,536 atoms: its distance to N(0, 1) is below 2^-16, small beside 1.63 / sqrt(n) (the 1 % point).
    assert stats.kstest(z, "norm").pvalue > 0.01
    assert np.abs(z).max() <= 283441 / 65536


def test_every_atom_is_used_equally():
    u = portable.draws16(SEED, 0, format.NORMALS, torch.tensor([0]), 1 << 21)[0]
    counts = torch.bincount(u, minlength=1 << 16).numpy()
    assert stats.chisquare(counts).pvalue > 0.001


@both_kinds
def test_keys_are_independent_even_one_bit_apart(kind):
    key = SEED
    assert_uncorrelated(
        [draw(kind, key ^ (1 << bit), count=1 << 15) for bit in (0, 1, 7, 31, 32, 33, 63)]
        + [draw(kind, key, count=1 << 15)]
    )
    assert_uncorrelated([draw(kind, k, count=1 << 15) for k in range(8)])


@both_kinds
def test_neighbouring_steps_are_independent(kind):
    assert_uncorrelated([draw(kind, fold(SEED, step), count=1 << 15) for step in range(20)])
    assert_uncorrelated(
        [draw(kind, fold(SEED, step, direction), count=1 << 15) for step in (0, 1) for direction in (0, 1)]
    )


@both_kinds
def test_leaves_are_independent(kind):
    assert_uncorrelated([draw(kind, SEED, leaf=leaf, count=1 << 15) for leaf in (*range(10), 1 << 16, (1 << 32) - 1)])


@both_kinds
@pytest.mark.parametrize("lag", [1, 2, 15, 16, 31, 32, 63, 64, 127, 128, 512, 1024, 2048, 4096, 1 << 16])
def test_elements_are_independent(kind, lag):
    z = draw(kind, SEED, count=N + lag)
    assert_uncorrelated([z[:N], z[lag:]])


@both_kinds
def test_far_elements_are_not_a_repeat(kind):
    """2^32 counters further on, only the second counter word differs."""
    near = draw(kind, SEED, count=1 << 15)
    assert_uncorrelated([near, *(draw(kind, SEED, start=s, count=1 << 15) for s in (1 << 31, 1 << 35, 1 << 39))])


def test_streams_of_one_key_are_independent():
    signs, normals = draw(Kind.SIGN, SEED), draw(Kind.NORMAL, SEED)
    rounding = portable.draws16(SEED, 0, format.ROUNDING, torch.tensor([0]), N)[0].numpy() - 32767.5
    assert_uncorrelated([signs, normals, np.abs(normals) - np.abs(normals).mean(), rounding])


def test_products_of_neighbours_are_balanced():
    """Signs of triples and quadruples: +1 and -1 equally often (a linear generator would fail here)."""
    z = draw(Kind.SIGN, SEED, count=N + 4096)
    for lags in [(0, 1, 2), (0, 32, 64), (0, 512, 1024), (0, 1, 2, 3), (0, 32, 512, 2048)]:
        product = np.prod([z[lag : lag + N] for lag in lags], axis=0)
        assert abs(product.mean()) < 4 / math.sqrt(N)
