"""A tape has one writer, and what a crash leaves of it is read as far as it is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zograd import Store, Tape, TapeWriter, methods
from zograd.core.run import Record, Run
from zograd.core.tape import TapeError, never_began
from zograd.core.vector import Noise, Vector
from zograd.files import atomic_write
from zograd.hub.cache import locked
from zograd.locks import FileLock, LockedError
from zograd.noise import Kind
from zograd.stores import Rate

RECORDS = [Record(k, Vector(((Noise(Kind.SIGN, k), 0.5),)), 1.0, (Rate(1e-3),), None) for k in range(12)]


def write(path: Path, count: int) -> bytes:
    with TapeWriter(path, {"seed": 0}) as writer:
        for record in RECORDS[:count]:
            writer.append(record)
    return path.read_bytes()


# ---- one writer ------------------------------------------------------------------------------------------------------


def test_a_second_writer_cuts_nothing_off_and_is_refused(tmp_path: Path) -> None:
    """A job that is started again while the first still runs, and dies before its first step or goes on."""
    path = tmp_path / "tape.zo"
    first = TapeWriter(path, {"seed": 0})
    for record in RECORDS[:5]:
        first.append(record)
    seen = Tape(path)
    for record in RECORDS[5:8]:
        first.append(record)
    for second in (TapeWriter(path, seen), TapeWriter(path)):
        before = path.read_bytes()
        with pytest.raises(LockedError, match=r"tape.zo is being written by this process itself, since 20\d\d-"):
            second.append(RECORDS[5])
        second.close()
        assert path.read_bytes() == before
    first.append(RECORDS[8])
    first.close()
    assert Tape(path).records == RECORDS[:9]
    assert [p.name for p in tmp_path.iterdir()] == ["tape.zo"]


def test_a_tape_that_grew_since_it_was_read_is_not_cut(tmp_path: Path) -> None:
    """The lock is free again, and the records that another writer added are there to stay."""
    path = tmp_path / "tape.zo"
    write(path, 5)
    seen = Tape(path)
    with TapeWriter(path, seen) as other:
        other.append(RECORDS[5])
        late = TapeWriter(path, seen)
    before = path.read_bytes()
    with pytest.raises(TapeError, match="has 6 steps now, and is no longer the tape of 5 steps that was read"):
        late.append(RECORDS[5])
    with pytest.raises(TapeError, match="has 6 steps now"):
        TapeWriter(path, seen)
    late.close()
    assert path.read_bytes() == before
    with TapeWriter(path) as writer:  # and nothing holds the lock
        writer.append(RECORDS[6])
    assert Tape(path).records == RECORDS[:7]


def test_a_writer_that_had_to_wait_goes_on_when_nothing_changed(tmp_path: Path) -> None:
    path = tmp_path / "tape.zo"
    write(path, 3)
    first = TapeWriter(path)
    second = TapeWriter(path, Tape(path))
    first.close()
    second.append(RECORDS[3])
    second.close()
    assert Tape(path).records == RECORDS[:4]


HOLDER = """
import sys
from zograd import TapeWriter
writer = TapeWriter(sys.argv[1])
writer.sync()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_ends_with_its_process_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "tape.zo"
    write(path, 3)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        writer = TapeWriter(path, Tape(path))  # a reader needs no lock
        with pytest.raises(LockedError, match=f"by process {holder.pid} on .*; stop that, or wait for its end"):
            writer.append(RECORDS[3])
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert (tmp_path / "tape.zo.lock").exists()
    writer.append(RECORDS[3])  # nobody had to remove it
    writer.close()
    assert Tape(path).records == RECORDS[:4]


