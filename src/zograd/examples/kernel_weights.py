"""Kernels learned by four agents: each keeps its data, minimizes from values alone, and sends eight bits a weight.

Rows      50
Paper     arXiv 2309.08201 (SLIM-KL)
Formula   agent j: min over theta >= 0 of NLL_j + y_j (theta - z) + r/2 |theta - z|^2 by zo.minimize; z = mean of the
          rounded theta_j + y_j / r, at least 0; y_j <- y_j + r (theta_j - z); r grows by 1.2 a round
Evidence  L-BFGS-B with analytic gradients on the sum of the likelihoods; scikit-learn's Gaussian process
Extent    agents in one process, data drawn from the model; real are the rounded messages and the likelihood
Needs     bench
Seconds   40
"""

from __future__ import annotations

from typing import Any

import numpy as np

import zograd as zo
from zograd.examples import Claim, Figure, Finding, Line
from zograd.problems.kernel_weights import KernelWeights

BITS, START, GROWTH = 8, 0.03, 1.2


# %% A message: the change since the last one, rounded up or down at random so that its mean is right.
def rounded(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiples of max |x| / 127; E rounded(x) = x. It costs 8 bits an element and 32 for the unit."""
    unit = np.abs(x).max() / (2 ** (BITS - 1) - 1)
    if unit == 0:
        return x
    low = np.floor(x / unit)
    return (low + (rng.random(x.shape) < x / unit - low)) * unit


# %% Consensus: the agents' own minimizations, the mean of their messages, and the multipliers that make them agree.
def local(x: np.ndarray, problem: KernelWeights, j: int, y: np.ndarray, r: float, z: np.ndarray) -> float:
    """What agent j minimizes."""
    return problem.value(x, j) + float(y @ (x - z)) + r / 2 * float((x - z) @ (x - z))


def agree(problem: KernelWeights, rounds: int, budget: int, seed: int, send: bool = True) -> dict[str, Any]:
    """The course of the total value and of the residual, the mean, evaluations and bits."""
    rng = np.random.default_rng(seed)
    z = np.full(problem.kernels, 0.1)
    theta = [z.copy() for _ in range(problem.agents)]
    y = [np.zeros_like(z) for _ in theta]
    heard = [z.copy() for _ in theta]
    values, residuals, spent = [problem.total(z)], [np.nan], 0
    for k in range(rounds):
        r = START * GROWTH**k
        for j in range(problem.agents):
            found = zo.minimize(
                local,
                theta[j],
                args=(problem, j, y[j], r, z),
                method="lbfgs",
                bounds=(0, None),
                budget=budget,
                seed=seed + k,
            )
            theta[j], spent = np.asarray(found.x), spent + found.nfev
            change = theta[j] + y[j] / r - heard[j]
            heard[j] = heard[j] + (rounded(change, rng) if send else change)
        z = np.maximum(0, np.mean(heard, axis=0))
        y = [y[j] + r * (theta[j] - z) for j in range(problem.agents)]
        values.append(problem.total(z))
        residuals.append(max(float(np.abs(t - z).max()) for t in theta) / z.max())
    bits = rounds * problem.agents * (BITS * problem.kernels + 32 if send else 64 * problem.kernels)
    return {"values": values, "residuals": residuals, "z": z, "evaluations": spent, "bits": bits}


def support(theta: np.ndarray, share: float = 0.95) -> list[int]:
    """The kernels that hold this share of the weight, largest first."""
    order = np.argsort(-theta)
    return sorted(order[: int(np.searchsorted(np.cumsum(theta[order]), share * theta.sum())) + 1].tolist())


# %% A Gaussian process of scikit-learn on all data, which fits a period of its own, for the error beside.
def by_scikit(problem: KernelWeights) -> float:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ExpSineSquared, WhiteKernel

    t, y = (np.concatenate([share[k] for share in problem.shares]) for k in (0, 1))
    kernel = 1.0 * RBF(2.0) * ExpSineSquared(0.8, 2.0) + WhiteKernel(0.1)
    fitted = GaussianProcessRegressor(kernel, random_state=0).fit(t[:, None], y)
    at, wanted = problem.held_out
    return float(np.sqrt(np.mean((fitted.predict(at[:, None]) - wanted) ** 2)))


def run(seed: int = 0, quick: bool = False) -> Finding:
    problem = KernelWeights(80, 2, 6, seed=seed) if quick else KernelWeights(seed=seed)
    rounds, budget = (12, 100) if quick else (45, 300)
    found, exact = agree(problem, rounds, budget, seed), problem.best
    z, least = found["z"], problem.total(exact)
    gap = problem.total(z) / least - 1
    numbers = {
        "NLL of a point, consensus": problem.total(z), "NLL of a point, L-BFGS with gradients": least,
        "NLL at the start": found["values"][0], "relative gap": gap,
        "consensus residual / largest weight": found["residuals"][-1],
        "evaluations of likelihoods": found["evaluations"],
        "bits sent": found["bits"], "bits as float64": rounds * problem.agents * 64 * problem.kernels,
        "held-out error, consensus": problem.error(z), "held-out error, L-BFGS with gradients": problem.error(exact),
        "held-out error, the mean": float(np.std(problem.held_out[1])),
    }  # fmt: skip
    if not quick:
        numbers["held-out error, scikit-learn on all data"] = by_scikit(problem)
    lines = (Line("consensus", range(rounds + 1), np.array(found["values"]) - least + 1e-6),)
    apart = (Line("largest |theta_j - z|", range(1, rounds + 1), found["residuals"][1:]),)
    claims = (
        Claim("the likelihood is that of L-BFGS with analytic gradients within 1 %", abs(gap) < 0.01, full_only=True),
        Claim("the kernels that hold 95 % of the weight are the same", support(z) == support(exact), full_only=True),
        Claim("the agents agree to 2e-3 of the largest weight", found["residuals"][-1] < 2e-3, full_only=True),
        Claim("it falls below that of the start by more than half of what there is to gain",
              found["values"][0] - problem.total(z) > 0.5 * (found["values"][0] - least)),
        Claim("messages take less than a quarter of float64", found["bits"] < 0.25 * numbers["bits as float64"]),
        Claim("held-out error within 5 % of that with gradients",
              numbers["held-out error, consensus"] < 1.05 * numbers["held-out error, L-BFGS with gradients"]),
    )  # fmt: skip
    figures = (
        Figure("Likelihood above the least one", "round", "nats a point", lines, log="y"),
        Figure("Disagreement", "round", "relative to the largest weight", apart, log="y"),
    )
    return Finding(numbers, claims, figures)
