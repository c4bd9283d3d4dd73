"""Peak memory of the process from the operating system; settings of allocator and garbage collector for loops.

On Linux, `Peak` resets the high-water mark of the kernel at its start (proc(5), `clear_refs`), so a peak belongs to the
block in which it is measured. Importing this module does not import torch.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "16"}
"""Environment variables: the compiled kernels that oneDNN keeps, and those that torch keeps on top of it."""

_PROC = Path("/proc/self")
_KIB = 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Peak:
    """The highest memory in use inside a `with` block, in bytes.

        with Peak() as peak:
            step()
        print(peak.bytes, peak.method)

    device: "cpu" measures the resident memory of the whole process, with Python, torch and its libraries. A CUDA
        device measures the tensors that torch holds there.

    `bytes` may be read inside the block too, for the peak so far. `method` names the source:

    * "VmHWM": the kernel's high-water mark since the block began (Linux). Freed memory that malloc keeps is released
      first (`malloc_trim`), so it does not count.
    * "ru_maxrss": the peak since the process began, if the mark cannot be reset (macOS, a /proc without write
      permission). Only a peak above all earlier ones is visible.
    * "cuda": `torch.cuda.max_memory_allocated`.
    * "unavailable": none of these (Windows); `bytes` is 0.

    Blocks may be nested. They may not overlap in other ways or run in several threads, since a process has one mark.
    Cost: microseconds, and a walk over the page tables (about 1 ms for each GiB in use).
    """

    def __init__(self, device: str | Any = "cpu") -> None:
        self.device = str(device)
        self.method = "unavailable"
        self._highest = 0
        self._open = False

    def __enter__(self) -> Peak:
        for outer in _nested:  # resetting the mark must not lose the peaks of outer blocks
            outer._read()
        self.method = _reset(self.device)
        self._highest, self._open = 0, True
        _nested.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for block in _nested:
            block._read()
        _nested.remove(self)
        self._open = False

    @property
    def bytes(self) -> int:
        """The peak so far; after the block, the peak of the block."""
        if self._open:
            self._read()
        return self._highest

    def _read(self) -> None:
        self._highest = max(self._highest, _highest(self.method, self.device))


_nested: list[Peak] = []


def _reset(device: str) -> str:
    """Start a new measurement; returns the method with which `_highest` reads it."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return "cuda"
    trim()
    try:
        (_PROC / "clear_refs").write_text("5", encoding="utf-8")
        if _status("VmHWM"):
            return "VmHWM"
    except OSError:
        pass
    return "ru_maxrss" if _maxrss() else "unavailable"


def _highest(method: str, device: str) -> int:
    if method == "cuda":
        import torch

        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    return {"VmHWM": lambda: _status("VmHWM"), "ru_maxrss": _maxrss}.get(method, lambda: 0)()


class Energy:
    """The energy that the processors take between `with` and its end, from the counters of the kernel (Linux, RAPL).

    joules: None where there is no counter, or where it cannot be read (often only root may). Other processes on the
    machine count as well.
    """

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        self.root = root
        self.joules: float | None = None

    def __enter__(self) -> Energy:
        self._start = self._read()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        end = self._read()
        if self._start and end.keys() == self._start.keys():
            self.joules = sum((now - self._start[k][0]) % (limit + 1) for k, (now, limit) in end.items()) / 1e6

    def _read(self) -> dict[str, tuple[int, int]]:
        """Microjoules of each package, and where its counter begins again."""
        found = {}
        for package in sorted(self.root.glob("intel-rapl:*")):
            if package.name.count(":") == 1:  # parts of a package have a second one
                try:
                    found[package.name] = tuple(
                        int((package / name).read_text(encoding="utf-8"))
                        for name in ("energy_uj", "max_energy_range_uj")
                    )
                except (OSError, ValueError):
                    return {}
        return found  # type: ignore[return-value]


def resident_bytes() -> int:
    """Bytes of physical memory of the process now; its peak if only that is known (macOS); 0 if neither is."""
    return _status("VmRSS") or _maxrss()


def available_bytes(device: str | Any = "cpu") -> int | None:
    """Bytes that can be allocated now without swapping; None if the system does not say.

    CPU: on Linux the smaller of `MemAvailable` and what the control group still allows; elsewhere the physical memory.
    CUDA: the free memory that the driver reports.
    """
    if str(device).startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0]) if torch.cuda.is_available() else None
    candidates = [_field(Path("/proc/meminfo"), "MemAvailable"), _control_group()]
    known = [c for c in candidates if c]
    if not known:
        with suppress(AttributeError, ValueError, OSError):
            known = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(known, default=None)


def trim() -> None:
    """Return freed memory that malloc keeps to the system (glibc; a no-op elsewhere)."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def keep_freed() -> None:
    """From now on malloc keeps freed blocks of up to 32 MiB for the next forward (glibc; a no-op elsewhere).

    By default malloc returns activations to the system in each layer and gets them back page by page, which takes 5 to
    12 % of a step of 16 x 64 tokens of a model with 135 million weights. The peak stays the same. `trim` returns all.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * _KIB)  # the largest that it accepts
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def few_kernels() -> None:
    """Let oneDNN keep 128 compiled kernels in place of 1,024, where the environment does not say how many.

    It compiles one for each shape of a matrix product in bfloat16 on the CPU, of some MiB each. Texts differ in length,
    so new shapes keep coming: 100 steps on 135 million weights left 1.7 GiB behind. Those of one step fit into 128, and
    a step takes as long as before. It has an effect only before the first such product of a process.
    """
    for name, number in KERNELS.items():
        os.environ.setdefault(name, number)


@cache
def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "malloc_trim") else None  # musl has none
    except OSError:
        return None


def _field(path: Path, name: str) -> int:
    """The value of a line "Name:   123 kB" of a /proc file, in bytes; 0 without such a line."""
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * _KIB
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _status(name: str) -> int:
    return _field(_PROC / "status", name)


def _maxrss() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(highest) * (1 if sys.platform == "darwin" else _KIB)  # bytes on macOS, KiB elsewhere


def _control_group() -> int:
    """Bytes that the control group (version 2) still allows, cached files not counted; 0 without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="utf-8")
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        if limit.strip() == "max":
            return 0
        cached = 0
        for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines():
            if line.startswith("inactive_file "):
                cached = int(line.split()[1])
        return max(1, int(limit) - used + cached)
    except (OSError, ValueError, IndexError):
        return 0


@contextmanager
def settled_objects() -> Iterator[None]:
    """Inside, the garbage collector ignores all objects that exist now: for loops over a loaded model.

    Otherwise a full collection visits all objects of torch, transformers and the model every few steps: 0.1 to 0.2 s.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
