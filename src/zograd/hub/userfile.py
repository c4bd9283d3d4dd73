"""Read a user's `.jsonl`, `.csv` or `.parquet` file into records that know where they came from."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zograd.hub.errors import TaskError
from zograd.hub.split_rules import split_of

__all__ = ["Record", "read_records"]

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a file; `place` is "FILE, line N" for messages."""

    values: dict[str, Any]
    place: str

    def text(self, column: str) -> str:
        """The value of a column as text: `true` for True, `1` for 1.0.

        Raises:
            TaskError: the record lacks the column, or it is null, a list or an object.
        """
        value = self.values.get(column)
        if isinstance(value, str):
            if not _writable(value):
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
        raise TaskError(
            f"{self.place}: the column {column!r} holds {what}, expected text or a number; fill it in or remove the "
            "line."
        )

    def split(self, columns: Iterable[str], seed: int) -> str:
        """The split that the record names, or else the split by the hash of `columns`."""
        if "split" not in self.values:
            return split_of((self.text(column) for column in columns), seed)
        name = self.text("split").strip().casefold()
        if name not in _SPLIT_NAMES:
            raise TaskError(
                f"{self.place}: the split {name!r} is not known; write train, validation or test, or remove the column."
            )
        return _SPLIT_NAMES[name]


def read_records(path: str, text_column: str | None = None) -> list[Record]:
    """All records of a file, each with all columns of the file (`None` if a record lacks one).

    The column `text_column` is also given the name "text".

    Raises:
        TaskError: the file is missing, empty, malformed, or lacks `text_column`.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise TaskError(f"{path} {'is not a file' if file.exists() else 'does not exist'}; check the path.")
    reader = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[file.suffix]
    try:
        records = list(reader(file, path))
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path} is not UTF-8 text (byte {error.start} of a block is {error.object[error.start]:#04x}); save it as "
            "UTF-8."
        ) from None
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or error}; check its permissions.") from None
    if not records:
        raise TaskError(f"{path} holds no records; it needs at least one.")
    columns = list(dict.fromkeys(column for record in records for column in record.values))
    if text_column is not None and text_column not in columns:
        raise TaskError(f"{path} has no column {text_column!r}; its columns are {', '.join(columns)}.")
    for record in records:
        for column in columns:
            record.values.setdefault(column, None)
        if text_column is not None:
            record.values["text"] = record.values[text_column]
    return records


def _jsonl(file: Path, path: str) -> Iterator[Record]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                values = json.loads(line)
            except ValueError as error:
                raise TaskError(f"{place}: not valid JSON ({error}); write one object per line.") from None
            except RecursionError:
                raise TaskError(
                    f"{place}: lists or objects are nested too deeply; write one flat object per line."
                ) from None
            if not isinstance(values, dict) or not values:
                kind = type(values).__name__
                raise TaskError(f'{place}: expected an object such as {{"text": "...", "label": 0}}, found a {kind}.')
            if not all(map(_writable, values)):
                raise TaskError(f"{place}: the name of a column holds half of a surrogate pair; write another name.")
            yield Record(values, place)


def _writable(text: str) -> bool:
    """Whether a text can be written as UTF-8. JSON may hold half of a surrogate pair, which cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _csv(file: Path, path: str) -> Iterator[Record]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        table = csv.reader(stream, strict=True)
        header: list[str] | None = None
        start = 1
        try:
            for row in table:
                place, start = f"{path}, line {start}", table.line_num + 1
                if not row:
                    continue
                if header is None:
                    header = row
                    if twice := sorted({c for c in header if header.count(c) > 1}):
                        raise TaskError(
                            f"{place}: the column {twice[0]!r} occurs twice; give each column its own name."
                        )
                    continue
                if len(row) != len(header):
                    raise TaskError(
                        f"{place}: {len(row)} values for the {len(header)} columns {', '.join(header)}; quote texts "
                        "that contain a comma."
                    )
                yield Record(dict(zip(header, row, strict=True)), place)
        except csv.Error as error:
            raise TaskError(f"{path}, line {start}: not valid CSV ({error}); check the quotes.") from None


def _parquet(file: Path, path: str) -> Iterator[Record]:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise TaskError(
            f"Reading {path} needs the package pyarrow: run `pip install pyarrow`, or save the file as .jsonl or .csv."
        ) from None
    try:
        rows = parquet.read_table(file).to_pylist()
    except ValueError as error:  # pyarrow.ArrowInvalid
        raise TaskError(f"{path} is not a parquet file ({error}); write it again.") from None
    for number, values in enumerate(rows, start=1):
        yield Record(values, f"{path}, row {number}")
