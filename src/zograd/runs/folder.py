"""The folder of a run: whether one began there, its lock, what killed processes left, the lines of its log."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from zograd.core.tape import never_began, writer_lock
from zograd.locks import FileLock
from zograd.runs.errors import RunError


def began(root: Path) -> bool:
    """Whether the folder holds a run with a tape, or one that has lost it: what else is there tells of steps."""
    tape = root / "tape.zo"
    if tape.exists() and not never_began(tape):
        return True
    if not tape.exists() and not (root / "run.json").exists():
        return False
    logged = any(isinstance(k := line.get("step"), int) and k > 0 for line in read_metrics(root)[0])
    return logged or (root / "state.safetensors").exists()


def check_free(root: Path) -> None:
    """Raise RunError when the folder holds a run already. One that ended before its tape began does not count."""
    if began(root):
        raise RunError(f"{root} already holds a run; go on with --resume, or choose another --out")


def locked(root: Path) -> FileLock:
    """The lock of a run folder. Removes what killed processes have left there half written."""
    lock = writer_lock(root / "tape.zo", f"the run in {root}")
    for path in root.iterdir():
        if LEFTOVER.fullmatch(path.name) and not _alive(path.name):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return lock


LEFTOVER = re.compile(
    r"(run\.json|metrics\.jsonl|state)\.tmp|\.saving"
    r"|\.tmp[A-Za-z0-9]{6}"  # of safetensors, which wrote beside the state in earlier releases
    r"|weights\.(\d{1,9})\.safetensors(\.\d{1,9}\.tmp)?"  # working copies of --offload disk
)


def _alive(name: str) -> bool:
    """Whether a leftover is the working copy of another process that runs: a replay of the run holds no lock."""
    found = LEFTOVER.fullmatch(name)
    pid = int(found[2]) if found and found[2] else 0
    if pid in (0, os.getpid()) or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of somebody else
        pass
    return True


def read_metrics(run: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a run's metrics.jsonl (none when there is no such file), and how many lines do not parse."""
    try:
        texts = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return [], 0
    lines = []
    for text in texts:
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict):
                lines.append(line)
    return lines, len(texts) - len(lines)
