"""The values that a run was told, in an append-only file from which it goes on to the same bits."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from zograd.api.strategies import Points, Problem
from zograd.core.frames import FrameError, frame, frames
from zograd.core.tape import writer_lock
from zograd.files import sync_file, sync_folder

FORMAT = 1
DIGESTS, PLURAL = ("x0", "bounds", "constraints"), ("bounds", "constraints")
"""Entries of the header that are hashes; those whose names are plural."""

_MAGIC = b"ZOVALUES"
_PREAMBLE = _MAGIC + struct.pack("<H", FORMAT)
_HEAD = struct.Struct("<BII")
"""Kind, checksum of the first point, number of values; then the values, then what the last failure was."""


class CheckpointError(ValueError):
    """A file that does not belong to this run, or that is damaged; the message says which and what differs."""


class Kind(IntEnum):
    """What was asked: the values at x0, those of a strategy, or the one at the result."""

    START = 0
    REQUEST = 1
    FINAL = 2


@dataclass(frozen=True)
class Told:
    """Values of one request."""

    kind: Kind
    check: int
    values: tuple[float, ...]
    note: str


def header(problem: Problem, strategy: Any, **more: Any) -> dict[str, Any]:
    """What a run is, as far as its points depend on it: plain data, of which each entry but `plan` is compared.

    plan: the budget by which the run chose its method, and whether one was given. `Problem.budget` stays the same when
    the run goes on with a larger one.
    """
    variables = problem.variables
    form = repr((variables.names, variables.shapes, [str(d) for d in variables.dtypes]))
    return {
        "format": FORMAT,
        "strategy": strategy.name,
        "method": settings_of(strategy),
        "x0": _digest(form, variables.flat),
        "bounds": of_bounds(problem),
        "seed": problem.seed,
        "terms": problem.terms,
        "plan": [problem.budget, problem.thorough],
        **more,
        "versions": {name: _version(name) for name in ("zograd", "numpy", "scipy", "cma")},
    }


def settings_of(strategy: Any) -> str:
    """A strategy or a method with all of its settings, as text without addresses in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(strategy))


def of_bounds(problem: Problem) -> str | None:
    """A digest of the bounds; None without them."""
    return None if problem.lower is None or problem.upper is None else _digest("", problem.lower, problem.upper)


