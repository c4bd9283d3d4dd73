"""The variance of a direction: every law with E v v^T = I between the bounds, and who reaches the lower one.

Rows      3
Paper     Ma and Huang, ICLR 2025, arXiv 2510.19975, Theorem 3.1
Formula   d |a|^2 <= E (v^T a)^2 |v|^2 <= d |a|^2 + |a|^2 / 2 (rho + sqrt(rho^2 + 4 (d - 1) rho)),  rho = Var |v|^2
Evidence  closed forms: d |a|^2 for a fixed norm, (d + 2) |a|^2 for Gaussian directions
Extent    the law of one direction; several directions of a step may be dependent
Needs     nothing more
Seconds   30
"""

from __future__ import annotations

import numpy as np

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line


def directions(law: zo.laws.Law, d: int, draws: int, seed: int) -> np.ndarray:
    """(draws, d): the direction that a linear function of slope a measures, v = estimate of `Central(1)` over v^T a."""
    a = np.zeros(d)
    a[0] = 1.0  # D = v_1, and the estimate is v_1 v
    rows = []
    for step in range(draws):
        g = zo.gradient(lambda x: float(x[0]), np.zeros(d), law=law, mu=1.0, seed=seed, step=step).value
        rows.append(g)
    return np.array(rows)


# %% The estimate of a linear function with slope a = e_1 is (v^T a) v: its mean is a, its mean square the bound's.
def run(seed: int = 0, quick: bool = False) -> Finding:
    sizes, draws = ((16,), 1500) if quick else ((16, 64), 12_000)
    laws = {
        "signs": zo.laws.Rademacher(), "sphere": zo.laws.Sphere(), "coordinate": zo.laws.Coordinate(),
        "rank one": zo.laws.RankOne(), "Gaussian": zo.laws.Gaussian(),
    }  # fmt: skip
    numbers: dict[str, float] = {}
    claims, lines = [], []
    for d in sizes:
        squares = {}
        for name, law in laws.items():
            g = directions(law, d, draws, seed)
            squares[name] = float((g**2).sum(1).mean())
            error = float((g**2).sum(1).std() / np.sqrt(draws))
            numbers[f"d = {d}: mean square / |a|^2, {name}"] = squares[name]
            numbers[f"d = {d}: its standard error, {name}"] = error
            mean = np.abs(g.mean(0) - np.eye(d)[0]).max()
            claims.append(Claim(f"d = {d}, {name}: the mean of the estimate is the slope within 5 standard errors",
                                bool(mean < 5 * g.std(0).max() / np.sqrt(draws))))  # fmt: skip
        fixed = ("signs", "sphere", "rank one")
        rho = 2.0 * d  # Gaussian: the variance of |v|^2
        upper = d + (rho + np.sqrt(rho**2 + 4 * (d - 1) * rho)) / 2
        numbers[f"d = {d}: upper bound of the Gaussian"] = float(upper)
        slack = 4 * max(numbers[f"d = {d}: its standard error, {name}"] for name in laws)
        claims += [
            Claim(f"d = {d}: laws of fixed norm reach the lower bound d within 4 standard errors",
                  all(abs(squares[name] - d) < max(slack, 0.015 * d) for name in fixed)),
            Claim(f"d = {d}: the Gaussian lies at d + 2, between the bounds",
                  abs(squares["Gaussian"] - d - 2) < slack and squares["Gaussian"] < upper),
        ]  # fmt: skip
        lines.append(Line(f"d = {d}", range(len(laws)), [squares[name] / d for name in laws]))
    labels = ", ".join(f"{k}: {name}" for k, name in enumerate(laws))
    return Finding(numbers, tuple(claims), (Figure("Mean square over its lower bound", labels, "E / d", tuple(lines)),))
