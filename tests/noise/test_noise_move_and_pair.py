"""Law: a move and both sides of where it leads, in one pass, have the bits of the two calls."""

from __future__ import annotations

import pytest
import torch

from zograd.noise import Kind, Term, combine, combine_pair, move_and_pair, signs

MOVE = [Term(Kind.SIGN, 7, 0.3), Term(Kind.NORMAL, 8, -0.1)]
PROBE = [Term(Kind.SIGN, 9, 2.0**-7)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("n", "start"), [(1, 0), (5000, 77), (40_000, 2048)])
def test_one_pass_has_the_bits_of_two(dtype: torch.dtype, threads: int, n: int, start: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        x = torch.randn(n).to(dtype)
        for rounding in (None, 11) if dtype in (torch.bfloat16, torch.float16) else (None,):
            a, b = x.clone(), x.clone()
            plus, minus, other_plus, other_minus = (torch.empty_like(x) for _ in range(4))
            moved = combine(a, a, scale=0.9, terms=MOVE, leaf=3, start=start, rounding=rounding)
            combine_pair(plus, minus, a, terms=PROBE, leaf=3, start=start)
            found = move_and_pair(
                other_plus, other_minus, b, scale=0.9, move=MOVE, rounding=rounding, terms=PROBE, leaf=3, start=start
            )
            assert found == moved
            for one, other in ((a, b), (plus, other_plus), (minus, other_minus)):
                assert torch.equal(one, other)
            assert not torch.equal(a, x)
    finally:
        torch.set_num_threads(before)


def test_bad_arguments_write_nothing() -> None:
    x = torch.zeros(8)
    with pytest.raises(ValueError, match="share part of their memory"):
        move_and_pair(x, torch.zeros(8), x, move=MOVE, terms=PROBE)
    with pytest.raises(TypeError, match="minus is"):
        move_and_pair(torch.zeros(8), torch.zeros(8).double(), x, move=MOVE, terms=PROBE)
    with pytest.raises(ValueError, match="not a 64-bit key"):
        move_and_pair(torch.zeros(8), torch.zeros(8), x, move=[Term(Kind.SIGN, -1, 1.0)], terms=PROBE)
    assert not x.any()


def test_signs_are_those_of_combine() -> None:
    runs = [(2, 9, 300), (0, 0, 0), (2**31, 2040, 17), (1, 0, 5000)]
    expected = []
    for leaf, start, count in runs:
        expected.append(torch.empty(count))
        combine(expected[-1], None, terms=[Term(Kind.SIGN, 5, 1.0)], leaf=leaf, start=start)
    assert torch.equal(signs(5, runs, torch.device("cpu")), torch.cat(expected))
