"""Read a user's file into records that know where they came from: one reader for each suffix."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TextIO, TypeAlias

from zograd.hub.errors import TaskError
from zograd.hub.records import Record, Table, plain_values, writable

__all__ = ["READERS", "SUFFIXES", "WHOLE", "Reader", "class_names", "package_missing", "read_file"]


Reader: TypeAlias = "Callable[[Path, str], Table]"
"""How a file is read: a function of the file and of its name in messages."""


def read_file(path: str, readers: Mapping[str, Reader] | None = None) -> Table:
    """All records of a file, by the reader of its suffix, whose case does not matter.

    readers: in place of `READERS`.

    Raises:
        TaskError: the file is missing, empty, malformed, or of a kind that has no reader.
    """
    file = Path(path).expanduser()
    reader = (READERS if readers is None else readers).get(file.suffix.lower())
    if reader is None:
        raise TaskError(f"{path} is none of the kinds that are read; they end in {', '.join(SUFFIXES)}.")
    if not file.is_file():
        raise TaskError(f"{path} {'is not a file' if file.exists() else 'does not exist'}; check the path.")
    try:
        table = reader(file, path)
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path} is not UTF-8 text (byte {error.start} of a block is {error.object[error.start]:#04x}); save it as "
            "UTF-8."
        ) from None
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or error}; check its permissions.") from None
    if not table.records:
        raise TaskError(f"{path} holds no records; it needs at least one.")
    return table


def package_missing(what: str, package: str, instead: str) -> TaskError:
    """The error where reading `what` needs a package that is not installed."""
    return TaskError(f"Reading {what} needs the package {package}: run `pip install {package}`, or {instead}.")


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _parsed(text: str, place: str, form: str) -> Any:
    """The JSON of a text; `form` is what to write."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise TaskError(f"{place}: not valid JSON ({error}); write {form}.") from None
    except RecursionError:
        raise TaskError(f"{place}: lists or objects are nested too deeply; write {form}.") from None


def _object(values: Any, place: str) -> Record:
    if not isinstance(values, dict) or not values:
        kind = type(values).__name__
        raise TaskError(f'{place}: expected an object such as {{"text": "...", "label": 0}}, found a {kind}.')
    if not all(map(writable, values)):
        raise TaskError(f"{place}: the name of a column holds half of a surrogate pair; write another name.")
    return Record(plain_values(values), place)


def _jsonl(file: Path, path: str) -> Table:
    with file.open(encoding="utf-8-sig") as stream:
        return Table(list(_lines(stream, path)))


def _lines(lines: Any, path: str) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield _object(_parsed(line, place, "one object per line"), place)


def _json(file: Path, path: str) -> Table:
    """An array of objects, an object of columns (lists, or objects as pandas writes them), or an object per line."""
    text = file.read_text(encoding="utf-8-sig")
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and _is_object(lines[0]):
        return Table(list(_lines(text.split("\n"), path)))
    if not lines:
        return Table([])
    form = "an array of objects, or an object of columns"
    data = _parsed(text, path, form)
    if isinstance(data, dict) and any(_is_conversation(v) for name, v in data.items() if name != "data"):
        data = [data]  # a record
    if isinstance(data, dict) and len(data) == 1:  # {"data": [...]}
        (only,) = data.values()
        data = only if isinstance(only, list) and only and all(isinstance(x, dict) for x in only) else data
    if isinstance(data, dict) and data and all(isinstance(v, list | dict) for v in data.values()):
        data = _rows(data, path)
    elif isinstance(data, dict):
        data = [data]
    if not isinstance(data, list):
        raise TaskError(f"{path} holds a {type(data).__name__}; write {form}.")
    return Table([_object(values, f"{path}, record {number}") for number, values in enumerate(data, start=1)])


def _is_conversation(value: Any) -> bool:
    """Whether a value is a list of turns, and not a column of records."""
    turns = ({"role", "content"}, {"from", "value"})
    return isinstance(value, list) and any(isinstance(v, dict) and any(t <= set(v) for t in turns) for v in value)


