"""Locks of files: one writer at a time, until it lets go or its process ends, however it ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from weakref import WeakSet

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_FAR = 1 << 30
"""The byte that Windows locks: far behind the contents, which others may then read."""


class LockedError(RuntimeError):
    """Another writer holds the lock; the message says who."""


class FileLock:
    """The exclusive lock of the file at `path`, held until `close`.

    The operating system ends it with the process, after kill -9 too, so a lock file that is left behind locks nothing.
    Two locks in one process exclude each other as well; on NFS a lock holds between hosts. Where a file system knows no
    locks, `works` is False and nobody is kept out. A symbolic link is refused (OSError), and so is a file with a second
    name, before anything is written. The file holds the process, host and time of its holder; `close` removes it.

    what: the thing that is locked, for the message of LockedError. wait: for the holder, instead of raising.
    """

    def __init__(self, path: Path, what: str, *, wait: bool = False) -> None:
        self.path, self.works = path, True
        while True:
            if path.is_symlink():
                raise OSError(
                    errno.ELOOP, "the lock file is a symbolic link, which is not followed; remove it", str(path)
                )
            if not path.parent.is_dir():
                raise FileNotFoundError(errno.ENOENT, "the folder does not exist; make it first", str(path.parent))
            self._file = os.fdopen(os.open(path, _FLAGS, 0o666), "r+b", buffering=0)
            try:
                self._take(what, wait)
                if self._is_named():
                    break
            except BaseException:
                self._file.close()
                raise
            self._file.close()  # the holder before has removed this file: the lock is that of the next one
        _HELD.add(self)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        with suppress(OSError):  # on a full disk the holder has no name
            self._file.truncate(0)
            self._file.write(json.dumps(about).encode())

    def _take(self, what: str, wait: bool) -> None:
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "a lock is a plain file, and this is none", str(self.path))
        try:
            _lock(self._file.fileno(), wait)
        except (BlockingIOError, PermissionError):
            raise LockedError(f"{what} is being written by {self._holder()}; stop that, or wait for its end") from None
        except OSError:
            self.works = False

    def _is_named(self) -> bool:
        """Whether the file that is locked is the one at `path`, and that alone: what is written to it hits no other."""
        held = os.fstat(self._file.fileno())
        try:
            named = os.lstat(self.path)
        except FileNotFoundError:
            return False
        if held.st_nlink > 1:
            raise OSError(errno.EMLINK, "the lock file has a second name; remove it", str(self.path))
        return os.path.samestat(held, named)

    def _holder(self) -> str:
        try:
            about = json.loads(self._file.read(4096))
            if about["pid"] == os.getpid() and about["host"] == socket.gethostname():
                return f"this process itself, since {about['since']}"
            return f"process {about['pid']} on {about['host']}, since {about['since']}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "another process"

    def close(self) -> None:
        """Let go. In a process that was forked off the holder nothing happens: the lock is not the child's."""
        if self._file.closed:
            return
        with suppress(OSError):  # Windows keeps the name of an open file; it does no harm
            self.path.unlink()
        self._file.close()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


_HELD: WeakSet[FileLock] = WeakSet()


def _forget() -> None:
    """A forked process closes what it inherited: otherwise it would hold the lock when the holder is gone."""
    for lock in _HELD:
        lock._file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _lock(descriptor: int, wait: bool) -> None:
    """Lock an open file: BlockingIOError or PermissionError when it is held, another OSError where there are none."""
    if sys.platform != "win32":
        try:
            import fcntl
        except ImportError:  # a Python that was built without
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) from None
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    import msvcrt

    while True:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            return
        except PermissionError:
            if not wait:
                raise
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        time.sleep(0.1)
