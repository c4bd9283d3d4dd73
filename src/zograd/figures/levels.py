"""Unbiased estimates by a series of radii: which radii reach the bound on the variance, and two slips of the text.

Rows      4
Paper     Ma and Huang, NeurIPS 2025, arXiv 2510.19953
Formula   p_n = (mu_n - mu_(n+1)) / mu_1;  rho = sum_n (mu_n - mu_(n+1))^2 / p_n >= mu_1^2, equal for these p_n
Evidence  Cauchy and Schwarz; moments of P3 and P4 of a linear function in closed form
Extent    the estimates as sums of two-point differences; no training
Needs     nothing more
Seconds   25
"""

from __future__ import annotations

import numpy as np

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line


def rho(radii: np.ndarray, p: np.ndarray) -> float:
    """sum_n (mu_n - mu_(n+1))^2 / p_n: what the variance of the telescoping series grows with."""
    return float(np.sum(-np.diff(radii) * -np.diff(radii) / p))


# %% Radii mu_1 > mu_2 > ... and probabilities of their levels: the ones of the paper, others, and others again.
def families(levels: int, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    n = np.arange(1, levels + 2)
    geometric, zipf = 0.5 ** (n - 1.0), np.array([zo.estimators.Zipf(3.0).tail(int(k)) for k in n])
    found = {}
    for name, radii in (("geometric", geometric), ("Zipf", zipf)):
        exact = -np.diff(radii) / radii[0]
        found[name] = radii, exact
        spoilt = exact * np.exp(0.5 * rng.standard_normal(levels))
        found[f"{name}, other probabilities"] = radii, spoilt / spoilt.sum() * exact.sum()
    return found


# %% Estimates of a linear function a x at 0: Central, P4, and P3 as printed and corrected by its factor of two.
def estimates(draws: int, d: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.standard_normal(d) / np.sqrt(d)
    ways = {
        "central": zo.estimators.Central(1),
        "P4, geometric": zo.estimators.Unbiased(1, 4, zo.estimators.Geometric(0.5)),
        "P4, Zipf": zo.estimators.Unbiased(1, 4, zo.estimators.Zipf(3.0)),
        "P3, corrected": zo.estimators.Unbiased(1, 3, zo.estimators.Geometric(0.5)),
    }
    found = {}
    for name, estimator in ways.items():
        rows = [
            zo.gradient(lambda x: float(a @ x), np.zeros(d), estimator=estimator, mu=0.1, seed=seed, step=k).value
            for k in range(draws)
        ]
        found[name] = np.array(rows)
    found["P3, as printed"] = found["P3, corrected"] / 2
    return {name: g for name, g in found.items()} | {"slope": a[None]}


def run(seed: int = 0, quick: bool = False) -> Finding:
    draws, d, levels = (400, 8, 20) if quick else (6000, 8, 40)
    rng = np.random.default_rng(seed)
    numbers: dict[str, float] = {}
    excess: dict[str, float] = {}
    for name, (radii, p) in families(levels, rng).items():
        covered = (radii[0] - radii[-1]) / radii[0]  # the levels that are there
        excess[name] = rho(radii, p) / (radii[0] ** 2 * covered) - 1
        numbers[f"rho / mu_1^2 - 1, {name}"] = excess[name]
    found = estimates(draws, d, seed)
    a = found.pop("slope")[0]
    share, error = {}, {}
    for name, g in found.items():
        along = g @ a / (a @ a)
        share[name], error[name] = float(along.mean()), float(along.std() / np.sqrt(draws))
        numbers[f"mean along the slope, {name}"] = share[name]
        numbers[f"mean square error / |a|^2, {name}"] = float(((g - a) ** 2).sum(1).mean() / (a @ a))
    names = list(found)
    line = Line("mean square error", range(len(names)), [numbers[f"mean square error / |a|^2, {n}"] for n in names])
    claims = (
        Claim("with p_n = (mu_n - mu_(n+1)) / mu_1, rho = mu_1^2 to 1e-12: the bound is reached",
              all(abs(excess[name]) < 1e-12 for name in ("geometric", "Zipf"))),
        Claim("with other probabilities rho is larger",
              all(value > 1e-3 for name, value in excess.items() if "other" in name)),
        Claim("P4 and the corrected P3 are unbiased within 5 standard errors",
              all(abs(share[name] - 1) < 5 * error[name] for name in names if name != "P3, as printed")),
        Claim("P3 as printed has half of the slope as its mean: a factor of two is missing",
              abs(share["P3, as printed"] - 0.5) < 5 * error["P3, as printed"]),
    )  # fmt: skip
    labels = ", ".join(f"{k}: {name}" for k, name in enumerate(names))
    return Finding(numbers, claims, (Figure("Error of an estimate of a linear function", labels, "/ |a|^2", (line,)),))
