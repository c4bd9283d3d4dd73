"""Constraints of a black box: multipliers from values alone, beside solvers that are given each row.

Rows      40
Paper     the augmented Lagrangian of Hong, Na, Mahoney and Kolar 2023, arXiv 2305.18379; Hestenes 1969; Powell 1969
Formula   L = f + sum (max(0, lam + rho c)^2 - lam^2) / 2 rho for c <= 0, f + lam c + rho c^2 / 2 for c = 0;
          lam <- [lam + rho c]_+ after each minimization, rho grows where |c| stalls
Evidence  SLSQP and trust-constr of SciPy; known minima of Hock and Schittkowski
Extent    smooth problems of 2 to 31 variables; SLSQP is far cheaper on all of them
Needs     bench
Seconds   10
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

import zograd as zo
from zograd.examples import Claim, Figure, Finding, Line
from zograd.problems.constrained import PROBLEMS, Case, equal_scores


class Solved(NamedTuple):
    value: float
    violation: float
    evaluations: int


class Counted:
    """f and its constraints from one evaluation, which is counted."""

    def __init__(self, case: Case) -> None:
        self.case, self.calls = case, 0

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.calls += 1
        return self.case.both(x)

    def solved(self, x: np.ndarray) -> Solved:
        value, c = self.case.both(x)
        over = np.concatenate([np.maximum(c[: self.case.at_most], 0), np.abs(c[self.case.at_most :])])
        return Solved(value, float(over.max()), self.calls)


# %% One door for both: f returns (value, c). The augmented Lagrangian alone, without SLSQP in front of it.
def by_zograd(case: Case, budget: int) -> Solved:
    f = Counted(case)
    rows = zo.Constraints(case.at_most, case.equal)
    found = zo.minimize(f, np.array(case.x0), "lbfgs", bounds=case.bounds, constraints=rows, budget=budget)
    return f.solved(found.x)


def by_scipy(case: Case, method: str) -> Solved:
    f = Counted(case)
    kinds = ["ineq"] * case.at_most + ["eq"] * case.equal
    signs = [-1.0 if kind == "ineq" else 1.0 for kind in kinds]
    rows = [{"type": k, "fun": lambda x, i=i, s=s: s * case.c(x)[i]}
            for i, (k, s) in enumerate(zip(kinds, signs, strict=True))]  # fmt: skip
    options = {"SLSQP": {"ftol": 1e-12, "maxiter": 500}, "trust-constr": {"gtol": 1e-9, "maxiter": 3000}}[method]
    found = minimize(lambda x: f(x)[0], case.x0, method=method, bounds=case.bounds, constraints=rows, options=options)
    return f.solved(found.x)


def run(seed: int = 0, quick: bool = False) -> Finding:
    cases = PROBLEMS[:3] if quick else [*PROBLEMS, equal_scores()]
    numbers: dict[str, float] = {}
    apart, over, calls = [], [], []
    for case in cases:
        found = {"zograd": by_zograd(case, 20_000), "SLSQP": by_scipy(case, "SLSQP")}
        if not quick:
            found["trust-constr"] = by_scipy(case, "trust-constr")
        least = min(other.value for name, other in found.items() if name != "zograd")
        apart.append(abs(found["zograd"].value - least) / max(1.0, abs(least)))
        over.append(found["zograd"].violation)
        calls.append([solved.evaluations for solved in found.values()])
        numbers |= {f"{case.name}: evaluations, {name}": float(solved.evaluations) for name, solved in found.items()}
    free = minimize(equal_scores().f, equal_scores().x0).fun
    times = [c[0] / c[1] for c in calls]
    numbers |= {"largest distance from the best of SciPy, relative": max(apart), "largest violation": max(over)}
    numbers |= {
        "evaluations over those of SLSQP, least": min(times),
        "evaluations over those of SLSQP, most": max(times),
    }
    numbers |= {"equal scores: loss without the constraint": float(free)}
    claims = (
        Claim("it ends within 1e-4 of the best value of SciPy on every problem", max(apart) < 1e-4),
        Claim("with a violation of at most 1e-6", max(over) <= 1e-6),
        Claim("SLSQP needs fewer evaluations on every problem", min(times) > 1),
        Claim("on one of them ten times fewer and more", max(times) > 10, full_only=True),
    )  # fmt: skip
    count = range(1, len(cases) + 1)
    lines = tuple(Line(name, count, [c[k] for c in calls], points=True)
                  for k, name in enumerate(("zograd", "SLSQP", "trust-constr")[: len(calls[0])]))  # fmt: skip
    return Finding(numbers, claims, (Figure("Evaluations", "problem", "evaluations", lines, "y"),))
