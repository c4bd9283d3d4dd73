"""Everything that data may be read from: files, folders, names on the hub, objects of `datasets` and pandas, lists."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from zograd.hub.errors import TaskError
from zograd.hub.formats import READERS, SUFFIXES, WHOLE, Reader, class_names, package_missing, read_file
from zograd.hub.media import class_folders, with_media
from zograd.hub.records import Record, Table, part_named, plain_values
from zograd.hub.suite import SUITE, Definition, split_name

__all__ = ["KINDS", "Source", "is_source", "read", "source_name"]

Source: TypeAlias = Any
"""A path, a name, a `datasets.Dataset` or `DatasetDict`, a `pandas.DataFrame`, or a sequence of mappings."""

HUB: Final = "hf:"
"""What a name on the Hugging Face hub begins with: hf:stanfordnlp/imdb, with a configuration hf:nyu-mll/glue:sst2."""

_SAVED: Final = ("dataset_dict.json", "dataset_info.json")
"""Files of a folder that `save_to_disk` of `datasets` wrote."""


def is_source(source: Source) -> bool:
    """Whether data can be read from this; a text that is none may be the name of a task."""
    return any(fits(source) for fits, _ in _KINDS)


def source_name(source: Source) -> str:
    """The source in messages: its path, or what it is."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"the {type(source).__name__}"


def read(source: Source, text_column: str | None = None, definition: Definition | None = None) -> Table:
    """All records of a source, each with all columns (`None` if a record lacks one).

    The column `text_column` is also given the name "text", unless the data has a column of that name, which stays.
    definition: the task of MeZO's suite whose records these are; a name may say it too, as in "copa:FILE".

    Raises:
        TaskError: there is nothing to read, it is malformed, it lacks `text_column`, or a package is missing.
    """
    reader = next((reader for fits, reader in _KINDS if fits(source)), None)
    if reader is None:
        what = repr(source) if _is_text(source) else f"a {type(source).__name__}"
        raise TaskError(f"{what} is no data: give {KINDS}; in Python also an object of datasets or pandas, or a list.")
    table = reader(source)
    if definition is not None and split_name(source)[0] is None:
        table = _plain(table, definition, source)
    table = with_media(table, _place_of(source), text_column)
    columns, name = table.columns, source_name(source)
    if text_column is not None and text_column not in columns:
        raise TaskError(f"{name} has no column {text_column!r}; its columns are {', '.join(columns)}.")
    for record in table.records:
        for column in columns:
            record.values.setdefault(column, None)
        if text_column is not None and "text" not in columns:
            record.values["text"] = record.values[text_column]
    return table


def _place_of(source: Source) -> Path:
    """The folder from which paths in the data are taken: that of its file, or the current one."""
    if not _is_text(source):
        return Path.cwd()
    path = Path(source).expanduser()
    return path if path.is_dir() else path.parent


# ---- the suite of MeZO -----------------------------------------------------------------------------------------------


def _is_of_suite(source: Source) -> bool:
    return split_name(source)[0] is not None


def _of_suite(source: Source) -> Table:
    definition, data = split_name(source)
    assert definition is not None
    if split_name(data)[0] is not None:
        raise TaskError(f"{source!r} has two names of tasks; write one of them.")
    if _is_folder(data):
        table = _folder(data, WHOLE)
    else:
        table = read_file(os.fspath(data), WHOLE) if _is_file(data) else read(data)
    return _plain(table, definition, source)


def _plain(table: Table, definition: Definition, source: Source) -> Table:
    """The records of a table in the columns of a definition."""
    records = definition.read(table.records)
    if not records:
        raise TaskError(f"{source_name(source)} holds no record with an answer; check the file ({definition.files}).")
    return Table(records, {"label": tuple(definition.label_words)} if definition.label_words else {})


# ---- files and folders -----------------------------------------------------------------------------------------------


def _is_folder(source: Source) -> bool:
    return _is_text(source) and bool(os.fspath(source)) and Path(source).expanduser().is_dir()


def _is_file(source: Source) -> bool:
    return _is_text(source) and Path(source).suffix.lower() in READERS


def _is_text(source: Source) -> bool:
    return isinstance(source, str | os.PathLike)


def _file(source: Source) -> Table:
    return read_file(os.fspath(source))


def _folder(source: Source, readers: Mapping[str, Reader] = READERS) -> Table:
    """What `save_to_disk` wrote, or files named for their splits: train.jsonl, dev.csv, test-00000-of-00002.parquet."""
    path = os.fspath(source)
    folder = Path(path).expanduser()
    if any((folder / name).is_file() for name in _SAVED):
        return _dataset(_datasets(path, "export it as .jsonl or .csv").load_from_disk(str(folder)), path)
    if not (found := _files(folder)):
        found = _files(folder / "data")
    if not found and (images := class_folders(folder, path)):
        return _alone(images)
    if not found:
        names = ", ".join(sorted(f.name for f in folder.iterdir())[:5]) or "nothing"
        raise TaskError(
            f"{path} is a folder without a file such as train.jsonl, validation.csv or test.parquet, and without "
            f"folders of images, one for each class; it holds {names}. Give such files or folders, or name one file."
        )
    table = Table([])
    for file in found:
        table += read_file(os.path.join(path, file.relative_to(folder)), readers).of_part(_part_of(file))
    return _alone(table)


