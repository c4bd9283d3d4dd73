"""Records in memory: what a run did, packed into some 50 bytes a step, and read as a sequence of `Record`."""

from __future__ import annotations

import dataclasses
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from zograd.core.record import Record
from zograd.core.vector import Basis, Noise, Vector
from zograd.noise import Kind
from zograd.stores import Rate

EXACT = 2**53
"""Integers below it are floats exactly."""


class Records(Sequence[Record]):
    """Records in the order in which they were appended: `tape[k]`, slices (a list) and iteration give them back, equal.

    Memory: 16 bytes a record, 16 for each term of noise, 8 for each loss, scalar and meter, and 8 for each of mu, the
    rates and the share of moved weights that is not that of the first record. This is 48 for one pair of points and a
    constant rate (a list of `Record` takes 840), and a sixteenth more for the room to grow.

    A record is made anew at each access. Pickle and deepcopy work. A NaN stays one, and so is not equal to itself.

    >>> tape = Records([Record(step, Vector(), 0.5, (Rate(0.1),), None) for step in range(3)])
    >>> tape[-1].step, len(tape[1:]), tape
    (2, 2, <Records of 3 steps>)
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._data = array("Q")
        """The numbers of all records, eight bytes each, one record after the other."""
        self._ends = array("I", [0])
        """Where in `_data` they end."""
        self._which = array("I")
        """The number of the outline of each record."""
        self._outlines: list[tuple[_Outline, str]] = []
        """Each outline with the layout of its numbers, as `struct` writes it."""
        self._numbers: dict[tuple[Any, ...], int] = {}
        """The number of each outline, by its fields."""
        self._first: tuple[float, ...] = ()
        """`_settings` of the first record."""
        for record in records:
            self.append(record)

    def append(self, record: Record) -> None:
        """Add a record at the end."""
        settings = _settings(record, len(self))
        if not self._which:
            self._first = settings
        other = () if settings == self._first else _unequal(settings, self._first)
        numbers = [record.loss, *record.losses, *(record.aux or ())]
        if other:
            numbers += [settings[k] for k in other]
        names = []
        for name, value in record.meters:
            names.append(name)
            numbers.append(value)
        outline = (
            record.evaluations,
            len(record.losses),
            None if record.aux is None else len(record.aux),
            other,
            len(record.rates),
            record.refused,
            tuple(names),
            _take_apart(record.vector, numbers),
            tuple([(slot, _take_apart(vector, numbers)) for slot, vector in record.writes]) if record.writes else (),
            record.step if record.step >= EXACT else None,
        )
        which = self._numbers.get(outline)
        if which is None:
            which = self._numbers[outline] = len(self._outlines)
            made = _Outline(*outline)
            self._outlines.append((made, made.layout()))
        self._data.frombytes(struct.pack(self._outlines[which][1], *numbers))
        self._ends.append(len(self._data))
        self._which.append(which)

    def taken(self) -> Records:
        """The records of the steps that were not refused."""
        if not any(outline.refused for outline, _ in self._outlines):
            return self
        return Records(record for record in self if not record.refused)

    def losses(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The evaluations and the loss of each step that was not refused and has a finite loss."""
        which, ends = np.array(self._which, dtype=np.intp), np.array(self._ends, dtype=np.intp)
        loss = np.array(self._data, dtype=np.uint64).view(np.float64)[ends[:-1]]
        outlines = [outline for outline, _ in self._outlines]
        refused = np.array([outline.refused for outline in outlines], dtype=bool)[which]
        spent = np.array([outline.evaluations for outline in outlines], dtype=np.int64)[which]
        finite = np.isfinite(loss) & ~refused
        return spent[finite], loss[finite]

    def _made(self, k: int) -> Record:
        outline, layout = self._outlines[self._which[k]]
        numbers = iter(struct.unpack_from(layout, self._data, 8 * self._ends[k]))
        loss = next(numbers)
        losses = tuple([next(numbers) for _ in range(outline.losses)])
        aux = None if outline.aux is None else tuple([next(numbers) for _ in range(outline.aux)])
        settings = [*self._first, *self._first[-1:] * (3 + 2 * outline.rates)][: 3 + 2 * outline.rates]
        for j in outline.other:
            settings[j] = next(numbers)
        ahead, mu, moved, *rates = settings
        meters = tuple([(name, next(numbers)) for name in outline.meters])
        vector = _put_together(outline.vector, numbers)
        writes = tuple([(slot, _put_together(shape, numbers)) for slot, shape in outline.writes])
        step = int(k + ahead) if outline.step is None else outline.step
        return Record(
            step, vector, loss, tuple(map(Rate, rates[::2], rates[1::2])), aux, writes,
            outline.evaluations, outline.refused, losses, mu, moved, meters,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._which)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self._made(k) for k in range(len(self))[index]]
        return self._made(range(len(self))[index])

    def __iter__(self) -> Iterator[Record]:
        return map(self._made, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Records | list):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Records of {len(self)} steps>"


