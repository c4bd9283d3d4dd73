"""The results file of a comparison: a line each, written at once; what is there is not computed again."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def versions() -> dict[str, str]:
    """Of everything that decides the last digits."""
    found = {"python": platform.python_version()}
    for package in ("zograd", "torch", "numpy", "scikit-learn", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def load(path: Path) -> list[Line]:
    """The lines of a results file; a last line that was cut off while it was written does not count."""
    if not path.exists():
        return []
    lines: list[Line] = []
    texts = path.read_text(encoding="utf-8").split("\n")
    for number, text in enumerate(texts, 1):
        if not text:
            continue
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            if number < len(texts):
                raise ValueError(f"{path} line {number} is not JSON; take it out, it will be computed again") from None
    return lines


def final(run: Line) -> float:
    """The value at the end of a run; infinite for a run that diverged or ended outside of the domain."""
    return math.inf if run["value"] is None else float(run["value"])


class WithRuns:
    """Something with several runs, one for each seed."""

    runs: tuple[Line, ...]

    @property
    def values(self) -> list[float]:
        """The value at the end of each run (`final`)."""
        return [final(run) for run in self.runs]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


class Results:
    """A results file open for more lines, each written at once."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes() if path.exists() else b""
        if not whole.endswith(b"\n") and whole:
            os.truncate(path, whole.rfind(b"\n") + 1)

    def append(self, line: Line) -> None:
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def of(self, problem: str, name: str) -> list[Line]:
        return [line for line in self.lines if line["problem"] == problem and line["method"] == name]


def whole(done: dict[str, Any]) -> dict[str, Any]:
    """What `train` returned. SystemExit where a signal ended the run: no file is to hold such a run."""
    if done["metric_after"] is None:
        raise SystemExit(f"stopped after {done['steps']} steps, so nothing of this run is kept")
    return done
