"""A script that minimizes with a checkpoint, slowly, until it is killed: FILE METHOD SECONDS-AN-EVALUATION."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from zograd import minimize

BUDGET = 150


def function(x: Any) -> float:
    """Without a number in a part of the space."""
    return float(np.sum((x - 1.0) ** 2)) if x[0] < 0.9 else float("nan")


def run(file: str, method: str, sleep: float, **settings: Any) -> Any:
    """The run of that file."""

    def f(x: Any) -> float:
        time.sleep(sleep)
        return function(x)

    return minimize(f, np.zeros(6), method, budget=BUDGET, seed=4, checkpoint=file, resume=True, **settings)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], float(sys.argv[3]))