def about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header of the run whose values a file holds; empty where it holds none."""
    with suppress(OSError, CheckpointError):
        found, _, _, _ = _read(Path(path))
        return found or {}
    return {}


class Checkpoint:
    """One run's file, with its lock: what it holds is given first, then new values are appended.

    Each request is one write, so a process that is killed loses at most the request under way. A torn end is cut off.
    Raises FileExistsError where there is a file and `resume` is false, CheckpointError where it is of another run,
    LockedError where another process writes it.
    """

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, Any], *, resume: bool) -> None:
        self.path = Path(path)
        self.lock = writer_lock(self.path, str(self.path))
        try:
            old, self.told, end, self.crc = _read(self.path) if self.path.exists() else (None, [], 0, 0)
            if old is not None and not resume:
                raise FileExistsError(
                    f"{self.path} holds the values of a run; pass resume=True to go on with it, or another checkpoint="
                )
            self.versions, self.plan = "", about["plan"]
            if old is not None:
                self.compare(old, dict(about))
            self._file = open(self.path, "ab" if old is None else "r+b", buffering=0)  # noqa: SIM115
            self._file.truncate(end)
            self._file.seek(end)
            if old is None:
                first, self.crc = frame(json.dumps(dict(about), sort_keys=True).encode() + b"\n", zlib.crc32(_PREAMBLE))
                self._file.write(_PREAMBLE + first)
                sync_folder(self.path.parent)
        except BaseException:
            self.lock.close()
            raise
        self.width = 1
        """Numbers of one evaluation: its value, and those of the constraints."""
        self.place = 0
        """Requests that were given back."""
        self.requests = max((i for i, told in enumerate(self.told, 1) if told.kind != Kind.FINAL), default=0)
        self.ended_before = False
        """Whether this run, of a smaller budget, ended before the one in the file; then nothing is added."""

    @property
    def replaying(self) -> bool:
        """Whether values of the file are still to be given; the one at the result, at its end, does not count."""
        return self.place < self.requests

    def compare(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Raise where the run is another one."""
        before, now = old.pop("versions", {}), new.pop("versions", {})
        self.plan = old.pop("plan", None) or new["plan"]
        del new["plan"]
        for key in new:
            if old.get(key) != new[key]:
                was, what = str(old.get(key))[:200], str(new[key])[:200]
                digests = key in DIGESTS and None not in (old.get(key), new[key])
                verb = "differ" if key in PLURAL else "differs"
                said = f"{verb} from what is passed here" if digests else f"is {was}, and here it is {what}"
                raise CheckpointError(
                    f"{self.path} is of another run: its {key} {said}. Pass the same {key}, or another checkpoint="
                )
        changed = [f"{name} {before.get(name)} is {now[name]} now" for name in now if before.get(name) != now[name]]
        self.versions = f" ({', '.join(changed)})" if changed else ""

    def given(self, kind: Kind, points: Points) -> Told | None:
        """What the file has for this request; None where it ends."""
        while self.place < len(self.told):
            told = self.told[self.place]
            if kind == Kind.FINAL and told.kind != kind:
                self.ended_before = True
                return None
            self.place += 1
            if told.kind == Kind.FINAL and kind != told.kind:
                continue  # the value at an earlier end, beyond which this run goes
            if (told.kind, len(told.values), told.check) != (kind, self.width * len(points), _check(points)):
                raise CheckpointError(
                    f"{self.path} does not fit this run: request {self.place} is for other points{self.versions}. "
                    f"Another budget, or another version of a library, may have changed what the method asks: with "
                    f"budget={self.plan[0]} the run ends as before, and its x is the x0 of another one"
                )
            return told
        return None

    def append(self, kind: Kind, points: Points, values: Sequence[float], note: str) -> None:
        """Add what was told."""
        if self.ended_before:
            return
        payload = _HEAD.pack(kind, _check(points), len(values)) + np.array(values, "<f8").tobytes() + note.encode()
        data, crc = frame(payload, self.crc)
        start = self._file.tell()
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(28, "no space left: a request was written only in part", str(self.path))
        except OSError as e:
            with suppress(OSError):
                self._file.truncate(start)
                self._file.seek(start)
            raise OSError(e.errno, e.strerror, str(self.path)) from e
        self.crc = crc

    def close(self) -> None:
        self._file.close()
        with suppress(OSError):
            sync_file(self.path)
        self.lock.close()


def _read(path: Path) -> tuple[dict[str, Any] | None, list[Told], int, int]:
    """(header, what was told, where it ends, the running checksum); no header where the file ends inside of it."""
    data = path.read_bytes()
    if not data.strip(b"\0") or _PREAMBLE.startswith(data):
        return None, [], 0, 0
    if not data.startswith(_MAGIC):
        raise CheckpointError(f"{path} is no checkpoint of minimize; pass another path")
    if not data.startswith(_PREAMBLE):
        number = int.from_bytes(data[len(_MAGIC) : len(_PREAMBLE)], "little")
        raise CheckpointError(f"{path} is a checkpoint of format {number}; this zograd reads format {FORMAT}")
    about: dict[str, Any] | None = None
    told: list[Told] = []
    end = crc = 0
    try:
        for payload, at, running in frames(data, path, _PREAMBLE):
            if about is None:
                about = _parsed(payload, path)
            else:
                told.append(_unpacked(payload, path))
            end, crc = at, running
    except FrameError as e:
        raise CheckpointError(f"{e}; restore the file from a copy, or start again with another checkpoint=") from None
    return about, told, end, crc


def _parsed(payload: bytes, path: Path) -> dict[str, Any]:
    try:
        about = json.loads(payload)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not isinstance(about.get("seed"), int):
        raise CheckpointError(f"{path}: the header was written by no zograd")
    return about


def _unpacked(payload: bytes, path: Path) -> Told:
    with suppress(struct.error, ValueError, UnicodeDecodeError):
        kind, check, n = _HEAD.unpack_from(payload)
        end = _HEAD.size + 8 * n
        if end <= len(payload):
            values = tuple(np.frombuffer(payload[_HEAD.size : end], "<f8").tolist())
            return Told(Kind(kind), check, values, payload[end:].decode())
    raise CheckpointError(f"{path}: a record was written by no zograd")


def _check(points: Points) -> int:
    """A checksum of the first point."""
    return zlib.crc32(np.ascontiguousarray(points.make(0)).tobytes()) if len(points) else 0


def _digest(text: str, *arrays: Any) -> str:
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    if name == "zograd":
        import zograd

        return zograd.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
