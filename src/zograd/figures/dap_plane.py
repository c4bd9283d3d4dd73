"""Directions in the plane: what aligned perturbations gain along a large slope, and what signs gain as well.

Rows      3
Paper     Ma and Huang, ICLR 2025, arXiv 2510.19975, Figures 1 and 2
Formula   f = x_1^2 + x_2^2 at (0.1, 1); g = (f(x + mu v) - f(x - mu v)) / (2 mu) v, mu = 1e-3
Evidence  the squared error in closed form: (d - 1) |grad f|^2 = 4.04 for each law of fixed norm
Extent    two dimensions and one function; nothing follows for training
Needs     nothing more
Seconds   12
"""

from __future__ import annotations

import numpy as np
import torch

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line

POINT, SLOPES, MU = (0.1, 1.0), np.array([0.2, 2.0]), 1e-3


def clouds(draws: int, seed: int) -> dict[str, np.ndarray]:
    """(draws, 2) estimates of one pair of evaluations each; DAP with a pilot takes 8 evaluations an estimate."""
    central, sphere = zo.estimators.Central(1), zo.laws.Sphere()
    ways = {
        "sphere": (central, sphere),
        "Gaussian": (central, zo.laws.Gaussian()),
        "signs": (central, zo.laws.Rademacher()),
        "DAP, exact guide": (zo.estimators.Aligned(1, "user", central=True), sphere),
        "DAP, guide from half of 8": (zo.estimators.Aligned(4, "pilot", central=True), sphere),
    }
    found = {}
    for name, (estimator, law) in ways.items():
        x = torch.tensor(POINT, dtype=torch.float64)
        store = zo.Store({"x": x})
        run = zo.Run(store, zo.Method(estimator, law, zo.rules.SGD(), lr=0.0, mu=MU), seed)
        if "guide" in estimator.slots:
            store.leaves[0].slots["guide"].copy_(torch.from_numpy(SLOPES / np.linalg.norm(SLOPES)))
        rows = []
        for _ in range(draws):
            record = run.step(zo.oracles.sequential(lambda x=x: float((x**2).sum())))
            rows.append(np.concatenate([block.v[0].numpy().copy() for block in store.blocks(record.vector)]))
        found[name] = np.array(rows)
    return found


# %% Two dimensions: (d - 1) |g|^2 is the whole error of each, and the laws differ in where it lies.
def run(seed: int = 0, quick: bool = False) -> Finding:
    draws = 300 if quick else 2000
    found = clouds(draws, seed)
    errors = {name: ((cloud - SLOPES) ** 2).mean(0) for name, cloud in found.items()}
    numbers: dict[str, float] = {}
    for name, (small, large) in errors.items():
        numbers |= {
            f"error of the small slope, {name}": float(small),
            f"error of the large slope, {name}": float(large),
        }
    exact = float(SLOPES @ SLOPES)
    total = {name: float(error.sum()) for name, error in errors.items()}
    shown = min(draws, 300)
    lines = [Line(name, found[name][:shown, 0], found[name][:shown, 1], points=True)
             for name in ("sphere", "DAP, exact guide", "signs")]  # fmt: skip
    bars = [Line(name, (1, 2), error, points=False) for name, error in errors.items()]
    claims = (
        Claim("sphere, signs and DAP with an exact guide have the same error, (d - 1) |g|^2 = 4.04, within 15 %",
              all(abs(total[name] / exact - 1) < 0.15 for name in ("sphere", "signs", "DAP, exact guide"))),
        Claim("DAP with an exact guide is more accurate along the large slope than the sphere, by a factor of 10",
              10 * errors["DAP, exact guide"][1] < errors["sphere"][1]),
        Claim("so are signs, without a guide: in this plane DAP has the error of random signs",
              np.allclose(errors["signs"], errors["DAP, exact guide"], atol=0.4)),
        Claim("the Gaussian has more error than the laws of fixed norm", total["Gaussian"] > 1.3 * exact, True),
    )  # fmt: skip
    figures = (
        Figure("Estimates of the slopes (0.2, 2)", "small slope", "large slope", tuple(lines), equal=True),
        Figure("Squared error", "1: small slope, 2: large slope", "mean square", tuple(bars), log="y"),
    )
    return Finding(numbers, claims, figures)
