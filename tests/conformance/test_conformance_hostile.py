"""Files that somebody else made: a tape or a pattern with bad intent is refused in one sentence and in bounded time."""

from __future__ import annotations

import json
import math
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from zograd import methods
from zograd.core.frames import frame as one_frame
from zograd.core.run import Record, Run
from zograd.core.tape import PREAMBLE, Tape, TapeError, pack_record, unpack_record
from zograd.core.vector import BASES, Address, Noise, Slot, Vector
from zograd.estimators.elementwise import Power, Product
from zograd.estimators.games import OnLeaves
from zograd.estimators.vertices import Sides
from zograd.laws.coordinate import Unit
from zograd.laws.cosine import DCT, Waves
from zograd.laws.inputs import OnInputs
from zograd.laws.lowrank import MOST, Components, Lifted, LowRank, Outer, Sandwich, Trilinear
from zograd.laws.masked import Ones, OnMask, OnScatter, OnSmall
from zograd.laws.orthogonal import WalshSigns
from zograd.laws.protected import OffMemory
from zograd.laws.rank_one import SignOuter
from zograd.laws.rows import RowSigns
from zograd.noise import NOISE_VERSION, Kind
from zograd.patterns import PatternError, matching, searching
from zograd.stores import Rate, Store

NOISE = Noise(Kind.SIGN, 7)
EVERY = [
    NOISE,
    Slot("x"),
    Unit(0, 3),
    Waves(1, 2, 2, (0, 5)),
    Outer(1, 2, 3),
    Trilinear(1, 2, 3, 4),
    Sandwich(1, 2, 3, 4),
    Lifted(1, 2, 3),
    OnInputs(1, 2),
    Ones(),
    OnSmall(NOISE),
    OnMask(Ones()),
    OnScatter(NOISE, 9),
    WalshSigns(3, 5),
    RowSigns(3, 0, 1),
    OffMemory(1, 2, 3),
    Power("x", -1.0, 0.5),
    OnLeaves(((NOISE, 0.5),), (0,), -1.0, 1.0),
    SignOuter(8),
    Product(((NOISE, 0.5), (Slot("x"), 1.0)), Ones()),
    Sides(NOISE, 0.5, 0, 1),
]
ANCHOR = (("anchor", Vector(((NOISE, 1.0),))),)
RECORD = Record(
    0, Vector(tuple((e, 0.5) for e in EVERY)), 1.0, (Rate(1e-3, 0.1),), (0.5, 2.0), ANCHOR, 2, False, (), 1e-3, 0.5,
    (("trace", 3.0),),
)  # fmt: skip
HEADER = json.dumps({"noise_version": NOISE_VERSION, "seed": 0}).encode()


def framed(*payloads: bytes) -> bytes:
    """A tape with valid checksums, whatever stands in it."""
    data, crc = PREAMBLE, zlib.crc32(PREAMBLE)
    for payload in payloads:
        frame, crc = one_frame(payload, crc)
        data += frame
    return data


def with_json(text: bytes, coefficient: float = 1.0) -> bytes:
    """A record whose vector has one term, of this text."""
    plain = pack_record(Record(0, Vector(), 1.0, (Rate(1e-3),), None))
    term = struct.pack("<I", 1) + struct.pack("<BHd", 1, len(text), coefficient) + text
    return plain[:-6] + term + plain[-2:]


def read(data: bytes) -> Tape:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Tape(Path("somewhere/tape.zo"), data)


def test_the_record_of_these_tests_names_every_kind_of_basis_vector() -> None:
    assert {type(e) for e in EVERY} == {kind for kind in BASES.values() if kind.__module__.startswith("zograd.")}
    assert read(framed(HEADER, pack_record(RECORD))).records == [RECORD]


@st.composite
def damaged(draw: st.DrawFn, payload: bytes) -> bytes:
    """Bytes overwritten, cut out and put in, a few of them."""
    data = bytearray(payload)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(damaged(pack_record(RECORD)), damaged(HEADER))
def test_bytes_behind_valid_checksums_are_read_or_refused(record: bytes, header: bytes) -> None:
    """Struct, Unicode and JSON errors, lengths that are not there, sizes that no memory holds: TapeError, no other."""
    for payloads in ((HEADER, record), (header, record)):
        try:
            tape = read(framed(*payloads))
        except TapeError:
            continue
        numbers = [x for r in tape.records if not r.refused for rate in r.rates for x in rate]
        numbers += [c for r in tape.records if not r.refused for _, c in r.vector.terms]
        assert all(map(math.isfinite, numbers))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(2**70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(sorted(BASES)), inner, max_size=2),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(sorted(BASES)), json_values, min_size=1, max_size=1) | json_values)
def test_any_json_in_the_place_of_a_basis_vector_is_read_or_refused(value: Any) -> None:
    text = json.dumps(value).encode()
    try:
        ((e, _),) = unpack_record(with_json(text)).vector.terms
    except TapeError:
        return
    assert type(e) in BASES.values()
    assert unpack_record(pack_record(Record(0, Vector(((e, 1.0),)), 1.0, (Rate(1e-3),), None))).vector.terms[0][0] == e


