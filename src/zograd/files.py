"""Files that are whole or not there, after a kill and after a power loss."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old contents or the new ones, never a part. Raises OSError."""
    temporary = unfinished(path)
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as f:  # new: no link is followed
            f.write(data)
        replace(temporary, path)
    except OSError as e:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(e.errno, e.strerror, str(path)) from e


def unfinished(path: Path) -> Path:
    """Where a file is written before it gets its name: hidden, as no file of a user's own is likely to be."""
    return path.with_name(f".{path.name}.tmp")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that gets its name only when all of it is on the disk. Raises OSError.

    about: texts for its header. The permissions are those of any new file; see `share`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = path.with_name(f".{path.name}.saving")
    try:
        folder.mkdir(exist_ok=True)
        save_file(dict(tensors), folder / path.name, None if about is None else dict(about))
        share(folder, "*")
        replace(folder / path.name, path)
    except SafetensorError as e:  # safetensors hides the error of the system in its text
        found = re.search(r"os error (\d+)", str(e))
        raise OSError(int(found[1]) if found else 5, f"the file cannot be written ({e})", str(path)) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def share(folder: Path, names: str = "*.safetensors") -> None:
    """Give the files of a folder the permissions of any new file: safetensors makes its own for their owner alone.

    The permissions are read off a file that `open` makes: to ask for the umask, a process has to change it for a
    moment. Where a file system keeps none, nothing is done.
    """
    new = folder / f".new-{os.getpid()}"
    with suppress(OSError):
        new.unlink(missing_ok=True)
        with open(new, "xb") as f:
            mode = stat.S_IMODE(os.fstat(f.fileno()).st_mode)
        new.unlink()
        for file in folder.glob(names):
            file.chmod(mode)


def replace(temporary: Path, path: Path) -> None:
    """Give a whole file its name: its contents reach the disk before the name does."""
    sync_file(temporary)
    os.replace(temporary, path)
    sync_folder(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, which gets that name at the end; nothing of it stays where something fails.

    path: a folder that does not exist, or is empty. The current folder, and what a link points to, are written in as
    they are, since they cannot get a new one.
    """
    if path.is_symlink() or (path.exists() and path.samefile(Path.cwd())):
        yield path
        return
    new = path.absolute().with_name(f".{path.name}.part-{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists():
            path.rmdir()
        os.replace(new, path)
        sync_folder(path.absolute().parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


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
