"""Strategies: the ways in which `minimize` and `AskTell` search, of the menu and of other libraries."""

from __future__ import annotations

from typing import Any

from zograd.api.strategies.auto import Auto, repeats_at_start
from zograd.api.strategies.base import Points, Problem, Routine, Strategy, Trace, points
from zograd.api.strategies.charted import AutoOnSpace, Charted
from zograd.api.strategies.cma import CMA
from zograd.api.strategies.composite import penalized, valued
from zograd.api.strategies.constrained import Constrained
from zograd.api.strategies.lbfgs import LBFGS
from zograd.api.strategies.of_menu import OfMenu
from zograd.core.method import Method
from zograd.methods.defaults import black_box
from zograd.methods.menu import MENU, UnknownMethodError

OTHERS: dict[str, type[Any]] = {"auto": Auto, "lbfgs": LBFGS, "cma": CMA}
"""Names beside those of the menu."""


SCIPYS = {
    "l-bfgs-b": "lbfgs", "bfgs": "lbfgs", "cg": "lbfgs", "newton-cg": "lbfgs", "tnc": "lbfgs", "slsqp": "auto",
    "trust-constr": "auto", "cobyla": "auto", "cobyqa": "auto", "nelder-mead": "auto", "powell": "auto",
    "differential_evolution": "cma", "dual_annealing": "cma", "basinhopping": "cma", "shgo": "cma", "direct": "cma",
}  # fmt: skip
"""Names of SciPy's, and what is nearest to them here."""


def _elsewhere(name: str) -> str:
    """What a name that is not known here may mean; empty for others."""
    if name.lower() in OTHERS:
        return f"write {name.lower()!r}"
    if mine := SCIPYS.get(name.lower()):
        return f"it is a method of SciPy; pass method={mine!r}, which is the nearest here, or call scipy.optimize"
    return ""


def as_strategy(method: Any, dim: int, max_failures: int) -> Strategy:
    """A strategy from what a user passes as `method`: a name, a `Method`, or a strategy. TypeError says what else."""
    if isinstance(method, str):
        if method in OTHERS:
            strategy: Strategy = OTHERS[method]()
            return strategy
        if method not in MENU and (hint := _elsewhere(method)):
            raise UnknownMethodError(f"there is no method {method!r}; {hint}")
        return OfMenu(black_box(method, dim), max_failures)
    if isinstance(method, Method):
        return OfMenu(method, max_failures)
    if isinstance(method, Auto | AutoOnSpace | Charted | LBFGS | CMA | OfMenu):
        return method
    if callable(method):
        name = getattr(method, "__name__", type(method).__name__)
        raise TypeError(f"method={name} is a function; call it, such as methods.{name}(), or pass its name {name!r}")
    raise TypeError(f"method={method!r} is no method; pass a name of the menu, 'auto', or a zograd.Method")


__all__ = [
    "CMA", "LBFGS", "OTHERS", "Auto", "AutoOnSpace", "Charted", "Constrained", "OfMenu", "Points", "Problem",
    "Routine", "Strategy", "Trace", "as_strategy", "penalized", "points", "repeats_at_start", "valued",
]  # fmt: skip
