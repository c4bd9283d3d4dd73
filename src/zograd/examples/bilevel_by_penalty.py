"""Ridge weights chosen on held-out error in one run: a bilevel problem as one saddle, from evaluations alone.

Rows      51
Paper     Kwon, Kwon, Wright and Nowak 2023, arXiv 2309.01753
Formula   min_x f(x, y*(x)), y*(x) = argmin_y g(x, y)  ->  min_{x,y} max_z f(x, y) + (g(x, y) - g(x, z)) / s, s falling
Evidence  the held-out error as a function of x in closed form: its minimum by L-BFGS (SciPy), its derivative
Extent    three logarithmic weights and 12 coefficients; the inner problem is strongly convex
Needs     bench
Seconds   32
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

import zograd as zo
from zograd.estimators import Central, Saddle
from zograd.examples import Claim, Figure, Finding, Line

GROUPS = np.repeat([0, 1, 2], 4)
PRIOR = 0.02
"""Strength of a normal prior on the logarithms x, without which the best weight of a group may be 0 or infinite."""
UNIT = 4.0
"""x is UNIT times what is searched: its slopes are small beside those of the coefficients."""
RATE = 0.006
SHARES = {1.0: 0.1, 0.3: 0.5, 0.1: 0.25, 0.03: 0.15}
"""s, and the share of the steps that it has. The rate falls with s: the curvature of the penalty is g's over s."""


# %% The problem: coefficients y fitted to training data with a ridge weight exp(x_g) a group, x judged on other data.
@dataclass(frozen=True)
class Ridge:
    features: tuple[np.ndarray, np.ndarray]
    targets: tuple[np.ndarray, np.ndarray]

    @classmethod
    def drawn(cls, seed: int) -> Ridge:
        """Group 0 carries the signal, group 1 some of it, group 2 none."""
        rng = np.random.default_rng(seed)
        truth = rng.standard_normal(12) * np.array([0.8, 0.5, 0.3])[GROUPS]
        features = rng.standard_normal((20, 12)), rng.standard_normal((200, 12))
        targets = tuple(a @ truth + 1.5 * rng.standard_normal(len(a)) for a in features)
        return cls(features, (targets[0], targets[1]))

    def f(self, x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean((self.features[1] @ y - self.targets[1]) ** 2) / 2 + PRIOR * x @ x / 2)

    def g(self, x: np.ndarray, y: np.ndarray) -> float:
        error = self.features[0] @ y - self.targets[0]
        return float(np.mean(error**2) / 2 + np.exp(x[GROUPS]) @ y**2 / 2)

    def fitted(self, x: np.ndarray, also: float = 0.0) -> np.ndarray:
        """argmin_y g(x, y) + also f(y), by a linear system."""
        parts = [(1.0, 0), (also, 1)]
        h = sum(w * self.features[i].T @ self.features[i] / len(self.features[i]) for w, i in parts)
        b = sum(w * self.features[i].T @ self.targets[i] / len(self.features[i]) for w, i in parts)
        return np.linalg.solve(h + np.diag(np.exp(x[GROUPS])), b)

    def held_out(self, x: np.ndarray) -> float:
        return self.f(x, self.fitted(x))

    def derivative(self, x: np.ndarray) -> np.ndarray:
        """d held_out / dx: df/dx - (d2g/dy dx)^T (d2g/dy2)^-1 df/dy at y*(x)."""
        y, (a, v) = self.fitted(x), self.features
        slope = v.T @ (v @ y - self.targets[1]) / len(v)
        h = a.T @ a / len(a) + np.diag(np.exp(x[GROUPS]))
        return PRIOR * x - np.bincount(GROUPS, np.exp(x[GROUPS]) * y * np.linalg.solve(h, slope))

    def penalised(self, x: np.ndarray, s: float) -> np.ndarray:
        """d/dx of min_y max_z of the saddle: df/dx + (dg/dx (x, y) - dg/dx (x, z)) / s."""
        y, z = self.fitted(x, also=s), self.fitted(x)
        return PRIOR * x + np.bincount(GROUPS, np.exp(x[GROUPS]) * (y**2 - z**2) / 2 / s)


# %% The saddle, as a function of one dictionary; a run lowers s as it goes.
def descend(problem: Ridge, steps: int, seed: int, best: float) -> tuple[list[float], list[float]]:
    """Evaluations, and the excess of the held-out error at x along the run."""
    point: dict[str, np.ndarray] = {"x": np.zeros(3), "y": np.zeros(12), "z": np.zeros(12)}
    spent, excess = [0.0], [problem.held_out(point["x"]) - best]
    for s, share in SHARES.items():

        def saddle(p: dict[str, np.ndarray], s: float = s) -> float:
            x = UNIT * p["x"]
            return problem.f(x, p["y"]) + (problem.g(x, p["y"]) - problem.g(x, p["z"])) / s

        method = zo.Method(Saddle(("z",), Central(1)), zo.laws.Rademacher(), zo.rules.SGD(), lr=RATE * s)
        loop = zo.AskTell(point, method, seed=seed)
        for k in range(round(share * steps)):
            loop.tell([saddle(p) for p in loop.ask()])
            if (k + 1) % (steps // 100) == 0:
                spent.append(spent[-1] + 2 * (steps // 100))
                excess.append(problem.held_out(UNIT * loop.x["x"]) - best)
        point = loop.x
    return spent, excess


def run(seed: int = 0, quick: bool = False) -> Finding:
    numbers: dict[str, float] = {}
    lines, shares = [], []
    for k in range(1 if quick else 3):
        problem = Ridge.drawn(seed + k)
        exact = minimize(problem.held_out, np.zeros(3), jac=problem.derivative, bounds=[(-8, 8)] * 3, method="L-BFGS-B")
        spent, excess = descend(problem, 2_400 if quick else 20_000, seed, exact.fun)
        numbers |= {f"excess at the start, problem {k}": excess[0], f"excess at the end, problem {k}": excess[-1]}
        shares.append(excess[-1] / excess[0])
        lines.append(Line(f"problem {k}", spent, np.maximum(excess, 1e-9).tolist()))

    # %% The penalty's derivative goes to the exact one with s.
    problem, errors, sizes = Ridge.drawn(seed), [], (0.3, 0.1, 0.03, 0.01)
    for x in np.random.default_rng(seed).standard_normal((20, 3)):
        truth = problem.derivative(x)
        errors.append([np.linalg.norm(problem.penalised(x, s) - truth) / np.linalg.norm(truth) for s in sizes])
    bias = np.median(errors, axis=0)
    numbers |= {f"relative error of the derivative, s = {s}": float(b) for s, b in zip(sizes, bias, strict=True)}
    claims = (
        Claim("the run removes nine tenths of the excess of the start", max(shares) < 0.1),
        Claim("it leaves at most a hundredth above the minimum that L-BFGS finds", max(shares) < 0.01, full_only=True),
        Claim("the penalty's derivative goes to the exact one, in proportion to s", bool(bias[3] < 0.06 * bias[0])),
    )
    curves = Figure("Held-out error along the run", "evaluations", "excess over the minimum", tuple(lines), log="y")
    biases = Figure("Bias of the penalty", "s", "relative error", (Line("median of 20 points", sizes, bias),), log="xy")
    return Finding(numbers, claims, (curves, biases))
