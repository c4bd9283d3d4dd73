"""Errors of gradient estimates at about twelve evaluations: unbiased series against plain differences, at two radii.

Rows      4
Paper     Ma and Huang, NeurIPS 2025, arXiv 2510.19953, Figure 5
Formula   E |g - grad f|^2 / |grad f|^2 at x ~ N(0, I), d = 16; f = x^T A^T A x / 2 n, A ~ U[-1, 1]; logistic loss
Evidence  gradients in closed form
Extent    two functions of 16 variables; the best estimate of a gradient need not be the best step
Needs     nothing more
Seconds   58
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line

D, ROWS = 16, 64


# %% The two functions of the paper's figure, with their gradients.
def functions(rng: np.random.Generator) -> dict[str, tuple[Callable[..., float], Callable[..., np.ndarray]]]:
    A = rng.uniform(-1, 1, (ROWS, D))
    signs = np.sign(rng.standard_normal(ROWS))[:, None] * A
    return {
        "quadratic": (lambda x: float(((A @ x) ** 2).sum() / 2 / ROWS), lambda x: A.T @ (A @ x) / ROWS),
        "logistic": (lambda x: float(np.logaddexp(0, -signs @ x).mean()),
                     lambda x: -signs.T @ (1 / (1 + np.exp(signs @ x))) / ROWS),
    }  # fmt: skip


# %% Estimators that take 12 evaluations. P3 as printed lacks a factor of two, so it is half of the corrected one.
def ways() -> dict[str, tuple[zo.estimators.Estimator, zo.laws.Law, float]]:
    signs, gauss = zo.laws.Rademacher(), zo.laws.Gaussian()
    geometric, zipf = zo.estimators.Geometric(0.5), zo.estimators.Zipf(3.0)
    return {
        "one-sided, signs": (zo.estimators.Forward(11), signs, 1.0),
        "one-sided, Gaussian": (zo.estimators.Forward(11), gauss, 1.0),
        "central, signs": (zo.estimators.Central(6), signs, 1.0),
        "P4, Zipf": (zo.estimators.Unbiased(5, 4, zipf), signs, 1.0),
        "P4, geometric": (zo.estimators.Unbiased(4, 4, geometric), signs, 1.0),
        "P3, corrected": (zo.estimators.Unbiased(7, 3, geometric), signs, 1.0),
        "P3, as printed": (zo.estimators.Unbiased(7, 3, geometric), signs, 0.5),
    }


def run(seed: int = 0, quick: bool = False) -> Finding:
    repeats = 60 if quick else 900
    rng = np.random.default_rng(seed)
    numbers: dict[str, float] = {}
    lines, points = [], [rng.standard_normal(D) for _ in range(repeats)]
    for kind, (f, slope) in functions(rng).items():
        for mu in (1e-3, 0.5):
            for name, (estimator, law, factor) in ways().items():
                errors, along, cost = [], [], []
                for k, x in enumerate(points):
                    found = zo.gradient(f, x, estimator=estimator, law=law, mu=mu, seed=seed, step=k)
                    g, exact = factor * np.asarray(found.value), slope(x)
                    errors.append(((g - exact) ** 2).sum() / (exact @ exact))
                    along.append(g @ exact / (exact @ exact))
                    cost.append(found.evaluations)
                numbers[f"{kind}, mu = {mu:g}, {name}: error"] = float(np.mean(errors))
                numbers[f"{kind}, mu = {mu:g}, {name}: mean along the gradient"] = float(np.mean(along))
                numbers[f"evaluations, {name}"] = float(np.mean(cost))
            names = list(ways())
            shown = [numbers[f"{kind}, mu = {mu:g}, {name}: error"] for name in names]
            lines.append(Line(f"{kind}, mu = {mu:g}", range(len(names)), shown))

    def error(name: str, mu: float = 1e-3, kind: str = "quadratic") -> float:
        return numbers[f"{kind}, mu = {mu:g}, {name}: error"]

    small = [(kind, 1e-3) for kind in ("quadratic", "logistic")]
    costs = [numbers[f"evaluations, {name}"] for name in ways()]
    claims = (
        Claim("each takes 10 to 13 evaluations in the mean", all(10 <= spent <= 13 for spent in costs)),
        Claim("at mu = 1e-3 one-sided differences, which take most directions, have the least error",
              all(error("one-sided, signs", mu, kind) < min(error(n, mu, kind) for n in ("central, signs", "P4, Zipf",
                  "P4, geometric", "P3, corrected")) for kind, mu in small)),
        Claim("at mu = 1e-3 P4 and the corrected P3 have more error than central differences at equal evaluations",
              all(min(error(n, mu, k) for n in ("P4, geometric", "P3, corrected")) > error("central, signs", mu, k)
                  for k, mu in small), full_only=True),
        Claim("P3 as printed has half of the gradient as its mean: its small error is shrinkage",
              abs(numbers["quadratic, mu = 0.001, P3, as printed: mean along the gradient"] - 0.5) < 0.12),
        Claim("at mu = 0.5 central differences of the logistic loss are biased and still have less error than P4",
              error("central, signs", 0.5, "logistic") < error("P4, Zipf", 0.5, "logistic"), full_only=True),
    )  # fmt: skip
    labels = ", ".join(f"{k}: {name}" for k, name in enumerate(ways()))
    return Finding(numbers, claims, (Figure("Mean square error / |grad f|^2", labels, "", tuple(lines), log="y"),))
