"""Coordinates against random directions: a network of 2,410 weights at 2,000 evaluations, rates tuned for each.

Rows      61
Paper     Chen et al., ICLR 2024, arXiv 2310.02025 (DeepZero): "coordinates beat random directions"
Formula   g = sum over a sample of coordinates of (f(x + mu e_i) - f(x)) / mu e_i, against (1/n) sum_j D_j v_j
Evidence  the same problem, evaluations and tuning for each; three seeds
Extent    one network on 8 x 8 digits; the paper's networks and its sparsity are larger
Needs     bench
Seconds   58
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line
from zograd.problems.small import mlp_digits

METHODS: dict[str, Callable[[float], zo.Method]] = {
    "64 coordinates": lambda lr: zo.methods.cge(lr=lr, count=64),
    "8 coordinates": lambda lr: zo.methods.cge(lr=lr, count=8),
    "one pair of signs": lambda lr: zo.methods.zo_sgd(lr=lr, mu=5e-3),
    "8 signs, one-sided, over their spread": lambda lr: zo.methods.fzoo(lr=lr, mu=5e-3),
}
RATES = {
    "64 coordinates": (0.3, 1.0, 3.0), "8 coordinates": (0.03, 0.1, 0.3),
    "one pair of signs": (3e-3, 1e-2, 3e-2), "8 signs, one-sided, over their spread": (3e-4, 1e-3, 3e-3),
}  # fmt: skip


# %% One run on batches of 128, and the clean loss 20 times over the budget.
def course(name: str, lr: float, budget: int, seed: int) -> tuple[list[int], list[float]]:
    """Evaluations and clean values over a run on mini-batches of 128."""
    problem = mlp_digits()
    method = METHODS[name](lr)
    session = problem.begin(method.space, seed)
    run, spent, values = zo.Run(session.store, method, seed), [0], [session.start]
    while run.evaluations + run.most_evaluations <= budget and np.isfinite(values[-1]):
        run.step(session.oracle)
        if run.evaluations >= spent[-1] + budget // 20:
            spent.append(run.evaluations)
            values.append(session.judge()["value"])
    return [*spent, run.evaluations], [*values, session.judge()["value"]]


def run(seed: int = 0, quick: bool = False) -> Finding:
    budget, seeds = (300, 1) if quick else (2000, 3)
    numbers: dict[str, float] = {}
    lines = []
    for name, rates in RATES.items():
        tuned = {lr: course(name, lr, budget, seed + 100)[1][-1] for lr in (rates[1:2] if quick else rates)}
        lr = min(tuned, key=lambda r: tuned[r] if np.isfinite(tuned[r]) else np.inf)
        courses = [course(name, lr, budget, seed + s) for s in range(seeds)]
        ends = sorted(values[-1] for _, values in courses)
        numbers[f"loss at the end, {name}: median"] = float(np.median(ends))
        numbers[f"loss at the end, {name}: worst"] = ends[-1]
        numbers[f"learning rate, {name}"] = lr
        lines.append(Line(name, courses[0][0], np.median([values for _, values in courses], axis=0)))
    median = {name: numbers[f"loss at the end, {name}: median"] for name in METHODS}
    claims = (
        Claim("coordinates learn: the loss falls below that of the start", min(median["64 coordinates"], median[
            "8 coordinates"]) < lines[0].y[0]),
        Claim("a random direction is better than coordinates at 2,000 evaluations",
              min(median["one pair of signs"], median["8 signs, one-sided, over their spread"])
              < min(median["64 coordinates"], median["8 coordinates"]), full_only=True),
    )  # fmt: skip
    return Finding(numbers, claims, (Figure("Digits, 2,410 weights", "evaluations", "loss", tuple(lines)),))
