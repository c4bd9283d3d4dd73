"""On a CUDA device: the Triton kernels against the CPU; groups, rows, replay in a CUDA graph. `make test-gpu`."""

from __future__ import annotations

import itertools

import pytest
import torch

from zograd.noise import Job, Kind, Term, backend, combine, combine_group, combine_pair, combine_rows, device, portable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALF = DTYPES[2:]
TERMS = {
    "sign": [Term(Kind.SIGN, 1, 2.0**-10)],
    "normal": [Term(Kind.NORMAL, 2, 1e-3)],
    "many": [Term(Kind(j % 2), j << 40, 1e-3 / (j + 1)) for j in range(7)],
}
SIZES = [1, 8, 40, 5003, 3 * device.TILE, 2 * device.TILE - 8]


def weights(n: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * 0.02).to(dtype)


@pytest.fixture(autouse=True)
def _needs_triton() -> None:
    pytest.importorskip("triton")
    assert backend("cuda") == "triton"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["nearest", "stochastic", "split"])
def test_combine_has_the_bits_of_the_cpu(dtype: torch.dtype, mode: str) -> None:
    if mode != "nearest" and dtype not in HALF:
        pytest.skip("16-bit formats only")
    for terms, n, start in itertools.product(TERMS.values(), SIZES, (0, 77, (1 << 39) - device.TILE)):
        x = weights(n, dtype)
        there = x.cuda()
        how = {
            "terms": terms,
            "leaf": 3,
            "start": start,
            "scale": 0.999,
            "rounding": 5 if mode == "stochastic" else None,
        }
        lows = [torch.zeros(n, dtype=torch.int16, device=w.device) if mode == "split" else None for w in (x, there)]
        for _ in range(2):  # the second time from low halves that are not zero
            moved = [combine(w, w, low=low, **how) for w, low in zip((x, there), lows, strict=True)]
            assert moved[0] == moved[1]
            assert torch.equal(there.cpu(), x)
            assert lows[0] is None or torch.equal(lows[1].cpu(), lows[0])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_every_pattern_is_rounded_as_on_the_cpu(dtype: torch.dtype) -> None:
    """Zeros, subnormals, infinities and NaN of 16 bits, moved by amounts of all sizes."""
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    for coef, key in itertools.product((0.0, 1e-9, 1e-5, 1.0, 1e4), (None, 7)):
        here, there = x.clone(), x.cuda()
        for w in (here, there):
            combine(w, w, terms=[Term(Kind.NORMAL, 1, coef)], rounding=key)
        assert torch.equal(there.cpu().view(torch.int16), here.view(torch.int16))


def test_subnormal_floats_are_not_flushed() -> None:
    here = torch.full((4096,), 1e-39)
    there = here.cuda()
    for w in (here, there):
        combine(w, w, scale=0.5, terms=[Term(Kind.NORMAL, 1, 1e-40)])
    assert torch.equal(there.cpu(), here)
    assert here.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pairs(dtype: torch.dtype) -> None:
    for terms, n in itertools.product(TERMS.values(), SIZES):
        x = weights(n, dtype)
        here, there = ([torch.empty_like(w), torch.empty_like(w)] for w in (x, x.cuda()))
        combine_pair(*here, x, terms=terms, leaf=1, start=16)
        combine_pair(*there, x.cuda(), terms=terms, leaf=1, start=16)
        assert all(torch.equal(b.cpu(), a) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows(dtype: torch.dtype) -> None:
    for num_rows, row_len in ((50, 100), (5, 4096), (3, 5001)):
        x, rows = weights(num_rows * row_len, dtype).view(num_rows, row_len), torch.tensor([2, 0, 2, num_rows - 1])
        here = torch.empty(4, row_len, dtype=dtype)
        there = torch.empty_like(here, device="cuda")
        combine_rows(here, x, rows, terms=TERMS["many"], leaf=4)
        combine_rows(there, x.cuda(), rows.cuda(), terms=TERMS["many"], leaf=4)
        assert torch.equal(there.cpu(), here)


def test_a_group_is_a_handful_of_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [weights(n, dtype) for n in SIZES * 20 for dtype in DTYPES]
    there = [w.cuda() for w in here]
    launched: list[int] = []
    launch = device.Pass.launch
    monkeypatch.setattr(device.Pass, "launch", lambda self: (launched.append(len(self._groups)), launch(self)))
    moved = [
        combine_group([Job(w, w, leaf) for leaf, w in enumerate(group)], terms=TERMS["many"], rounding=9)
        for group in (here, there)
    ]
    assert moved[0] == moved[1]
    assert all(torch.equal(b.cpu(), a) for a, b in zip(here, there, strict=True))
    assert sum(launched) <= 2 * len(DTYPES)


def test_a_cuda_graph_replays_with_other_knobs() -> None:
    x = weights(3 * device.TILE + 8, torch.bfloat16)
    w = x.cuda()
    made = device.Pass([Job(w, w, leaf=2)], [Kind.SIGN])
    made.set(1.0, [Term(Kind.SIGN, 0, 0.0)], 1.0, None)
    made.launch()  # compiles, and changes nothing
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made.launch()
    for key, coef in ((1, 1e-2), (2, -3e-2)):
        made.set(0.9, [Term(Kind.SIGN, key, coef)], 1.0, None)
        graph.replay()
        portable.combine(x, x, 0.9, [Term(Kind.SIGN, key, coef)], None, 1.0, 2, 0, None, None)
        assert torch.equal(w.cpu(), x)
