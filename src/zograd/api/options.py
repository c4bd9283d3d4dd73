"""`options` of `minimize`: the settings of a method that is given by its name."""

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
