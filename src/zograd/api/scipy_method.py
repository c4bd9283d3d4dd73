"""zograd as a method of `scipy.optimize.minimize`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from zograd.api.ending import Status
from zograd.api.minimize import minimize
from zograd.api.result import calling


def scipy_method(method: Any = "auto", **settings: Any) -> Callable[..., Any]:
    """A method for `scipy.optimize.minimize(f, x0, method=zo.scipy_method("cma"))`.

    method and settings: those of `zograd.minimize`. SciPy passes on args, bounds, constraints and the callback. Its
    `options` may hold any further setting of `zograd.minimize`, `maxfev` for its budget, `maxiter` for a number of
    steps, at which the result is no success, and the options of the method. `jac`, `hess` and `tol` are refused with a
    sentence.

    Costs nothing beyond `zograd.minimize`, and returns its `Result`, which SciPy returns as it is.

        >>> import numpy as np, scipy.optimize, zograd as zo
        >>> found = scipy.optimize.minimize(
        ...     lambda x: float(np.sum((x - 1) ** 2)), np.zeros(3), method=zo.scipy_method("lbfgs"),
        ...     bounds=[(0, 0.5)] * 3,
        ... )
        >>> found.success, found.x.round(3)
        (True, array([0.5, 0.5, 0.5]))
    """
    known = set(inspect.signature(minimize).parameters)

    def run(fun: Callable[..., Any], x0: Any, args: Any = (), **given: Any) -> Any:
        if isinstance(given.get("constraints"), tuple | list) and not given["constraints"]:
            del given["constraints"]
        mine = {**settings, **{k: v for k, v in given.items() if k in known and v is not None}}
        rest = {k: v for k, v in given.items() if k not in known}
        if "maxfev" in rest:
            mine["budget"] = rest.pop("maxfev")
        counter = None
        if (steps := rest.pop("maxiter", None)) is not None:
            mine["callback"] = counter = _Counter(mine.get("callback"), steps)
        rest.pop("disp", None)  # SciPy's print of a summary
        if rest:
            mine["options"] = {**(mine.get("options") or {}), **rest}
        found = minimize(fun, x0, method, args=args, **mine)
        if counter is not None and counter.reached:
            found.success, found.status = False, int(Status.EARLY)
            found.message = f"maxiter={steps} reached; pass a larger one"
        return found

    return run


class _Counter:
    """The callback, which also ends the run after a number of steps."""

    def __init__(self, callback: Callable[..., object] | None, steps: Any) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
            raise ValueError(f"maxiter={steps!r} must be a number of steps, at least 1")
        self.call, self.steps, self.reached = None if callback is None else calling(callback), steps, False

    def __call__(self, intermediate_result: Any) -> bool:
        if self.call is not None and self.call(intermediate_result):
            return True
        self.reached = intermediate_result.nit >= self.steps
        return self.reached
