"""Bounds as SciPy's users write them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zograd.api.variables import Flat, Variables


def as_bounds(bounds: Any, variables: Variables) -> tuple[Flat, Flat] | tuple[None, None]:
    """(lower, upper) for each variable, infinite where there is none; (None, None) without bounds.

    bounds: an object with `lb` and `ub` (`scipy.optimize.Bounds`), one pair (low, high) for all variables or a pair for
    each; None in a pair is no bound; low == high fixes a variable. Raises ValueError where low > high or x0 is outside.
    """
    if bounds is None:
        return None, None
    dtype = variables.flat.dtype
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
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
            raise ValueError(
                "bounds must be pairs (low, high) of numbers or None, or a scipy.optimize.Bounds"
            ) from None
        lower, upper = (np.array(side, dtype) for side in zip(*low_high, strict=True))
    if np.any(np.isnan(lower) | np.isnan(upper)):
        raise ValueError("bounds hold NaN; use None or an infinite number for no bound")
    for i in np.flatnonzero(lower > upper):
        raise ValueError(f"bounds of variable {i}: low = {lower[i]:g} > high = {upper[i]:g}")
    x = variables.flat
    for i in np.flatnonzero((x < lower) | (x > upper)):
        raise ValueError(f"x0[{i}] = {x[i]:g} is outside of its bounds [{lower[i]:g}, {upper[i]:g}]; start inside")
    return lower, upper
