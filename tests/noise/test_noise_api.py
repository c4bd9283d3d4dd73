"""The public edge: what is accepted, what is refused and with which advice, and what a call leaves alone."""

import re

import pytest
import torch

from zograd.noise import Job, Kind, Term, backend, combine, combine_group, combine_pair, combine_rows, gram

S = [Term(Kind.SIGN, 1, 0.5)]


def test_backend_depends_on_the_device():
    assert backend() == backend("cpu") in ("native", "torch")
    assert backend("cuda:1") in ("triton", "torch")
    assert backend("meta") == "torch"


def test_a_group_is_its_leaves_one_after_the_other():
    """Mixed dtypes; rounding keys reach 16-bit tensors without low halves only."""
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.bfloat16]
    weights = [torch.linspace(-1, 1, 3000 + j).to(dtype) for j, dtype in enumerate(dtypes)]
    lows = [None, None, None, torch.zeros(3003, dtype=torch.int16)]
    apart, terms = torch.empty(3000), [Term(Kind.SIGN, 1, 1e-3), Term(Kind.NORMAL, 2, 1e-3)]
    expected, moved = [], 0
    for j, (w, low) in enumerate(zip(weights, lows, strict=True)):
        y, rest = w.clone(), None if low is None else low.clone()
        key = 5 if j in (1, 2) else None
        moved += combine(y, y, scale=0.5, terms=terms, leaf=j, start=7 * j, rounding=key, low=rest)
        expected += [y, rest]
    y = torch.empty(3000)
    combine(y, weights[0], scale=0.5, terms=terms, leaf=9)
    jobs = [Job(apart, weights[0].clone(), 9), Job(torch.empty(0))]
    jobs += [Job(w, w, j, 7 * j, None, low) for j, (w, low) in enumerate(zip(weights, lows, strict=True))]
    assert combine_group(jobs, scale=0.5, terms=terms, rounding=5) == moved
    assert torch.equal(apart, y)
    for got, want in zip([t for pair in zip(weights, lows, strict=True) for t in pair], expected, strict=True):
        assert (got is None and want is None) or torch.equal(got, want)
    assert combine_group([]) == 0


def test_no_terms_copies_scales_or_zeroes():
    x, out = torch.tensor([1.5, -0.0, 3.0]), torch.full((3,), 9.0)
    combine(out, x)
    assert torch.equal(out.view(torch.int32), x.view(torch.int32))
    combine(out, x, scale=-2.0)
    assert out.tolist() == [-3.0, 0.0, -6.0]
    combine(out)
    assert torch.equal(out.view(torch.int32), torch.zeros(3, dtype=torch.int32))


def test_shapes_are_flat_in_memory_order():
    flat, square = torch.zeros(12), torch.zeros(3, 4)
    combine(flat, flat, terms=S, start=7)
    combine(square, square, terms=S, start=7)
    assert torch.equal(square.flatten(), flat)
    scalar = torch.zeros(())
    combine(scalar, scalar, terms=S, start=7)
    assert scalar == flat[0]
    view = flat.clone()
    combine(view[3:9], flat[3:9].clone(), scale=0.0, terms=S, start=10)
    assert torch.equal(view, flat)


def test_returns_the_number_of_changed_elements_in_place_only():
    x = torch.ones(5000, dtype=torch.bfloat16)
    assert combine(x, x, terms=[Term(Kind.SIGN, 1, 1e-3)]) == 0  # a quarter of the spacing at 1: lost
    assert combine(x, x, terms=S) == 5000
    assert combine(x.clone(), x, terms=S) == 0
    assert combine(x, terms=S) == 0
    empty = torch.empty(0)
    assert combine(empty, empty, terms=S) == 0


def test_parameters_that_require_grad_are_updated():
    p = torch.nn.Parameter(torch.zeros(10))
    combine(p, p, terms=S)
    assert (p.abs() == 0.5).all()
    assert p.grad_fn is None


