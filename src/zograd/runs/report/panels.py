"""The figures of a report as data: curves of each run over evaluations and wall clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from zograd.core.vector import Array
from zograd.runs.report.read import Recorded

GROUPS = 100
"""A curve with more than 2 GROUPS points is drawn as GROUPS means."""

METERS = {
    "trace": "trace of the Hessian, measured: mean of v·Hv over directions",
    "slope2": "slope squared, measured: unbiased for |grad f|²",
    "curvature2": "mean square of v·Hv over directions",
    "edge": "share of the largest stable learning rate that lr=auto aims at",
    "cosine": "cosine of the estimate with its guide, or of its two halves",
    "gap": "Frank-Wolfe gap",
}


@dataclass(frozen=True)
class Curve:
    """y over x for the run with this number. low, high: extremes if points are means. crosses: x of refused steps."""

    run: int
    x: Array
    y: Array
    low: Array | None = None
    high: Array | None = None
    crosses: Array | None = None
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    """A figure. `missing`: (run, why it has no curve). `level`: a horizontal line.

    `bars`: (run, inference, peak) in MiB, instead of curves.
    """

    title: str
    about: str
    x: str = ""
    y: str = ""
    curves: tuple[Curve, ...] = ()
    missing: tuple[tuple[int, str], ...] = ()
    level: float | None = None
    bars: tuple[tuple[int, float, float], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not (self.curves or self.bars)


def thinned(run: int, x: Array, y: Array, low: Array | None = None, high: Array | None = None) -> Curve | None:
    """A curve of the finite points; more than 2 `GROUPS` of them become means of equal groups, with extremes."""
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    bottom, top = (y if low is None else low[keep]), (y if high is None else high[keep])
    if not x.size:
        return None
    if x.size > 2 * GROUPS:
        parts = np.array_split(np.arange(x.size), GROUPS)
        x, y = (np.array([v[part].mean() for part in parts]) for v in (x, y))
        bottom, top = np.array([bottom[p].min() for p in parts]), np.array([top[p].max() for p in parts])
    elif low is None:
        return Curve(run, x, y)
    return Curve(run, x, y, bottom, top)


def clock(runs: Sequence[Recorded]) -> tuple[str, float]:
    """(label, seconds of one unit) of the unit of time that suits the longest run."""
    times = [t for run in runs for t in run.seconds if math.isfinite(t)]
    longest = max(times, default=0.0)
    for name, unit in (("hours", 3600.0), ("minutes", 60.0)):
        if longest > 5 * unit:
            return f"wall clock, {name}", unit
    return "wall clock, seconds", 1.0


def panels_of(runs: Sequence[Recorded]) -> list[Panel]:
    """All figures in the order of the page. A figure without data says why."""
    time, unit = clock(runs)
    axes: list[tuple[str, str, Callable[[Recorded], Array], str]] = [
        ("evaluations", "evaluations", lambda run: run.evaluations, ""),
        ("wall clock", time, lambda run: run.seconds / unit, "this run logged no wall clock"),
    ]
    panels = []
    for over, label, x, without in axes:
        about = "Loss of the batches that steps saw; a cross marks a refused step (a loss that is not finite)."
        panels.append(_steps(runs, f"Training loss over {over}", about, label, "loss", x, lambda r: r.loss, without))
    values = dict.fromkeys(run.metric for run in runs if run.metric not in ("loss", "value"))
    for name in ("loss", *values):
        for over, label, _, _ in axes:
            panels.append(_held_out(runs, name, over, label, unit))
    panels += [_margin(runs), _memory(runs)]
    evaluations = axes[0][2]
    about = "As used, of the first group of weights; lr=auto begins once it has measured a curvature."
    panels.append(_steps(runs, "Learning rate", about, "evaluations", "lr", evaluations,
                         lambda r: np.where(r.lr > 0, r.lr, np.nan)))  # fmt: skip
    about = "Share of the trained weights whose bits a step changed."
    panels.append(_steps(runs, "Weights that moved", about, "evaluations", "share", evaluations, lambda r: r.moved))
    for name in dict.fromkeys(name for run in runs for name in run.meters):
        series = [run.meters.get(name, np.full(run.steps, np.nan)) for run in runs]
        drawn = [thinned(i, run.evaluations, y) for i, (run, y) in enumerate(zip(runs, series, strict=True))]
        curves = tuple(c for c in drawn if c is not None)
        missing = tuple((i, "not measured") for i, c in enumerate(drawn) if c is None)
        panels.append(Panel(f"Meter: {name}", METERS.get(name, "as the method measures it"), "evaluations", name,
                            curves, missing))  # fmt: skip
    return panels


def _steps(
    runs: Sequence[Recorded], title: str, about: str, label: str, y_label: str, x: Callable[[Recorded], Array],
    y: Callable[[Recorded], Array], without: str = "",
) -> Panel:  # fmt: skip
    """The panel of a value that each step has."""
    curves, missing = [], []
    for i, run in enumerate(runs):
        at = x(run)
        crosses = at[run.refused & np.isfinite(at)] if y_label == "loss" else np.empty(0)
        curve = thinned(i, at, y(run)) or (Curve(i, np.empty(0), np.empty(0)) if crosses.size else None)
        if curve is None:
            missing.append((i, (without or "no value above 0") if run.steps else "no step was recorded"))
        else:
            curves.append(Curve(i, curve.x, curve.y, curve.low, curve.high, crosses))
    return Panel(title, about, label, y_label, tuple(curves), tuple(missing))


def _held_out(runs: Sequence[Recorded], name: str, over: str, label: str, unit: float) -> Panel:
    """The panel of held-out loss or metric. A run evaluated only at its start shows that point and says so."""
    curves, missing = [], []
    for i, run in enumerate(runs):
        if name not in ("loss", run.metric):
            missing.append((i, f"measures {run.metric}"))
            continue
        x = np.array([p.evaluations if over == "evaluations" else p.seconds / unit for p in run.held_out])
        y = np.array([p.loss if name == "loss" else p.value for p in run.held_out])
        curve = thinned(i, x, y)
        if curve is not None:
            curves.append(Curve(i, curve.x, curve.y, dots=True))
        if run.after is None:
            missing.append((i, "no evaluation after the start; --eval-every N makes one every N steps"))
        elif curve is None or not curve.x[-1] > 0:
            missing.append((i, "this run logged no wall clock"))
    about = f"{'Loss' if name == 'loss' else name.capitalize()} on the held-out examples."
    return Panel(f"Held-out {name} over {over}", about, label, name, tuple(curves), tuple(missing))


def _margin(runs: Sequence[Recorded]) -> Panel:
    curves, missing = [], []
    for i, run in enumerate(runs):
        if isinstance(run.margin, str):
            missing.append((i, run.margin))
            continue
        shares = run.margin
        curve = thinned(i, run.evaluations, np.sqrt(shares.low * shares.high), shares.low, shares.high)
        if curve is None:
            missing.append((i, "no positive trace was measured"))
        else:
            curves.append(curve)
    about = (
        "Learning rate over the edge of stability, above which E|x|² grows on a quadratic (Gaussian directions). The "
        "edge lies between 2q(1−β) / (T + sL) and 2q(1−β) / T, with T the measured trace of the Hessian (never below "
        "twice its standard error), L its largest eigenvalue, q directions a step, momentum β and "
        "s = (q(1−β) + 1 + β) / (1 + β). The band spans both, the line is their geometric mean. Wholly below 1: "
        "stable, with the rest as margin; wholly above 1: unstable."
    )
    return Panel("Stability margin", about, "evaluations", "share of the edge", tuple(curves), tuple(missing), 1.0)


def _memory(runs: Sequence[Recorded]) -> Panel:
    bars, missing = [], []
    for i, run in enumerate(runs):
        peak, inference = (run.result.get(key) or 0 for key in ("peak_bytes", "inference_peak_bytes"))
        if peak:
            bars.append((i, inference / 2**20, peak / 2**20))
        else:
            missing.append((i, "not on file: the peak is stored when a run ends"))
    about = "Peak memory: of inference alone (pale) and of the run."
    return Panel("Memory", about, "", "MiB", missing=tuple(missing), bars=tuple(bars))
