"""Images as data: a file, or an image in memory, known by the SHA-256 of its content."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from zograd.hub.errors import TaskError
from zograd.hub.records import Record, Table, part_named

__all__ = ["IMAGE_COLUMNS", "IMAGE_SUFFIXES", "Picture", "class_folders", "is_image_file", "picture_of", "pictured"]

IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""How the names of image files end."""

IMAGE_COLUMNS: Final = ("image", "img", "picture", "photo", "file_name", "image_path", "path", "file")
"""Columns in which a text that ends like an image file is the path of one."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image: two are equal if their contents are. `name` is what messages call it.

    path: its file. content: its bytes as a file would hold them, where it is in memory; one of the two is given.
    """

    sha256: str
    name: str = field(compare=False)
    path: str = field(default="", compare=False)
    content: bytes = field(default=b"", compare=False, repr=False)

    def open(self) -> Any:
        """The image in three colours (`PIL.Image`, mode RGB). Raises TaskError for a file that is no image."""
        return self._opened(lambda found: found.convert("RGB"))

    def check(self) -> None:
        """Raise TaskError for a file that is no image. Cost: its first bytes are read, and no pixel is."""
        self._opened(lambda found: found.size)

    def _opened(self, use: Callable[[Any], Any]) -> Any:
        image = _pillow()
        try:
            with image.open(self.path or io.BytesIO(self.content)) as found:
                return use(found)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, DecompressionBombError ...
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TaskError(f"{self.name} cannot be read as an image ({first}); repair or remove it.") from None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise TaskError('Reading images needs Pillow: pip install "zograd[images]".') from None
    return Image


def is_image_file(path: Path) -> bool:
    """Whether a path ends like an image and is a file that is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def picture_of(value: Any, folder: Path, place: str) -> Picture:
    """The picture that a value is: a path (from `folder`), an image of Pillow, or bytes as `datasets` stores them.

    Raises TaskError, with the place of the record, for a file that is not there and for other values.
    """
    if isinstance(value, Picture):
        return value
    if isinstance(value, Mapping):  # {"bytes": ..., "path": ...}
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Picture(hashlib.sha256(value).hexdigest(), place, content=value)
    if isinstance(value, str) and value.strip():
        file = folder / Path(value).expanduser()
        try:
            return Picture(hashlib.sha256(file.read_bytes()).hexdigest(), value, path=str(file))
        except OSError as error:
            raise TaskError(
                f"{place}: the image {value!r} cannot be read ({error.strerror}); paths are relative to {folder}."
            ) from None
    if _is_of_pillow(value):
        stored = io.BytesIO()
        value.convert("RGB").save(stored, format="PNG", compress_level=1)
        return picture_of(stored.getvalue(), folder, place)
    what = "nothing" if value is None or value == "" else f"a {type(value).__name__}"
    raise TaskError(f"{place}: the column of the image holds {what}; give the path of an image file.")


def _is_of_pillow(value: Any) -> bool:
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__)


def _shows_picture(column: str, value: Any) -> bool:
    if isinstance(value, str):
        return column.lower() in IMAGE_COLUMNS and value.lower().endswith(IMAGE_SUFFIXES)
    if isinstance(value, Mapping):
        return {"bytes", "path"} == set(value) and isinstance(value["bytes"] or b"", bytes)
    return isinstance(value, Picture) or _is_of_pillow(value)


def pictured(table: Table, folder: Path, named: str | None = None) -> Table:
    """The table with pictures in place of what names them, in the columns whose first value shows an image.

    named: a column whose texts are paths, whatever it is called. Cost: every image file is read once, for its SHA-256.
    """
    for column in table.columns:
        first = next((r.values[column] for r in table.records if r.values.get(column) is not None), None)
        asked = column == named and isinstance(first, str) and first.lower().endswith(IMAGE_SUFFIXES)
        if asked or _shows_picture(column, first):
            for record in table.records:
                record.values[column] = picture_of(record.values.get(column), folder, record.place)
    return table


def class_folders(folder: Path, path: str) -> Table | None:
    """The images of a folder with a folder for each class, within folders named for splits or without; None: no image.

    PATH/cat/1.png, or PATH/train/cat/1.png beside PATH/test/cat/9.png. The name of the folder is the label.
    """
    parts = {child: part_named(child.name) for child in _folders(folder)}
    found: list[Record] = []
    split = bool(parts) and all(parts.values())
    for child, part in parts.items():
        for of_class in _folders(child) if split else [child]:
            for file in sorted(filter(is_image_file, of_class.iterdir())):
                name = str(file.relative_to(folder))
                values = {"image": picture_of(name, folder, f"{path}, {name}"), "label": of_class.name}
                found.append(Record(values, f"{path}, {name}", part if split else None))
    return Table(found) if found else None


def _folders(folder: Path) -> Sequence[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
