"""A solver that learns its setting from its own cost: a bandit over relaxation parameters, then over learning rates.

Rows      44
Paper     Khodak, Chow, Balcan and Talwalkar 2024, arXiv 2310.02246
Formula   p_a = 4 (eta (L_a - z))^-2 with sum p = 1, eta = 2 / sqrt(t), L_a += (iterations - 1) / p_a;
          with the shift c of a system: cubic Chebyshev fits y_a(c) of the losses, p_a = 1 / (K + gamma (y_a - y_b))
Evidence  every (system, omega) pair is solved by successive over-relaxation, so the best omega in hindsight is known
Extent    240 solves on one 10 x 10 grid are run once and looked up; no other solver or preconditioner is tuned
Needs     bench
Seconds   30
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

import zograd as zo
from zograd.examples import Claim, Figure, Finding, Line
from zograd.problems.problem import Problem
from zograd.problems.small import method_problem
from zograd.problems.solvers import Relaxation, relaxation


# %% Each round brings a system with a random shift. Without context one bandit chooses omega for all of them.
def without_context(table: Relaxation, rounds: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    rule = zo.control.TsallisINF(len(table.omegas), least=1.0)
    state, defect = rule.initial(), 0.0
    paid: list[int] = []
    for system in rng.integers(0, len(table.shifts), rounds):
        p = rule.probabilities(state)
        defect = max(defect, abs(p.sum() - 1))
        arm = int(rng.choice(len(p), p=p))
        paid.append(int(table.iterations[system, arm]))
        rule.observe(state, arm, paid[-1])
    return np.array(paid), defect


# %% With the shift as context, a regression for each omega predicts its iterations, and gaps of predictions decide.
def with_context(table: Relaxation, rounds: int, rng: np.random.Generator, gamma: float = 1000.0) -> np.ndarray:
    arms = len(table.omegas)
    low, high = table.shifts[0], table.shifts[-1]
    basis = np.polynomial.chebyshev.chebvander(2 * (table.shifts - low) / (high - low) - 1, 3)
    gram, moment, fits = np.tile(np.eye(4), (arms, 1, 1)), np.zeros((arms, 4)), np.zeros((arms, 4))
    paid: list[int] = []
    for t, system in enumerate(rng.integers(0, len(table.shifts), rounds)):
        features, scale = basis[system], max(np.mean(paid) if paid else 1.0, 1.0)
        p = zo.control.InverseGap(gamma * math.sqrt((t + 1) / rounds)).probabilities(fits @ features / scale)
        arm = int(rng.choice(arms, p=p))
        paid.append(int(table.iterations[system, arm]))
        gram[arm] += np.outer(features, features)
        moment[arm] += paid[-1] * features
        fits[arm] = np.linalg.solve(gram[arm], moment[arm])
    return np.array(paid)


# %% The same bandit chooses the learning rate of `zo_sgd`: a round is 30 evaluations from the best point so far.
def tuned_descent(
    problem: Problem, rates: list[float], goal: float, seed: int, round_of: int = 30, most: int = 40_000
) -> int:
    rng, rule = np.random.default_rng(seed), zo.control.TsallisINF(len(rates))
    state, x, f, spent, fastest = rule.initial(), problem.x0, problem.value(problem.x0), 1, 0.0
    while f > goal and spent < most:
        arm = int(rng.choice(len(rates), p=rule.probabilities(state)))
        run = descend(problem, x, rates[arm], round_of, goal, 10_000 * seed + spent)
        spent += run.nfev
        progress = math.log(f / run.fun) if run.fun < f else 0.0
        fastest = max(0.95 * fastest, progress)
        rule.observe(state, arm, 1 - progress / fastest if fastest > 0 else 1.0)
        if run.fun < f:
            x, f = run.x, run.fun
    return spent


def descend(problem: Problem, x: np.ndarray, rate: float, budget: int, goal: float, seed: int) -> zo.Result:
    return zo.minimize(problem.value, x, "zo_sgd", options={"lr": rate}, budget=budget, target=goal, seed=seed)


def mean_evaluations(problem: Problem, rate: float, goal: float, seeds: Iterable[int], most: int) -> float:
    runs = [descend(problem, problem.x0, rate, most, goal, s) for s in seeds]
    return float(np.mean([r.nfev if r.fun <= goal else np.inf for r in runs]))


def running(paid: np.ndarray) -> np.ndarray:
    return np.cumsum(paid) / np.arange(1, len(paid) + 1)


def run(seed: int = 0, quick: bool = False) -> Finding:
    table = relaxation()
    rounds = 1500 if quick else 5000
    rng = np.random.default_rng(seed)
    best = table.iterations.mean(0).min()
    plain, defect = without_context(table, rounds, rng)
    contextual = with_context(table, rounds, rng)
    shares = {
        "bandit": plain.mean() / best,
        "bandit with context": contextual.mean() / best,
        "best omega of each system": table.iterations.min(1).mean() / best,
        "uniform draws": table.iterations.mean() / best,
        "omega = 1": table.iterations[:, 0].mean() / best,
    }
    # %% Learning rates: evaluations until f is below the goal, at each fixed rate and under the bandit.
    problem, rates, goal = method_problem("quadratic-100"), np.geomspace(1e-3, 1, 7).tolist(), 0.6 if quick else 0.05
    runs, most = 1 if quick else 4, 1000 if quick else 8000
    fixed = [mean_evaluations(problem, rate, goal, range(seed, seed + runs), most) for rate in rates]
    tuned = [tuned_descent(problem, rates, goal, s) for s in range(seed, seed + 2 * runs)]
    ratio = float(np.mean(tuned)) / min(fixed)
    lines = (
        Line("bandit", range(1, rounds + 1), running(plain) / best),
        Line("bandit with context", range(1, rounds + 1), running(contextual) / best),
        Line("best omega of each system", (1, rounds), (shares["best omega of each system"],) * 2),
    )
    return Finding(
        numbers={f"iterations over those of the best omega: {name}": float(v) for name, v in shares.items()}
        | {
            "largest |sum p - 1|": defect,
            "evaluations at the best fixed learning rate, mean": min(fixed),
            "evaluations under the bandit, over those": ratio,
            "evaluations under the bandit, least": float(min(tuned)),
            "evaluations under the bandit, most": float(max(tuned)),
            "fixed learning rates that reach the goal, of 7": float(np.isfinite(fixed).sum()),
        },
        figures=(Figure("Mean iterations so far, over those of the best fixed omega", "systems", "ratio", lines),),
        claims=(
            Claim("probabilities sum to 1 within 1e-12", defect < 1e-12),
            Claim(
                "the bandit needs at most two thirds of the iterations of uniform draws",
                shares["bandit"] < shares["uniform draws"] / 1.5,
            ),
            Claim("the bandit is within 15 % of the best omega in hindsight", shares["bandit"] <= 1.15, full_only=True),
            Claim(
                "with the shift as context it beats every fixed omega by 10 %",
                shares["bandit with context"] <= 0.90,
                full_only=True,
            ),
            Claim("at most three of the seven fixed learning rates reach the goal", np.isfinite(fixed).sum() <= 3),
            Claim(
                "the bandit pays more evaluations than the best fixed rate, which nobody knows in advance, and at most "
                "1.75 times as many (means of 4 and of 8 seeds)",
                1 < ratio <= 1.75,
                full_only=True,
            ),
        ),
    )
