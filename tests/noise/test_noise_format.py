"""The format is frozen: published Philox vectors, and golden bits that fail when anything moves."""

import hashlib

import numpy as np
import pytest
import torch

from zograd.noise import NOISE_VERSION, Kind, Term, combine, fold, format, portable, reference, table

KEY, LEAF = 0x0123456789ABCDEF, 3
FAR = (1 << 39) + (1 << 33) + 777  # the high counter word is in use, for signs as for 16-bit draws

# Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_reproduces_the_published_vectors(counter, key, words):
    assert format.philox(*counter, *key) == words
    assert tuple(int(w) for w in reference.philox4x32_10(counter, key)) == words
    lo, hi = torch.tensor([counter[0]]), torch.tensor([counter[1]])
    assert tuple(int(w) for w in portable.philox(lo, hi, counter[2], counter[3], key[1] << 32 | key[0])) == words


def noise(kind: Kind, start: int, count: int, key: int = KEY, leaf: int = LEAF) -> torch.Tensor:
    out = torch.empty(count, dtype=torch.float64)
    combine(out, terms=[Term(kind, key, 1.0)], leaf=leaf, start=start)
    return out


def test_version():
    assert NOISE_VERSION == 1


@pytest.mark.parametrize(
    ("start", "golden"),
    [
        (0, "-++++-+-+-++++++++---+++----++-+ea23ca95ee35cf2d"),
        (FAR, "-+++--------+-++-+++-+++---++-++d320bc385c569b5c"),
    ],
)
def test_golden_signs(start, golden):
    z = noise(Kind.SIGN, start, 128)
    assert "".join("-" if s < 0 else "+" for s in z[:32]) == golden[:32]
    assert hashlib.sha256((noise(Kind.SIGN, start, 5000) < 0).numpy().tobytes()).hexdigest()[:16] == golden[32:]


@pytest.mark.parametrize(
    ("start", "first", "digest"),
    [
        (0, [60097, -62306, -43194, 55823, 91352, -7881], "6fdb4858fbd113cc"),
        (FAR, [67089, -44521, 12911, -17703, 252, 15029], "a0797d8eb5ea523c"),
    ],
)
def test_golden_normals(start, first, digest):
    units = (noise(Kind.NORMAL, start, 5000) * 65536).to(torch.int64)
    assert units[:6].tolist() == first
    assert hashlib.sha256(units.numpy().astype("<i8").tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("start", "golden"),
    [(0, [41304, 51388, 52053, 31348, 13489, 61520]), (FAR, [14822, 25176, 180, 44736, 16651, 14661])],
)
def test_golden_rounding_draws(start, golden):
    u = portable.draws16(KEY, LEAF, format.ROUNDING, torch.tensor([start]), 5000)[0]
    assert u[:6].tolist() == golden
    assert u.tolist() == reference.draws16(KEY, LEAF, reference.ROUNDING, np.arange(start, start + 5000)).tolist()


def test_layout_of_signs_word_by_word():
    """Element i, spelled out once more from the text of the format."""
    z = noise(Kind.SIGN, 0, 6000)
    for i in (0, 31, 32, 511, 512, 1023, 2047, 2048, 4095, 5999):
        b, e = divmod(i, 2048)
        k, lane = divmod(e // 32, 16)
        word = format.philox(16 * b + lane, 0, LEAF, 0, KEY & 0xFFFFFFFF, KEY >> 32)[k]
        assert z[i] == (-1 if (word >> (e % 32)) & 1 else 1)


def test_layout_of_normals_word_by_word():
    z = noise(Kind.NORMAL, 0, 600)
    for i in (0, 15, 16, 63, 64, 127, 128, 300, 599):
        b, e = divmod(i, 128)
        word = format.philox(16 * b + e % 16, 0, LEAF, 1, KEY & 0xFFFFFFFF, KEY >> 32)[e // 16 % 4]
        u = (word >> (16 * (e // 64))) & 0xFFFF
        assert z[i] == (-1 if u >> 15 else 1) * int(table.magnitudes()[u & 0x7FFF]) / 65536


def test_fold():
    assert fold(KEY) == KEY
    assert fold(KEY, 5, 6) == fold(fold(KEY, 5), 6) != fold(KEY, 6, 5)
    assert fold(KEY, -1) == fold(KEY, (1 << 64) - 1)
    assert fold(KEY, 1) == 0x7D43504B68987C9A
    for data in [(0,), (1, 2, 3), (-7, 1 << 63), (0xFFFFFFFF, 1 << 32)]:
        assert fold(KEY, *data) == reference.fold(KEY, *data)
    assert len({fold(KEY, step) for step in range(5000)}) == 5000


@pytest.mark.parametrize(("key", "data"), [(-1, ()), (1 << 64, ()), (0, (1 << 64,)), (0, (-(1 << 63) - 1,))])
def test_fold_rejects_what_does_not_fit(key, data):
    with pytest.raises(ValueError, match=r"64"):
        fold(key, *data)


def test_table():
    z = table.magnitudes()
    assert z.dtype == torch.int32
    assert z.shape == (32768,)
    assert (z > 0).all()
    assert (z[1:] >= z[:-1]).all()
    assert np.array_equal(z.numpy(), reference.table())
    assert np.array_equal(table.values().double().numpy() * 65536, reference.table())
    exact = [int(v) for v in z]
    assert abs(sum(v * v for v in exact) / (32768 << 32) - 1) < 2e-8  # half a unit on 32,768 atoms
    assert abs(sum(v**4 for v in exact) / (32768 << 64) - 3) < 1e-3


def test_a_machine_with_another_table_is_told(monkeypatch):
    monkeypatch.setattr(table, "SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="normal noise would not be reproducible"):
        table.magnitudes.__wrapped__()
