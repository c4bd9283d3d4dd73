"""Records as bytes: how a tape names basis vectors, and what is checked of the numbers that are read.

A record (little endian, version 2 of the tape): step, flags, loss, evaluations, mu, moved; rates; scalars for the
rule; the vector; the slots that are assigned; meters. A term of a vector is a noise key and a coefficient, or the name
and the fields of its `@basis` class as JSON. A count has 8 bits, the length of a name of a term 16; the largest number
of those bits says that the count follows in 32 bits.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import typing
from enum import IntEnum
from functools import cache
from typing import Any

from zograd.core.record import Record
from zograd.core.vector import BASES, Basis, Noise, Vector, name_of_basis
from zograd.noise import Kind
from zograd.stores import Rate

_U8, _U16, _U32 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I")
_HEAD = struct.Struct("<QBdIdd")  # step, flags, loss, evaluations, mu, moved
_NOISE = struct.Struct("<BBQd")  # tag, kind, key, coefficient
_REFUSED = 1
DEPTH = 16
"""How deep basis vectors may be nested."""


class TapeError(ValueError):
    """The file is no tape of this version, or it is damaged: the message says where and how."""


def _pack_count(n: int, short: struct.Struct = _U8) -> bytes:
    """A count in the short form, or all ones and 32 bits."""
    ones = 256**short.size - 1
    return short.pack(n) if n < ones else short.pack(ones) + _U32.pack(n)


def _pack_vector(v: Vector) -> bytes:
    parts = [_U32.pack(len(v.terms))]
    for e, c in v.terms:
        if isinstance(e, Noise):
            parts.append(_NOISE.pack(0, int(e.kind), e.key, c))
        else:
            name = json.dumps(named(e), separators=(",", ":")).encode()
            parts.append(b"\1" + _pack_count(len(name), _U16) + struct.pack("<d", c) + name)
    return b"".join(parts)


def named(value: Any) -> Any:
    """A basis vector as plain data: {kind: [fields]}, nested; numbers, strings and lists as they are."""
    if isinstance(value, IntEnum):
        return int(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = name_of_basis(type(value))
        if BASES.get(kind) is not type(value):
            raise TypeError(f"a tape stores basis vectors registered with @basis, and {kind} is not")
        return {kind: [named(getattr(value, f.name)) for f in dataclasses.fields(value)]}
    if isinstance(value, tuple):
        return [named(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a tape stores basis vectors of numbers, strings and other basis vectors, not {value!r}")


def renamed(value: Any, depth: int = 0) -> Any:
    """The inverse of `named`."""
    if depth > 2 * DEPTH:
        raise TapeError(f"basis vectors nested deeper than {DEPTH}")
    if isinstance(value, list):
        return tuple(renamed(v, depth + 1) for v in value)
    if isinstance(value, dict):
        ((kind, fields),) = value.items()
        if kind not in BASES:
            raise TapeError(f"a basis vector of unknown kind {kind!r}; import the module that defines it first")
        values = [renamed(v, depth + 1) for v in fields]
        if kind == "Noise":
            values[0] = Kind(values[0])
        for v, (name, wanted) in zip(values, _fields(BASES[kind]), strict=True):
            if not _fits(v, wanted):
                raise TapeError(f"a basis vector {kind} whose {name} is {str(v)[:40]!r}")
        return BASES[kind](*values)
    return value


@cache
def _fields(kind: type) -> list[tuple[str, Any]]:
    """The fields of a kind of basis vector with their types; Any where they cannot be told."""
    try:
        types = typing.get_type_hints(kind)
    except NameError:
        types = {}
    return [(f.name, types.get(f.name, Any)) for f in dataclasses.fields(kind)]


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value that was read fits its field: the right type, finite, integers in 64 bits."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return False
    if wanted is Basis:
        return type(value) in BASES.values()
    if wanted in (int, float, str, bool, Kind):
        return isinstance(value, wanted | int if wanted is float else wanted) and (
            wanted is bool or not isinstance(value, bool)
        )
    if typing.get_origin(wanted) is tuple and isinstance(value, tuple):
        parts = typing.get_args(wanted)
        parts = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(parts) == len(value) and all(map(_fits, value, parts))
    return typing.get_origin(wanted) is not tuple


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, layout: str | struct.Struct) -> tuple[Any, ...]:
        s = layout if isinstance(layout, struct.Struct) else struct.Struct(layout)
        values = s.unpack_from(self.data, self.at)
        self.at += s.size
        return values

    def count(self, short: struct.Struct = _U8) -> int:
        """The inverse of `_pack_count`."""
        n: int = self.take(short)[0]
        if n == 256**short.size - 1:
            n = self.take(_U32)[0]
        return n

    def text(self, length: int) -> str:
        self.at += length
        if self.at > len(self.data):
            raise TapeError("a name is longer than the record")
        return self.data[self.at - length : self.at].decode()

    def vector(self) -> Vector:
        terms: list[tuple[Basis, float]] = []
        for _ in range(self.take(_U32)[0]):
            tag = self.data[self.at]
            if tag == 0:
                _, kind, key, c = self.take(_NOISE)
                e: Basis = Noise(Kind(kind), key)
            elif tag == 1:
                self.at += 1
                length = self.count(_U16)
                (c,) = self.take("<d")
                e = renamed(json.loads(self.text(length)))
                if type(e) not in BASES.values():
                    raise TapeError(f"a term that is no basis vector: {str(e)[:40]!r}")
            else:
                raise TapeError(f"a term of unknown kind {tag}")
            terms.append((e, c))
        return Vector(tuple(terms))


def _check(record: Record) -> None:
    """Raise TapeError where a number that steers a move is not finite. A refused step moves nothing."""
    if record.refused:
        return
    numbers = [("a learning rate or weight decay", [x for rate in record.rates for x in rate])]
    numbers += [("a coefficient", [c for _, c in v.terms]) for v in (record.vector, *dict(record.writes).values())]
    numbers += [("a scalar for the rule", list(record.aux or ())), ("mu", [record.mu])]
    for what, values in numbers:
        for value in values:
            if not math.isfinite(value):
                raise TapeError(f"step {record.step}: {what} is {value}, and a step moves by finite numbers only")


def pack_record(record: Record) -> bytes:
    """A record as bytes (without its frame). Raises TapeError for one that could not be read again."""
    _check(record)
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
        _pack_count(len(record.rates)),
        *(struct.pack("<dd", *rate) for rate in record.rates),
        struct.pack("<i", -1 if aux is None else len(aux)),
        struct.pack(f"<{len(aux or ())}d", *(aux or ())),
        _pack_vector(record.vector),
        _pack_count(len(record.writes)),
    ]
    for slot, vector in record.writes:
        name = slot.encode()
        parts.append(_pack_count(len(name)) + name + _pack_vector(vector))
    parts.append(_pack_count(len(record.meters)))
    for meter, value in record.meters:
        name = meter.encode()
        parts.append(_pack_count(len(name)) + name + struct.pack("<d", value))
    return b"".join(parts)


def unpack_record(data: bytes) -> Record:
    """The inverse of `pack_record` (the individual losses are not stored). Raises TapeError for other bytes."""
    try:
        record = _unpack(data)
    except TapeError:
        raise
    except (struct.error, ValueError, TypeError, IndexError, OverflowError, RecursionError) as e:
        raise TapeError(f"a record does not parse ({type(e).__name__}: {str(e)[:80]})") from e
    _check(record)
    return record


def _unpack(data: bytes) -> Record:
    r = _Reader(data)
    step, flags, loss, evaluations, mu, moved = r.take(_HEAD)
    rates = tuple(Rate(*r.take("<dd")) for _ in range(r.count()))
    n_aux = r.take("<i")[0]
    aux = None if n_aux < 0 else r.take(f"<{n_aux}d")
    vector = r.vector()
    writes = tuple((r.text(r.count()), r.vector()) for _ in range(r.count()))
    meters = tuple((r.text(r.count()), r.take("<d")[0]) for _ in range(r.count()))
    if r.at != len(data):
        raise TapeError("a record is longer than its contents")
    return Record(step, vector, loss, rates, aux, writes, evaluations, bool(flags & _REFUSED), (), mu, moved, meters)
