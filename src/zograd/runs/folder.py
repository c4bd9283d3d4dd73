"""The folder of a run: whether a run began there, its lock, leftovers of killed processes, the lines of its log."""

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
    """Whether the folder holds a run: a tape with its header, or other files that record steps of a lost tape."""
    tape = root / "tape.zo"
    if tape.exists() and not never_began(tape):
        return True
    if not tape.exists() and not (root / "run.json").exists():
        return False
    logged = any(isinstance(k := line.get("step"), int) and k > 0 for line in read_metrics(root)[0])
    return logged or (root / "state.safetensors").exists()


def check_free(root: Path) -> None:
    """Raise RunError if the folder holds a run. A run that ended before it began its tape does not count."""
    if began(root):
        raise RunError(f"{root} already holds a run; continue it with --resume, or choose another --out")


def check_writable(root: Path) -> None:
    """Raise RunError where no folder of a run can be made, or written in, under this name."""
    there = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    if not there.is_dir():
        what = f"{root} is a file" if there == root.absolute() else f"{there} is a file, and {root} would be inside it"
        raise RunError(f"{what}; choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"{there} cannot be written in; choose another --out, or change the permissions of that folder")


def locked(root: Path) -> FileLock:
    """Take the lock of a run folder, and remove half-written files of killed processes. Raises LockedError."""
    lock = writer_lock(root / "tape.zo", f"the run in {root}")
    for path in root.iterdir():
        if LEFTOVER.fullmatch(path.name) and not _alive(path.name):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return lock


LEFTOVER = re.compile(
    r"\.?(run\.json|metrics\.jsonl|state)\.tmp|(?:\.state\.safetensors)?\.saving"
    r"|\.tmp[A-Za-z0-9]{6}"  # of safetensors, which earlier releases let write in this folder
    r"|weights\.(\d{1,9})\.safetensors(\.\d{1,9}\.tmp)?"  # working copies of --offload disk
)


def _alive(name: str) -> bool:
    """Whether a leftover is the working copy of a running process: a replay of the run works without the lock."""
    found = LEFTOVER.fullmatch(name)
    pid = int(found[2]) if found and found[2] else 0
    if pid in (0, os.getpid()) or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        pass
    return True


def read_metrics(run: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a run's metrics.jsonl (none without the file), and the number of lines that do not parse."""
    try:
        with open(run / "metrics.jsonl", encoding="utf-8", errors="replace") as f:
            texts = f.readlines()  # unlike `str.splitlines`, it cuts at the ends of lines alone
    except FileNotFoundError:
        return [], 0
    lines = []
    for text in texts:
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict):
                lines.append(line)
    return lines, len(texts) - len(lines)
