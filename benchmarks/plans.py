"""`python -m benchmarks.plans`: what `zograd plan` says a run will take, beside the peak that the run then has.

Each row is a process of its own: `zograd train` on the bundled model and trec, three steps, 32 held-out questions. The
peak is that of the whole process, by the operating system.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from zograd.cli.options import script
from zograd.cli.output import mib, say

CASES: dict[str, list[str]] = {
    "full weights": ["--method", "zo_sgd", "--train", "full"],
    "LoRA": ["--method", "zo_sgd", "--train", "lora"],
    "Adam by evaluations": ["--method", "zo_adam", "--train", "full"],
    "four blocks, residual": ["--method", "residual", "--train", "proj", "--layers", "4"],
    "all blocks, residual": ["--method", "residual", "--train", "proj"],
    "four blocks, backprop": ["--method", "backprop", "--train", "proj", "--layers", "4"],
    "scales of 4 bits": ["--method", "hozo", "--train", "scales", "--quantized"],
    "weights on the disk": ["--method", "zo_sgd", "--train", "full", "--offload", "disk"],
}
COMMON = ["--model", "smollm2-135m", "--batch-size", "16", "--dtype", "float32", "--json"]
RUN = ["--task", "trec", "--steps", "3", "--train-examples", "64", "--eval-examples", "32", "--threads", "1"]
LENGTH = 32
"""Tokens that are planned for an example: the longest of a batch of 16 questions has about as many."""


def zograd(*arguments: str) -> dict[str, Any]:
    """The JSON that a command prints."""
    done = subprocess.run([sys.executable, "-m", "zograd", *arguments], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    cases: Annotated[str, "Names of rows, separated by commas; all without."] = "",
    *,
    progress: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Plan and train, one row after the other.

    Example: python -m benchmarks.plans --cases "LoRA,full weights"
    """
    rows: dict[str, dict[str, float]] = {}
    for name in filter(None, cases.split(",")) if cases else CASES:
        planned = zograd("plan", *CASES[name], *COMMON, "--seq-len", str(LENGTH))["process_peak_bytes"]
        with tempfile.TemporaryDirectory() as folder:
            found = zograd("train", *CASES[name], *COMMON, *RUN, "--out", str(Path(folder) / "run"))
        measured = found["process_peak_bytes"]
        rows[name] = {"planned": planned, "measured": measured, "ratio": planned / measured}
        progress(f"| {name} | {mib(planned)} | {mib(measured)} | {planned / measured:.2f} |")
    return {"rows": rows}


app = script(measure)

if __name__ == "__main__":
    app()
