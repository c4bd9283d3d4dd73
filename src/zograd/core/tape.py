"""The tape: an append-only file of what each step did, from which the weights follow exactly.

Layout (little endian), version 2:

    b"ZOTAPE" u16 version | frame(header JSON) | frame(record) frame(record) ...
    frame(p) = u32 len(p) | u32 crc of the length and all before it | p | u32 crc of p and all before it

Every checksum continues the one before, so a flipped bit, a lost, doubled or swapped record is found and named. A
frame that ends with the file, or in zero bytes up to its end (after a power loss), is a torn write: it is dropped with
a warning. A two-point record takes 94 bytes.

A checksum shows damage, not good will: every field is bounded when it is read, and no number that steers a move may be
NaN or infinite.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from zograd.core.frames import FrameError, frame, frames
from zograd.core.record import Record
from zograd.core.records import Records
from zograd.core.tape_records import TapeError, named, pack_record, renamed, unpack_record
from zograd.files import atomic_write, sync_folder
from zograd.locks import FileLock, LockedError
from zograd.noise import NOISE_VERSION

__all__ = ["TAPE_VERSION", "Tape", "TapeError", "TapeWriter", "named", "never_began", "pack_record", "renamed",
           "unpack_record", "writer_lock"]  # fmt: skip

TAPE_VERSION = 2
_MAGIC = b"ZOTAPE"
PREAMBLE = _MAGIC + struct.pack("<H", TAPE_VERSION)
_REMEDY = "restore the file from a copy, or `zograd replay --salvage` the steps before"


def _frames(data: bytes, path: Path) -> Iterator[tuple[bytes, int, int]]:
    """The frames of a tape; TapeError on damage."""
    try:
        yield from frames(data, path, PREAMBLE)
    except FrameError as e:
        raise TapeError(f"{e}; {_REMEDY}") from None


def never_began(path: Path) -> bool:
    """Whether the file ends inside of its header: the disk was full, or the power went, before the first step."""
    data = path.read_bytes()
    if not data.strip(b"\0") or PREAMBLE.startswith(data):
        return True
    try:
        return data.startswith(PREAMBLE) and next(_frames(data, path), None) is None
    except TapeError:
        return False


class Tape:
    """A tape that was read: its header, its records, and where it ends."""

    def __init__(self, path: str | os.PathLike[str], data: bytes | None = None, *, salvage: bool = False) -> None:
        """Read and verify a tape; with `data`, those bytes of a tape that lies at `path` in another process.

        salvage: stop at the first damage behind the header, with a warning that says what is kept, and not raise.
        Raises TapeError for a file of another kind or version, and for damage anywhere but in a torn last record.
        """
        self.path = Path(path)
        data = self.path.read_bytes() if data is None else data
        if not data.strip(b"\0") or PREAMBLE.startswith(data):
            raise TapeError(f"{self.path} ends inside its header: no step was recorded; start the run again")
        if data[:6] != _MAGIC:
            raise TapeError(f"{self.path} is not a zograd tape (it does not begin with {_MAGIC.decode()})")
        if data[:8] != PREAMBLE:
            version = int.from_bytes(data[6:8], "little")
            raise TapeError(
                f"{self.path} is a tape of version {version}; this zograd reads version {TAPE_VERSION}. "
                f"Use the release that wrote it (run.json names it)."
            )
        frames = _frames(data, self.path)
        if (first := next(frames, None)) is None:
            raise TapeError(f"{self.path} ends inside its header: no step was recorded; start the run again")
        payload, self.end, self.crc = first
        self.header = self._parsed(payload)
        self.records = Records()
        self._checksums, self._ends = array("L", [self.crc]), array("Q", [self.end])
        damage = ""
        try:
            for payload, end, crc in frames:
                try:
                    self.records.append(unpack_record(payload))
                except TapeError as e:
                    where = f"record {len(self.records)}, at byte {self.end}"
                    raise TapeError(f"{self.path}: {where}, was written by no zograd: {e}; {_REMEDY}") from e
                self.end, self.crc = end, crc
                self._checksums.append(crc)
                self._ends.append(end)
        except TapeError as e:
            if not salvage:
                raise
            damage = str(e).partition(";")[0]
        self.torn = len(data) - self.end
        if damage:
            warnings.warn(
                f"{damage}: the {self.steps} steps before it are kept ({self.end} of {len(data)} bytes), what comes "
                f"after is left out",
                stacklevel=2,
            )
        elif self.torn:
            warnings.warn(
                f"{self.path}: the last record is torn ({self.torn} bytes); dropped, the run goes on from "
                f"step {len(self.records)}",
                stacklevel=2,
            )

    def _parsed(self, header: bytes) -> dict[str, Any]:
        try:
            found = json.loads(header)
        except (ValueError, RecursionError) as e:
            raise TapeError(f"{self.path}: the header was written by no zograd ({str(e)[:80]})") from e
        if not isinstance(found, dict):
            raise TapeError(f"{self.path}: the header was written by no zograd (it is {type(found).__name__})")
        if found.get("noise_version") != NOISE_VERSION:
            raise TapeError(
                f"{self.path} was written with noise version {str(found.get('noise_version'))[:40]}, this zograd has "
                f"{NOISE_VERSION}: the directions would differ. Use the release that wrote it."
            )
        return found

    @property
    def steps(self) -> int:
        return len(self.records)

    def checksum(self, steps: int) -> int:
        """The running checksum behind so many records: of all that comes before."""
        return self._checksums[steps]

    def bytes(self) -> bytes:
        """The file without a torn end, for a process that does not have it."""
        return self.path.read_bytes()[: self.end]

    def cut(self, steps: int) -> Tape:
        """The tape of the first `steps` steps, written in place of this one."""
        data = self.path.read_bytes()[: self._ends[steps]]
        atomic_write(self.path, data)
        return Tape(self.path, data)

    @property
    def evaluations(self) -> int:
        return sum(record.evaluations for record in self.records)


class TapeWriter:
    """Appends records; each is one write, so a killed process loses at most the record under way.

    A tape has one writer, which holds the lock of `path` + ".lock" until it is closed or its process ends.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Mapping[str, Any] | Tape | None = None,
        *,
        lock: FileLock | None = None,
    ) -> None:
        """Start a new tape with `header`, or continue one (None, or a `Tape` already read), cutting a torn end off.

        Raises LockedError when another writer has the tape; FileExistsError for a new tape where there is one. A tape
        to continue is taken here if it is free, otherwise with the first record, which raises LockedError while the
        other writer is there, and TapeError when it has changed the tape that was read. Nothing is cut before.

        lock: of this tape, where the caller holds it already, and lets go of it.
        """
        self.path = Path(path)
        self._file: BinaryIO
        self._lock, self._given = lock, lock is not None
        self._ready = False
        self._seen = header if isinstance(header, Tape) else None
        if header is None or isinstance(header, Tape):
            self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115
            try:
                with suppress(LockedError):  # the holder may be at its end: the first record tries again
                    self._take()
            except BaseException:
                self._file.close()
                raise
            return
        full = {"noise_version": NOISE_VERSION, **header}
        header_frame, self.crc = frame(json.dumps(full, sort_keys=True).encode(), zlib.crc32(PREAMBLE))
        self._acquire()
        try:
            self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115
        except FileExistsError:
            self._release()
            raise FileExistsError(
                f"{self.path} is there already; give another path for a new tape, or continue it: "
                f"TapeWriter(path, Tape(path))"
            ) from None
        except BaseException:
            self._release()
            raise
        try:
            self._write(PREAMBLE + header_frame)
            sync_folder(self.path.parent)
        except BaseException:  # no tape without a header
            self._file.close()
            self.path.unlink()
            self._release()
            raise
        self._ready = True

    def _acquire(self) -> None:
        if self._lock is None:
            self._lock = writer_lock(self.path, str(self.path))

    def _release(self) -> None:
        if self._lock is not None and not self._given:
            self._lock.close()
            self._lock = None

    def _take(self) -> None:
        """Lock the tape to continue, see that it is the one that was read, and go to its end."""
        self._acquire()
        try:
            if self._seen is None:
                self._seen = Tape(self.path)
            else:
                ends = [(end, crc) for _, end, crc in _frames(self.path.read_bytes(), self.path)]
                if not ends or ends[-1] != (self._seen.end, self._seen.crc):
                    raise TapeError(
                        f"{self.path} has {len(ends) - 1} steps now, and is no longer the tape of {self._seen.steps} "
                        f"steps that was read: another writer went on with it. Read it again"
                    )
            self._file.truncate(self._seen.end)
            self._file.seek(self._seen.end)
        except BaseException:
            self._release()
            raise
        self.crc = self._seen.crc
        self._seen, self._ready = None, True

    def _write(self, data: bytes) -> None:
        start = self._file.tell()
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(28, "no space left: a record was written only in part", str(self.path))
        except OSError as e:
            with suppress(OSError):
                self._file.truncate(start)
                self._file.seek(start)
            raise OSError(e.errno, e.strerror, str(self.path)) from e

    def append(self, record: Record) -> None:
        """Add a record. When the disk is full, the tape stays as it was and OSError is raised."""
        if not self._ready:
            self._take()
        record_frame, crc = frame(pack_record(record), self.crc)
        self._write(record_frame)
        self.crc = crc

    def sync(self) -> None:
        """Force what was written to the disk (against power loss; a killed process needs no sync)."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        try:
            if not self._file.closed:
                self.sync()
        finally:
            self._file.close()
            self._release()

    def __enter__(self) -> TapeWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def writer_lock(tape: Path, what: str) -> FileLock:
    """The lock that the writer of a tape holds; LockedError names `what` and its holder."""
    lock = FileLock(tape.with_name(tape.name + ".lock"), what)
    if not lock.works:
        warnings.warn(f"the file system of {tape} has no locks: make sure that nobody else writes there", stacklevel=3)
    return lock
