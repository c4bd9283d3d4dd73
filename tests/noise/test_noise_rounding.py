"""Laws of the two ways to keep small updates in 16-bit weights: stochastic rounding and split master weights."""

import math

import pytest
import torch

from zograd.noise import Kind, Term, combine, fold, format, portable

HALF = [torch.bfloat16, torch.float16]
half = pytest.mark.parametrize("dtype", HALF, ids=str)


def every_pattern(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


def rounded(t: float, dtype: torch.dtype, n: int = 1 << 17, key: int = 1) -> torch.Tensor:
    """n stochastic roundings of the float32 t."""
    out = torch.empty(n, dtype=dtype)
    combine(out, dense=torch.full((n,), t), rounding=fold(key, 5))
    return out


VALUES = [0.02, -0.02, 1.0 + 1e-4, 1e-3 / 3, 65000.3, 1.9999999, -3.14159, 6.2e-5]
SUBNORMAL = [6.0e-5, 3.3e-7, -1.234e-5, 5.96e-8 * 0.3, 6.1e-5]


@half
@pytest.mark.parametrize("t", VALUES + SUBNORMAL)
def test_stochastic_rounding_is_unbiased(dtype, t):
    t = torch.tensor(t).item()  # the float32
    r = rounded(t, dtype).double()
    below, above = r.min().item(), r.max().item()
    assert below <= t <= above
    assert len(r.unique()) == 2
    p = (t - below) / (above - below)
    standard_error = (above - below) * math.sqrt(p * (1 - p) / len(r))
    assert abs(r.mean().item() - t) < 4 * standard_error + (above - below) * 2.0**-16


@half
def test_stochastic_rounding_goes_to_a_neighbour(dtype):
    g = torch.Generator().manual_seed(0)
    t = torch.randn(100_000, generator=g) * 10 ** (torch.rand(100_000, generator=g) * 12 - 8)
    t = t.clamp(-6e4, 6e4)
    out = torch.empty(len(t), dtype=dtype)
    combine(out, dense=t, rounding=3)
    bits = t.to(dtype).view(torch.int16).int()  # nearest; the other neighbour is one pattern away
    assert (out.view(torch.int16).int() - bits).abs().max() <= 1
    assert (out != t.to(dtype)).any()


@half
def test_stochastic_rounding_keeps_what_is_representable(dtype):
    x = every_pattern(dtype)
    for key in range(20):
        out = torch.empty_like(x)
        combine(out, x, rounding=fold(7, key))
        assert torch.equal(out.isnan(), x.isnan())
        same = ~x.isnan()
        assert torch.equal(out.view(torch.int16)[same], x.view(torch.int16)[same])


@half
def test_stochastic_rounding_of_finite_values_stays_finite(dtype):
    top = torch.finfo(dtype).max
    beyond = min(top * 1.5, torch.finfo(torch.float32).max)
    for t in (beyond, top * (1 + 1e-3) if dtype == torch.float16 else beyond):
        assert rounded(t, dtype, n=4096).unique().tolist() == [top]
        assert rounded(-t, dtype, n=4096).unique().tolist() == [-top]
    assert rounded(math.inf, dtype, n=100).unique().tolist() == [math.inf]
    assert rounded(math.nan, dtype, n=100).isnan().all()


@half
def test_small_updates_survive_on_average(dtype):
    """200 updates of a hundredth of a spacing: nearest rounding loses all, stochastic rounding none on average."""
    n = 1 << 16
    start = torch.full((n,), 0.5, dtype=dtype)
    ulp = torch.finfo(dtype).eps / 2
    update = torch.full((n,), ulp / 100)
    nearest, stochastic = start.clone(), start.clone()
    for step in range(200):
        assert combine(nearest, nearest, dense=update) == 0
        combine(stochastic, stochastic, dense=update, rounding=fold(11, step))
    assert torch.equal(nearest, start)
    # Each element takes 200 steps up with probability 1/100: mean 2 spacings, variance 2.
    drift = (stochastic.double() - 0.5).mean().item() / ulp
    assert abs(drift - 2) < 4 * math.sqrt(2 / n)


# ------------------------------------------------------------------------------------------------------------ split


@half
def test_zero_low_is_the_identity(dtype):
    x = every_pattern(dtype)
    x = x[~x.isnan()]
    y, low = x.clone(), torch.zeros(len(x), dtype=torch.int16)
    assert torch.equal(portable.join(y, low).to(dtype), x)
    assert combine(y, y, low=low) == 0
    assert torch.equal(y.view(torch.int16), x.view(torch.int16))
    assert not low.any()


@half
def test_split_and_join_are_inverse(dtype):
    """join(split(m)) == m for every master that the code can hold; hi is m to 16 bits."""
    g = torch.Generator().manual_seed(0)
    m = torch.randn(200_000, generator=g, dtype=torch.float64) * 10 ** (torch.rand(200_000, generator=g) * 10 - 9)
    m = m.to(torch.float32) if dtype == torch.bfloat16 else portable.join(*_split(m, dtype))
    hi, low = _split(m, dtype)
    assert torch.equal(portable.join(hi, low), m)
    assert ((hi.double() - m.double()).abs() <= (m.to(dtype).double() - m.double()).abs()).all()


def _split(m: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    hi, low = portable.split(m, dtype)
    return hi.view(dtype), low


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 24), (torch.float16, 27)], ids=str)
def test_split_holds_these_many_bits(dtype, digits):
    x, low = torch.full((1,), 1.0, dtype=dtype), torch.zeros(1, dtype=torch.int16)
    assert combine(x, x, dense=torch.tensor([2.0 ** (1 - digits)]), low=low) == 1
    assert portable.join(x, low).item() == 1 + 2.0 ** (1 - digits)
    assert combine(x, x, dense=torch.tensor([2.0 ** (-2 - digits)]), low=low) == 0


@half
@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
def test_split_keeps_the_sum_of_tiny_updates(dtype, kind):
    """100 updates of 1e-7 on weights of scale 0.02 (spacing 1e-4 in bfloat16): the direction of the sum survives."""
    n = 20_000
    x = (torch.randn(n, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    low, before = torch.zeros(n, dtype=torch.int16), x.double()
    exact = torch.zeros(n, dtype=torch.float64)
    for step in range(100):
        term = Term(kind, fold(3, step), 1e-7)
        assert combine(x, x, terms=[term], low=low) > 0.99 * n * (0.9 if kind == Kind.NORMAL else 1)
        combine(exact, exact, terms=[term])
    got = portable.join(x, low).double() - before
    cosine = torch.nn.functional.cosine_similarity(got, exact, dim=0).item()
    assert cosine >= 0.999


@half
def test_split_clamps_finite_masters_and_passes_infinities(dtype):
    top = torch.finfo(dtype).max
    x, low = torch.tensor([top, -top, math.inf, -math.inf], dtype=dtype), torch.zeros(4, dtype=torch.int16)
    combine(x, x, dense=torch.full((4,), top / 256) * torch.tensor([1.0, -1, 1, 1]), low=low)
    assert x.tolist() == [top, -top, math.inf, -math.inf]
    assert low.tolist() == [0x7FFF, 0x7FFF, 0, 0]
    combine(x, x, dense=torch.full((4,), math.nan), low=low)
    assert x.isnan().all()
    assert not low.any()


def test_rounding_draws_are_a_stream_of_their_own():
    """Stochastic rounding with the key of a noise term must not read that term's bits."""
    start = torch.tensor([0])
    assert not torch.equal(
        portable.draws16(5, 0, format.ROUNDING, start, 1000), portable.draws16(5, 0, format.NORMALS, start, 1000)
    )