def _files(folder: Path) -> list[Path]:
    """The data files of a folder that are named for a split, in order, or the table beside images and recordings."""
    if not folder.is_dir():
        return []
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in READERS)
    named = [f for f in files if part_named(f.name)] or [f for f in files if _part_of(f)]
    return named or [f for f in files if f.stem == "metadata"]


def _part_of(file: Path) -> str | None:
    """The split of a file by the first word of its name, or by the last one: drop_dataset_train.json."""
    return part_named(file.name) or part_named(re.split(r"[^A-Za-z]+", file.stem)[-1])


def _alone(table: Table) -> Table:
    """A table whose only part is "train" is one that names no splits."""
    if {r.part for r in table.records} == {"train"}:
        return Table([Record(r.values, r.place) for r in table.records], table.classes)
    return table


# ---- datasets --------------------------------------------------------------------------------------------------------


def _datasets(what: str, instead: str) -> Any:
    """The package `datasets`."""
    try:
        import datasets  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise package_missing(what, "datasets", instead) from None
    return datasets


def _is_hub_name(source: Source) -> bool:
    return isinstance(source, str) and source.startswith(HUB)


def _from_hub(source: Source) -> Table:
    name, _, config = source.removeprefix(HUB).partition(":")
    if not name:
        raise TaskError(f"{source!r} names no dataset; write for example hf:stanfordnlp/imdb or hf:nyu-mll/glue:sst2.")
    datasets = _datasets(source, "give a file")
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # of the network, of the hub, of the data
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TaskError(
            f"{source} could not be loaded by `datasets` ({first}); check the name, or give a file."
        ) from None
    return _dataset(loaded, source)


def _is_dataset(source: Source) -> bool:
    return type(source).__module__.partition(".")[0] == "datasets"


def _dataset(source: Source, name: str | None = None) -> Table:
    """A Dataset, or a DatasetDict whose parts are named for their splits; other parts are left out."""
    name = source_name(source) if name is None else name
    if "Iterable" in type(source).__name__:
        raise TaskError(
            f"{name} streams its records; give a Dataset, such as Dataset.from_list(list(stream.take(1000)))."
        )
    if not isinstance(source, Mapping):
        return _rows(source, name)
    parts = {key: part for key in source if (part := part_named(str(key))) is not None}
    if not parts:
        raise TaskError(f"{name} has the parts {', '.join(map(str, source))}; name one train, validation or test.")
    table = Table([])
    for key, part in parts.items():
        table += _rows(source[key], f"{name}, {key}").of_part(part)
    return _alone(table)


def _rows(dataset: Any, name: str) -> Table:
    for column, feature in dataset.features.items():
        if type(feature).__name__ == "Audio":  # its bytes, which need no decoder of `datasets`
            dataset = dataset.cast_column(column, type(feature)(decode=False))
    rows = [Record(plain_values(row), f"{name}, row {number}") for number, row in enumerate(dataset, start=1)]
    if not rows:
        raise TaskError(f"{name} holds no records; it needs at least one.")
    return Table(rows).named(class_names(dataset.features.to_dict()))


def _is_frame(source: Source) -> bool:
    return type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "to_dict")


def _frame(source: Source) -> Table:
    columns = getattr(source, "columns", None)
    if columns is None:
        raise TaskError(
            f"a {type(source).__name__} of pandas is one column without a name: give a DataFrame, such as "
            f"series.to_frame('text')."
        )
    if not columns.is_unique:
        twice = columns[columns.duplicated()][0]
        raise TaskError(f"the DataFrame has the column {twice!r} twice; give each column its own name.")
    return _records(source.to_dict("records"))


# ---- records in memory -----------------------------------------------------------------------------------------------


def _is_records(source: Source) -> bool:
    return isinstance(source, Sequence) and not isinstance(source, str | bytes)


def _records(source: Source) -> Table:
    if not source:
        raise TaskError("the list holds no records; it needs at least one.")
    for number, row in enumerate(source, start=1):
        if not isinstance(row, Mapping):
            raise TaskError(f"record {number} is a {type(row).__name__}; give mappings from columns to values.")
    return Table([Record(plain_values(row), f"record {number}") for number, row in enumerate(source, start=1)])


_KINDS: Final[tuple[tuple[Callable[[Source], bool], Callable[[Source], Table]], ...]] = (
    (_is_of_suite, _of_suite),
    (_is_hub_name, _from_hub),
    (_is_folder, _folder),
    (_is_file, _file),
    (_is_dataset, _dataset),
    (_is_frame, _frame),
    (_is_records, _records),
)
"""What a source may be, with what reads it; the first that fits is taken."""


KINDS: Final = (
    f"a file ending in {', '.join(SUFFIXES)}, a folder with such files, or {HUB}NAME; data of {', '.join(SUITE)} with "
    f"that name and a colon before it"
)
"""What a source that is named may be, in messages."""
