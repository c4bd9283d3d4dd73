"""`minimize`: a black box of numbers, with SciPy's shape of call and of result."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from zograd.api.bounds import as_bounds
from zograd.api.constraints import Rows, as_rows
from zograd.api.domains import is_set, on_set, on_space, refuse_integers
from zograd.api.objective import Objective
from zograd.api.result import Progress, Result
from zograd.api.search import Search
from zograd.api.strategies import Auto, Constrained, OfMenu, Problem, as_strategy, points
from zograd.api.variables import Flat, Variables
from zograd.api.verdict import failure, unfinished
from zograd.api.verdict_constrained import shortfall
from zograd.core.method import Method
from zograd.core.seeds import Seed, as_seed
from zograd.methods.defaults import BUDGET
from zograd.spaces import Space

__all__ = ["Result", "minimize"]


def minimize(
    f: Callable[..., float],
    x0: Any,
    method: str | Method[Any] | Any = "auto",
    *,
    args: Sequence[Any] = (),
    bounds: Any = None,
    constraints: Any = None,
    space: Space | None = None,
    integrality: Any = None,
    budget: int | None = None,
    seconds: float | None = None,
    target: float | None = None,
    maximize: bool = False,
    seed: Seed = 0,
    callback: Callable[..., object] | None = None,
    max_failures: int = 20,
    terms: int = 0,
    executor: Executor | None = None,
) -> Result:
    """Minimize f(x, *args) over the numbers in x, from values alone.

    f: takes x in the form of x0 and returns a number. NaN or infinity is a failed evaluation. What f raises passes
        through at the first evaluation; later, it ends the run, and the result has what was found.
    x0: a number, a list, an array of float64 or float32, a torch tensor, or a dict of arrays.
    method: "auto" chooses by the rule of `zograd.api.strategies.Auto`, and the result says what and why. "lbfgs" and
        "cma" are SciPy's L-BFGS-B on finite differences and pycma's CMA-ES. Otherwise a name of the menu with the
        defaults of `zograd.methods.defaults`, or a `zograd.Method`.
    bounds: `scipy.optimize.Bounds`, or a pair (low, high) for each variable, None for no bound. f is never called
        outside of them.
    constraints: `scipy.optimize.LinearConstraint` or `NonlinearConstraint`, a dict {"type": "ineq" or "eq", "fun"}, or
        a list of them; `zograd.Constraints(at_most=m, equal=p)` where f returns (value, c) of one evaluation; or a set
        of `zograd.sets`. They need no derivatives. See `zograd.api.strategies.constrained.Constrained` for what
        searches then; a set goes to Frank-Wolfe where it has a linear minimizer, otherwise to projected steps.
    space: of `zograd.spaces`, such as Sphere() or Stiefel(); no evaluated point leaves it.
    integrality: is not supported, and says which library to use.
    budget: evaluations of f, at most. None: 15,000, and "auto" stops at the first minimum; with a number it uses what
        is left to look for a lower one. With a finite sum, evaluations of a single term: the whole f costs N.
        Of the budget, two to four evaluations are spent on f(x0) for its noise, and one on f at the result.
    seconds: time after which no further step begins. target: a value at which the run ends, as soon as it is reached.
    maximize: look for the largest value; `fun` and `target` are values of f itself.
    terms: N, when f is a finite sum (1/N) sum_i f_i. It is then called as f(x, rows, *args) and returns the mean of
        the terms whose numbers are in the integer array `rows`.
    seed: see `zograd.Run`; `Result.seed` holds the number.
    callback: called after each step as callback(intermediate_result), see `zograd.api.result.Progress`. A parameter
        that is named `xk` or `x` gets the point instead. Returning something true, or raising StopIteration, ends the
        run.
    max_failures: steps in a row without a finite value after which a method of the menu gives up.
    executor: evaluates the points of a step at once, where the strategy asks for several (`concurrent.futures`, loky,
        dask, mpi4py, or `zograd.distributed.from_pool(pool)`); processes have to be able to pickle f. The trajectory
        is the same, bit for bit.

    Costs O(d) memory for one point at a time, or for those of a step with an executor. Raises ValueError for a budget
    too small for a single step, an empty or non-finite x0, or an x0 outside of the bounds or of the method's set.

        >>> import numpy as np, zograd as zo
        >>> result = zo.minimize(lambda x: float(np.sum((x - 1) ** 2)), np.zeros(10))
        >>> result.success, bool(result.fun < 1e-9)
        (True, True)
    """
    variables = Variables(x0)
    lower, upper = as_bounds(bounds, variables)
    most = BUDGET if budget is None else budget
    if not math.isfinite(most):
        raise ValueError(f"budget={budget} would never be used up; pass a number of evaluations")
    problem = Problem(variables, lower, upper, as_seed(seed), terms, budget=int(most), thorough=budget is not None)
    refuse_integers(integrality)
    if constraints is not None and is_set(constraints):
        method, constraints = on_set(constraints, method), None
    if space is not None:
        method = on_space(space, method, variables.dim)
    rows = as_rows(constraints, variables)
    strategy = as_strategy(method, variables.dim, max_failures)
    sign = -1.0 if maximize else 1.0
    objective = Objective(f, problem, args, sign=sign, executor=executor, rows=rows)
    whole = max(terms, 1)
    step = _first_step(strategy, problem)
    if most < step + whole:
        raise ValueError(f"budget={budget} is less than one step and the final value: use at least {step + whole}")
    wanted = 1 if terms else 4 if isinstance(strategy, Auto) else 2
    repeats = int(min(wanted, (most - step - whole) // whole))
    if rows is not None:
        if terms:
            raise ValueError(
                "constraints= and terms= do not go together; let f be the whole sum, or pass a space or set"
            )
        strategy = Constrained(strategy, rows)
    return _Minimization(objective, problem, strategy, repeats, callback, seconds, target, sign).run()


def _first_step(strategy: Any, problem: Problem) -> int:
    """Evaluations without which a strategy cannot begin."""
    if isinstance(strategy, OfMenu):
        return strategy.run_at(problem.x0, problem).most_evaluations
    return 1


class _Minimization:
    """One call of `minimize`."""

    def __init__(
        self,
        objective: Objective,
        problem: Problem,
        strategy: Any,
        repeats: int,
        callback: Callable[..., object] | None,
        seconds: float | None,
        target: float | None,
        sign: float,
    ) -> None:
        self.objective, self.problem, self.strategy, self.repeats = objective, problem, strategy, repeats
        self.callback = None if callback is None else _calling(callback)
        self.ends = math.inf if seconds is None else time.monotonic() + seconds
        self.target = -math.inf if target is None else sign * target
        self.sign = sign
        self.stopped: str | None = None

    def run(self) -> Result:
        problem, objective = self.problem, self.objective
        whole = max(problem.terms, 1)
        at_start = objective.values(points([problem.x0] * self.repeats))
        search = Search(self.strategy, problem, problem.budget - self.repeats * whole - whole, at_start)
        if min(at_start, default=math.inf) <= self.target:
            self.stopped = "x0 reaches the target"
        if self.stopped and objective.rows is not None and not objective.rows.hold(min(at_start)):
            self.stopped = None
        try:
            while self.stopped is None and (request := search.ask()) is not None:
                seen = len(search.tape)
                search.tell(objective.values(request))
                if len(search.tape) > seen:
                    self.after_step(search)
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        if search.message is None:
            search.end(self.stopped or "")
        return self.result(search)

    def after_step(self, search: Search) -> None:
        """Whether to go on, after a step."""
        objective = self.objective
        if objective.best[0] <= self.target and self.reached(search):
            self.stopped = "target reached"
        elif time.monotonic() >= self.ends:
            self.stopped = "time used"
        elif self.callback is not None:
            record = search.tape[-1]
            progress = Progress(
                x=self.problem.variables.shaped(search.x), fun=self.sign * record.loss, nit=len(search.tape),
                nfev=objective.nfev, best_fun=self.sign * objective.best[0], record=record,
            )  # fmt: skip
            try:
                stops = bool(self.callback(progress))
            except StopIteration:
                stops = True
            if stops:
                self.stopped = "stopped by the callback"

    def reached(self, search: Search) -> bool:
        """Whether a value at the target is no luck: where values differ, the mean of a step has to reach it."""
        start = search.trace.values_at_start
        repeats = search.trace.noise == 0 or (len(start) > 1 and min(start) == max(start))
        return repeats or search.tape[-1].loss <= self.target

    def result(self, search: Search) -> Result:
        trace, objective = search.trace, self.objective
        start = trace.values_at_start
        f0 = float(np.mean(start)) if start else math.nan
        x = self.problem.inside(search.x)
        message = self.stopped or search.message or ""
        if objective.rows is not None:
            return self.constrained(search, objective.rows, x, message)
        if (
            trace.noise == 0
            and trace.method is None
            and objective.best[1] is not None
            and objective.best[0] < (math.inf if trace.fun is None else trace.fun)
        ):
            x, final = objective.best[1], objective.best[0]
        elif trace.fun is not None and trace.noise == 0:
            final = trace.fun
        elif self.stopped == "interrupted":
            final = search.tape[-1].loss if search.tape else f0
        else:
            (final,) = objective.values(points([x]))
        moved = not np.array_equal(x, self.problem.x0)
        why = None
        if self.stopped not in ("target reached", "x0 reaches the target"):
            why = failure(trace.method, search.tape, start, final, moved=moved)
            if why is None and message in ("budget used", "time used") and not trace.stationary:
                why = unfinished(search.tape, f0, final, trace.noise if math.isfinite(trace.noise) else 0.0)
        gave_up = search.message is not None and "in a row" in search.message
        if why is not None and not gave_up:
            message = why if message == "budget used" else f"{message}; {why}"
        success = why is None and not gave_up and self.stopped != "interrupted"
        return self.found(search, x, final, success, message)

    def constrained(self, search: Search, rows: Rows, x: Flat, message: str) -> Result:
        """The result with constraints."""
        standing = search.trace.standing
        value: Any = None
        error = None
        if standing is not None:
            x, value, error = standing.x, standing.value, standing.error
        if value is None:
            (value,) = self.objective.values(points([x]))
        start = [v for v in search.trace.values_at_start if math.isfinite(v)]
        why = shortfall(rows, start, value, error, standing, message, moved=not np.array_equal(x, self.problem.x0))
        if why is not None and self.stopped in ("target reached", "x0 reaches the target") and rows.hold(value):
            why = None
        if why is not None:
            message = why if message == "budget used" else f"{message}; {why}"
        result = self.found(search, x, float(value), why is None and self.stopped != "interrupted", message)
        result.constraints = value.c
        result.maxcv = float(np.max(rows.excess(value.c)))
        result.multipliers = None if standing is None else standing.multipliers
        return result

    def found(self, search: Search, x: Flat, final: float, success: bool, message: str) -> Result:
        """What the run came to."""
        trace, objective, variables = search.trace, self.objective, self.problem.variables
        best, best_x = objective.best
        return Result(
            x=variables.shaped(x), fun=self.sign * final, success=success, status=_status(success, message),
            message=message, nfev=objective.nfev, nfail=objective.nfail, nit=len(search.tape),
            strategy=", then ".join(trace.strategies), reason=trace.reason, noise=_noise(trace), mu=trace.mu,
            lr=trace.lr, best_x=None if best_x is None else variables.shaped(best_x), best_fun=self.sign * best,
            seed=self.problem.seed, tape=search.tape,
        )  # fmt: skip


def _noise(trace: Any) -> float:
    start = [f for f in trace.values_at_start if math.isfinite(f)]
    if math.isfinite(trace.noise) or len(start) < 2:
        return float(trace.noise)
    return float(np.std(start, ddof=1))


def _status(success: bool, message: str) -> int:
    if success:
        return 0
    if message.startswith(("stopped by", "interrupted")):
        return 3
    return 1 if message.startswith(("the budget ended", "time used")) else 2


def _calling(callback: Callable[..., object]) -> Callable[[Progress], object]:
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
