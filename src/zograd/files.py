"""Files that are whole or not there, after a kill and after a power loss."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old contents or the new ones, never a part. Raises OSError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as f:  # new: no link is followed
            f.write(data)
        replace(temporary, path)
    except OSError as e:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(e.errno, e.strerror, str(path)) from e


def replace(temporary: Path, path: Path) -> None:
    """Give a whole file its name: its contents reach the disk before the name does."""
    sync_file(temporary)
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Force what was written to a file to the disk."""
    with open(path, "r+b") as f:
        os.fsync(f.fileno())


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the system lets one: names are not part of the files."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
