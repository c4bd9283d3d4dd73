"""Laws: both backends give the bits of the NumPy reference; chunks, threads and alignment change nothing."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zograd import noise
from zograd.noise import Kind, Term, combine, combine_rows, fold, format, gram, native, portable, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALF = [torch.bfloat16, torch.float16]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
ENGINES = [portable] if native.library() is None else [portable, native]

# A wheel without kernels is legal for users, but the test machine must have them, or half of this file tests nothing.
needs_native = pytest.mark.skipif(native.library() is None, reason="the compiled kernels are not built")


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def weights(n: int, dtype: torch.dtype, seed: int, special: bool) -> torch.Tensor:
    """Weights of usual size; with `special`, also zeros, subnormals, the largest numbers, infinities and NaN."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=g, dtype=torch.float64)
    x *= 10.0 ** (torch.rand(n, generator=g, dtype=torch.float64) * 12 - 10) if special else 0.02
    x = x.to(dtype)
    if special and n:
        info = torch.finfo(dtype)
        odd = [0.0, -0.0, info.max, -info.max, torch.inf, -torch.inf, torch.nan]
        odd += [info.tiny, -info.tiny, info.tiny / 8, info.smallest_normal * 0.75]
        where = torch.randint(n, (len(odd),), generator=g)
        x[where] = torch.tensor(odd, dtype=torch.float64).to(dtype)
    return x


def to_numpy(x: torch.Tensor | None) -> np.ndarray | None:
    if x is None:
        return None
    return x.view(torch.int16).numpy().view(np.uint16) if x.dtype in HALF else x.numpy()


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal bits; the payload of float32 and float64 NaN is the machine's own."""
    if a.dtype not in HALF and a.is_floating_point():
        assert torch.equal(a.isnan(), b.isnan())
        a, b = a.nan_to_num(0.0), b.nan_to_num(0.0)
    bits = BITS[a.element_size()]
    differ = (a.view(bits) != b.view(bits)).nonzero().flatten()
    assert not len(differ), f"{len(differ)} differ, first at {differ[0]}: {a[differ[0]]} against {b[differ[0]]}"


def reference_combine(x, n, dtype, **kwargs):
    with np.errstate(all="ignore"):
        out, low = reference.combine(
            to_numpy(x),
            n,
            name(dtype),
            dense=to_numpy(kwargs.pop("dense", None)),
            low=to_numpy(kwargs.pop("low", None)),
            **kwargs,
        )
    out = torch.from_numpy(out.view(np.int16)).view(dtype) if dtype in HALF else torch.from_numpy(out)
    return out, None if low is None else torch.from_numpy(low)


