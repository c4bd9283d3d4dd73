"""Answers in SQLite: one row each, on the disk before they count."""

from __future__ import annotations

import math
import os
import sqlite3
import time
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
    readable by its owner only, since it holds the token. Raises UsageError for a file of something else, LockedError
    where another process holds it. Threads share it behind a lock of the caller.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_name(path.name + ".lock"), f"the database {path}")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._begin()
            except sqlite3.Error as error:
                self._db.close()
                raise UsageError(f"{path} is no database of zograd serve: {error}") from None
        except BaseException:
            self._lock.close()
            raise

    def _begin(self) -> None:
        db = self._db
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            db.executescript(f"BEGIN;{_TABLES}PRAGMA user_version={FORMAT};COMMIT;")
        elif version != FORMAT:
            raise sqlite3.DatabaseError(f"its version is {version}, not {FORMAT}")
        db.execute("SELECT id, value, ranked, time FROM answers LIMIT 1")

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
