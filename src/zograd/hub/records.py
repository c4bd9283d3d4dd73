"""A record of a user's data, which knows where it came from, and the table of all of them."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from zograd.hub.errors import TaskError

__all__ = ["Record", "Table", "part_named", "plain", "plain_values", "writable"]

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}


def part_named(name: str) -> str | None:
    """The split that a name means, of a file or of a part of a dataset: by all of it, or by its first word.

    >>> part_named("dev"), part_named("train-00000-of-00002"), part_named("validation_matched"), part_named("other")
    ('validation', 'train', 'validation', None)
    """
    words = re.split(r"[^a-z]+", name.strip().casefold())
    return _SPLIT_NAMES.get(words[0])


def writable(text: str) -> bool:
    """Whether a text can be written as UTF-8. JSON may hold half of a surrogate pair, which cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_PLAIN = (str, int, bool, float, bytes, type(None))


def plain(value: Any) -> Any:
    """A value as JSON would have it: NumPy's scalars and arrays as those of Python, and NaN, NaT and NA as None.

    A recording in memory (an object with array and sampling_rate) stays as it is.

    >>> plain([1.0, float("nan"), (2, {3: "a"})])
    [1.0, None, [2, {'3': 'a'}]]
    """
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # of NumPy or torch
        value = value.tolist()
    if type(value) in _PLAIN:
        return value if value == value else None
    if isinstance(value, Mapping):
        return value if {"array", "sampling_rate"} <= set(value) else plain_values(value)
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if type(value).__name__ in ("NaTType", "NAType") else value


def plain_values(values: Mapping[Any, Any]) -> dict[str, Any]:
    """The values of a record in plain form, by the names of their columns as texts."""
    return {name if isinstance(name, str) else str(name): plain(value) for name, value in values.items()}


def _composed(value: Any) -> Any:
    """A plain value whose texts have each accented letter as one character (NFC), however they were typed."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, list):
        return [_composed(v) for v in value]
    return {_composed(k): _composed(v) for k, v in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a table; `place` is "FILE, line N" for messages. part: the split of its file, if that says one."""

    values: dict[str, Any]
    place: str
    part: str | None = None

    def text(self, column: str) -> str:
        """The value of a column as text: `true` for True, `1` for 1.0.

        Raises:
            TaskError: the record lacks the column, or it is null, a list or an object.
        """
        value = self.values.get(column)
        if isinstance(value, str):
            if not writable(value):
                raise TaskError(
                    f"{self.place}: the column {column!r} holds half of a surrogate pair; repair or remove it."
                )
            return value
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            return str(value)
        empty = value is None or value != value
        what = "nothing" if empty else str(value) if isinstance(value, float) else f"a {type(value).__name__}"
        what = "an image or a recording" if hasattr(value, "sha256") else what
        raise TaskError(
            f"{self.place}: the column {column!r} holds {what}, expected text or a number; fill it in or remove the "
            "line."
        )

    def lacks(self, column: str) -> bool:
        """Whether the column is missing, null, or blank as in a CSV, which has no null."""
        value = self.values.get(column)
        return value is None or (isinstance(value, str) and not value.strip())

    def key(self, column: str) -> str:
        """The value of a column as a text by which the record is known: JSON of a list or object, hash of a file.

        A missing value is an empty text, and the two ways to write an accented letter in Unicode are one.
        """
        value = self.values.get(column)
        if value is None:
            return ""
        if sha256 := getattr(value, "sha256", None):  # of an image or a recording
            return str(sha256)
        if isinstance(value, list | dict):
            return json.dumps(_composed(value), sort_keys=True, default=str)
        return str(_composed(self.text(column)))

    @property
    def named_split(self) -> str | None:
        """The split of the record's file, or the one that it names; None if neither says one."""
        if self.part is not None or "split" not in self.values:
            return self.part
        name = self.text("split").strip().casefold()
        if name not in _SPLIT_NAMES:
            raise TaskError(
                f"{self.place}: the split {name!r} is not known; write train, validation or test, or remove the column."
            )
        return _SPLIT_NAMES[name]


@dataclass(frozen=True)
class Table:
    """Records, with their columns in the order in which they occur.

    classes: column -> names of its numbers, where the data itself has them (`datasets.ClassLabel`). The records hold
        the names.
    """

    records: list[Record]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for record in self.records for column in record.values))

    def of_part(self, part: str | None) -> Table:
        """The same records, all of one split (None: as each of them says)."""
        return self if part is None else replace(self, records=[replace(r, part=part) for r in self.records])

    def __add__(self, other: Table) -> Table:
        return Table([*self.records, *other.records], {**other.classes, **self.classes})

    def named(self, classes: Mapping[str, tuple[str, ...]]) -> Table:
        """With the numbers in these columns replaced by their names, and -1, which says that there is none, by None."""
        for record in self.records:
            for column, names in classes.items():
                number = record.values.get(column)
                if isinstance(number, int) and not isinstance(number, bool):
                    known = 0 <= number < len(names)
                    if not known and number != -1:
                        raise TaskError(
                            f"{record.place}: the column {column!r} holds {number}, and its classes are 0 to "
                            f"{len(names) - 1} ({', '.join(names)}); correct it."
                        )
                    record.values[column] = names[number] if known else None
        return replace(self, classes={**self.classes, **classes})
