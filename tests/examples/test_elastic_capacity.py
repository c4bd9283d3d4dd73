"""Row 25: the cut to a size, and the parts that the example plants, in NumPy."""

from __future__ import annotations

import numpy as np
import torch

from zograd.examples.elastic_capacity import N, cut, planted, rank_of, train
from zograd.rules import LowRankSparse


def test_the_cut_keeps_leading_singular_values_and_largest_elements() -> None:
    goal, low, sparse = planted(3)
    assert np.linalg.matrix_rank(low.numpy()) == 2 == rank_of(low)
    assert int((sparse != 0).sum()) == 20
    found, count = cut(low, sparse, 1, 5)
    u, s, vt = np.linalg.svd(low.numpy())
    flat = sparse.numpy().ravel()
    kept = np.zeros_like(flat)
    largest = np.argsort(-np.abs(flat), kind="stable")[:5]
    kept[largest] = flat[largest]
    assert count == 2 * N + 2 * 5
    assert np.isclose(np.linalg.norm(found.numpy() - s[0] * np.outer(u[:, 0], vt[0])) ** 2, np.sum(kept**2))
    whole, _ = cut(low, sparse, 2, 20)
    torch.testing.assert_close(whole, goal)


def test_the_parts_of_a_run_add_up_to_its_weights() -> None:
    goal, _, _ = planted(0)
    rule = LowRankSparse(rank=0.1, density=0.05)
    w, store = train(goal, rule, 8, 300, 0)
    ((low, sparse),) = rule.parts(store).values()
    assert float((low + sparse - w).norm()) < 0.2 * float(w.norm())
    assert float((w - goal).norm()) < 0.6 * float(goal.norm())
