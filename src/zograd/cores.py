"""How many processors this process may use. In a container that is often less than the machine has.

torch, OpenMP and `os.cpu_count` see the processors of the machine. A container with two of 64 then runs 64 threads that
take turns on two, and each parallel loop waits for the last of them.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which a user says how many threads to take."""


def cores(proc: Path = Path("/proc/self"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors that the process is bound to (affinity), and no more than its control groups give it time for.

    proc, groups: where Linux shows the process and the control groups, of version 1 and 2. A quota of 1.5 processors
    counts for two.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *(math.ceil(quota) for quota in _quotas(proc, groups))]))


def threads(default: int) -> int:
    """The threads to take where nobody has asked for a number: the default of torch, and no more than `cores`."""
    return default if any(name in os.environ for name in THREADS) else min(default, cores())


def limit_threads() -> None:
    """Tell libraries that are imported later how many threads to take, if a quota leaves fewer than they would."""
    if not any(name in os.environ for name in THREADS) and (found := cores()) < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(found)


def _quotas(proc: Path, groups: Path) -> list[float]:
    """The processors' worth of time of each control group around the process that has a limit."""
    found = []
    for line in _read(proc / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        version1 = "cpu" in controllers.split(",")
        if controllers and not version1:
            continue
        root = groups / controllers if version1 else groups
        for folder in (root / path.strip("/"), *map(root.joinpath, Path(path.strip("/")).parents)):
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if version1 else ("cpu.max",)
            quota = [number for name in names for number in _read(folder / name).split()]
            if len(quota) == 2 and all(number.isdigit() for number in quota) and int(quota[1]):  # not "max", not -1
                found.append(int(quota[0]) / int(quota[1]))
    return [quota for quota in found if quota > 0]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