keys = st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1, (1 << 32) - 1, 1 << 32, (1 << 64) - 1]))
terms = st.lists(
    st.builds(Term, st.sampled_from(list(Kind)), keys, st.sampled_from([1e-3, -(2.0**-10), 0.1, 1.0, 3e-7, 1e5])),
    max_size=4,
)
starts = st.one_of(
    st.integers(0, 5000), st.integers(0, (1 << 40) - 6000), st.sampled_from([0, 2047, 2048, 1 << 32, (1 << 39) - 1])
)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_backends_reproduce_the_reference(dtype, data):
    draw = data.draw
    n = draw(st.one_of(st.integers(0, 300), st.integers(0, 5000)), label="n")
    mode = draw(st.sampled_from(["nearest", "stochastic", "split"] if dtype in HALF else ["nearest"]), label="mode")
    place = "in place" if mode == "split" else draw(st.sampled_from(["in place", "apart", "none"]), label="place")
    special, seed = draw(st.booleans(), label="special"), draw(st.integers(0, 1000), label="seed")
    arguments = {
        "scale": draw(st.sampled_from([1.0, 0.999, -2.0, 0.0]), label="scale"),
        "terms": draw(terms, label="terms"),
        "leaf": draw(st.one_of(st.integers(0, 5), st.integers(0, (1 << 32) - 1)), label="leaf"),
        "start": draw(starts, label="start"),
        "dense_coef": draw(st.sampled_from([1.0, -0.3, 1e-4]), label="dense_coef"),
        "rounding": draw(keys, label="rounding") if mode == "stochastic" else None,
    }
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    dense = weights(n, wide, seed + 1, special) if draw(st.booleans(), label="dense") else None
    x = None if place == "none" else weights(n, dtype, seed, special)
    low = None
    if mode == "split":
        low = torch.randint(-(1 << 15), 1 << 15, (n,), generator=torch.Generator().manual_seed(seed), dtype=torch.int16)
        # Only codes that split() itself can leave: below the largest finite number, and no low half beside inf or NaN.
        h = x.view(torch.int16).to(torch.int32) & 0x7FFF
        top, infinity = (0x7F7F, 0x7F80) if dtype == torch.bfloat16 else (0x7BFF, 0x7C00)
        low[(h == 0) | (h == top)] &= 0x7FFF
        low[h >= infinity] = 0

    expected, expected_low = reference_combine(x, n, dtype, dense=dense, low=low, **arguments)
    for engine in ENGINES:
        source = None if x is None else x.clone()
        out = source if place == "in place" else torch.full((n,), 7.0, dtype=dtype)
        rest = None if low is None else low.clone()
        moved = engine.combine(out, source, dense=dense, low=rest, **arguments) if n else 0
        assert_same_bits(out, expected)
        if rest is not None:
            assert_same_bits(rest, expected_low)
        if place == "apart":
            assert_same_bits(source, x)
        if place == "in place" and not (dtype not in HALF and x.isnan().any()):
            bits = BITS[out.element_size()]
            changed = out.view(bits) != x.view(bits)
            changed = changed if rest is None else changed | (rest != low)
            assert moved == int(changed.sum())


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("n", "start"), [(1, 0), (2048, 2048), (40_011, 4093)])
def test_a_pair_is_two_calls(engine, dtype, n, start, monkeypatch):
    monkeypatch.setattr(portable, "CHUNK", 10_000)
    x = weights(n, dtype, 0, special=True)
    for kinds in ([Kind.SIGN], [Kind.NORMAL], [Kind.NORMAL, Kind.SIGN, Kind.NORMAL]):
        terms = [Term(kind, j, 1e-3 / (j + 1)) for j, kind in enumerate(kinds)]
        plus, minus, one = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        engine.combine_pair(plus, minus, x, terms, 3, start)
        for side, sign in ((plus, 1), (minus, -1)):
            signed = [Term(kind, key, sign * coef) for kind, key, coef in terms]
            portable.combine(one, x, 1.0, signed, None, 1.0, 3, start, None, None)
            assert_same_bits(side, one)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_chunks_change_nothing(engine, dtype, monkeypatch):
    monkeypatch.setattr(portable, "CHUNK", 1000)
    n, start = 70_001, 4093
    terms = [Term(Kind.SIGN, 5, 1e-3), Term(Kind.NORMAL, 6, 2e-3)]
    rounding = 9 if dtype in HALF else None
    x = weights(n, dtype, 0, special=False)
    whole, parts = x.clone(), x.clone()
    total = engine.combine(whole, whole, 1.0, terms, None, 1.0, 2, start, rounding, None)
    moved = 0
    for begin, end in [(0, 1), (1, 2048), (2048, 2049), (2049, 40_000), (40_000, n)]:
        part = parts[begin:end]
        moved += engine.combine(part, part, 1.0, terms, None, 1.0, 2, start + begin, rounding, None)
    assert_same_bits(whole, parts)
    assert moved == total


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_threads_change_nothing(dtype):
    n = 300_007
    x = weights(n, dtype, 0, special=False)
    terms = [Term(Kind.NORMAL, 6, 2e-3), Term(Kind.SIGN, 5, 1e-3)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            y = x.clone()
            moved = combine(y, y, terms=terms, start=11, rounding=4 if dtype in HALF else None)
            sums = gram([(Kind.SIGN, 1), (Kind.NORMAL, 2)], 0, 5, n)
            rows = torch.empty(3000, 100, dtype=dtype)
            combine_rows(rows, x[:300_000].view(3000, 100), torch.arange(3000).flip(0), terms=terms, leaf=0)
            results.append((moved, y, sums.tolist(), rows))
    finally:
        torch.set_num_threads(before)
    for moved, y, sums, rows in results[1:]:
        assert (moved, sums) == (results[0][0], results[0][2])
        assert_same_bits(y, results[0][1])
        assert_same_bits(rows.flatten(), results[0][3].flatten())


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("mode", ["nearest", "stochastic", "split"])
def test_instruction_sets_change_nothing(dtype, mode):
    """The kernels are compiled for baseline x86-64, AVX2 and AVX-512; elsewhere all three runs are the same code."""
    if mode != "nearest" and dtype not in HALF:
        pytest.skip("16-bit formats only")
    x = weights(20_011, dtype, 0, special=True)
    x = x.nan_to_num(1.0) if dtype not in HALF else x
    terms = [Term(Kind.SIGN, 1, 1e-3), Term(Kind.NORMAL, 2, 1e-3), Term(Kind.SIGN, 3, 1e-5)]
    lib, results = native.library(), []
    try:
        for level in (2, 1, 0):
            assert lib.zograd_noise_limit_level(level) <= level
            y, low = x.clone(), torch.zeros(len(x), dtype=torch.int16) if mode == "split" else None
            for step in range(2):  # the second update starts from low halves that are not zero
                rounding = step if mode == "stochastic" else None
                combine(y, y, scale=0.999, terms=terms, leaf=step, start=5, rounding=rounding, low=low)
            results.append((y, low, gram([(Kind.SIGN, 1), (Kind.NORMAL, 2)], 0, 5, 9999).tolist()))
    finally:
        lib.zograd_noise_limit_level(2)
    for y, low, sums in results[1:]:
        assert_same_bits(y, results[0][0])
        assert sums == results[0][2]
        assert low is None or torch.equal(low, results[0][1])


@needs_native
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("count", [65_536, 65_531], ids=["whole vectors", "a tail"])
def test_every_float16_is_read_and_rounded_as_in_torch_operations(level: int, count: int) -> None:
    """All 65,536 patterns, times scales that hit ties, subnormals, overflow: bits, and how many of them changed."""
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)[:count]
    lib = native.library()
    for scale in (1.0, 0.5, 2.0**-9, 1.0 + 2.0**-11, 3.0, -1.0, 65504.0):
        expected, found = x.clone(), x.clone()
        portable.combine(expected, expected, scale, [], None, 1.0, 0, 0, None, None)
        try:
            lib.zograd_noise_limit_level(level)
            moved = native.combine(found, found, scale, [], None, 1.0, 0, 0, None, None)
        finally:
            lib.zograd_noise_limit_level(2)
        assert_same_bits(found, expected)
        assert moved == int((found.view(torch.int16) != x.view(torch.int16)).sum())


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("row_len", [1, 100, 2048, 5000])
def test_rows_are_rows_of_the_perturbed_table(engine, dtype, row_len, monkeypatch):
    monkeypatch.setattr(portable, "CHUNK", 3000)
    table = weights(60 * row_len, dtype, 0, special=False).view(60, row_len)
    rows = torch.tensor([59, 0, 7, 7, 31, 1])
    terms = [Term(Kind.SIGN, 1, 1e-2), Term(Kind.NORMAL, 2, 1e-2), Term(Kind.SIGN, 3, -1e-3)]
    perturbed, out = torch.empty_like(table), torch.empty(6, row_len, dtype=dtype)
    engine.combine(perturbed, table, 1.0, terms, None, 1.0, 8, 0, None, None)
    engine.combine_rows(out, table, rows, terms, 8, row_len)
    assert_same_bits(out.flatten(), perturbed[rows].flatten())
    engine.combine_rows(out, table, rows, [], 8, row_len)
    assert_same_bits(out.flatten(), table[rows].flatten())


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.__name__)
def test_gram_is_exact(engine, monkeypatch):
    keys = [(Kind.SIGN, 1), (Kind.NORMAL, 1), (Kind.SIGN, 1 << 63), (Kind.NORMAL, 77)]
    monkeypatch.setattr(noise, "_use_native", lambda: engine is native)
    monkeypatch.setattr(noise, "_GRAM_COUNT", 1 << 12)
    monkeypatch.setattr(portable, "GRAM_CHUNK", 1 << 10)
    for start, count in [(0, 0), (0, 1), (2047, 2), (1001, 9000), ((1 << 39) + 5, 2048)]:
        found = gram(keys, 6, start, count)
        assert found.dtype == object
        assert found.tolist() == reference.gram(keys, 6, start, count)
        assert all(type(v) is int for row in found.tolist() for v in row)
    assert gram([], 0, 0, 5).shape == (0, 0)


