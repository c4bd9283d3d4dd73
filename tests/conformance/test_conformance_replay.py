"""Laws of the tape: a run is its start and its records. Replay is bit-identical; the file gives back what it was given
or refuses, and a torn end costs the last record only."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import struct
import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from small_problems import CASES, DTYPES, digest, loss_of, records_of, tensors, values_oracle

from tests.turns import in_turn
from zograd import methods
from zograd.core.run import Method, Record, Run
from zograd.core.tape import Tape, TapeError, TapeWriter, pack_record, unpack_record
from zograd.core.vector import Noise, Slot, Vector
from zograd.noise import Kind
from zograd.oracles import sequential
from zograd.rules import SGD, Adam
from zograd.spaces import PositiveOrthant
from zograd.stores import Rate, Store

vanishing = pytest.mark.filterwarnings("ignore:this step changed")
STEPS = 6


def everything(store: Store) -> str:
    return digest(store.state_dict())


def through_a_file(records: list[Record], path) -> list[Record]:
    with TapeWriter(path, {"seed": 3}) as tape:
        for record in records:
            tape.append(record)
    return Tape(path).records


# ---- replay ----------------------------------------------------------------------------------------------------------


@vanishing
@pytest.mark.parametrize(("case", "kind"), in_turn(CASES, list(DTYPES), (lambda c: c.id, str), each=2))
def test_replay_is_bit_identical(case, kind: str, tmp_path) -> None:
    """Weights, low halves, slots and the state of the rule, from the records in memory and from a file."""
    dtype, rounding = DTYPES[kind]
    weights = case.tensors(dtype)
    method = case.method()
    run = Run(case.store(weights, rounding), method, 3)
    records = records_of(run, sequential(loss_of(weights)), STEPS)
    assert any(record.moved for record in records)
    for tape in (records, through_a_file(records, tmp_path / "tape.zo")):
        again = Run(case.store(case.tensors(dtype), rounding), method, 3)
        again.replay(tape)
        assert everything(again.store) == everything(run.store)
        assert again.state_dict() == run.state_dict()


@vanishing
@pytest.mark.parametrize(
    ("case", "kind"), in_turn(CASES, ("float32", "bfloat16-split", "float64"), (lambda c: c.id, str))
)
def test_a_run_may_go_on_from_a_replay(case, kind: str) -> None:
    """Replay of the first steps, then real ones, equals the run that never stopped."""
    dtype, rounding = DTYPES[kind]
    weights, others = case.tensors(dtype), case.tensors(dtype)
    run = Run(case.store(weights, rounding), case.method(), 8)
    records = records_of(run, sequential(loss_of(weights)), STEPS)
    again = Run(case.store(others, rounding), case.method(), 8)
    again.replay(records[:3])
    later = records_of(again, sequential(loss_of(others)), STEPS - 3)
    assert later == records[3:]
    assert everything(again.store) == everything(run.store)


@pytest.mark.parametrize("rule", [SGD(), Adam()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_replay_is_bit_identical_on_the_positive_orthant(rule, kind: str) -> None:
    dtype, _ = DTYPES[kind]

    def fresh() -> dict[str, torch.Tensor]:
        return {name: w.abs() + 0.1 for name, w in tensors(dtype).items()}

    weights, others = fresh(), fresh()
    menu = methods.zo_sgd()
    method = Method(menu.estimator, menu.law, rule, space=PositiveOrthant(), mu=1e-2, lr=1e-2)
    run = Run(Store(weights, space=PositiveOrthant()), method, 3)
    records = records_of(run, sequential(loss_of(weights)), STEPS)
    again = Run(Store(others, space=PositiveOrthant()), method, 3)
    again.replay(records)
    assert everything(again.store) == everything(run.store)


def test_refused_steps_are_replayed_as_steps_that_did_not_move() -> None:
    """A step that met NaN uses up its number and its directions, in the run and in the replay."""
    weights, others = tensors(torch.float64), tensors(torch.float64)
    calls = []

    def sometimes_nan() -> float:
        calls.append(1)
        return math.nan if len(calls) in (3, 4, 9) else loss_of(weights)()

    run = Run(Store(weights), methods.zo_sgd(lr=1e-2), 3)
    records = records_of(run, sequential(sometimes_nan), STEPS)
    assert [r.refused for r in records] == [False, True, False, False, True, False]
    again = Run(Store(others), methods.zo_sgd(lr=1e-2), 3)
    again.replay(records)
    assert everything(again.store) == everything(run.store)
    assert again.state_dict() == run.state_dict()


def test_a_tape_that_starts_elsewhere_is_refused() -> None:
    weights = tensors(torch.float64)
    records = records_of(Run(Store(weights), methods.zo_sgd(lr=1e-2), 3), sequential(loss_of(weights)), 3)
    fresh = Run(Store(tensors(torch.float64)), methods.zo_sgd(lr=1e-2), 3)
    with pytest.raises(ValueError, match="tape continues at step 1, but this run stands at 0"):
        fresh.replay(records[1:])


# ---- the file --------------------------------------------------------------------------------------------------------

floats = st.floats(width=64)
finite = st.floats(width=64, allow_nan=False, allow_infinity=False)
keys = st.integers(0, 2**64 - 1)
names = st.text(min_size=1, max_size=12)
bases = st.one_of(st.builds(Noise, st.sampled_from(list(Kind)), keys), st.builds(Slot, names))
vectors = st.lists(st.tuples(bases, finite), max_size=5).map(lambda terms: Vector(tuple(terms)))
written = st.builds(
    Record,
    step=keys,
    vector=vectors,
    loss=floats,
    rates=st.lists(st.builds(Rate, finite, finite), max_size=4).map(tuple),
    aux=st.none() | st.lists(finite, max_size=4).map(tuple),
    writes=st.lists(st.tuples(names, vectors), max_size=3).map(tuple),
    evaluations=st.integers(0, 2**32 - 1),
    refused=st.booleans(),
    losses=st.just(()),
    mu=finite,
    moved=floats,
)


def same(a: Record, b: Record) -> bool:
    """Equal bit by bit, NaN included."""

    def bits(value: object) -> object:
        if isinstance(value, float):
            return struct.pack("<d", value)
        if isinstance(value, Vector):
            return tuple((e, bits(c)) for e, c in value.terms)
        return tuple(bits(v) for v in value) if isinstance(value, tuple) else value

    return all(bits(getattr(a, f.name)) == bits(getattr(b, f.name)) for f in dataclasses.fields(Record))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(written)
def test_any_record_survives_the_bytes(record: Record) -> None:
    assert same(unpack_record(pack_record(record)), record)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(written, max_size=4))
def test_any_records_survive_the_file(tmp_path_factory, records: list[Record]) -> None:
    path = tmp_path_factory.mktemp("tape") / "tape.zo"
    back = through_a_file(records, path)
    assert len(back) == len(records)
    assert all(same(a, b) for a, b in zip(back, records, strict=True))


def test_bases_that_have_no_name_on_disk_are_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Dense:
        pass

    record = Record(0, Vector(((Dense(), 1.0),)), 0.0, (), None)
    with pytest.raises(TypeError, match=r"registered with @basis, and .*Dense is not"):
        pack_record(record)


def test_a_two_point_record_takes_the_bytes_that_the_docstring_states(tmp_path) -> None:
    from zograd.core import tape as module

    path = tmp_path / "tape.zo"
    record = Record(0, Vector(((Noise(Kind.SIGN, 1), 0.5),)), 1.0, (Rate(1e-3),), None)
    with TapeWriter(path, {}) as tape:
        empty = path.stat().st_size
        tape.append(record)
    assert f"A two-point record takes {path.stat().st_size - empty} bytes" in module.__doc__


@pytest.fixture
def taped(tmp_path):
    """A file of four real records (momentum, slots and aux do not matter here), and the records."""
    weights = tensors(torch.float64)
    run = Run(Store(weights), methods.fzoo(lr=1e-2, n=2), 3)
    records = [dataclasses.replace(r, losses=()) for r in records_of(run, values_oracle, 4)]
    path = tmp_path / "tape.zo"
    assert through_a_file(records, path) == records
    return path, records


def test_a_flipped_byte_is_found(taped) -> None:
    """Every byte of the file, several flips each: TapeError, never other records."""
    path, _ = taped
    data = path.read_bytes()
    for at in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            path.write_bytes(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
            with pytest.raises(TapeError, match=re.escape(str(path))):
                Tape(path)


def test_a_cut_gives_a_prefix_of_the_records(taped) -> None:
    """Truncation at every byte: the whole records before the cut and a warning, or TapeError inside of the header."""
    path, records = taped
    data = path.read_bytes()
    seen = set()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                tape = Tape(path)
            except TapeError:
                assert not seen, "a cut behind the header is torn, not damaged"
                continue
        assert tape.records == records[: tape.steps]
        assert tape.torn == size - tape.end
        assert len(caught) == (1 if tape.torn else 0)
        if tape.torn:
            assert f"step {tape.steps}" in str(caught[0].message)
        seen.add(tape.steps)
    assert seen == {0, 1, 2, 3}


def test_a_record_that_is_lost_doubled_or_swapped_is_found(taped) -> None:
    """The checksums are chained, so whole frames cannot be exchanged either."""
    from zograd.core.frames import frames as framed
    from zograd.core.tape import PREAMBLE

    path, _ = taped
    data = path.read_bytes()
    ends = [len(PREAMBLE), *(end for _, end, _ in framed(data, path, PREAMBLE))]
    frames = [data[a:b] for a, b in itertools.pairwise(ends)]
    head, (a, b, c, d) = data[: ends[0]] + frames[0], frames[1:]
    for order in ((b, c, d), (a, a, b, c, d), (b, a, c, d), (a, c, d), (a, b, d, c)):
        path.write_bytes(head + b"".join(order))
        with pytest.raises(TapeError, match="byte"):
            Tape(path)


def test_a_writer_goes_on_behind_a_torn_end(taped) -> None:
    path, records = taped
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="torn"), TapeWriter(path) as tape:
        tape.append(records[3])
    assert Tape(path).records == records


def test_foreign_files_other_versions_and_other_noise_are_named(taped, tmp_path) -> None:
    from zograd.core import tape as module

    path, _ = taped
    data = path.read_bytes()
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(TapeError, match="is not a zograd tape"):
        Tape(path)
    path.write_bytes(data[:6] + b"\x07\x00" + data[8:])
    with pytest.raises(TapeError, match="tape of version 7; this zograd reads version 2"):
        Tape(path)
    path.write_bytes(b"")
    with pytest.raises(TapeError):
        Tape(path)
    other = tmp_path / "other.zo"
    TapeWriter(other, {"noise_version": module.NOISE_VERSION + 1}).close()
    with pytest.raises(TapeError, match="noise version 2"):
        Tape(other)


def test_an_existing_tape_is_never_overwritten(taped) -> None:
    path, records = taped
    with pytest.raises(FileExistsError):
        TapeWriter(path, {})
    assert Tape(path).records == records


def test_a_full_disk_leaves_the_tape_as_it_was(taped) -> None:
    """A write that stores only a part is taken back, and the record can be appended again later."""
    path, records = taped

    class Full:
        """A file on a disk with ten bytes left."""

        def __init__(self, file) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            return self.file.write(data[:10])

        def __getattr__(self, name: str):
            return getattr(self.file, name)

    before = path.read_bytes()
    tape = TapeWriter(path)
    real, tape._file = tape._file, Full(tape._file)
    with pytest.raises(OSError, match="only in part"):
        tape.append(records[0])
    assert path.read_bytes() == before
    tape._file = real
    tape.append(records[0])
    tape.close()
    assert Tape(path).records == [*records, records[0]]
