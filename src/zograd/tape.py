"""The tape: an append-only file of what each step did, from which the weights follow exactly.

Layout (little endian), version 2:

    b"ZOTAPE" u16 version | frame(header JSON) | frame(record) frame(record) ...
    frame(p) = u32 len(p) | u32 crc of the length and all before it | p | u32 crc of p and all before it

Every checksum continues the one before, so a flipped bit, a lost, doubled or swapped record is found and named. A
frame that ends with the file is a torn write: it is dropped with a warning. A two-point record takes 94 bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from zograd.noise import NOISE_VERSION, Kind
from zograd.run import Record
from zograd.stores.base import Rate
from zograd.vector import BASES, Basis, Noise, Vector, name_of_basis

TAPE_VERSION = 2
_MAGIC = b"ZOTAPE"
_PREAMBLE = _MAGIC + struct.pack("<H", TAPE_VERSION)
_U32 = struct.Struct("<I")
_HEAD = struct.Struct("<QBdIdd")  # step, flags, loss, evaluations, mu, moved
_NOISE = struct.Struct("<BBQd")  # tag, kind, key, coefficient
_REFUSED = 1


class TapeError(ValueError):
    """The file is no tape of this version, or it is damaged: the message says where and how."""


# ---- records as bytes ------------------------------------------------------------------------------------------------


def _pack_vector(v: Vector) -> bytes:
    parts = [_U32.pack(len(v.terms))]
    for e, c in v.terms:
        if isinstance(e, Noise):
            parts.append(_NOISE.pack(0, int(e.kind), e.key, c))
        else:
            name = json.dumps(_named(e), separators=(",", ":")).encode()
            parts.append(struct.pack("<BHd", 1, len(name), c) + name)
    return b"".join(parts)


def _named(value: Any) -> Any:
    """A basis vector as plain data: {kind: [fields]}, nested; numbers, strings and lists as they are."""
    if isinstance(value, IntEnum):
        return int(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = name_of_basis(type(value))
        if BASES.get(kind) is not type(value):
            raise TypeError(f"a tape stores basis vectors registered with @basis, and {kind} is not")
        return {kind: [_named(getattr(value, f.name)) for f in dataclasses.fields(value)]}
    if isinstance(value, tuple):
        return [_named(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a tape stores basis vectors of numbers, strings and other basis vectors, not {value!r}")


def _renamed(value: Any) -> Any:
    """The inverse of `_named`."""
    if isinstance(value, list):
        return tuple(_renamed(v) for v in value)
    if isinstance(value, dict):
        ((kind, fields),) = value.items()
        if kind not in BASES:
            raise TapeError(f"a basis vector of unknown kind {kind!r}; import the module that defines it first")
        if kind == "Noise":
            return Noise(Kind(fields[0]), fields[1])
        return BASES[kind](*(_renamed(v) for v in fields))
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, layout: str | struct.Struct) -> tuple[Any, ...]:
        s = layout if isinstance(layout, struct.Struct) else struct.Struct(layout)
        values = s.unpack_from(self.data, self.at)
        self.at += s.size
        return values

    def text(self, length: int) -> str:
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def vector(self) -> Vector:
        terms: list[tuple[Basis, float]] = []
        for _ in range(self.take(_U32)[0]):
            tag = self.data[self.at]
            if tag == 0:
                _, kind, key, c = self.take(_NOISE)
                terms.append((Noise(Kind(kind), key), c))
            elif tag == 1:
                _, length, c = self.take("<BHd")
                terms.append((_renamed(json.loads(self.text(length))), c))
            else:
                raise TapeError(f"a term of unknown kind {tag}")
        return Vector(tuple(terms))


def pack_record(record: Record) -> bytes:
    """A record as bytes (without its frame)."""
    aux = record.aux
    parts = [
        _HEAD.pack(
            record.step,
            _REFUSED if record.refused else 0,
            record.loss,
            record.evaluations,
            record.mu,
            record.moved,
        ),
        struct.pack("<B", len(record.rates)),
        *(struct.pack("<dd", *rate) for rate in record.rates),
        struct.pack("<i", -1 if aux is None else len(aux)),
        struct.pack(f"<{len(aux or ())}d", *(aux or ())),
        _pack_vector(record.vector),
        struct.pack("<B", len(record.writes)),
    ]
    for slot, vector in record.writes:
        name = slot.encode()
        parts.append(struct.pack("<B", len(name)) + name + _pack_vector(vector))
    parts.append(struct.pack("<B", len(record.meters)))
    for meter, value in record.meters:
        name = meter.encode()
        parts.append(struct.pack("<B", len(name)) + name + struct.pack("<d", value))
    return b"".join(parts)


def unpack_record(data: bytes) -> Record:
    """The inverse of `pack_record` (the individual losses are not stored)."""
    r = _Reader(data)
    step, flags, loss, evaluations, mu, moved = r.take(_HEAD)
    rates = tuple(Rate(*r.take("<dd")) for _ in range(r.take("<B")[0]))
    n_aux = r.take("<i")[0]
    aux = None if n_aux < 0 else r.take(f"<{n_aux}d")
    vector = r.vector()
    writes = tuple((r.text(r.take("<B")[0]), r.vector()) for _ in range(r.take("<B")[0]))
    meters = tuple((r.text(r.take("<B")[0]), r.take("<d")[0]) for _ in range(r.take("<B")[0]))
    if r.at != len(data):
        raise TapeError("a record is longer than its contents")
    return Record(step, vector, loss, rates, aux, writes, evaluations, bool(flags & _REFUSED), (), mu, moved, meters)


# ---- the file --------------------------------------------------------------------------------------------------------


def _frame(payload: bytes, crc: int) -> tuple[bytes, int]:
    length = _U32.pack(len(payload))
    crc = zlib.crc32(length, crc)
    head = length + _U32.pack(crc)
    crc = zlib.crc32(payload, crc)
    return head + payload + _U32.pack(crc), crc


def _frames(data: bytes, path: Path) -> Iterator[tuple[bytes, int, int]]:
    """(payload, end offset, running crc) of each complete frame; TapeError on damage; stops at a torn end."""
    at, crc, number = len(_PREAMBLE), zlib.crc32(_PREAMBLE), 0
    while at < len(data):
        what = "the header" if number == 0 else f"record {number - 1}"
        if at + 8 > len(data):
            return
        length, given = struct.unpack_from("<II", data, at)
        crc = zlib.crc32(data[at : at + 4], crc)
        if given != crc:
            raise TapeError(f"{path}: {what}, at byte {at}, has a damaged length; restore the file from a copy")
        if at + 12 + length > len(data):
            return
        payload = data[at + 8 : at + 8 + length]
        crc = zlib.crc32(payload, crc)
        if _U32.unpack_from(data, at + 8 + length)[0] != crc:
            raise TapeError(f"{path}: {what}, at byte {at}, fails its checksum; restore the file from a copy")
        at += 12 + length
        number += 1
        yield payload, at, crc


class Tape:
    """A tape that was read: its header, its records, and where it ends."""

    def __init__(self, path: str | os.PathLike[str], data: bytes | None = None) -> None:
        """Read and verify a tape; with `data`, those bytes of a tape that lies at `path` in another process.

        Raises TapeError for a file of another kind or version, and for damage anywhere but in a torn last record.
        """
        self.path = Path(path)
        data = self.path.read_bytes() if data is None else data
        if data[:6] != _MAGIC:
            raise TapeError(f"{self.path} is not a zograd tape (it does not begin with {_MAGIC.decode()})")
        if data[:8] != _PREAMBLE:
            version = int.from_bytes(data[6:8], "little")
            raise TapeError(
                f"{self.path} is a tape of version {version}; this zograd reads version {TAPE_VERSION}. "
                f"Use the release that wrote it (run.json names it)."
            )
        frames = list(_frames(data, self.path))
        if not frames:
            raise TapeError(f"{self.path} ends inside its header: no step was recorded; start the run again")
        self.header: dict[str, Any] = json.loads(frames[0][0])
        if self.header.get("noise_version") != NOISE_VERSION:
            raise TapeError(
                f"{self.path} was written with noise version {self.header.get('noise_version')}, this zograd has "
                f"{NOISE_VERSION}: the directions would differ. Use the release that wrote it."
            )
        self.records = [unpack_record(payload) for payload, _, _ in frames[1:]]
        self.end, self.crc = frames[-1][1], frames[-1][2]
        self.torn = len(data) - self.end
        if self.torn:
            warnings.warn(
                f"{self.path}: the last record is torn ({self.torn} bytes); dropped, the run goes on from "
                f"step {len(self.records)}",
                stacklevel=2,
            )

    @property
    def steps(self) -> int:
        return len(self.records)

    def bytes(self) -> bytes:
        """The file without a torn end, for a process that does not have it."""
        return self.path.read_bytes()[: self.end]

    @property
    def evaluations(self) -> int:
        return sum(record.evaluations for record in self.records)


class TapeWriter:
    """Appends records; each is one write, so a killed process loses at most the record under way."""

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any] | Tape | None = None) -> None:
        """Start a new tape with `header`, or continue one (None, or a `Tape` already read), cutting a torn end off."""
        self.path = Path(path)
        self._file: BinaryIO
        if header is None or isinstance(header, Tape):
            tape = header or Tape(self.path)
            self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115
            self._file.truncate(tape.end)
            self._file.seek(tape.end)
            self._crc = tape.crc
            return
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115
        full = {"noise_version": NOISE_VERSION, **header}
        frame, self._crc = _frame(json.dumps(full, sort_keys=True).encode(), zlib.crc32(_PREAMBLE))
        self._write(_PREAMBLE + frame)

    def _write(self, data: bytes) -> None:
        start = self._file.tell()
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(28, "no space left: a record was written only in part", str(self.path))
        except OSError:
            with suppress(OSError):
                self._file.truncate(start)
                self._file.seek(start)
            raise

    def append(self, record: Record) -> None:
        """Add a record. When the disk is full, the tape stays as it was and OSError is raised."""
        frame, crc = _frame(pack_record(record), self._crc)
        self._write(frame)
        self._crc = crc

    def sync(self) -> None:
        """Force what was written to the disk (against power loss; a killed process needs no sync)."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> TapeWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