def test_gram_of_one_large_range_is_the_sum_of_its_parts():
    keys = [(Kind.SIGN, 1), (Kind.NORMAL, 1)]
    n = 1 << 18
    whole = gram(keys, 0, 0, n)
    assert whole[0, 0] == n << 32
    assert (whole == gram(keys, 0, 0, 100_001) + gram(keys, 0, 100_001, n - 100_001)).all()


SCRIPT = """
import hashlib, torch
from zograd.noise import *
x = torch.linspace(-1, 1, 40_000).to(torch.bfloat16)
moved = combine(x, x, terms=[Term(Kind.SIGN, 1, 1e-2), Term(Kind.NORMAL, 2, 1e-2)], start=3, rounding=4)
digest = hashlib.sha256(x.view(torch.int16).numpy().tobytes()).hexdigest()
print(backend(), moved, digest, gram([(Kind.NORMAL, 1)], 0, 0, 9999))
"""


@needs_native
def test_environment_variable_forces_torch_silently_with_the_same_bits():
    answers = []
    for choice in ("native", "torch"):
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT],
            env={**os.environ, "ZOGRAD_BACKEND": choice, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        answers.append(run.stdout.split(maxsplit=1))
    (first, bits), (second, same_bits) = answers
    assert (first, second) == ("native", "torch")
    assert bits == same_bits


@pytest.fixture
def undecided():
    noise._use_native.cache_clear()
    yield
    noise._use_native.cache_clear()


def test_missing_kernels_warn_once_and_give_the_same_bits(undecided, monkeypatch):
    expected, out = torch.empty(5000), torch.empty(5000)
    terms = [Term(Kind.NORMAL, 3, 0.5), Term(Kind.SIGN, 4, 0.5)]
    portable.combine(expected, None, 1.0, terms, None, 1.0, 0, 0, None, None)
    monkeypatch.delenv("ZOGRAD_BACKEND", raising=False)
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.warns(RuntimeWarning, match="Install a C\\+\\+ compiler and reinstall") as caught:
        combine(out, terms=terms)
    assert [w.filename for w in caught] == [__file__]
    combine(out, terms=terms)  # a second warning would be an error here
    assert noise.backend() == "torch"
    assert_same_bits(out, expected)


def test_an_unknown_backend_is_refused(undecided, monkeypatch):
    monkeypatch.setenv("ZOGRAD_BACKEND", "cuda")
    with pytest.raises(ValueError, match="ZOGRAD_BACKEND='cuda' is not a backend"):
        noise.backend()


@pytest.mark.parametrize("make", [fold, native.fold, format.fold])
def test_fold_is_the_same_everywhere(make):
    if make is native.fold and native.library() is None:
        pytest.skip("the kernels are not compiled")
    for key, data in [(1, (2,)), ((1 << 64) - 1, (-1, 1 << 63)), (0x9E3779B97F4A7C15, (0, 1 << 32, 5))]:
        assert make(key, *data) == reference.fold(key, *data)
    for key, data in [(-1, ()), (1 << 64, ()), (0, (1 << 64,)), (0, (-(1 << 63) - 1,))]:
        with pytest.raises(ValueError, match="64"):
            make(key, *data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_shifted_is_combine_into_a_fresh_tensor(dtype):
    x, terms = torch.linspace(-1, 1, 30).view(5, 6).to(dtype), [Term(Kind.SIGN, 3, 0.1), Term(Kind.NORMAL, 4, 0.2)]
    expected, before = torch.empty_like(x), x.clone()
    combine(expected, x, terms=terms, leaf=2)
    assert torch.equal(noise.shifted(x, terms=terms, leaf=2), expected)
    assert torch.equal(x, before)


def test_normals_do_not_load_for_signs():
    """The table costs 20 ms and 128 kB; a program that draws signs only must not pay for it."""
    script = (
        "import torch\nfrom zograd.noise import *\nfrom zograd.noise import table\n"
        "x = torch.zeros(99)\ncombine(x, x, terms=[Term(Kind.SIGN, 1, 1.0)])\ngram([(Kind.SIGN, 1)], 0, 0, 99)\n"
        "assert table.magnitudes.cache_info().currsize == 0"
    )
    subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True
    )
