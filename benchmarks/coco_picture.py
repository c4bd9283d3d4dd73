"""The picture of `benchmarks.coco`: share of targets hit against evaluations a variable, a line for each method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

POINTS = 200


def hits(history: Sequence[float], targets: Sequence[float], dim: int) -> list[float]:
    """For each target the evaluations a variable until it is reached; infinity where it never is.

    history: the lowest difference to the optimum so far, after each evaluation.
    """
    best = np.asarray(history, dtype=np.float64)
    found = [np.flatnonzero(best <= target) for target in targets]
    return [(int(k[0]) + 1) / dim if k.size else math.inf for k in found]


def ecdf(reached: Sequence[float], at: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The share of all targets of all runs that are reached within each of these numbers of evaluations a variable."""
    ordered = np.sort(np.asarray(reached, dtype=np.float64))
    return np.searchsorted(ordered, np.asarray(at, dtype=np.float64), side="right") / len(ordered)


def draw(path: Path, reached: Mapping[str, Sequence[float]], budget: int, title: str) -> None:
    """A PNG of the `ecdf` of each method, up to the budget, in evaluations a variable."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    at = np.geomspace(0.1, budget, POINTS)
    for method, found in sorted(reached.items(), key=lambda item: -float(ecdf(item[1], [budget])[0])):
        share = ecdf(found, at)
        axes.step(at, share, where="post", label=f"{method}: {share[-1]:.3f}")
    axes.set_xscale("log")
    axes.set_xlim(0.1, budget)
    axes.set_ylim(0.0, 1.0)
    axes.set_xlabel("evaluations / d")
    axes.set_ylabel("share of targets hit")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=150)
