"""Where zeroth order drifts among minima of equal loss: to flat ones, as a larger radius says.

Rows      26
Paper     Zhang et al. 2025, "Zeroth-order optimization finds flat minima", arXiv 2506.05454
Formula   f = (y z - 1)^2 / 2, y and z of 50 each; trace of the Hessian at a minimum is |y|^2 + |z|^2 >= 2
Evidence  the trace in closed form, and gradient descent from the same start, in NumPy
Extent    one toy problem; the drift needs a radius far above that of training, and many steps
Needs     nothing more
Seconds   58
"""

from __future__ import annotations

from typing import Any

import numpy as np

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line

HALF = 50


def f(x: np.ndarray) -> float:
    return float(0.5 * (x[:HALF] @ x[HALF:] - 1) ** 2)


def trace(x: np.ndarray) -> float:
    """Of the Hessian of f, at any point: |z|^2 + |y|^2."""
    return float(x @ x)


# %% One pair of evaluations a step, Gaussian directions as in the paper; the trace every hundredth of the run.
def course(start: np.ndarray, mu: float, lr: float, steps: int, seed: int) -> list[float]:
    method = zo.Method(zo.estimators.Central(1), zo.laws.Gaussian(), zo.rules.SGD(), lr=lr, mu=mu)
    traces, every = [trace(start)], max(1, steps // 100)

    def seen(now: Any) -> None:
        if now.nit % every == 0:
            traces.append(trace(np.asarray(now.x)))

    zo.minimize(f, start, method, budget=2 * steps, seed=seed, callback=seen)
    return traces


def descent(start: np.ndarray, lr: float, steps: int) -> list[float]:
    x, traces = start.copy(), [trace(start)]
    for step in range(1, steps + 1):
        error = x[:HALF] @ x[HALF:] - 1
        x = x - lr * error * np.r_[x[HALF:], x[:HALF]]
        if step % max(1, steps // 100) == 0:
            traces.append(trace(x))
    return traces


def run(seed: int = 0, quick: bool = False) -> Finding:
    steps, lr = (3000, 1e-3) if quick else (60_000, 1e-3)
    start = np.random.default_rng(seed).standard_normal(2 * HALF)
    courses = {f"mu = {mu:g}": course(start, mu, lr, steps, seed) for mu in (1e-6, 0.01, 0.1)}
    courses["gradient descent"] = descent(start, lr, steps)
    numbers = {f"trace at the end, {name}": traces[-1] for name, traces in courses.items()}
    numbers["trace at the start"] = trace(start)
    ends = {name: traces[-1] for name, traces in courses.items()}
    lines = [Line(name, np.linspace(0, steps, len(traces)), traces) for name, traces in courses.items()]
    claims = (
        Claim("mu = 0.1 drifts to a trace below that of mu = 0.01", ends["mu = 0.1"] < ends["mu = 0.01"]),
        Claim("mu = 0.1 ends at less than half of mu = 1e-6", ends["mu = 0.1"] < 0.5 * ends["mu = 1e-06"], True),
        Claim("mu = 1e-6 and 0.01 differ by less than 10 %: the radii of training do not show the drift",
              abs(ends["mu = 1e-06"] / ends["mu = 0.01"] - 1) < 0.1),
        Claim("no minimum has a trace below 2", min(ends.values()) > 2),
    )  # fmt: skip
    return Finding(numbers, claims, (Figure("Trace of the Hessian", "step", "|y|^2 + |z|^2", tuple(lines), log="y"),))