class _Outline(NamedTuple):
    """A record without its numbers: how many there are, and the names. The records of a run share a few outlines.

    other: the places in `_settings` where the record differs from the first one. vector: see `_take_apart`.
    step: where a float could not hold it.
    """

    evaluations: int
    losses: int
    aux: int | None
    other: tuple[int, ...]
    rates: int
    refused: bool
    meters: tuple[str, ...]
    vector: tuple[Any, ...]
    writes: tuple[tuple[str, tuple[Any, ...]], ...]
    step: int | None

    def layout(self) -> str:
        """The numbers in the order of `Records.append`: d is a float, q an integer with a sign, Q one without."""
        other = "".join(["d" if k else "q" for k in self.other])
        vectors = [self.vector, *(shape for _, shape in self.writes)]
        terms = "".join(["d" + _letters(shape) for vector in vectors for shape in vector])
        return "=" + "d" * (1 + self.losses + (self.aux or 0)) + other + "d" * len(self.meters) + terms


def _settings(record: Record, k: int) -> tuple[float, ...]:
    """What records of a run often have in common: step - k, mu, moved, and the rates. k: the place of this one."""
    rates = record.rates[0] if len(record.rates) == 1 else [x for rate in record.rates for x in rate]
    ahead = record.step - k if record.step < EXACT else 0
    return ahead, record.mu, record.moved, *rates


def _unequal(settings: tuple[float, ...], first: tuple[float, ...]) -> tuple[int, ...]:
    return tuple([k for k, value in enumerate(settings) if k >= len(first) or value != first[k]])


class _Constant(NamedTuple):
    """In a shape: a value that is no number."""

    value: Any


class _Made(NamedTuple):
    """In a shape: a basis vector with fields of these shapes."""

    kind: type
    fields: tuple[Any, ...]


def _take_apart(v: Vector, numbers: list[float]) -> tuple[Any, ...]:
    """The shape of a vector: one of each term, the `Kind` of a noise key, otherwise as `_shape` says."""
    shapes = []
    for e, c in v.terms:
        numbers.append(c)
        if type(e) is Noise and type(e.kind) is Kind:
            numbers.append(e.key)
            shapes.append(e.kind)
        else:
            shapes.append(_shape(e, numbers))
    return tuple(shapes)


def _put_together(shapes: tuple[Any, ...], numbers: Iterator[Any]) -> Vector:
    """The inverse of `_take_apart`."""
    terms: list[tuple[Basis, float]] = []
    for shape in shapes:
        c = next(numbers)
        terms.append((Noise(shape, next(numbers)) if type(shape) is Kind else _value(shape, numbers), c))
    return Vector(tuple(terms))


def _shape(value: Any, numbers: list[float]) -> Any:
    """A basis vector, or a field of one, without its numbers, which are appended: `int` and `float` in their place."""
    if isinstance(value, Basis) and dataclasses.is_dataclass(value):
        return _Made(type(value), tuple([_shape(getattr(value, f.name), numbers) for f in dataclasses.fields(value)]))
    if type(value) is tuple:
        return tuple([_shape(v, numbers) for v in value])
    if isinstance(value, float) or (type(value) is int and 0 <= value < 1 << 64):
        numbers.append(value)
        return float if isinstance(value, float) else int
    return _Constant(value)


def _value(shape: Any, numbers: Iterator[Any]) -> Any:
    """The inverse of `_shape`."""
    if isinstance(shape, _Constant):
        return shape.value
    if isinstance(shape, _Made):
        return shape.kind(*[_value(field, numbers) for field in shape.fields])
    return tuple([_value(s, numbers) for s in shape]) if isinstance(shape, tuple) else next(numbers)


def _letters(shape: Any) -> str:
    """The layout of the numbers of a shape."""
    if isinstance(shape, _Constant):
        return ""
    if isinstance(shape, tuple):
        return "".join(map(_letters, shape.fields if isinstance(shape, _Made) else shape))
    return "d" if shape is float else "Q"
