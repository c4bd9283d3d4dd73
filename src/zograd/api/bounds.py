"""Bounds as SciPy's users write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from zograd.api.variables import Flat, Variables

NONE = 1e-9
"""A bound beyond this share of the largest number of its dtype is none, as `np.finfo(float).max` is meant."""

FORM = "bounds must be pairs (low, high) of numbers or None, or a scipy.optimize.Bounds"


class _Sides(NamedTuple):
    lb: Mapping[Any, Any]
    ub: Mapping[Any, Any]


def _by_name(bounds: Mapping[Any, Any], variables: Variables) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """(lower, upper) by the names of x0."""
    if variables.names is None:
        raise TypeError("bounds is a dict, but x0 is none; pass pairs (low, high), or a scipy.optimize.Bounds")
    lower, upper = {}, {}
    for name, pair in bounds.items():
        try:
            low, high = (pair.lb, pair.ub) if hasattr(pair, "lb") and hasattr(pair, "ub") else pair
        except (TypeError, ValueError):
            raise ValueError(f"bounds[{name!r}] must be one pair (low, high), or a scipy.optimize.Bounds") from None
        lower[name], upper[name] = -math.inf if low is None else low, math.inf if high is None else high
    return lower, upper


def without_limits(low: Flat, high: Flat) -> tuple[Flat, Flat]:
    """Both sides with infinite numbers in place of huge ones (`NONE`), but where low == high fixes a value."""
    most = NONE * float(np.finfo(low.dtype).max)
    free = low < high
    return np.where(free & (low <= -most), -math.inf, low), np.where(free & (high >= most), math.inf, high)


def as_bounds(bounds: Any, variables: Variables) -> tuple[Flat, Flat] | tuple[None, None]:
    """(lower, upper) for each variable, infinite where there is none; (None, None) without bounds.

    bounds: an object with `lb` and `ub` (`scipy.optimize.Bounds`), one pair (low, high) for all variables or a pair for
    each; for x0 that is a dict also a dict with one pair, or `Bounds`, for each name. None in a pair is no bound, nor
    is a number such as `np.finfo(float).max`, see `NONE`; low == high fixes a variable. Raises ValueError where
    low > high or x0 is outside.
    """
    if bounds is None:
        return None, None
    dtype = variables.flat.dtype
    if isinstance(bounds, Mapping):
        bounds = _Sides(*_by_name(bounds, variables))
    elif not (hasattr(bounds, "lb") and hasattr(bounds, "ub")) and not isinstance(bounds, Iterable):
        raise TypeError(FORM)
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        with np.errstate(over="ignore"):  # numbers that float32 does not have are infinite
            lower, upper = (variables.flattened(b, "bounds").astype(dtype) for b in (bounds.lb, bounds.ub))
    else:
        pairs = list(bounds)
        if len(pairs) == 2 and not any(isinstance(p, list | tuple | np.ndarray) and len(p) == 2 for p in pairs):
            pairs = [(pairs[0], pairs[1])]
        if len(pairs) == 1:
            pairs = pairs * variables.dim
        if len(pairs) != variables.dim:
            raise ValueError(
                f"bounds has {len(pairs)} pairs, but x0 has {variables.dim} variables; pass one pair (low, high) for "
                f"all, or one for each"
            )
        try:
            low_high = [(-math.inf if a is None else float(a), math.inf if b is None else float(b)) for a, b in pairs]
        except (TypeError, ValueError):
            raise ValueError(FORM) from None
        with np.errstate(over="ignore"):
            lower, upper = (np.array(side, dtype) for side in zip(*low_high, strict=True))
    if np.any(np.isnan(lower) | np.isnan(upper)):
        raise ValueError("bounds hold NaN; use None or an infinite number for no bound")
    for i in np.flatnonzero(lower > upper):
        raise ValueError(f"bounds of variable {i}: low = {lower[i]:g} > high = {upper[i]:g}")
    x = variables.flat
    for i in np.flatnonzero((x < lower) | (x > upper)):
        raise ValueError(f"x0[{i}] = {x[i]:g} is outside of its bounds [{lower[i]:g}, {upper[i]:g}]; start inside")
    return without_limits(lower, upper)
