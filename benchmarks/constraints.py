"""`python -m benchmarks.constraints`: constrained problems by `minimize`, SLSQP, COBYLA and COBYQA, in evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from scipy.optimize import minimize as scipy_minimize

import zograd as zo
from zograd.cli.options import script
from zograd.cli.output import say

WEIGHTS = np.arange(1.0, 11.0) / 10


@dataclass(frozen=True)
class Case:
    """min f s.t. c_1 .. c_at_most <= 0 and the other c = 0; best: the value at the known minimum."""

    name: str
    f: Callable[[Any], Any]
    x0: Sequence[float]
    c: Callable[[Any], Any]
    at_most: int
    equal: int
    bounds: Any
    best: float

    def both(self, x: Any) -> tuple[float, Any]:
        """(value, c) of one evaluation."""
        return float(self.f(x)), np.asarray(self.c(x), dtype=float)


def hs71(x: Any) -> list[float]:
    """The constraints of problem 71."""
    return [25 - np.prod(x), x @ x - 40]


def hs100(x: Any) -> Any:
    """The value of problem 100."""
    return (
        (x[0] - 10) ** 2 + 5 * (x[1] - 12) ** 2 + x[2] ** 4 + 3 * (x[3] - 11) ** 2 + 10 * x[4] ** 6 + 7 * x[5] ** 2
        + x[6] ** 4 - 4 * x[5] * x[6] - 10 * x[5] - 8 * x[6]
    )  # fmt: skip


def hs100_rows(x: Any) -> list[float]:
    """The constraints of problem 100."""
    return [
        2 * x[0] ** 2 + 3 * x[1] ** 4 + x[2] + 4 * x[3] ** 2 + 5 * x[4] - 127,
        7 * x[0] + 3 * x[1] + 10 * x[2] ** 2 + x[3] - x[4] - 282,
        23 * x[0] + x[1] ** 2 + 6 * x[5] ** 2 - 8 * x[6] - 196,
        4 * x[0] ** 2 + x[1] ** 2 - 3 * x[0] * x[1] + 2 * x[2] ** 2 + 5 * x[5] - 11 * x[6],
    ]


PROBLEMS = [
    Case("HS6", lambda x: (1 - x[0]) ** 2, [-1.2, 1.0], lambda x: [10 * (x[1] - x[0] ** 2)], 0, 1, None, 0.0),
    Case("HS7", lambda x: np.log(1 + x[0] ** 2) - x[1], [2.0, 2.0],
         lambda x: [(1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4], 0, 1, None, -math.sqrt(3)),
    Case("HS71", lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2], [1.0, 5.0, 5.0, 1.0], hs71, 1, 1,
         [(1, 5)] * 4, 17.0140173),
    Case("HS100", hs100, [1.0, 2.0, 0.0, 4.0, 0.0, 1.0, 1.0], hs100_rows, 4, 0, None, 680.6300573),
    Case("sphere, plane", lambda x: x @ x, [2.0] * 10, lambda x: [WEIGHTS @ x - 1], 0, 1, None,
         float(1 / (WEIGHTS @ WEIGHTS))),
]  # fmt: skip
"""HS: Hock and Schittkowski 1981, by their numbers; the last one in ten variables."""


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
            progress(f"{case.name:14s} {name:13s} {calls:6d}  error {error:.1e}  violation {over.max():.1e}")
    return {"rows": table}


app = script(measure)

if __name__ == "__main__":
    app()
