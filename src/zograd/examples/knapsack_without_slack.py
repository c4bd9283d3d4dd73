"""Combinatorial problems without slack bits: multipliers in the energy that a sampler sees, moved by the violation.

Rows      62
Paper     Cutting Slack, July 2025, arXiv 2507.12159
Formula   x ~ sampler of L(x) = f(x) + lam c(x), or with max(0, lam + rho c)^2 / 2 rho in place of lam c;
          lam <- [lam + s_k c(x)]_+, or lam = argmax min_i f(x_i) + lam c(x_i) over the samples so far
          (cutting planes); the best feasible sample is kept
Evidence  enumeration of all 2^n points and of all tours; the dual function by enumeration
Extent    the sampler is simulated annealing on at most 16 bits, no quantum device; the squared hinge is no QUBO
Needs     nothing more
Seconds   30
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import linprog

from zograd.control import Ascent, Augmented, Dual
from zograd.examples import Claim, Figure, Finding, Line
from zograd.problems.binary import BinaryProgram, independent_set, knapsack, salesman, shortest_tour

PERIOD = 5
"""Samples with the same multipliers."""


# %% The sampler: one annealing run gives one sample. It sees an energy of bits and nothing else.
def anneal(
    energy: Callable[[np.ndarray], float], bits: int, hot: float, rng: np.random.Generator, sweeps: int = 8
) -> tuple[np.ndarray, float]:
    x = rng.integers(0, 2, bits).astype(float)
    now = energy(x)
    for temperature in hot * np.geomspace(1, 0.02, sweeps):
        for i in rng.permutation(bits):
            x[i] = 1 - x[i]
            then = energy(x)
            if then <= now or rng.random() < np.exp((now - then) / temperature):
                now = then
            else:
                x[i] = 1 - x[i]
    return x, now


# %% After a period the multipliers move by the c of its sample of least energy; without a rule, by cutting planes.
def search(
    program: BinaryProgram, rule: Dual | None, samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, float, list[float]]:
    """(least feasible cost after each sample, share of feasible samples, multipliers)."""
    dual = rule or Ascent(1.0)
    state = dual.initial([program.kind] * len(program.right))
    best, feasible, cuts = [np.inf], 0, []
    hot = float(np.ptp(program.cost) + np.abs(program.cost).mean())
    for k in range(samples):
        x, low = anneal(
            lambda z: dual.lagrangian(state, program.cost @ z, program.violation(z)), program.bits, hot, rng
        )
        cost, c, ok = float(program.cost @ x), program.violation(x), bool(program.feasible(x))
        feasible += ok
        best.append(min(best[-1], cost if ok else np.inf))
        cuts.append((low, cost, c))
        if k % PERIOD == PERIOD - 1 and rule:
            rule.observe(state, min(cuts[-PERIOD:], key=lambda cut: cut[0])[2])
        elif k % PERIOD == PERIOD - 1:
            state["multipliers"] = cutting_planes(
                np.array([cut[1] for cut in cuts]), np.array([cut[2] for cut in cuts])
            )
    return np.array(best[1:]), feasible / samples, state["multipliers"]


def cutting_planes(f: np.ndarray, c: np.ndarray, most: float = 10.0) -> list[float]:
    """argmax over 0 <= lam <= most of min_i f_i + lam c_i, as a linear program in (lam, its value)."""
    goal = np.r_[np.zeros(c.shape[1]), -1.0]
    bounds = [(0, most)] * c.shape[1] + [(None, None)]
    return list(linprog(goal, np.c_[-c, np.ones(len(f))], f, bounds=bounds).x[:-1])


# %% The rival: each inequality becomes an equality with slack bits, and its square is added with a fixed weight.
def with_slack(program: BinaryProgram) -> BinaryProgram:
    bits = [int(right).bit_length() for right in program.right]
    places = np.zeros((len(bits), sum(bits)))
    for row, count in enumerate(bits):
        places[row, sum(bits[:row]) : sum(bits[: row + 1])] = 2.0 ** np.arange(count)
    cost = np.concatenate([program.cost, np.zeros(sum(bits))])
    return BinaryProgram(cost, np.hstack([program.rows, places]), program.right, "equal")


def search_with_slack(program: BinaryProgram, weight: float, samples: int, rng: np.random.Generator) -> float:
    """Least feasible cost among as many samples."""
    wide = with_slack(program)
    hot = float(np.ptp(program.cost) + 100 * weight)
    found = [
        anneal(lambda z: float(wide.cost @ z + weight * np.sum(wide.violation(z) ** 2)), wide.bits, hot, rng)[0]
        for _ in range(samples)
    ]
    return min((float(wide.cost @ z) for z in found if program.feasible(z[: program.bits])), default=0.0)


def run(seed: int = 0, quick: bool = False) -> Finding:
    samples, seeds = (150, range(seed, seed + 1)) if quick else (400, range(seed, seed + 6))
    rules: dict[str, Dual | None] = {
        "augmented Lagrangian": Augmented(rho=0.1), "dual ascent": Ascent(0.01, decay=0.05),
        "dual ascent, step x 5": Ascent(0.05, decay=0.05), "cutting planes": None,
    }  # fmt: skip
    gaps: dict[str, list[np.ndarray]] = {name: [] for name in rules}
    shares: dict[str, list[float]] = {name: [] for name in rules}
    rival: dict[float, list[float]] = {0.1: [], 0.5: [], 2.0: []}
    bounds, sets, tours = [], [], []
    for s in seeds:
        program = knapsack(s)
        least = program.optimum()
        for name, rule in rules.items():
            best, share, lam = search(program, rule, samples, np.random.default_rng([s, 1]))
            gaps[name].append(np.minimum(1 - best / least, 1.0))
            shares[name].append(share)
        bounds.append(program.dual(lam) / least)
        for weight, found in rival.items():
            found.append(1 - search_with_slack(program, weight, samples, np.random.default_rng([s, 2])) / least)
        # The same search on independent sets and on tours.
        best = search(independent_set(s), Augmented(rho=0.5), samples // 2, np.random.default_rng([s, 3]))[0]
        sets.append(best[-1] == independent_set(s).optimum())
        best = search(salesman(s), Augmented(rho=0.5), samples // 2, np.random.default_rng([s, 4]))[0]
        tours.append(abs(best[-1] - shortest_tour(salesman(s))) < 1e-9)
    last = {name: np.array(curves)[:, -1] for name, curves in gaps.items()}
    slack = {weight: float(np.mean(found)) for weight, found in rival.items()}
    numbers = {"slack bits saved, of 30": float(with_slack(program).bits - program.bits)}
    for name, ends in last.items():
        numbers[f"{name}: gap, mean"], numbers[f"{name}: gap, largest"] = float(ends.mean()), float(ends.max())
        numbers[f"{name}: share of feasible samples"] = float(np.mean(shares[name]))
    numbers |= {f"slack bits, weight {weight:g}: gap, mean": gap for weight, gap in slack.items()}
    numbers["cutting planes: dual bound / optimum, mean"] = float(np.mean(bounds))
    numbers["largest independent sets found"], numbers["shortest tours found"] = np.mean(sets), np.mean(tours)
    ours, ascent = last["augmented Lagrangian"].mean(), last["dual ascent"].mean()
    claims = (
        Claim("the dual value that cutting planes find bounds the optimum", min(bounds) >= 1 - 1e-12),
        Claim("the augmented Lagrangian comes within 2 % of the best knapsack in the mean", ours <= 0.02),
        Claim("dual ascent and cutting planes come within 2 % as well",
              max(ascent, last["cutting planes"].mean()) < 0.02, full_only=True),
        Claim("dual ascent needs its step: five times the step leaves more than ten times the gap",
              last["dual ascent, step x 5"].mean() > 10 * ascent, full_only=True),
        Claim("slack bits with the best of three weights are no better than the augmented Lagrangian, at equal samples",
              min(slack.values()) >= ours),
        Claim("every largest independent set and every shortest tour is found", all(sets) and all(tours)),
    )  # fmt: skip
    lines = tuple(Line(name, range(1, samples + 1), np.mean(curves, 0).tolist()) for name, curves in gaps.items())
    return Finding(
        numbers, claims, (Figure("Knapsacks: best feasible sample", "samples", "gap to the optimum", lines),)
    )