def test_a_child_does_not_let_go_of_its_parents_lock(tmp_path: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    with FileLock(tmp_path / "a.lock", "a") as lock:
        child = os.fork()
        if not child:
            lock.close()
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(LockedError):
            FileLock(tmp_path / "a.lock", "a")
        assert (tmp_path / "a.lock").exists()


FORKING = """
import os, sys, time
from zograd import TapeWriter
writer = TapeWriter(sys.argv[1])
if not os.fork():  # here the lock has been let go, which the parent would not know
    print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_a_worker_that_outlives_its_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    """As workers of a pool do when the process that forked them is killed."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    path = tmp_path / "tape.zo"
    write(path, 3)
    parent = subprocess.Popen([sys.executable, "-c", FORKING, str(path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        with TapeWriter(path) as writer:
            writer.append(RECORDS[3])
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
    assert Tape(path).records == RECORDS[:4]


def test_a_file_system_without_locks_warns_and_lets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, wait: bool) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("zograd.locks._lock", none)
    with pytest.warns(UserWarning, match="has no locks: make sure that nobody else writes there"):
        write(tmp_path / "tape.zo", 2)
    assert Tape(tmp_path / "tape.zo").steps == 2


@pytest.mark.parametrize("kind", ["symlink", "hard link", "folder"])
def test_a_lock_file_leads_to_no_other_file(tmp_path: Path, kind: str) -> None:
    """The lock of a tape and that of the cache: what somebody put in their place stays as it is."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for lock in (tmp_path / "tape.zo.lock", tmp_path / ".toy.lock"):
        if kind == "symlink":
            lock.symlink_to(victim)
        elif kind == "hard link":
            lock.hardlink_to(victim)
        else:
            lock.mkdir()
    with pytest.raises(OSError, match=r"tape\.zo\.lock"):
        TapeWriter(tmp_path / "tape.zo", {})
    assert not (tmp_path / "tape.zo").exists()
    with pytest.raises(OSError, match=r"\.toy\.lock"), locked(tmp_path / "toy"):
        pass
    assert victim.read_text() == "precious"


def test_a_temporary_file_leads_to_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".a.json.tmp").symlink_to(tmp_path / "victim")
    atomic_write(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_text() == "new"
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_file_of_the_users_own_beside_it_stays(tmp_path: Path) -> None:
    (tmp_path / "a.json.tmp").write_text("mine")
    atomic_write(tmp_path / "a.json", b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.json.tmp"]
    assert (tmp_path / "a.json.tmp").read_text() == "mine"


# ---- what a crash leaves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [8, 9, 57, 5000])
def test_zeros_behind_the_last_record_are_a_torn_end(tmp_path: Path, zeros: int) -> None:
    """As a file system leaves a file whose length reached the disk before its contents."""
    path = tmp_path / "tape.zo"
    data = write(path, 4)
    path.write_bytes(data + bytes(zeros))
    with pytest.warns(UserWarning, match=rf"last record is torn \({zeros} bytes\)"):
        tape = Tape(path)
    assert tape.records == RECORDS[:4]
    with TapeWriter(path, tape) as writer:
        writer.append(RECORDS[4])
    assert Tape(path).records == RECORDS[:5]


def test_a_record_that_ends_in_zeros_is_torn_wherever_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "tape.zo"
    whole, more = write(path, 4), len(write(tmp_path / "more.zo", 5))
    longer = (tmp_path / "more.zo").read_bytes()
    for begin in range(len(whole), more - 8):
        path.write_bytes(longer[:begin] + bytes(more - begin + 100))
        with pytest.warns(UserWarning, match="torn"):
            assert Tape(path).records == RECORDS[:4]


def test_zeros_inside_of_a_tape_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "tape.zo"
    data = write(path, 4)
    path.write_bytes(data[:-150] + bytes(50) + data[-100:])
    with pytest.raises(TapeError, match="restore the file from a copy"):
        Tape(path)
    path.write_bytes(data[:-20] + b"\1" + data[-19:] + bytes(200))  # a flipped byte, then zeros behind the frame
    with pytest.raises(TapeError, match=r"record 3, at byte .* fails its checksum"):
        Tape(path)


@pytest.mark.parametrize("record", [0, 2, 3])
def test_salvage_keeps_the_steps_before_the_damage_and_says_so(tmp_path: Path, record: int) -> None:
    path = tmp_path / "tape.zo"
    data = bytearray(write(path, 4))
    size = (len(data) - len(write(tmp_path / "empty.zo", 0))) // 4
    at = len(data) - (4 - record) * size
    data[at + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(TapeError, match=f"record {record}, at byte {at}, fails its checksum"):
        Tape(path)
    kept = rf"the {record} steps before it are kept \({at} of {len(data)} bytes\), what comes after is left out"
    with pytest.warns(UserWarning, match=kept):
        tape = Tape(path, salvage=True)
    assert tape.records == RECORDS[:record]
    assert path.read_bytes() == data


def test_a_damaged_header_cannot_be_salvaged(tmp_path: Path) -> None:
    path = tmp_path / "tape.zo"
    data = bytearray(write(path, 4))
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(TapeError, match="the header, at byte 8, fails its checksum"):
        Tape(path, salvage=True)


def test_the_checksum_of_a_step_is_that_of_the_tape_that_ends_there(tmp_path: Path) -> None:
    write(tmp_path / "long.zo", 6)
    long = Tape(tmp_path / "long.zo")
    for k in range(7):
        write(tmp_path / f"{k}.zo", k)
        assert Tape(tmp_path / f"{k}.zo").crc == long.checksum(k)
    assert long.checksum(6) == long.crc
    assert len({long.checksum(k) for k in range(7)}) == 7


def test_a_disk_that_is_full_before_the_header_leaves_no_tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tape.zo"

    def full(self: TapeWriter, data: bytes) -> None:
        self._file.write(data[:5])
        raise OSError(28, "No space left on device", str(self.path))

    with monkeypatch.context() as patch:
        patch.setattr(TapeWriter, "_write", full)
        with pytest.raises(OSError, match="No space left"):
            TapeWriter(path, {})
    assert list(tmp_path.iterdir()) == []
    write(path, 2)
    assert Tape(path).steps == 2


def test_a_tape_without_a_whole_header_never_began(tmp_path: Path) -> None:
    path = tmp_path / "tape.zo"
    header = write(path, 0)
    for data in (b"", bytes(500), header[:5], header[:8], header[:-1], header[:20] + bytes(100)):
        path.write_bytes(data)
        assert never_began(path)
        with pytest.raises(TapeError, match="ends inside its header: no step was recorded; start the run again"):
            Tape(path)
    flipped = bytearray(header)
    flipped[20] ^= 1
    for other in (header, b"something else", bytes(flipped)):
        path.write_bytes(other)
        assert not never_began(path)


# ---- against power loss ----------------------------------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is forced to the disk and renamed, in order."""
    events: list[str] = []
    fsync, rename = os.fsync, os.replace

    def forced(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        events.append(f"fsync {name}")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        events.append(f"rename {Path(source).name} {Path(target).name}")
        rename(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("descriptors have no names on this system")
    monkeypatch.setattr(os, "fsync", forced)
    monkeypatch.setattr(os, "replace", renamed)
    return events


def test_a_tape_is_forced_to_the_disk_when_asked_and_at_the_end(tmp_path: Path, disk: list[str]) -> None:
    writer = TapeWriter(tmp_path / "tape.zo", {})
    assert disk == [f"fsync {tmp_path.name}"]  # the name of a new file is in its folder
    writer.append(RECORDS[0])
    writer.sync()
    assert disk[1:] == ["fsync tape.zo"]
    writer.append(RECORDS[1])
    writer.close()
    writer.close()
    assert disk[2:] == ["fsync tape.zo"]


def test_contents_reach_the_disk_before_the_name_and_the_name_after(tmp_path: Path, disk: list[str]) -> None:
    atomic_write(tmp_path / "run.json", json.dumps({"a": 1}).encode())
    assert disk == ["fsync .run.json.tmp", "rename .run.json.tmp run.json", f"fsync {tmp_path.name}"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    atomic_write(tmp_path / "run.json", b"old")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(OSError, match=r"No space left on device: .*run.json"):
            atomic_write(tmp_path / "run.json", b"new")
    assert (tmp_path / "run.json").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_crash_after_the_rename_leaves_the_new_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the rename and the fsync of the folder, a reader finds all of the new contents."""
    atomic_write(tmp_path / "run.json", b"old")

    def crash(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zograd.files.sync_folder", crash)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "run.json", b"new contents")
    assert (tmp_path / "run.json").read_bytes() == b"new contents"


def test_a_run_with_a_writer_goes_on_while_others_read(tmp_path: Path) -> None:
    weights = {"x": torch.ones(3, dtype=torch.float64)}
    run = Run(Store(weights), methods.zo_sgd(lr=1e-2), 0)
    with TapeWriter(tmp_path / "tape.zo", {}) as writer:
        for k in range(4):
            writer.append(run.step(lambda store, queries, key: [1.0] * len(queries)))
            assert Tape(tmp_path / "tape.zo").steps == k + 1
