"""A client of `zograd serve`, of the standard library alone: copy it to a machine that has no zograd."""

from __future__ import annotations

import json
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Any


class ServerError(RuntimeError):
    """The server refused a request; the message is the server's."""


class Client:
    """Calls a server at the address that `zograd serve` printed.

    patience: seconds for which a request is repeated when the server cannot be reached or is busy. Repeating is safe:
    an answer counts once. Raises ServerError for a request that is wrong, ConnectionError when patience ends, and
    ValueError for an address with a token that no server has. Numbers may be those of NumPy.
    """

    def __init__(self, address: str, *, patience: float = 60.0) -> None:
        base, _, token = address.partition("#token=")
        if bad := re.search(r"[^A-Za-z0-9._~-]", token):  # http.client would refuse it with each request
            raise ValueError(
                f"the token of the address has the character {bad[0]!r}, which no token has; copy the whole address "
                f"that `zograd serve` printed"
            )
        self.base, self.token, self.patience = base.rstrip("/"), token, patience

    def call(self, path: str, body: Any = None) -> Any:
        """The reply to GET, or with a body to POST, as plain data."""
        data = None if body is None else json.dumps(body, allow_nan=False, default=_plain).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.base + path, data, headers)
        end, pause = time.monotonic() + self.patience, 0.05
        while True:
            try:
                with urllib.request.urlopen(request, timeout=max(self.patience, 1.0)) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                with error:
                    why = _detail(error)
                if error.code not in (429, 503):
                    raise ServerError(f"{path}: {why} ({error.code})") from None
            except (OSError, ValueError, HTTPException) as error:  # no connection, or one that broke within the reply
                why = str(error)
            if time.monotonic() + pause > end:
                raise ConnectionError(f"{self.base}{path}: {why}")
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def trials(self, n: int = 1) -> list[dict[str, Any]]:
        """Up to n open trials, each with its "id" and "x"."""
        return list(self.call("/v1/trials", {"n": n})["trials"])

    def report(self, number: int, value: float | None) -> dict[str, Any]:
        """The receipt for a value; None, NaN and infinity are failures."""
        told = math.nan if value is None else float(value)
        answer = {"id": number, "value": told} if math.isfinite(told) else {"id": number, "failed": True}
        return dict(self.call("/v1/answers", {"answers": [answer]})["receipts"][0])

    def prefer(self, winner: int, loser: int, *, tie: bool = False) -> dict[str, Any]:
        return dict(self.call("/v1/comparisons", {"winner": winner, "loser": loser, "tie": tie})["receipts"][0])

    def rank(self, order: Sequence[Any]) -> list[dict[str, Any]]:
        return list(self.call("/v1/rankings", {"order": list(order)})["receipts"])

    def state(self) -> dict[str, Any]:
        return dict(self.call("/v1/state"))

    def work(self, f: Callable[[Any], float], *, most: int | None = None, pause: float = 0.5) -> int:
        """Evaluate trials by f until the search ends, or `most` of them. Returns how many.

        An exception of f, but for KeyboardInterrupt and the like, is a failed evaluation.
        """
        done = 0
        while most is None or done < most:
            reply = self.call("/v1/trials", {"n": 1})
            if not reply["trials"]:
                if reply["done"]:
                    break
                time.sleep(pause)
                continue
            (trial,) = reply["trials"]
            try:
                value: float | None = float(f(trial["x"]))
            except Exception:
                value = None
            self.report(trial["id"], value)
            done += 1
        return done


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (OSError, ValueError, KeyError, TypeError):
        return error.reason


def _plain(value: Any) -> Any:
    """A number or an array of NumPy, or of a library like it, as JSON writes numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no number; convert it by int() or float()")
