"""What `minimize` returns and what its callback sees, in SciPy's form."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult

LONG = 8
"""Numbers of x that are printed."""


class Result(OptimizeResult):  # type: ignore[misc]
    """What `minimize` found: a `scipy.optimize.OptimizeResult`.

    x, fun: the recommended point and the value of f there; the lowest point seen where that value is not finite. nfev:
    evaluations of f, failed ones included; with a finite sum, of single terms. nit: steps. success: whether f came
    down, by more than its noise, and the run ended well; message says why not, and what to do. status: 0 for a success,
    1 where the budget or the time ended too early, 2 for another failure, 3 where the callback, an interrupt or an
    exception ended the run. exception: what f raised, or how the workers broke, where that ended the run; otherwise
    None.

    best_x, best_fun: the lowest value seen and its point (None above 100,000 variables); in noise, a lucky value.
    nfail: evaluations that failed: values that are not finite, a process that died, a timeout, or an exception with
    `on_error="nan"`. strategy: what searched, with the library that it is from; reason: why it was chosen. noise:
    standard deviation of a value, 0 where values repeat, NaN where it was not measured. mu, lr: radius and learning
    rate of the last step, None where the strategy has none. tape: a `zograd.Record` for each step. seed: of the run.

    With constraints, success also needs that all of them hold, and there are: constraints, the values c at x, one for
    each row (an upper bound is c = g - ub, a lower one c = lb - g, both wanted <= 0; an equality is c = g - b);
    maxcv, the largest violation of a row; multipliers lam, one for each row, with grad f + sum lam grad c = 0 at a
    minimum (of -f, where f is maximized).
    """

    __slots__ = ()

    def __repr__(self) -> str:
        lines = []
        for key in self:
            value = self[key]
            if key == "tape":
                value = f"{len(value)} steps"
            elif isinstance(value, np.ndarray) and value.size > LONG:
                head = ", ".join(f"{v:.6g}" for v in value.reshape(-1)[: LONG // 2])
                value = f"array of shape {value.shape}: [{head}, ...]"
            elif isinstance(value, float):
                value = f"{value:.6g}"
            lines.append(f"{key:>9}: {value}")
        return "\n".join(lines)

    __str__ = __repr__


class Progress(OptimizeResult):  # type: ignore[misc]
    """What a callback gets after each step: x (a copy), fun (the loss of the step), nit, nfev, best_fun, record."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            record = self.get("record")
            if record is not None and not name.startswith("__"):
                return getattr(record, name)
            raise AttributeError(name) from None


def calling(callback: Callable[..., object]) -> Callable[[Progress], object]:
    """The callback with what its parameter asks for, by its name as in SciPy."""
    try:
        names = list(inspect.signature(callback).parameters)
    except (TypeError, ValueError):
        names = []
    if names == ["intermediate_result"]:
        return lambda progress: callback(intermediate_result=progress)
    if names and names[0] in ("x", "xk"):
        return lambda progress: callback(progress.x)
    return callback
