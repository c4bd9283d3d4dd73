"""The processor of a run: another one may round otherwise, so numbers are compared only on the same."""

from __future__ import annotations

import platform
from pathlib import Path


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name, model and stepping of the processor, and the instructions that torch uses on it.

    Kernels of matrix products are chosen by these, and each adds in an order of its own.
    """
    import torch

    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = said.get("model name") or platform.processor() or platform.machine()
    parts = [f"{word} {said[word]}" for word in ("model", "stepping") if word in said]
    return ", ".join([name, *parts, torch.backends.cpu.get_cpu_capability()])
