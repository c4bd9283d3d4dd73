"""`options` of `minimize`, the settings of a method that is named, and what of SciPy's is refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from zograd.api.strategies import OTHERS
from zograd.methods.defaults import black_box
from zograd.methods.menu import MENU

ELSEWHERE = {
    "maxfev": "budget=", "maxfun": "budget=", "maxiter": "budget=, or a callback", "maxtime": "seconds=",
    "disp": "a callback", "ftol": "target=", "gtol": "target=", "xtol": "target=", "tol": "target=",
}  # fmt: skip
"""What SciPy's users look for in `options`, and where it is here."""


def refuse(**given: Any) -> None:
    """Say why a setting of SciPy's `minimize` has no meaning here. Raises TypeError for any that is not None."""
    for name, value in given.items():
        if value is None or value is False:
            continue
        if name == "tol":
            raise TypeError(
                f"tol={value!r}: a search by values alone sees no gradient whose norm could be small enough. Pass "
                f"target=, a value to reach, or budget=, seconds= or a callback that returns True"
            )
        raise TypeError(
            f"{name} is given, but zograd needs no derivative and uses none. If you have one, "
            f"scipy.optimize.minimize(f, x0, jac=...) needs far fewer evaluations"
        )


def with_options(method: Any, options: Mapping[str, Any] | None, dim: int) -> Any:
    """The method with its settings. Raises ValueError for a setting that it does not have, and says which it has."""
    if not options:
        return method
    if not isinstance(options, Mapping):
        raise TypeError(f"options={options!r} is no dict; pass one such as options={{'sigma': 2.0}}")
    if not isinstance(method, str):
        name = getattr(method, "name", type(method).__name__)
        raise TypeError(f"options go with a name; method={name} is made already: give it its settings where it is made")
    given = {str(key): value for key, value in options.items()}
    if method in OTHERS:
        _known(method, given, [f.name for f in fields(OTHERS[method])])
        return OTHERS[method](**given)
    if method in MENU:
        _known(method, given, list(inspect.signature(MENU[method].build).parameters))
    return black_box(method, dim, **given)


def _known(name: str, given: Mapping[str, Any], known: list[str]) -> None:
    for key in given:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            hint = f"; for {key} use {ELSEWHERE[key]} of minimize" if key in ELSEWHERE else ""
            raise ValueError(f"method {name!r} has no option {key!r}; {has}{hint}")
