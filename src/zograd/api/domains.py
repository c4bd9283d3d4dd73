"""Sets, spaces and integers in a call of `minimize`: which method does them, or which library does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds

from zograd import methods
from zograd.api.strategies.charted import AutoOnSpace
from zograd.api.strategies.composite import DIRECTIONS, AutoInSet
from zograd.api.strategies.of_menu import OfMenu
from zograd.api.variables import Variables
from zograd.core.method import Method
from zograd.methods.defaults import black_box
from zograd.sets import Box, LInfBall, NonNegative
from zograd.sets.base import misplaced
from zograd.sets.numbers import Numbers
from zograd.spaces import Space


def refuse_integers(integrality: Any) -> None:
    """ValueError where a variable is an integer, with what to type instead."""
    if integrality is None or not np.any(np.asarray(integrality) != 0):
        return
    which = np.flatnonzero(np.asarray(integrality) != 0).tolist()
    raise ValueError(
        f"integrality={integrality!r} asks for integers, but zograd moves real numbers only. With pycma, write "
        f"cma.fmin2(f, x0, 0.5, {{'integer_variables': {which}}}); with Optuna (pip install optuna), "
        f"optuna.create_study().optimize(lambda t: f([t.suggest_int('n', 1, 10), ...]), n_trials=100)"
    )


def is_set(constraints: Any) -> bool:
    """Whether `constraints` is one of `zograd.sets`."""
    return any(hasattr(constraints, name) for name in ("vertex_", "project_", "project_block_"))


SEVERAL = 200
"""Evaluations a variable from which projected steps end lower than Frank-Wolfe, which nears a minimum slowly."""


def on_set(the_set: Any, method: Any, variables: Variables, budget: int) -> Method[Any] | AutoInSet:
    """The rule of `AutoInSet` where the set projects a single array, and otherwise what that takes in noise: projected
    two-point steps, or Frank-Wolfe where the set has a linear minimizer, and no projection or the budget is below
    `SEVERAL` evaluations a variable. f is never called outside. All start inside of the set.
    """
    if isinstance(the_set, type):
        raise TypeError(f"constraints={the_set.__name__} is a class; make a set of it, such as sets.L1Ball(1.0)")
    if method != "auto":
        raise TypeError(
            f"constraints={type(the_set).__name__}(...) chooses the method by what the set can do; leave method out, "
            f"or pass methods.frank_wolfe(set) or methods.zo_prox(set) as method without constraints"
        )
    if hasattr(the_set, "explain"):
        parts = np.split(np.array(variables.flat, np.float64), np.cumsum(variables.sizes)[:-1])
        leaves = [torch.from_numpy(p).view(shape) for p, shape in zip(parts, variables.shapes, strict=True)]
        if why := misplaced(the_set, *leaves):
            raise ValueError(f"x0 {why}")
    if hasattr(the_set, "ball"):
        try:
            the_set.ball(variables.dim)
        except ValueError as e:
            name = type(the_set).__name__
            raise ValueError(
                f"constraints={name}(...): {str(e).partition(';')[0]}, and f is called inside of a set alone. Where f "
                f"is defined beside it too, pass method=methods.zo_prox(set, lr='auto', mu='auto', queries='relaxed') "
                f"in place of constraints"
            ) from None
    projects = hasattr(the_set, "project_") or hasattr(the_set, "project_block_")
    made: Method[Any]
    if hasattr(the_set, "vertex_") and not (projects and budget >= SEVERAL * variables.dim):
        made = methods.frank_wolfe(the_set, queries="feasible")
    else:
        made = methods.zo_prox(the_set, lr="auto", mu="auto", n=DIRECTIONS, queries="feasible")
    if not (hasattr(the_set, "project_") and hasattr(the_set, "explain") and len(variables.shapes) == 1):
        return made
    return AutoInSet(the_set, OfMenu(made))


def as_box(the_set: Any, dim: int) -> Bounds | None:
    """The bounds that a set is; None where it is none, or has another size than x."""
    if isinstance(the_set, NonNegative):
        return Bounds(0.0, np.inf)
    if isinstance(the_set, LInfBall):
        return Bounds(-the_set.radius, the_set.radius)
    if not isinstance(the_set, Box) or the_set.size not in (None, dim):
        return None
    low, high = (side.flat().numpy() if isinstance(side, Numbers) else side for side in (the_set.low, the_set.high))
    return Bounds(low, high)


def on_space(space: Space, method: Any, dim: int) -> Method[Any] | AutoOnSpace:
    """The method on that space; "auto" is the rule of `AutoOnSpace`."""
    if isinstance(method, str) and method in ("lbfgs", "cma"):
        raise TypeError(f"method={method!r} moves in flat space; with space= pass a name of the menu, such as 'zo_sgd'")
    made = black_box("zo_sgd" if method == "auto" else method, dim) if isinstance(method, str) else method
    if not isinstance(made, Method):
        raise TypeError(f"method={method!r} with space=: pass a name of the menu, or a zograd.Method")
    made = replace(made, space=space)
    return AutoOnSpace(made) if method == "auto" else made
