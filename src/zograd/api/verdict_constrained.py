"""Whether a run with constraints found a point at which they hold, and one sentence that says why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from zograd.api.constraints import CLEAR, Evaluated, Rows
from zograd.api.ending import End, Ending
from zograd.api.variables import Flat
from zograd.api.verdict import FEW, PLAIN, Wording, too_few, unbounded

FALLS = 1e20
"""Times f(x0), or 1, below which f is said to fall without end: multipliers come to rest where no row is near."""

ROUNDING = 1e-8
"""Relative rise of f that counts as none: a search that begins at the minimum may end so far above it."""


def shortfall(
    rows: Rows,
    start: Sequence[float],
    value: Evaluated,
    error: Flat | None,
    standing: Any,
    end: End,
    *,
    steps: int,
    moved: bool,
    words: Wording = PLAIN,
) -> End | None:
    """Why a run is no success; None where it is.

    start: finite values at x0. value: f and c at the result, the means where they were measured several times. error:
    the standard errors of c then. standing: what the strategy says, with `settled`. end: of the run.
    steps: how many the run made. words: how values and remedies are named.
    """
    if not math.isfinite(value):
        return _short(f"f or a constraint is {words.sign * float(value)} at the result")
    if value < -FALLS * max([1.0, *map(abs, start)]):
        return _short(unbounded(value, words))
    if (why := rows.why_violated(value.c, error)) is not None:
        return _short(f"{why}; {words.more}, or start nearer to where the constraints hold")
    settled = None if standing is None else standing.settled
    feasible = [float(v) for v in start if isinstance(v, Evaluated) and rows.why_violated(v.c, None) is None]
    if feasible:
        f0 = float(np.mean(feasible))
        noise = float(np.std(feasible, ddof=1)) if len(feasible) > 1 else 0.0
        if value - f0 > max(CLEAR * noise, ROUNDING * abs(f0)):
            values = f"from {words.value(f0)} at x0 to {words.value(value)} at the result"
            return _short(f"f {words.way[3]}, {values}; {words.more}")
        if not moved and not settled:
            return _short(
                f"x did not move: no point with a {words.better} value was found at which the constraints hold; "
                f"{words.more}, or start elsewhere if x0 is no {'minimum' if words.sign > 0 else 'maximum'}"
            )
    unsettled = settled is False and end.kind is not Ending.CALLBACK
    if end.used_up and (standing is None or unsettled):
        why = f"{words.limit} ended before multipliers and point had converged; {words.more}"
        return End(Ending.EARLY, why)
    if unsettled:
        return _short("multipliers and point have not converged")
    return too_few(steps, words) if end.used_up and steps < FEW and not settled else None


def _short(why: str) -> End:
    return End(Ending.SHORT, why)