TOO_MUCH = {
    "a rank of a million": {"Outer": [1, 2, 10**6]},
    "a rank of 2^40": {"Trilinear": [1, 2, 3, 2**40]},
    "no rank": {"Sandwich": [1, 2, 3, 0]},
    "a negative rank": {"Lifted": [1, 2, -5]},
    "more waves than columns are named": {"Waves": [1, 2, 2**40, [0, 1]]},
    "the same wave many times": {"Waves": [1, 2, 1000, [0] * 1000]},
    "an integer of 70 bits": {"SignOuter": [2**70]},
    "text for a key": {"SignOuter": ["1"]},
    "a number for a name": {"Slot": [5]},
    "an infinite number": {"Product": [[[{"Noise": [0, 1]}, math.inf]], {"Ones": []}]},
    "a plain number": 7,
    "one field too many": {"Ones": [1]},
    "an unknown law of noise": {"Noise": [9, 1]},
    "a list for a basis vector": {"OnMask": [[1, 2]]},
    "two names": {"Ones": [], "Slot": ["x"]},
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_fields_are_bounded_on_reading(case: str) -> None:
    with pytest.raises(TapeError):
        unpack_record(with_json(json.dumps(TOO_MUCH[case]).encode()))


def test_nested_basis_vectors_are_bounded() -> None:
    def nested(depth: int) -> bytes:
        return b'{"OnMask":[' * depth + b'{"Ones":[]}' + b"]}" * depth

    unpack_record(with_json(nested(3)))
    for depth in (50, 4000):
        with pytest.raises(TapeError):
            unpack_record(with_json(nested(depth)))


def test_a_walsh_function_of_any_number_costs_no_more_than_the_block() -> None:
    """Number 2^40 would have had a period of 2^41 elements."""
    at, coefficient = Address(0, 96, (1000,)), 0.5
    for j in (5, 700, 2**40 + 5, 2**62):
        out = torch.zeros(300, dtype=torch.float64)
        WalshSigns(3, j).add_(out, coefficient, at, {})
        plain = torch.zeros(300, dtype=torch.float64)
        WalshSigns(3, 0).add_(plain, coefficient, at, {})
        signs = torch.tensor([1.0 - 2.0 * (((96 + i) & j).bit_count() & 1) for i in range(300)], dtype=torch.float64)
        assert out.equal(plain * signs)


def test_laws_refuse_the_ranks_that_a_tape_would_refuse() -> None:
    for law in (LowRank, Components):
        with pytest.raises(ValueError, match=f"use a rank from 1 to {MOST}"):
            law(rank=MOST + 1)
    with pytest.raises(ValueError, match="3 columns for rank 2"):
        DCT(rank=2, columns=(0, 1, 2))


UNSTEADY = {
    "a coefficient": lambda x: replace(RECORD, vector=Vector(((NOISE, 1.0), (Slot("x"), x)))),
    "a coefficient of a slot": lambda x: replace(RECORD, writes=(("anchor", Vector(((NOISE, x),))),)),
    "a learning rate": lambda x: replace(RECORD, rates=(Rate(x),)),
    "weight decay": lambda x: replace(RECORD, rates=(Rate(1e-3), Rate(1e-3, x))),
    "a scalar for the rule": lambda x: replace(RECORD, aux=(1.0, x)),
    "mu": lambda x: replace(RECORD, mu=x),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("case", UNSTEADY)
def test_numbers_that_are_not_finite_are_refused_in_both_directions(
    case: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = UNSTEADY[case](value)
    with pytest.raises(TapeError, match="finite numbers only"):
        pack_record(record)
    with monkeypatch.context() as patch:
        patch.setattr("zograd.core.tape_records._check", lambda record: None)
        data = pack_record(record)
    with pytest.raises(TapeError, match="finite numbers only"):
        read(framed(HEADER, data))


def test_a_refused_step_keeps_the_loss_that_was_not_finite() -> None:
    refused = Record(0, Vector(), math.inf, (Rate(math.nan),), None, refused=True)
    (back,) = read(framed(HEADER, pack_record(refused))).records
    assert back.refused
    assert back.loss == math.inf


def test_scalars_of_another_method_are_named() -> None:
    run = Run(Store({"x": torch.zeros(3)}), methods.zo_sgd(lr=1e-2), 0)
    record = Record(0, Vector(((NOISE, 1.0),)), 1.0, (Rate(1e-3),), (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"3 scalars for the rule at step 0, .* tape of another method"):
        run.replay([record])
    assert not run.store.leaves[0].tensor.any()


# ---- patterns --------------------------------------------------------------------------------------------------------

NAMES = [f"model.layers.{k}.self_attn.{kind}_proj.weight" for k in range(12) for kind in "qkvo"]


@pytest.mark.parametrize("pattern", [r"^(?:(\w+|\.)(?<=\1))*[!?]$", r"^(?:.*?){20}[!?]$"])
def test_a_pattern_that_backtracks_without_end_is_refused(pattern: str) -> None:
    """That this test ends at all is what it tests first."""
    with pytest.raises(PatternError, match=r"takes longer than 0.5 s on names like 'model.layers.0"):
        searching(pattern, NAMES, seconds=0.5)


def test_a_pattern_on_which_re_takes_longer_than_the_age_of_the_universe_matches_nothing() -> None:
    assert matching(r"^((\w|\.)+)+!$", NAMES) == set()
    assert matching(r"^((\w|\.)+)+[!?]$", NAMES) == set()


def test_patterns_select_as_re_and_fnmatch_do() -> None:
    import fnmatch
    import re

    for pattern in ("(q|v)_proj", r"layers\.1\.", "^model", "weight$", "[kq]_", "", r"layers\.(1[01]|3)\..*o_"):
        assert matching(pattern, NAMES) == {n for n in NAMES if re.search(pattern, n)}
    for pattern in ("*.q_proj.weight", "*layers.?.*", "*nothing*"):
        assert matching(pattern, NAMES) == {n for n in NAMES if fnmatch.fnmatchcase(n, pattern)}
    for pattern in ("(", "a{99999999999}", "[", "(" * 5000):
        with pytest.raises(PatternError, match="is no regular expression"):
            matching(pattern, NAMES)
