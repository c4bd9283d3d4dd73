"""Answers in SQLite: one row each, on the disk before they count."""

from __future__ import annotations

import math
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from zograd.api.trials import Answer
from zograd.errors import UsageError
from zograd.locks import FileLock

FORMAT = 1
_TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE answers (id INTEGER PRIMARY KEY, value REAL, ranked INTEGER NOT NULL, time REAL NOT NULL);
"""


class StorageError(RuntimeError):
    """The database could not be read or written; what was acknowledged before is intact."""


class Storage:
    """The database of one run, which one process at a time may hold.

    A row of `answers`: the trial's id, its value (NULL: failed), whether that is a rank, and the time of the answer.
    Every write is a transaction in the write-ahead log, synchronized with the disk before `write` returns. The file is
    readable by its owner only, since it holds the token, also one that was there before. Raises UsageError for a file
    of something else, which stays as it was, and for one with a second name; LockedError where another process holds
    it, under the name of a symbolic link too. Threads share it behind a lock of the caller.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, os.path.realpath(path)
        self._lock = FileLock(Path(self._file + ".lock"), f"the database {path}")
        try:
            self._open()
            self._db = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False)
            try:
                self._begin()
            except sqlite3.Error as error:
                self._db.close()
                raise UsageError(f"{path} is no database of zograd serve: {error}") from None
        except BaseException:
            self._lock.close()
            raise

    def _open(self) -> None:
        """Make the file where there is none. Raises UsageError for one whose second name has another lock."""
        opened = os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            names = os.fstat(opened).st_nlink
        finally:
            os.close(opened)  # before SQLite has locks: closing any descriptor of the file ends them
        if names > 1:
            raise UsageError(
                f"{self.path} has {names} names (hard links), and another server could hold it by another one; remove "
                f"the others, or copy the file and give the copy as --db"
            )

    def _begin(self) -> None:
        """Read first: a file of something else stays as it was."""
        db = self._db
        (version,) = db.execute("PRAGMA user_version").fetchone()
        new = version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone()
        if not new and version != FORMAT:
            raise sqlite3.DatabaseError(f"its version is {version}, not {FORMAT}")
        if not new:
            db.execute("SELECT id, value, ranked, time FROM answers LIMIT 1").fetchall()
        self._hide()
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        if new:
            db.executescript(f"BEGIN;{_TABLES}PRAGMA user_version={FORMAT};COMMIT;")

    def _hide(self) -> None:
        """Let nobody but the owner read the file and its logs; SQLite gives new logs the mode of the file."""
        if os.name != "posix":
            return
        for name in (self._file, f"{self._file}-wal", f"{self._file}-shm"):
            try:
                if os.stat(name).st_mode & 0o077:
                    os.chmod(name, 0o600)
            except FileNotFoundError:
                pass
            except OSError as error:
                warnings.warn(
                    f"{name} holds the token, and others may read it: its mode cannot be changed ({error.strerror}); "
                    f"take a --db that is yours",
                    stacklevel=4,
                )

    def about(self, key: str) -> str | None:
        """What was kept under a key."""
        found = self._db.execute("SELECT value FROM about WHERE key=?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def keep(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, value))

    def write(self, answers: Sequence[Answer]) -> None:
        """All of them or none. Raises StorageError, also for an id that is there."""
        moment = time.time()
        rows = [(a.id, a.value if math.isfinite(a.value) else None, a.ranked, moment) for a in answers]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT INTO answers VALUES (?, ?, ?, ?)", rows)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StorageError(f"the answers could not be written to {self.path}: {error}") from error

    def answers(self) -> Iterator[Answer]:
        """In the order of their ids, in which they are applied."""
        for number, value, ranked in self._db.execute("SELECT id, value, ranked FROM answers ORDER BY id"):
            yield Answer(number, math.nan if value is None else value, bool(ranked))

    def answer(self, number: int) -> Answer | None:
        found = self._db.execute("SELECT value, ranked FROM answers WHERE id=?", (number,)).fetchone()
        return None if found is None else Answer(number, math.nan if found[0] is None else found[0], bool(found[1]))

    @property
    def count(self) -> int:
        """Answers that were kept."""
        return int(self._db.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        self._db.close()
        self._lock.close()
