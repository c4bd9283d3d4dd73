"""A tape in few bytes, without loss: its records in columns, with keys that follow from the seed left out.

    u8 kind | u32 length | header | u32 records | u32 length of each | records of one length, byte by byte | ...

Little endian. kind 1: a key in a record is stored as its difference (xor) from the key that follows from seed, step and
number of the term, or from the key in the same place of the record before; kind 0: as it stands. Most of these
differences are 0, as are those between columns; a general compressor then takes them (`zograd.runs.packed`).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zograd.core import keys
from zograd.core.frames import frame, frames
from zograd.core.tape import PREAMBLE
from zograd.core.tape_records import TapeError, pack_record, unpack_record
from zograd.core.vector import Basis, Vector

KEYS = ("key", "left", "right")
"""Fields of basis vectors that are keys: of the step, or shared by several."""
_U32 = struct.Struct("<I")


class _Keys:
    """Takes the keys of records, one after the other, to what they differ from, and back."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.before: dict[tuple[str, int], int] = {}

    def change(self, payload: bytes, *, back: bool) -> bytes:
        """A record with its keys changed."""
        record = unpack_record(payload)
        now: dict[tuple[str, int], int] = {}

        def key(field: str, j: int, value: int) -> int:
            new = value ^ self._expected(record.step, field, j)
            now[field, j] = new if back else value
            return new

        changed = Vector(tuple((_mapped(e, j, key), c) for j, (e, c) in enumerate(record.vector.terms)))
        self.before = now
        return pack_record(replace(record, vector=changed))

    def _expected(self, step: int, field: str, j: int) -> int:
        return keys.direction(self.seed, step, j) if field == "key" else self.before.get((field, j), 0)


def _mapped(e: Basis, j: int, key: Callable[[str, int, int], int]) -> Basis:
    """Basis vector number j with other keys, also of those inside it."""
    new: dict[str, Any] = {}
    names: list[str] = [field.name for field in fields(e)] if is_dataclass(e) else []
    for name in names:
        value = getattr(e, name)
        if isinstance(value, Basis):
            new[name] = _mapped(value, j, key)
        elif name in KEYS and type(value) is int and 0 <= value < 1 << 64:
            new[name] = key(name, j, value)
    return replace(e, **new) if new else e  # type: ignore[type-var]


def to_columns(data: bytes) -> bytes:
    """The bytes of a whole tape, without a torn end, as columns. Raises FrameError, TapeError for damage."""
    header, *records = [payload for payload, _, _ in frames(data, Path("the tape"), PREAMBLE)]
    changed = _changed(header, records)
    kind, payloads = (1, changed) if changed is not None else (0, records)
    out = [bytes([kind]), _U32.pack(len(header)), header, _U32.pack(len(payloads))]
    lengths = [len(p) for p in payloads]
    out.append(_planes(struct.pack(f"<{len(lengths)}I", *lengths), 4))
    out += [_planes(b"".join(p for p in payloads if len(p) == n), n) for n in dict.fromkeys(lengths)]
    return b"".join(out)


def _changed(header: bytes, records: Sequence[bytes]) -> list[bytes] | None:
    """The records with changed keys; None where that would not give the same bytes back."""
    seed = json.loads(header).get("seed")
    if type(seed) is not int:
        return None
    there, here = _Keys(seed), _Keys(seed)
    try:
        changed = [there.change(payload, back=False) for payload in records]
        same = all(here.change(a, back=True) == b for a, b in zip(changed, records, strict=True))
    except (TapeError, ValueError, TypeError, OverflowError, struct.error):
        return None
    return changed if same else None


def from_columns(data: bytes) -> bytes:
    """The inverse of `to_columns`: the bytes of a tape. Raises TapeError for other bytes."""
    try:
        return _from_columns(data)
    except (struct.error, ValueError, IndexError, TypeError, OverflowError, RecursionError) as e:
        raise TapeError(f"the packed tape does not parse ({type(e).__name__}: {str(e)[:80]})") from e


def _from_columns(data: bytes) -> bytes:
    kind, (size,) = data[0], _U32.unpack_from(data, 1)
    header, at = data[5 : 5 + size], 5 + size
    (count,) = _U32.unpack_from(data, at)
    at += 4
    if kind > 1 or 4 * count > len(data) - at:
        raise TapeError("the packed tape does not parse: it is shorter than it says")
    lengths = struct.unpack(f"<{count}I", _rows(data[at : at + 4 * count], 4))
    at += 4 * count
    if sum(lengths) != len(data) - at:
        raise TapeError("the packed tape does not parse: its records have other lengths")
    found: dict[int, list[bytes]] = {}
    for n in dict.fromkeys(lengths):
        total = n * lengths.count(n)
        rows = _rows(data[at : at + total], n)
        found[n] = [rows[k : k + n] for k in range(0, total, n)][::-1]
        at += total
    payloads = [found[n].pop() for n in lengths]
    if kind:
        seed = json.loads(header)["seed"]
        undo = _Keys(seed)
        payloads = [undo.change(payload, back=True) for payload in payloads]
    out, crc = [PREAMBLE], zlib.crc32(PREAMBLE)
    for payload in (header, *payloads):
        framed, crc = frame(payload, crc)
        out.append(framed)
    return b"".join(out)


def _planes(rows: bytes, width: int) -> bytes:
    """Rows of `width` bytes, column by column."""
    return np.frombuffer(rows, np.uint8).reshape(-1, width).T.tobytes() if rows else b""


def _rows(planes: bytes, width: int) -> bytes:
    """The inverse of `_planes`."""
    return np.frombuffer(planes, np.uint8).reshape(width, -1).T.tobytes() if planes else b""
