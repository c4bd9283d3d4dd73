"""`python -m benchmarks.constraints`: constrained problems by `minimize`, SLSQP, COBYLA and COBYQA, in evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from scipy.optimize import minimize as scipy_minimize

import zograd as zo
from zograd.cli.options import script
from zograd.cli.output import say
from zograd.problems.constrained import PROBLEMS, Case


def by_scipy(case: Case, name: str) -> tuple[Any, int]:
    """(x, calls of f) of a solver of SciPy, with a tolerance of 1e-10."""
    calls = 0

    def f(x: Any) -> float:
        nonlocal calls
        calls += 1
        return float(case.f(x))

    kinds = ["ineq"] * case.at_most + ["eq"] * case.equal
    signs = [-1.0 if kind == "ineq" else 1.0 for kind in kinds]
    rows = [{"type": k, "fun": lambda x, i=i, s=s: s * case.c(x)[i]}
            for i, (k, s) in enumerate(zip(kinds, signs, strict=True))]  # fmt: skip
    options = {"maxiter": 20_000} | ({"ftol": 1e-10} if name == "SLSQP" else {})
    tol = None if name == "SLSQP" else 1e-10
    found = scipy_minimize(f, case.x0, method=name, bounds=case.bounds, constraints=rows, tol=tol, options=options)
    return found.x, calls


def by_zograd(case: Case, method: str) -> tuple[Any, int]:
    """(x, calls of f) of `minimize`, where f returns its constraints."""
    calls = 0

    def f(x: Any) -> tuple[float, Any]:
        nonlocal calls
        calls += 1
        return case.both(x)

    rows = zo.Constraints(case.at_most, case.equal)
    return zo.minimize(f, np.array(case.x0), method, bounds=case.bounds, constraints=rows).x, calls


SOLVERS: dict[str, Callable[[Case], tuple[Any, int]]] = {
    "zograd auto": lambda case: by_zograd(case, "auto"),
    "zograd lbfgs": lambda case: by_zograd(case, "lbfgs"),
    "SLSQP": lambda case: by_scipy(case, "SLSQP"),
    "COBYLA": lambda case: by_scipy(case, "COBYLA"),
    "COBYQA": lambda case: by_scipy(case, "COBYQA"),
}


def measure(
    problems: Annotated[int, "Of the five problems, the first so many."] = 5,
    *,
    progress: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Evaluations, error of f and violation of solvers that need no gradients, on problems with known minima.

    error is |f - best| / max(|best|, 1), violation the largest one of a row. "zograd lbfgs" is the augmented Lagrangian
    without SLSQP in front of it. SciPy evaluates f and the constraints apart; calls of f are counted.

    Example: python -m benchmarks.constraints
    """
    table: list[dict[str, Any]] = []
    for case in PROBLEMS[:problems]:
        for name, solve in SOLVERS.items():
            x, calls = solve(case)
            value, c = case.both(x)
            over = np.concatenate([np.maximum(c[: case.at_most], 0), np.abs(c[case.at_most :])])
            error = abs(value - case.best) / max(abs(case.best), 1.0)
            table.append({"problem": case.name, "solver": name, "evaluations": calls, "error": error,
                          "violation": float(over.max())})  # fmt: skip
        progress(f"{case.name}: done")
    return {"rows": table}


def shown(result: dict[str, Any]) -> str:
    """The rows for people."""
    line = "{problem:14s} {solver:13s} {evaluations:6d}  error {error:.1e}  violation {violation:.1e}"
    return "\n".join([line.format(**row) for row in result["rows"]])


app = script(measure, shown)

if __name__ == "__main__":
    app()