def test_power_of_two_signs_restore_exactly():
    """W + eps z - eps z == W after a first pass that may round W onto the lattice: no drift."""
    x = (torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    seen = []
    for _ in range(5):
        combine(x, x, terms=[Term(Kind.SIGN, 3, 2.0**-10)])
        combine(x, x, terms=[Term(Kind.SIGN, 3, -(2.0**-10))])
        seen.append(x.clone())
    assert all(torch.equal(seen[0], later) for later in seen[1:])


def test_a_pair_surrounds_x():
    x = torch.tensor([1.5, -0.0, 3.0], dtype=torch.bfloat16)
    plus, minus = torch.empty_like(x), torch.empty_like(x)
    combine_pair(plus, minus, x, terms=S)
    assert (plus - x).tolist() == (x - minus).tolist()
    assert (plus - x).abs().tolist() == [0.5] * 3
    combine_pair(plus, minus, x, terms=[])
    assert torch.equal(plus.view(torch.int16), x.view(torch.int16))
    assert torch.equal(minus.view(torch.int16), x.view(torch.int16))
    combine_pair(torch.empty(0), torch.empty(0), torch.empty(0), terms=S)


f32, bf16 = torch.zeros(8), torch.zeros(8, dtype=torch.bfloat16)
low = torch.zeros(8, dtype=torch.int16)

REFUSED = [
    (TypeError, "out is torch.int32", lambda: combine(torch.zeros(3, dtype=torch.int32), terms=S)),
    (ValueError, "out is not contiguous", lambda: combine(torch.zeros(4, 4).T, terms=S)),
    (TypeError, "x is torch.bfloat16; expected torch.float32", lambda: combine(f32, bf16, terms=S)),
    (ValueError, "x has 4 elements", lambda: combine(f32, torch.zeros(4), terms=S)),
    (ValueError, "x is not contiguous", lambda: combine(f32, torch.zeros(16)[::2], terms=S)),
    (ValueError, "x is on meta", lambda: combine(f32, torch.zeros(8, device="meta"), terms=S)),
    (ValueError, "share part of their memory", lambda: combine(f32[1:], f32[:-1], terms=S)),
    (TypeError, "dense is torch.bfloat16; expected torch.float32", lambda: combine(bf16, dense=bf16)),
    (TypeError, "dense is torch.float32; expected torch.float64", lambda: combine(f32.double(), dense=f32)),
    (ValueError, "rounding is given for torch.float32", lambda: combine(f32, f32, rounding=3)),
    (ValueError, "rounding=-1 is not a 64-bit key", lambda: combine(bf16, bf16, rounding=-1)),
    (ValueError, "low is given for torch.float32", lambda: combine(f32, f32, low=low)),
    (ValueError, "both rounding and low", lambda: combine(bf16, bf16, low=low, rounding=1)),
    (ValueError, "x is not out", lambda: combine(bf16, bf16.clone(), low=low)),
    (ValueError, "x is not out", lambda: combine(bf16, low=low)),
    (TypeError, "low is torch.int32; expected torch.int16", lambda: combine(bf16, bf16, low=low.int())),
    (ValueError, "low has 7 elements", lambda: combine(bf16, bf16, low=low[1:])),
    (ValueError, "kind=2 is not a law", lambda: combine(f32, terms=[(2, 1, 1.0)])),
    (ValueError, "key=18446744073709551616 is not", lambda: combine(f32, terms=[Term(Kind.SIGN, 1 << 64, 1.0)])),
    (ValueError, "key=1.5 is not", lambda: combine(f32, terms=[Term(Kind.SIGN, 1.5, 1.0)])),
    (TypeError, "coef is Tensor", lambda: combine(f32, terms=[Term(Kind.SIGN, 1, torch.tensor(1.0))])),
    (ValueError, "expected Term(kind, key, coef)", lambda: combine(f32, terms=[(Kind.SIGN, 1)])),
    (ValueError, "leaf=-1 is out of range", lambda: combine(f32, terms=S, leaf=-1)),
    (ValueError, "leaf=4294967296 is out of range", lambda: combine(f32, terms=S, leaf=1 << 32)),
    (ValueError, "start=-1", lambda: combine(f32, terms=S, start=-1)),
    (ValueError, "start=1099511627769", lambda: combine(f32, terms=S, start=(1 << 40) - 7)),
    (ValueError, "plus and the tensor", lambda: combine_pair(f32, torch.zeros(8), f32, terms=S)),
    (ValueError, "minus and the tensor", lambda: combine_pair(f32, f32, torch.zeros(8), terms=S)),
    (TypeError, "minus is torch.bfloat16", lambda: combine_pair(f32, bf16, torch.zeros(8), terms=S)),
    (ValueError, "x has shape (8,)", lambda: combine_rows(f32, f32, torch.tensor([0]), terms=S, leaf=0)),
    (TypeError, "rows is torch.int32", lambda: combine_rows(f32, torch.zeros(2, 8), low.int()[:1], terms=S, leaf=0)),
    (
        IndexError,
        "rows reach from 0 to 2",
        lambda: combine_rows(f32, torch.zeros(2, 4), torch.tensor([0, 2]), terms=S, leaf=0),
    ),
    (
        IndexError,
        "rows reach from -1",
        lambda: combine_rows(f32, torch.zeros(2, 4), torch.tensor([0, -1]), terms=S, leaf=0),
    ),
    (
        ValueError,
        "out has 8 elements",
        lambda: combine_rows(f32, torch.zeros(2, 4), torch.tensor([0]), terms=S, leaf=0),
    ),
    (ValueError, "share part", lambda: combine_rows(f32, f32.view(2, 4), torch.tensor([0, 1]), terms=S, leaf=0)),
    (ValueError, "x is not out", lambda: combine_group([Job(f32, f32), Job(bf16, None, low=low)], terms=S)),
    (TypeError, "x is torch.bfloat16", lambda: combine_group([Job(f32, f32), Job(f32, bf16)], terms=S)),
    (ValueError, "start=-1", lambda: combine_group([Job(f32, f32), Job(bf16, bf16, 1, -1)], terms=S)),
    (ValueError, "rounding=-1 is not a 64-bit key", lambda: combine_group([Job(f32, f32)], terms=S, rounding=-1)),
    (ValueError, "kind=5", lambda: gram([(5, 1)], 0, 0, 1)),
    (ValueError, "count=-1", lambda: gram([(Kind.SIGN, 1)], 0, 0, -1)),
]


@pytest.mark.parametrize(("error", "message", "call"), REFUSED, ids=[message for _, message, _ in REFUSED])
def test_refused_with_advice_and_nothing_written(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
    assert not f32.any()
    assert not bf16.any()
    assert not low.any()
