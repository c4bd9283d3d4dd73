"""`python -m benchmarks.plans`: what `zograd plan` says a run will take, beside the peak that the run then has.

Each row is a process of its own: `zograd train` on the bundled model and trec, 32 held-out questions. The peak is that
of the whole process, by the operating system; in bfloat16 that of training, since the bundled file is in float32, and
is mapped whole while it is loaded.
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
COMMON = ["--model", "smollm2-135m", "--batch-size", "16", "--json"]
RUN = ["--task", "trec", "--train-examples", "64", "--eval-examples", "32", "--threads", "1"]
LENGTH = 32
"""Tokens that are planned for an example: the longest of a batch of 16 questions has about as many."""


def zograd(*arguments: str) -> dict[str, Any]:
    """The JSON that a command prints."""
    done = subprocess.run([sys.executable, "-m", "zograd", *arguments], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    cases: Annotated[str, "Names of rows, separated by semicolons; all without."] = "",
    dtype: Annotated[str, "float32 or bf16."] = "float32",
    steps: Annotated[int, "Steps of a run."] = 3,
    *,
    progress: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Plan and train, one row after the other.

    Example: python -m benchmarks.plans --cases "LoRA;full weights"
    """
    rows: dict[str, dict[str, float]] = {}
    common = [*COMMON, "--dtype", dtype]
    for name in filter(None, cases.split(";")) if cases else CASES:
        planned = zograd("plan", *CASES[name], *common, "--seq-len", str(LENGTH))["process_peak_bytes"]
        with tempfile.TemporaryDirectory() as folder:
            run = ["--steps", str(steps), "--out", str(Path(folder) / "run")]
            found = zograd("train", *CASES[name], *common, *RUN, *run)
        measured = found["process_peak_bytes" if dtype == "float32" else "peak_bytes"]
        rows[name] = {"planned": planned, "measured": measured, "ratio": planned / measured}
        progress(f"| {name} | {mib(planned)} | {mib(measured)} | {planned / measured:.2f} |")
    return {"rows": rows}


app = script(measure)

if __name__ == "__main__":
    app()
