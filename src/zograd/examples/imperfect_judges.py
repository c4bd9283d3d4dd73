"""Preferences with help from imperfect judges: policies that other rewards give, trusted as far as they win.

Rows      28
Paper     Huang, Li, Cai and He, ICML 2025, arXiv 2502.19255 (TPO); the rule of choice is ours
Formula   P(a beats b) = 1 / (1 + exp(q_b - q_a)), q fitted to labels, pi ~ ref exp(q / beta); each round plays, by
          a fair coin, pi or the candidate (a source's policy, or pi) of the largest win rate + 0.5 sqrt(log t / n)
Evidence  the best policy ref exp(q* / beta) in closed form, and its value
Extent    a bandit of 20 answers and exact labels of a known model; no language model is trained
Needs     nothing more
Seconds   9
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from zograd.control import UpperBound
from zograd.examples import Claim, Figure, Finding, Line

ANSWERS, BETA, LABELS = 20, 0.2, 10
Array = np.ndarray


# %% The problem: a true reward, and sources that know it in part. One of four is opposite to it.
def rewards(seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 1, ANSWERS)
    sources = [truth + noise * rng.standard_normal(ANSWERS) for noise in (0.1, 0.3, 0.6)]
    return truth, np.array([*sources, -truth])


def policy(q: Array) -> Array:
    """argmax_pi pi.q - beta KL(pi | uniform)."""
    return np.asarray(np.exp(q / BETA - logsumexp(q / BETA)))


def value(pi: Array, truth: Array) -> float:
    """pi.truth - beta KL(pi | uniform)."""
    kept = pi > 0
    return float(pi @ truth - BETA * np.sum(pi[kept] * np.log(pi[kept] * ANSWERS)))


# %% The fit: penalised likelihood of all labels so far.
def fitted(wins: Array, start: Array) -> Array:
    """q from wins[a, b], the labels that prefer a to b, with a weak normal prior."""

    def loss(q: Array) -> tuple[float, Array]:
        gap = q[:, None] - q[None, :]
        slope = wins * expit(-gap)
        total = float(np.sum(wins * np.logaddexp(0, -gap))) + 0.5 * float(q @ q)
        return total, slope.sum(0) - slope.sum(1) + q

    found: Array = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return found


def run_of(truth: Array, sources: Array, rounds: int, seed: int) -> tuple[Array, float]:
    """The gap of the fitted policy after each round, and the regret of all that was played."""
    rng, best = np.random.default_rng(seed), value(policy(truth), truth)
    wins, q = np.zeros((ANSWERS, ANSWERS)), np.zeros(ANSWERS)
    candidates = [policy(source) for source in sources]
    bandit = UpperBound(max(len(candidates) + 1, 2))
    state = bandit.initial()
    gaps, regret = [], 0.0
    for _ in range(rounds):
        own, chosen = policy(q), None
        played = own
        if candidates and rng.random() < 0.5:
            chosen = int(np.argmax(bandit.scores(state)))
            played = [*candidates, own][chosen]
        first, second = rng.choice(ANSWERS, LABELS, p=played), rng.choice(ANSWERS, LABELS, p=own)
        for a, b in zip(first, second, strict=True):
            won = rng.random() < expit(truth[a] - truth[b])
            wins[(a, b) if won else (b, a)] += 1
            if chosen is not None:
                bandit.observe(state, chosen, float(won))
        regret += LABELS * (2 * best - value(played, truth) - value(own, truth))
        q = fitted(wins, q)
        gaps.append(best - value(policy(q), truth))
    return np.array(gaps), regret


def run(seed: int = 0, quick: bool = False) -> Finding:
    rounds, runs = (25, 6) if quick else (60, 40)
    kinds = {"all four sources": slice(None), "no source": slice(0, 0), "the opposite source alone": slice(3, 4)}
    gaps: dict[str, Array] = {}
    numbers: dict[str, float] = {}
    lines = []
    for name, part in kinds.items():
        found = []
        for k in range(runs):
            truth, sources = rewards(1000 * seed + k)
            found.append(run_of(truth, sources[part], rounds, k))
        gaps[name] = np.mean([gap for gap, _ in found], axis=0)
        numbers[f"gap at the end, {name}"] = float(gaps[name][-1])
        numbers[f"regret of what was played, {name}"] = float(np.mean([regret for _, regret in found]))
        lines.append(Line(name, (LABELS * np.arange(1, rounds + 1)).tolist(), gaps[name].tolist()))
    helped, alone, misled = (gaps[name] for name in kinds)
    spent = [numbers[f"regret of what was played, {name}"] for name in kinds]
    claims = (
        Claim("with the sources the gap ends lower than without", bool(helped[-1] < alone[-1])),
        Claim("so does the cost of what was played on the way", spent[0] < spent[1]),
        Claim("the opposite source alone leaves a gap at most 1.1 times as large", bool(misled[-1] < 1.1 * alone[-1])),
    )
    figure = Figure("Gap of the fitted policy", "labels", "gap", tuple(lines), log="y")
    return Finding(numbers, claims, (figure,))
