"""Peak memory of the process, measured by the operating system; allocator and garbage collector of long loops.

On Linux the kernel's high-water mark is reset at the start (proc(5), `clear_refs`), so that a peak belongs to the block
it was measured in. Importing this module does not import torch.
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

_PROC = Path("/proc/self")
_KIB = 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Peak:
    """Highest memory in use inside a `with` block, in bytes.

        with Peak() as peak:
            step()
        print(peak.bytes, peak.method)

    device: "cpu" measures the resident memory of the whole process: weights, Python, torch and its libraries included.
        A CUDA device measures the tensors that torch holds there.

    `bytes` may also be read inside, for the peak so far. `method` says what was read:

    * "VmHWM": the kernel's high-water mark since the block began (Linux). Freed memory that malloc still keeps is given
      back first (`malloc_trim`), so that it does not count.
    * "ru_maxrss": the highest of the life of the process, where the mark cannot be reset (macOS, a /proc without write
      permission). Only a peak above every earlier one can be seen.
    * "cuda": `torch.cuda.max_memory_allocated`.
    * "unavailable": none of them (Windows); `bytes` is 0.

    Blocks may be nested; they may not overlap in other ways, nor run in several threads, since the mark is one number a
    process. Cost: some microseconds, plus a walk over the page tables (about 1 ms a GiB in use).
    """

    def __init__(self, device: str | Any = "cpu") -> None:
        self.device = str(device)
        self.method = "unavailable"
        self._highest = 0
        self._open = False

    def __enter__(self) -> Peak:
        for outer in _nested:  # resetting the mark must not lose what the outer blocks have seen
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
        """The highest so far; after the block, the highest inside it."""
        if self._open:
            self._read()
        return self._highest

    def _read(self) -> None:
        self._highest = max(self._highest, _highest(self.method, self.device))


_nested: list[Peak] = []


def _reset(device: str) -> str:
    """Start a new measurement; returns the method by which `_highest` is to read it."""
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


def resident_bytes() -> int:
    """Bytes of physical memory the process holds now; where only the highest ever is known (macOS), that; else 0."""
    return _status("VmRSS") or _maxrss()


def available_bytes(device: str | Any = "cpu") -> int | None:
    """Bytes that could be allocated now without swapping, or None where the system does not tell.

    CPU: `MemAvailable` of Linux and the limit of the process's control group, whichever is less; elsewhere the physical
    memory. CUDA: what the driver says is free.
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
    """Give memory that was freed but is still kept by malloc back to the system (glibc; elsewhere nothing happens)."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def keep_freed() -> None:
    """From now on malloc keeps freed blocks up to 32 MiB for the next forward (glibc; elsewhere nothing happens).

    Otherwise it gives activations back to the system in each layer and asks for them again, page by page: of a step of
    16 x 64 tokens of a model of 135 million weights 5 to 12 % of the time. The peak is the same. `trim` gives all back.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * _KIB)  # the largest that it accepts
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


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
    """A line "Name:   123 kB" of a /proc file, in bytes; 0 when there is none."""
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
    """What the control group (version 2) still allows, in bytes, cached files not counted; 0 when there is no limit."""
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
    """Inside, the garbage collector passes over the objects that there were before: for loops over a loaded model.

    A full collection visits all objects of torch, transformers and the model, 0.1 to 0.2 s, every few steps.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
