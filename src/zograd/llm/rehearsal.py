"""How many steps a time allows, on this machine: measured on the first steps of the run itself."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from zograd.llm.recipe import chosen
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
from zograd.runs.folder import read_metrics
from zograd.runs.memory import Energy

STEPS = 6
"""Steps that are taken to measure one."""
HELD_OUT = 16
"""Most examples on which the rehearsal evaluates, at its end."""


@dataclass(frozen=True)
class Rehearsal:
    """Seconds of a step (the median of all but the first), of the first step, and of everything before it.

    joules: energy of a step, with its share of loading; None where the machine has no counter that can be read.
    """

    step: float
    first: float
    loading: float
    joules: float | None

    def steps(self, seconds: float) -> int:
        """Steps that end within so many seconds of training, as `train --seconds` counts them."""
        return max(0, 1 + math.floor((seconds - self.first) / self.step)) if seconds >= self.first else 0


def rehearse(s: TrainSettings, steps: int = STEPS) -> Rehearsal:
    """Train for a few steps in a temporary folder, with the batches, method and threads of the run.

    States of frozen blocks are computed when an example is first seen, so a run of several passes over the data takes
    more steps than are promised. Raises what `train` raises.
    """
    if steps < 2:
        raise ValueError(f"steps={steps}; the first step pays for what is made once, so pass at least 2")
    s, _ = chosen(s)
    # The rate may have more steps of warm-up than are taken here, and does not change their time.
    held_out = HELD_OUT if s.eval_examples is None else min(s.eval_examples, HELD_OUT)
    short = s.model_copy(
        update={
            "steps": steps, "warmup": 0, "seconds": None, "baseline": False, "eval_every": 0, "eval_examples": held_out,
        }
    )  # fmt: skip
    with TemporaryDirectory() as folder, Energy() as energy:
        start = time.perf_counter()
        done = train(short, Path(folder) / "run", quiet=True)
        whole = time.perf_counter() - start
        logged, _ = read_metrics(Path(folder) / "run")
    times = [line["seconds"] for line in logged if "step" in line and line["step"] > 0 and "seconds" in line]
    laps = [b - a for a, b in zip([0.0, *times], times, strict=False)][:-1]  # the last one holds an evaluation
    return Rehearsal(
        median(laps[1:]), laps[0], whole - done["seconds"], None if energy.joules is None else energy.joules / steps
    )
