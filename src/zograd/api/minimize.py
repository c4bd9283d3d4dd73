"""`minimize`: a black box of numbers, with SciPy's shape of call and of result."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np

from zograd.api.batches import Draws
from zograd.api.bounds import as_bounds
from zograd.api.checkpoint import Checkpoint, CheckpointError, about, header
from zograd.api.constraints import as_rows
from zograd.api.domains import as_box, is_set, on_set, on_space, refuse_integers
from zograd.api.minimization import Minimization
from zograd.api.objective import Objective
from zograd.api.options import refuse, with_options
from zograd.api.result import Result
from zograd.api.strategies import (
    LBFGS,
    Auto,
    Constrained,
    OfMenu,
    Problem,
    as_strategy,
    penalized,
    repeats_at_start,
    valued,
)
from zograd.api.variables import Variables
from zograd.api.workers import Bound, Valued, evaluator
from zograd.core.method import Method
from zograd.core.seeds import Seed, as_seed
from zograd.methods.defaults import BUDGET
from zograd.spaces import Space

__all__ = ["Result", "minimize"]

ON_ERROR = ("stop", "nan", "raise")


def minimize(
    f: Callable[..., float],
    x0: Any,
    method: str | Method[Any] | Any = "auto",
    *,
    args: Any = (),
    bounds: Any = None,
    constraints: Any = None,
    penalty: Any = None,
    space: Space | None = None,
    integrality: Any = None,
    budget: int | None = None,
    seconds: float | None = None,
    target: float | None = None,
    maximize: bool = False,
    seed: Seed = 0,
    callback: Callable[..., object] | None = None,
    options: Mapping[str, Any] | None = None,
    workers: int | Executor | Callable[..., Any] | Any | None = None,
    executor: Executor | None = None,
    timeout: float | None = None,
    on_error: str = "stop",
    max_failures: int = 20,
    terms: int = 0,
    data: Any = None,
    common_random: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    tol: None = None,
    jac: None = None,
    hess: None = None,
    hessp: None = None,
) -> Result:
    """Minimize f(x, *args) over the numbers in x, from values alone.

    f: takes x in the form of x0 and returns a number. NaN or infinity is a failed evaluation.
    x0: a number, a list, an array of float64 or float32, a torch tensor, or a dict of arrays.
    method: "auto" chooses by the rule of `zograd.api.strategies.Auto`, and the result says what and why. "lbfgs" and
        "cma" are SciPy's L-BFGS-B on finite differences and pycma's CMA-ES. Otherwise a name of the menu with the
        defaults of `zograd.methods.defaults`, or a `zograd.Method`.
    options: settings of a method that is given by its name: {"sigma": 2.0} for "cma", {"n": 4, "lr": 1e-2} for
        "zo_sgd".
    args: further arguments of f, a tuple or list; anything else is a single one.
    bounds: `scipy.optimize.Bounds`, or a pair (low, high) for each variable, None for no bound; for a dict of arrays
        also a dict of pairs. f is never called outside of them. Where they fix all variables, x0 is the result.
    constraints: `scipy.optimize.LinearConstraint` or `NonlinearConstraint`, a dict {"type": "ineq" or "eq", "fun"}, or
        a list of them; `zograd.Constraints(at_most=m, equal=p)` where f returns (value, c) of one evaluation; or a set
        of `zograd.sets`. They need no derivatives. See `zograd.api.strategies.constrained.Constrained` for what
        searches then. A box is bounds; another set goes to projected steps, where values repeat on finite differences
        (`fd_fista`), and in noise with few evaluations to Frank-Wolfe. f is never called outside of a set; one without
        interior (Simplex, Affine), or in which no ball is known (Polyhedron, Intersection), is refused.
    penalty: r, of `zograd.sets`: L1(weight) or GroupL2(weight). Then f + r is minimized (f - r maximized), and `fun`,
        `best_fun` and `target` are its values. f alone is evaluated; r enters by its proximal map, with exact zeros.
        See `zograd.api.strategies.composite.AutoPenalized` for the rule of "auto".
    space: of `zograd.spaces`, such as Sphere() or Stiefel(); no evaluated point leaves it.
    integrality: is not supported, and says which library to use.
    budget: evaluations of f, at most. None: 15,000, and "auto" stops at the first minimum; with a number it uses what
        is left to look for a lower one. With a finite sum, evaluations of a single term: the whole f costs N.
        Of the budget, two to four evaluations (with a finite sum one) are spent on f(x0) for its noise, and one is kept
        for f at the result.
    seconds: time after which f is not called any more, except for a value at the result where none is known.
    target: a value at which the run ends, as soon as it is reached.
    maximize: look for the largest value; `fun` and `target` are values of f itself.
    seed: an integer, a NumPy generator, or None for a fresh one; `Result.seed` holds the number.
    callback: called after each step as callback(intermediate_result), see `zograd.api.result.Progress`. A parameter
        that is named `xk` or `x` gets the point instead. Returning something true, or raising StopIteration, ends the
        run. Ctrl-C ends it too, with what is there and the message "interrupted".
    workers: evaluates the points of a step at once, where the strategy asks for several. A number of processes, -1 for
        one per core (with the packages of the extra `blackbox`; f may be any function); an executor
        (`concurrent.futures`, loky, dask, mpi4py); a pool such as `multiprocessing.Pool`; or a callable like `map`.
        The trajectory is the same, bit for bit. An evaluation whose process dies is a failed one, and the run goes on;
        where that breaks an executor for ever, as with `ProcessPoolExecutor`, the run ends with what is there.
        executor: the former name of workers; the next release will not have it.
    timeout: seconds for one evaluation. It runs in a process of `workers` (1 if none are named), which is killed and
        replaced when it takes longer: a failed evaluation.
    on_error: what an exception of f does. "stop": at the first evaluation it is raised; later it ends the run, with
        what is there and `Result.exception`. "nan": a failed evaluation. "raise": it is raised.
    max_failures: steps in a row without a finite value after which a method of the menu gives up.
    terms: N, when f is a finite sum (1/N) sum_i f_i. It is then called as f(x, rows, *args) and returns the mean of
        the terms whose numbers are in the integer array `rows`.
    data: batches, when f is called as f(x, batch, *args): a sequence, drawn in a seeded order that is new in each
        epoch, or an iterable such as a DataLoader, drawn once a step. All evaluations of a step get the same batch. x0
        and the result get the first ones, up to 32 (8 of an iterable): `fun` is the mean, and `success` compares the
        values of each batch.
    common_random: f gets the keyword `seed`, an integer below 2^32 that all evaluations of a step share and that
        differs between steps.
    checkpoint: a file to which the values are appended. resume: go on from it, to the bits of a run that was never
        interrupted, without calling f or the callback again for what it holds; without a file, start. Another x0, seed
        or method is refused. The budget may be larger, except with constraints; "auto" keeps the choice that it made
        for the first budget. An iterator in `data` is advanced.
    tol, jac, hess, hessp: refused, with what to write instead.

    Costs O(d) memory for one point at a time, or for those of a step with workers. Raises ValueError for a budget too
    small for a single step, an empty or non-finite x0, an option that the method does not have, or an x0 outside of the
    bounds or of the method's set.

        >>> import numpy as np, zograd as zo
        >>> result = zo.minimize(lambda x: float(np.sum((x - 1) ** 2)), np.zeros(10))
        >>> result.success, bool(result.fun < 1e-9)
        (True, True)
    """
    refuse(tol=tol, jac=jac, hess=hess, hessp=hessp)
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error={on_error!r} is none of {', '.join(map(repr, ON_ERROR))}")
    if terms and data is not None:
        raise ValueError("terms and data are two ways to take part of a sum; pass one of them")
    if workers is not None and executor is not None:
        raise TypeError("workers and executor are the same; pass workers")
    if resume and checkpoint is None:
        raise ValueError("resume=True goes on from a file; pass checkpoint=PATH, the one that the run has written")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback={callback!r} is no function; pass one that takes the intermediate result")
    target, seconds, timeout = _real("target", target), _real("seconds", seconds), _real("timeout", timeout)
    if isinstance(terms, bool) or not isinstance(terms, int | np.integer) or terms < 0:
        raise ValueError(f"terms={terms!r} must be the number of terms of a finite sum, or 0 for none")
    if seconds is not None and seconds < 0:
        raise ValueError(f"seconds={seconds:g} must be a time, 0 or more, or None for no limit")
    variables = Variables(x0)
    if bounds is None and isinstance(method, str) and method == "auto":
        bounds = as_box(constraints, variables.dim)
        constraints = constraints if bounds is None else None
    lower, upper = as_bounds(bounds, variables)
    most = _number(budget)
    before = about(checkpoint) if checkpoint is not None and resume else {}
    number = before["seed"] if before and seed is None else as_seed(seed)
    planned, thorough = before.get("plan") or (most, budget is not None)
    draws = Draws(data, common_random, number)
    problem = Problem(
        variables, lower, upper, number, terms, shared=draws.shared, batches=data is not None, budget=planned,
        thorough=thorough,
    )  # fmt: skip
    refuse_integers(integrality)
    if penalty is not None:
        _alone("penalty", constraints=constraints, space=space, bounds=bounds, terms=terms or None, options=options)
    method = with_options(method, options, variables.dim)
    if constraints is not None and is_set(constraints):
        if space is not None:
            raise ValueError(
                f"constraints={type(constraints).__name__}(...) is a set, and does not go together with space=: leave "
                f"one out, or pass constraints of SciPy with the space"
            )
        method, constraints = on_set(constraints, method, variables, planned), None
    if space is not None:
        method = on_space(space, method, variables.dim)
    rows = as_rows(constraints, variables)
    if rows is not None and terms:
        raise ValueError("constraints= and terms= do not go together; let f be the whole sum, or pass a space or set")
    strategy = as_strategy(method, variables.dim, max_failures) if penalty is None else penalized(penalty, method)
    if problem.shared and isinstance(strategy, LBFGS):
        raise ValueError(
            "method='lbfgs' compares values of different steps, which data= and common_random= give different batches "
            "or seeds; leave method out, pass 'cma', or let f use one batch and one seed"
        )
    sign = -1.0 if maximize else 1.0
    whole = max(terms, 1)
    step = _first_step(strategy, problem)
    if most < step + whole:
        raise ValueError(f"budget={budget} is less than one step and the final value: use at least {step + whole}")
    wanted = 1 if terms else repeats_at_start(planned) if isinstance(strategy, Auto) else 2
    repeats = int(min(wanted, (most - step - whole) // whole))
    if draws.shared:
        repeats = min(draws.compared(planned), (most - step) // 2)
    if rows is not None:
        strategy = Constrained(strategy, rows)
    whole_f = f if rows is None else Valued(rows.around(f))
    extra = tuple(args) if isinstance(args, tuple | list) else (args,)
    evaluate = evaluator(
        Bound(whole_f, extra) if extra else whole_f, executor if workers is None else workers, timeout, number
    )
    values = None
    if checkpoint is not None:
        run = header(
            problem, strategy, maximize=bool(maximize), data=draws.kind, common_random=bool(common_random),
            constraints=None if rows is None else rows.digest,
        )  # fmt: skip
        if rows is not None and before and most != planned:
            raise CheckpointError(
                f"{checkpoint} is of a run with constraints, which keeps a share of its budget of {planned} to measure "
                f"the result: pass budget={planned}, and begin another run at its x for more"
            )
        values = Checkpoint(checkpoint, run, resume=resume)
    try:
        objective = Objective(
            evaluate, problem, draws, sign=sign, on_error=on_error, checkpoint=values, rows=rows,
            penalty=None if penalty is None else valued(penalty, variables),
            ends=math.inf if seconds is None else time.monotonic() + seconds,
        )  # fmt: skip
        return Minimization(objective, problem, strategy, most, repeats, callback, target, sign).run()
    finally:
        evaluate.close()
        if values is not None:
            values.close()


def _alone(name: str, **others: Any) -> None:
    """Raises ValueError where another setting is given that does not go with this one."""
    for other, value in others.items():
        if value is not None:
            hint = {
                "bounds": "; for x >= 0 the 1-norm is a sum: add weight * x.sum() to f and keep the bounds",
                "options": "; pass method=methods.zo_prox(penalty, ...) with its settings",
            }.get(other, "")
            raise ValueError(f"{name}= and {other}= do not go together{hint}")


def _number(budget: Any) -> int:
    """The budget as an integer."""
    try:
        most = BUDGET if budget is None else float(budget)
    except (TypeError, ValueError):
        raise TypeError(f"budget={budget!r} is no number of evaluations") from None
    if not math.isfinite(most):
        raise ValueError(f"budget={budget} would never be used up; pass a number of evaluations")
    return int(most)


def _real(name: str, value: Any) -> float | None:
    """A setting that is one number, or None."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r} is no number; pass one, or None") from None
    if math.isnan(number):
        raise ValueError(f"{name} is NaN, which no value reaches; pass a number, or None")
    return number


def _first_step(strategy: Any, problem: Problem) -> int:
    """Evaluations without which a strategy cannot begin."""
    if isinstance(strategy, OfMenu):
        return strategy.run_at(problem.x0, problem).most_evaluations
    return 1
