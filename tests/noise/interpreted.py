"""Not a test file: run by test_noise_triton.py in a process of its own, with Triton's interpreter switched on.

Holds the Triton kernels to the portable backend, bit for bit, on CPU tensors. One line a case, then "done".
"""

import itertools

import torch
from test_noise_backends import DTYPES, HALF, assert_same_bits, name, weights

from zograd.noise import Job, Kind, Term, device, portable
from zograd.noise.device import TILE


def signs(*keys: int) -> list[Term]:
    return [Term(Kind.SIGN, key, 1e-3) for key in keys]


TERMS = {
    "none": [],
    "sign": signs(1),
    "normal": [Term(Kind.NORMAL, 2, -(2.0**-10))],
    "mixed": [*signs(3), Term(Kind.NORMAL, (1 << 64) - 1, 0.1), *signs(1 << 63)],
    "loop": [*signs(*range(device.MOST_UNROLLED)), Term(Kind.NORMAL, 9, 3e-7)],
}
PLACES = {  # number of elements, index of the first
    "whole tiles": (TILE, TILE),
    "ragged": (5003, 4093),
    "vectors": (TILE + 808, (1 << 39) - 2 * TILE - 8),  # over a change of the upper half of the counter
}


def lows(x: torch.Tensor) -> torch.Tensor:
    """Low halves that split weights can have: none beside infinities and NaN, none that reach beyond the largest."""
    low = torch.randint(-(1 << 15), 1 << 15, x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    code = x.view(torch.int16).to(torch.int32) & 0x7FFF
    top = 0x7F7F if x.dtype == torch.bfloat16 else 0x7BFF
    low[(code == 0) | (code == top)] &= 0x7FFF
    low[code > top] = 0
    return low


def assert_same_counts(moved: int, expected: int, x: torch.Tensor) -> None:
    assert moved == expected or (x.dtype not in HALF and x.isnan().any()), (moved, expected)  # payloads may differ


def combine_has_the_bits_of_portable() -> None:
    for dtype, mode, terms, place in itertools.product(DTYPES, ("nearest", "stochastic", "split"), TERMS, PLACES):
        if mode != "nearest" and (dtype not in HALF or terms != "mixed"):
            continue
        n, start = PLACES[place]
        x = weights(n, dtype, seed=n, special=True)
        low = lows(x) if mode == "split" else None
        scale, key = (1.0 if place == "vectors" else 0.999), (5 if mode == "stochastic" else None)
        results = []
        for engine in (portable, device):
            y, rest = x.clone(), None if low is None else low.clone()
            moved = engine.combine(y, y, scale, TERMS[terms], None, 1.0, 3, start, key, rest)
            results.append((moved, y, rest))
        (expected, y, rest), (moved, z, rest_of_z) = results
        assert_same_bits(z, y)
        assert_same_counts(moved, expected, x)
        if low is not None:
            assert_same_bits(rest_of_z, rest)
        print("combine", name(dtype), mode, terms, place)


def other_arguments_have_the_bits_of_portable() -> None:
    """dense; out apart from x; out from nothing; tensors that no vector fits."""
    for dtype, terms in itertools.product(DTYPES, ("none", "mixed")):
        n = 3001
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        x, dense = weights(n + 1, dtype, 0, special=True)[1:], weights(n, wide, 1, special=True)
        for source, addend in itertools.product((None, x), (None, dense)):
            outs = [torch.full((n,), 7.0, dtype=dtype) for _ in range(2)]
            for engine, out in zip((portable, device), outs, strict=True):
                engine.combine(out, source, 1.0, TERMS[terms], addend, -0.3, 0, 77, None, None)
            assert_same_bits(outs[1], outs[0])
        print("arguments", name(dtype), terms)


def pairs_have_the_bits_of_portable() -> None:
    for dtype, (n, start) in itertools.product(DTYPES, PLACES.values()):
        x = weights(n, dtype, 0, special=True)
        sides = [[torch.empty_like(x) for _ in range(2)] for _ in range(2)]
        for engine, (plus, minus) in zip((portable, device), sides, strict=True):
            engine.combine_pair(plus, minus, x, TERMS["mixed"], 6, start)
        for side in range(2):
            assert_same_bits(sides[1][side], sides[0][side])
        print("pair", name(dtype), n)


def rows_have_the_bits_of_portable() -> None:
    for dtype, (num_rows, row_len) in itertools.product(DTYPES, ((40, 100), (3, 5000), (7, 4096))):
        x = weights(num_rows * row_len, dtype, 0, special=False).view(num_rows, row_len)
        rows = torch.tensor([2, 0, 2, num_rows - 1])
        outs = [torch.empty(4, row_len, dtype=dtype) for _ in range(2)]
        for engine, out in zip((portable, device), outs, strict=True):
            engine.combine_rows(out, x, rows, TERMS["mixed"], 6, row_len)
        assert_same_bits(outs[1].flatten(), outs[0].flatten())
        print("rows", name(dtype), row_len)


def groups_have_the_bits_of_their_leaves() -> None:
    """Leaves of all dtypes and sizes, in place and apart, split and not, in one call; one pass with other knobs."""
    sizes = [TILE, 1, 40, 2 * TILE + 8, 3, TILE - 8, 16]
    for key in (None, 11):
        jobs, copies = [], []
        for leaf, (n, dtype) in enumerate(itertools.product(sizes, DTYPES)):
            x = weights(n, dtype, leaf, special=False)
            low = torch.zeros(n, dtype=torch.int16) if dtype in HALF and n == 40 else None
            out = torch.empty(n, dtype=dtype) if n == 16 else x
            jobs.append(Job(out, x, leaf, 8 * leaf, None, low))
            copies.append([None if t is None else t.clone() for t in (out, x, low)])
        total = device.combine_group(jobs, 1.0, TERMS["mixed"], 1.0, key)
        expected = 0
        for job, (_, x, low) in zip(jobs, copies, strict=True):
            out = x if job.in_place else torch.empty_like(x)
            rounding = key if job.out.dtype in HALF and low is None else None
            moved = portable.combine(out, x, 1.0, TERMS["mixed"], None, 1.0, job.leaf, job.start, rounding, low)
            expected += moved if job.in_place else 0
            assert_same_bits(job.out, out)
            if low is not None:
                assert_same_bits(job.low, low)
        assert total == expected
        print("group", "nearest" if key is None else "stochastic", total)

    x = weights(TILE + 5, torch.bfloat16, 0, special=False)
    y = x.clone()
    whole = device.Pass([Job(x, x, leaf=4)], [Kind.SIGN], scaled=True)
    for scale, key, coef in ((1.0, 1, 1e-2), (0.9, 2, -3.0)):
        whole.set(scale, [Term(Kind.SIGN, key, coef)], 1.0, None)
        whole.launch()
        portable.combine(y, y, scale, [Term(Kind.SIGN, key, coef)], None, 1.0, 4, 0, None, None)
        assert_same_bits(x, y)
    print("pass set anew", int(whole.changed))


if __name__ == "__main__":
    assert device.kernels().combine_kernel.__class__.__name__ == "InterpretedFunction", "the interpreter is not on"
    combine_has_the_bits_of_portable()
    other_arguments_have_the_bits_of_portable()
    pairs_have_the_bits_of_portable()
    rows_have_the_bits_of_portable()
    groups_have_the_bits_of_their_leaves()
    print("done")
