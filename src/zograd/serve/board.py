"""The run of a server and its database: what a request does, under one lock."""

from __future__ import annotations

import math
import re
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zograd
from zograd.api.saved import listed
from zograd.api.trials import Receipt, Trial
from zograd.errors import UsageError
from zograd.serve.setup import Setup
from zograd.serve.storage import Storage

NUMBERS = 1_000_000
"""Numbers that the points of one reply hold at most, where it has more than one point."""

_NOT_IN_TOKENS = re.compile(r"[^A-Za-z0-9._~-]")
"""What a header or an address would have to write in another way (RFC 3986, section 2.3)."""


class Board:
    """A run that is rebuilt from the answers in its database, and written to it before an answer counts.

    setup: of a new run; of an old one it has to be the same, or None. token: None keeps the one of the database, or
    draws one. Raises UsageError for a setup that differs, for a database without a run where none was given, and for a
    token with other characters than letters of ASCII, digits and . _ ~ -, also one that the database kept.
    """

    def __init__(self, path: Path, setup: Setup | None = None, token: str | None = None) -> None:
        self.lock = threading.Lock()
        _check(token, "the token (--token or ZOGRAD_TOKEN)", "take another one")
        if setup is not None:
            setup.loop()  # what cannot be is said before a file is made
        elif not path.exists():
            raise UsageError(f"there is no database {path}; say what is searched, by --x0")
        self.storage = Storage(path)
        try:
            self.setup = self._agreed(setup)
            kept = None if token else self.storage.about("token")
            _check(kept, f"the token that {path} holds", "give another one by --token, and to its clients")
            self.token = token or kept or secrets.token_urlsafe(24)
            self.storage.keep("token", self.token)
            self.loop = self.setup.loop()
            self.restored = self.loop.restore(self.storage.answers())
            if self.restored < self.storage.count:
                raise UsageError(
                    f"{path} has {self.storage.count} answers, of which only {self.restored} belong to its run: it was "
                    f"written by another version ({self.storage.about('version')}, this is {zograd.__version__})"
                )
            self.loop.journal = self.storage.write
        except BaseException:
            self.storage.close()
            raise

    def _agreed(self, setup: Setup | None) -> Setup:
        kept = self.storage.about("setup")
        if kept is None:
            if setup is None:
                raise UsageError(f"{self.storage.path} holds no run; say what is searched, by --x0")
            self.storage.keep("setup", setup.dumps())
            self.storage.keep("version", zograd.__version__)
            return setup
        there = Setup.loads(kept)
        if setup is not None and (name := there.differs(setup)) is not None:
            raise UsageError(
                f"{self.storage.path} holds a run with {name}={getattr(there, name)!r}, not "
                f"{getattr(setup, name)!r}; leave the option out to go on, or take another --db"
            )
        return there

    def trials(self, n: int) -> dict[str, Any]:
        """Up to n open trials, and when to ask again if there are fewer."""
        with self.lock:
            most = max(NUMBERS // self.loop.source.problem.dim, 1)
            given = [_plain(trial) for trial in self.loop.trials(min(n, most))]
            return self._given(given)

    def pair(self) -> dict[str, Any]:
        """Two trials to be compared, or none."""
        with self.lock:
            pair = self.loop.pair()
            return self._given([] if pair is None else [_plain(trial) for trial in pair])

    def _given(self, trials: list[dict[str, Any]]) -> dict[str, Any]:
        """wait is None for a lease without an end, too: JSON has no infinity."""
        wait = self.loop.wait
        wait = None if wait is None or math.isinf(wait) else wait
        return {"trials": trials, "wait": wait, "done": self.loop.done, "message": self.loop.message}

    def report(self, values: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
        """A receipt for each (id, value); an id that comes twice counts once."""
        with self.lock:
            first: dict[int, float] = {}
            for number, value in values:
                first.setdefault(number, value)
            receipts = {r.trials[0]: r for r in self.loop.report_all(first)}
            found = []
            for number, _ in values:
                receipt = receipts[number]
                found.append(self._told(receipt, number))
                receipts[number] = Receipt("repeated", (number,)) if receipt.counted else receipt
            return found

    def prefer(self, winner: int, loser: int, tie: bool) -> dict[str, Any]:
        with self.lock:
            return self._told(self.loop.prefer(winner, loser, tie=tie), winner)

    def rank(self, order: Sequence[Any]) -> list[dict[str, Any]]:
        with self.lock:
            receipt = self.loop.tell_ranking(order)
            return [self._told(receipt, number) for number in receipt.trials]

    def _told(self, receipt: Receipt, number: int) -> dict[str, Any]:
        told: dict[str, Any] = {"id": number, "status": receipt.status}
        if not receipt.counted and (kept := self.storage.answer(number)) is not None:
            told["kept"] = None if math.isnan(kept.value) else kept.value
        return told

    def state(self) -> dict[str, Any]:
        """Where the run stands."""
        with self.lock:
            loop = self.loop
            return {
                "method": loop.source.name,
                "feedback": loop.source.feedback,
                "maximize": loop.maximize,
                "evaluations": loop.evaluations,
                "answers": self.storage.count,
                "steps": len(loop.records),
                "unanswered": len(loop.unanswered),
                "free": loop.free,
                "done": loop.done,
                "message": loop.message,
                "x": listed(loop.recommend()),
            }

    def close(self) -> None:
        with self.lock:
            self.storage.close()


def _plain(trial: Trial) -> dict[str, Any]:
    return {"id": trial.id, "x": listed(trial.x), "group": trial.group, "rival": trial.rival}


def _check(token: str | None, what: str, remedy: str) -> None:
    """Raise UsageError for a token that a header or the address of the page would not carry as it is."""
    if token and (bad := _NOT_IN_TOKENS.search(token)):
        raise UsageError(
            f"{what} has the character {bad[0]!r}, and may have letters from A to Z and a to z, digits and . _ ~ - "
            f"alone; {remedy}"
        )
