"""Compiled loops beside plain products in float64: side branches of any rank, dtype, number of branches and rows."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from zograd import kernels
from zograd.kernels import Factors, Side


def factors(rank: int, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Factors:
    return Factors(torch.randn(rank, rows, dtype=dtype), torch.randn(rank, columns, dtype=dtype))


def expected(y: Tensor, x: Tensor, sides: list[list[Side]], start: int) -> Tensor:
    """float64."""
    y, x = y.double().clone(), x.double()
    for k, terms in enumerate(sides):
        for c, f in terms:
            u = f.u.double()[:, start : start + y.shape[2]]
            y[k] += x[k] @ f.v.double().T @ torch.tensor(c, dtype=torch.float64).diag() @ u
    return y


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float64: 1e-12}


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(kernels, "library", lambda: None)
    return str(request.param)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("ranks", [(1,), (1, 2, 1), (5,), (30, 1, 9)], ids=str)
@pytest.mark.parametrize(
    ("n", "each", "rows", "columns"), [(1, 1, 1, 1), (2, 3, 40, 17), (3, 9, 33, 64), (2, 4, 5, 130)]
)
def test_side_branches(
    way: str, dtype: torch.dtype, ranks: tuple[int, ...], n: int, each: int, rows: int, columns: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(len(ranks) + rows)
        kinds = (torch.float32, torch.float64)
        shared = [factors(r, rows + 7, columns, kind) for r, kind in zip(ranks, itertools.cycle(kinds))]
        x, y = torch.randn(n, each, columns).to(dtype), torch.randn(n, each, rows).to(dtype)
        coefs = [[tuple(torch.randn(r).tolist()) for r in ranks] for _ in range(n)]
    sides = [list(zip(c, shared, strict=True)) for c in coefs]
    sides[-1] = sides[-1][:-1]  # branches need not have as many
    for start in (0, 7):
        found = y.clone()
        assert kernels.add_sides_(found, x, sides, start) is found
        size = 1.0 + expected(y, x, sides, start).abs().max()
        assert (found - expected(y, x, sides, start)).abs().max() <= TOLERANCE[dtype] * size


def test_branches_without_a_side_stay_as_they_are(way: str) -> None:
    y = torch.randn(2, 3, 4)
    before = y.clone()
    kernels.add_sides_(y, torch.randn(2, 3, 5), [[], []])
    assert torch.equal(y, before)
    f = factors(1, 4, 5)
    kernels.add_sides_(y, torch.randn(2, 3, 5), [[((1.0,), f)], []])
    assert torch.equal(y[1], before[1])
    assert not torch.equal(y[0], before[0])


def test_threads_and_the_order_of_branches_change_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 300, d, generator=generator) for d in (600, 500))
    terms: list[Side] = [((0.1,), factors(1, 500, 600)) for _ in range(6)]
    both = kernels.add_sides_(y.clone(), x, [terms, terms])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(kernels.add_sides_(y.clone(), x, [terms, terms]), both)
    finally:
        torch.set_num_threads(before)
    one = torch.cat([kernels.add_sides_(y[k : k + 1].clone(), x[k : k + 1], [terms]) for k in range(2)])
    assert torch.equal(one, both)
