"""Shares of columns and ranks: the number that a decimal share means, not the one that its rounded product has."""

from __future__ import annotations

import pytest
from torch import nn

from zograd.compress import magnitude, prune_, rank_of


@pytest.mark.parametrize(
    ("sparsity", "inputs", "gone"),
    [(0.29, 100, 29), (0.57, 100, 57), (1 - 0.9, 10, 1), (0.299, 100, 29), (0.0, 7, 0), (1 - 1e-12, 50, 49)],
)
def test_a_row_loses_the_share_of_its_weights_that_was_asked_for(sparsity: float, inputs: int, gone: int) -> None:
    layer = nn.Linear(inputs, 3)
    masks = prune_({"0": layer}, {"0": magnitude(layer.weight)}, sparsity)
    assert (~masks["0.weight"]).sum(1).tolist() == [gone] * 3
    assert (layer.weight == 0).sum(1).tolist() == [gone] * 3


def test_a_rank_is_the_largest_one_that_fits() -> None:
    """0.29 of 200 x 200 numbers are 11,600: rank 29 has as many. 0.57 of them: 22,800, rank 57."""
    assert [rank_of((200, 200), keep) for keep in (0.29, 0.57, 0.289)] == [29, 57, 28]
