"""Images and recordings as data: a file, or its content in memory, known by the SHA-256 of the content."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from zograd.hub.errors import TaskError
from zograd.hub.records import Record, Table, part_named

__all__ = ["SUFFIXES_OF_MEDIA", "Media", "Picture", "Recording", "class_folders", "media_of", "with_media"]

IMAGES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SOUNDS: Final = (".wav", ".flac", ".ogg", ".mp3")
SUFFIXES_OF_MEDIA: Final = (*IMAGES, *SOUNDS)
"""How the names of files of images and of recordings end."""

COLUMNS: Final = (
    "image", "img", "picture", "photo", "image_path", "audio", "sound", "recording", "speech", "audio_path",
    "file_name", "path", "file",
)  # fmt: skip
"""Columns in which a text that ends like such a file is the path of one."""


@dataclass(frozen=True, slots=True)
class Media:
    """Two are equal if their contents are. `name` is what messages call it.

    path: its file. content: its bytes as a file would hold them, where it is in memory; one of the two is given.
    """

    sha256: str
    name: str = field(compare=False)
    path: str = field(default="", compare=False)
    content: bytes = field(default=b"", compare=False, repr=False)

    @property
    def source(self) -> Any:
        """The path, or the bytes as a file."""
        return self.path or io.BytesIO(self.content)

    def check(self) -> None:
        """Raise TaskError for a file that is of another kind, or damaged at its beginning."""
        raise NotImplementedError


class Picture(Media):
    """An image."""

    __slots__ = ()

    def open(self) -> Any:
        """The image in three colours (`PIL.Image`, mode RGB). Raises TaskError for a file that is no image."""
        return self._opened(lambda found: found.convert("RGB"))

    def check(self) -> None:
        """Raise TaskError for a file that is no image. Cost: its first bytes are read, and no pixel is."""
        self._opened(lambda found: found.size)

    def _opened(self, use: Callable[[Any], Any]) -> Any:
        try:
            from PIL import Image
        except ImportError:
            raise TaskError('Reading images needs Pillow: pip install "zograd[images]".') from None
        try:
            with Image.open(self.source) as found:
                return use(found)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, DecompressionBombError ...
            raise _unread(self, "an image", error) from None


class Recording(Media):
    """A recording of sound."""

    __slots__ = ()

    def samples(self, rate: int) -> Any:
        """float32 [n] in [-1, 1]: the mean of its channels, with so many samples a second.

        Files that end in .wav, and bytes that begin so, are read by SciPy, others by soundfile. Raises TaskError.
        """
        import numpy as np
        from scipy.signal import resample_poly

        found, own = self._read()
        values = found.astype(np.float64)
        if found.dtype.kind == "i":
            values /= 2.0 ** (8 * found.itemsize - 1)
        elif found.dtype.kind == "u":  # 8 bits, with silence at 128
            values = (values - 128) / 128
        mono = values.reshape(len(values), -1).mean(1)
        if own != rate:
            mono = resample_poly(mono, rate, own)
        return mono.astype(np.float32)

    def check(self) -> None:
        """Raise TaskError for a file that is no recording, or one without a sample."""
        if not len(self._read()[0]):
            raise TaskError(f"{self.name} is a recording of no length; remove it.")

    def _read(self) -> tuple[Any, int]:
        """The samples as they are stored, and how many a second."""
        wave = self.path.lower().endswith(".wav") or self.content.startswith(b"RIFF")
        try:
            if wave:
                from scipy.io import wavfile

                rate, found = wavfile.read(self.source)
            else:
                import soundfile  # type: ignore[import-not-found,import-untyped,unused-ignore]

                found, rate = soundfile.read(self.source)
        except ImportError:
            raise TaskError(
                f"Reading {self.name} needs the package soundfile: run `pip install soundfile`, or save it as .wav."
            ) from None
        except Exception as error:  # SciPy raises ValueError, struct.error ..., soundfile errors of its own
            raise _unread(self, "a recording", error) from None
        return found, int(rate)


def _unread(media: Media, what: str, error: Exception) -> TaskError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return TaskError(f"{media.name} cannot be read as {what} ({first}); repair or remove it.")


# ---- values of records -----------------------------------------------------------------------------------------------


def media_of(value: Any, folder: Path, place: str) -> Media:
    """What a value is: a path (from `folder`), an image of Pillow, samples, or bytes as `datasets` stores them.

    Raises TaskError, with the place of the record, for a file that is not there and for other values.
    """
    if isinstance(value, Media):
        return value
    if isinstance(value, Mapping) and "array" in value:  # {"array": ..., "sampling_rate": ...}
        return _of_samples(value, place)
    if isinstance(value, Mapping):  # {"bytes": ..., "path": ...}
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return _kind(value[:4], "")(hashlib.sha256(value).hexdigest(), place, content=value)
    if isinstance(value, str) and value.strip():
        file = folder / Path(value).expanduser()
        try:
            content = file.read_bytes()
        except OSError as error:
            what = "recording" if value.lower().endswith(SOUNDS) else "image"
            raise TaskError(
                f"{place}: the {what} {value!r} cannot be read ({error.strerror}); paths are relative to {folder}."
            ) from None
        return _kind(content[:4], value)(hashlib.sha256(content).hexdigest(), value, path=str(file))
    if _is_of_pillow(value):
        stored = io.BytesIO()
        value.convert("RGB").save(stored, format="PNG", compress_level=1)
        return media_of(stored.getvalue(), folder, place)
    what = "nothing" if value is None or value == "" else f"a {type(value).__name__}"
    raise TaskError(f"{place} holds {what} in place of an image or a recording; give the path of its file.")


def _kind(begins: bytes, path: str) -> type[Media]:
    """What a file is by its name, or without one by its first bytes."""
    of_sound = begins in (b"RIFF", b"fLaC", b"OggS") or begins[:3] == b"ID3" or begins[:2] in (b"\xff\xfb", b"\xff\xf3")
    return Recording if (path.lower().endswith(SOUNDS) if path else of_sound) else Picture


def _of_samples(value: Mapping[str, Any], place: str) -> Media:
    import numpy as np
    from scipy.io import wavfile

    stored = io.BytesIO()
    wavfile.write(stored, int(value["sampling_rate"]), np.asarray(value["array"], dtype=np.float32))
    return media_of(stored.getvalue(), Path(), place)


def _is_of_pillow(value: Any) -> bool:
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__)


def _shown(value: Any, is_path: bool) -> type[Media] | None:
    """What a value is; of a text, what its name says, if the column is one of paths."""
    if isinstance(value, str):
        return _kind(b"", value) if is_path and value.lower().endswith(SUFFIXES_OF_MEDIA) else None
    if isinstance(value, Mapping):
        if {"array", "sampling_rate"} <= set(value):
            return Recording
        stored = {"bytes", "path"} == set(value) and isinstance(value["bytes"] or b"", bytes)
        return _kind((value["bytes"] or b"")[:4], "" if value["bytes"] else str(value["path"])) if stored else None
    return type(value) if isinstance(value, Media) else Picture if _is_of_pillow(value) else None


def with_media(table: Table, folder: Path, named: str | None = None) -> Table:
    """The table with pictures and recordings in place of what names them, in the columns whose first value shows one.

    Beside a text they stay as they are: images always, recordings where there is a label, too. named: the column that
    is read, whatever it is called; then its texts are paths. Cost: every file is read once, for its SHA-256.
    """
    columns = table.columns
    text = named is None and not {"text", "messages", "conversations"}.isdisjoint(columns)
    left = {Picture: text, Recording: text and "label" in columns}
    for column in columns:
        first = next((r.values[column] for r in table.records if r.values.get(column) is not None), None)
        kind = _shown(first, column == named or column.lower() in COLUMNS)
        if kind is not None and not left.get(kind, False):
            for record in table.records:
                record.values[column] = media_of(record.values.get(column), folder, record.place)
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
            for file in sorted(filter(_is_image_file, of_class.iterdir())):
                name = str(file.relative_to(folder))
                values = {"image": media_of(name, folder, f"{path}, {name}"), "label": of_class.name}
                found.append(Record(values, f"{path}, {name}", part if split else None))
    return Table(found) if found else None


def _is_image_file(path: Path) -> bool:
    """Whether a path ends like an image and is a file that is not hidden."""
    return path.suffix.lower() in IMAGES and not path.name.startswith(".") and path.is_file()


def _folders(folder: Path) -> Sequence[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