def _whole(file: Path, path: str) -> Table:
    """The objects of an array, or the only object of a file, whatever it holds."""
    data = _parsed(file.read_text(encoding="utf-8-sig"), path, "JSON")
    if isinstance(data, list):
        return Table([_object(values, f"{path}, record {number}") for number, values in enumerate(data, start=1)])
    return Table([_object(data, path)])


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _rows(columns: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    """The rows of an object of columns, each a list, or an object from the name of a row to its value."""
    first, keys = next((name, _keys(column)) for name, column in columns.items())
    for name, column in columns.items():
        if _keys(column) != keys:
            raise TaskError(
                f"{path}: the columns {first!r} and {name!r} have other rows ({len(keys)} and {len(column)}); give "
                f"each column a value for each row, or write an array of objects."
            )
    return [{name: column[key] for name, column in columns.items()} for key in keys]


def _keys(column: Any) -> list[Any]:
    return list(column) if isinstance(column, dict) else list(range(len(column)))


# ---- tables of text, and lines of text -------------------------------------------------------------------------------


def _csv(file: Path, path: str) -> Table:
    """Values between commas; or, where the names of the columns have none, between semicolons, tabs or bars.

    Spreadsheets of many countries write semicolons.
    """
    with file.open(encoding="utf-8-sig", newline="") as stream:
        names = stream.readline()
    marks = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
    mark = next((mark for mark in marks if mark in names), ",")
    what = marks[mark]
    return Table(list(_separated(file, path, delimiter=mark, remedy=f"quote texts that contain a {what}")))


def _tsv(file: Path, path: str) -> Table:
    """One line a record, as GLUE has it: a quote is text, unless a whole value is quoted as spreadsheets write it.

    Only a file whose lines do not all have the same number of tabs is read with quotes around tabs and new lines: a
    text that begins with a quote would swallow the lines up to the next one.
    """
    remedy = "give each line one tab between two values"
    try:
        rows = list(_separated(file, path, delimiter="\t", remedy=remedy, quoting=csv.QUOTE_NONE))
    except TaskError:
        with suppress(TaskError):
            return Table(list(_separated(file, path, delimiter="\t", remedy=remedy)))
        raise
    return Table([Record({_bare(c): _bare(v) for c, v in row.values.items()}, row.place) for row in rows])


def _bare(value: str) -> str:
    """A value without the quotes around it; those inside are doubled there."""
    return value[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', value, re.S) else value


def _separated(
    file: Path, path: str, *, delimiter: str, remedy: str, quoting: int = csv.QUOTE_MINIMAL
) -> Iterator[Record]:
    kind = "TSV" if delimiter == "\t" else "CSV"
    with _long_values(), _without_gaps(file, delimiter, quoting) as stream:
        table = csv.reader(stream, strict=True, delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
        header: list[str] | None = None
        start = 1
        try:
            for row in table:
                place, start = f"{path}, line {start}", table.line_num + 1
                if not row:
                    continue
                if header is None:
                    header = [name.strip() for name in row]
                    if twice := sorted({c for c in header if c and header.count(c) > 1}):  # blank: behind the table
                        raise TaskError(
                            f"{place}: the column {twice[0]!r} occurs twice; give each column its own name."
                        )
                    continue
                if len(row) != len(header):
                    raise TaskError(
                        f"{place}: {len(row)} values for the {len(header)} columns {', '.join(header)}; {remedy}."
                    )
                yield Record(dict(zip(header, row, strict=True)), place)
        except csv.Error as error:
            raise TaskError(f"{path}, line {start}: not valid {kind} ({error}); check the quotes.") from None


def _without_gaps(file: Path, delimiter: str, quoting: int) -> TextIO:
    """The file, without spaces before the quotes around a value, which would make the quotes a part of it.

    A text that only begins with a space and a quote is left as it is, and so are spaces before other texts.
    """
    stream = file.open(encoding="utf-8-sig", newline="")
    if quoting == csv.QUOTE_NONE:
        return stream
    with stream:
        text = stream.read()
    mark = re.escape(delimiter)
    if re.search(rf'(?:\A|[{mark}\r\n]) +"', text):
        begins, ends = rf"(?<![^{mark}\r\n])", rf"(?=[{mark}\r\n]|\Z)"
        quoted = rf'{begins}"[^"]*(?:""[^"]*)*"|{begins} +("[^"\r\n]*(?:""[^"\r\n]*)*"){ends}'
        text = re.sub(quoted, lambda m: m[1] or m[0], text)
    return io.StringIO(text, newline="")


@contextmanager
def _long_values() -> Iterator[None]:
    """Inside, a value of a CSV may be a document; by default Python refuses more than 131,072 characters."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _txt(file: Path, path: str) -> Table:
    with file.open(encoding="utf-8-sig") as stream:
        lines = [(number, line.rstrip("\n")) for number, line in enumerate(stream, start=1)]
    return Table([Record({"text": line}, f"{path}, line {number}") for number, line in lines if line.strip()])


# ---- parquet ---------------------------------------------------------------------------------------------------------


def _parquet(file: Path, path: str) -> Table:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise package_missing(path, "pyarrow", "save the file as .jsonl or .csv") from None
    try:
        found = parquet.read_table(file)
        rows = found.to_pylist()
    except ValueError as error:  # pyarrow.ArrowInvalid
        raise TaskError(f"{path} is not a parquet file ({error}); write it again.") from None
    table = Table([Record(plain_values(row), f"{path}, row {number}") for number, row in enumerate(rows, start=1)])
    noted = (found.schema.metadata or {}).get(b"huggingface")  # what `datasets` writes beside the columns
    features = json.loads(noted).get("info", {}).get("features", {}) if noted else {}
    return table.named(class_names(features))


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names of the numbers in each column that is a ClassLabel; `features` as `datasets` stores them."""
    labels = {c: f["names"] for c, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
    return {column: tuple(map(str, names)) for column, names in labels.items()}


READERS: Final[dict[str, Reader]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".txt": _txt,
}
"""How a file is read, by its suffix."""

WHOLE: Final[dict[str, Reader]] = {**READERS, ".json": _whole}
"""The same where a .json file is no table: a record is what the file holds."""

SUFFIXES: Final = tuple(READERS)
