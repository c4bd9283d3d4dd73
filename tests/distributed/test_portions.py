"""Where the elements of a part lie in the whole tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zograd.noise import Kind, Term, combine
from zograd.stores import Leaf
from zograd.stores.sharding import Portion, portion_of


@st.composite
def portions(draw: st.DrawFn) -> Portion:
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    cuts = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return Portion(shape, tuple((a, b) for a, b in cuts), lambda part: part)


@given(portions(), st.integers(1, 7))
def test_runs_follow_each_other_in_the_whole_tensor(portion: Portion, size: int) -> None:
    """Pieces cover the part once, in order; in each, numbers in the whole tensor go up by one."""
    whole = torch.arange(torch.Size(portion.shape).numel()).view(portion.shape)
    part = whole[tuple(slice(a, b) for a, b in portion.box)].reshape(-1)
    leaf = Leaf("w", whole.float(), 0, 0, portion=portion)
    pieces = list(leaf.runs(0, leaf.numel, size))
    assert [i for a, b in pieces for i in range(a, b)] == list(range(len(part)))
    assert all(b - a <= size for a, b in pieces)
    for a, b in pieces:
        assert part[a:b].tolist() == list(range(leaf.place(a), leaf.place(a) + b - a))


@given(portions())
def test_noise_of_a_part_is_that_part_of_the_noise(portion: Portion) -> None:
    whole = torch.zeros(portion.shape)
    terms = (Term(Kind.NORMAL, 11, 0.5), Term(Kind.SIGN, 12, 0.25))
    combine(whole, None, terms=terms, leaf=3)
    expected = whole[tuple(slice(a, b) for a, b in portion.box)].reshape(-1)
    leaf = Leaf("w", whole, 3, 0, portion=portion)
    part = torch.zeros(leaf.numel)
    for a, b in leaf.runs(0, leaf.numel):
        combine(part[a:b], None, terms=terms, leaf=3, start=leaf.place(a))
    assert torch.equal(part, expected)


def test_rows_are_one_run_and_columns_one_a_row() -> None:
    rows = Portion((8, 6), ((4, 8), (0, 6)), lambda part: part)
    columns = Portion((8, 6), ((0, 8), (3, 6)), lambda part: part)
    assert (rows.run, columns.run) == (24, 3)


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.nn.Parameter(torch.zeros(2, 2))])
def test_ordinary_tensors_are_whole(tensor: torch.Tensor) -> None:
    assert portion_of(tensor) is None
