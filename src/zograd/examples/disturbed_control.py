"""A pole on a cart under disturbances: policies searched by ranks and by values, with common random numbers.

Rows      11
Paper     Robust Gymnasium, ICLR 2025, arXiv 2502.19652 (kinds of disturbances); the problem is CartPole
Formula   f(w) = -steps of the policy "push right where w . state > 0"; 8 policies a step meet the same noise
Evidence  the equations of CartPole-v1 of gymnasium, step for step; mean steps on fresh episodes
Extent    linear policies of 4 numbers; disturbances of observation, action, return and pole, random and not adversarial
Needs     nothing more
Seconds   30
"""

from __future__ import annotations

from typing import Any

import numpy as np

import zograd as zo
from zograd.examples import Claim, Figure, Finding, Line
from zograd.problems.control import Disturbance, pole_returns

KINDS = {
    "none": Disturbance(),
    "observation": Disturbance(observation=0.1),
    "action": Disturbance(flipped=0.2),
    "return": Disturbance(broken=0.15),
    "pole": Disturbance(pole=0.3),
    "all": Disturbance(0.1, 0.2, 0.15, 0.3),
}
METHODS: dict[str, zo.Method[Any]] = {
    "ranks": zo.methods.rank(lr=0.3, mu=0.3, n=8),
    "values": zo.methods.zo_sgd(lr=1e-3, mu=0.3, n=4),
    "values by their spread": zo.methods.fzoo(lr=0.3, mu=0.3, n=8),
}


# %% A search: all policies of a step meet the same start, noise and flips, those of the step's number.
def searched(method: zo.Method[Any], disturbance: Disturbance, steps: int, seed: int) -> np.ndarray:
    start = 0.1 * np.random.default_rng(seed).standard_normal(4)
    loop = zo.AskTell(start, method, seed=seed)
    for step in range(steps):
        loop.tell([-float(f) for f in pole_returns(loop.ask(), 10_000 * seed + step, disturbance)])
    return np.asarray(loop.x)


def judged(policies: np.ndarray, disturbance: Disturbance, episodes: int) -> float:
    """Median over policies of their mean steps in fresh episodes. A broken return says nothing, so none is broken."""
    same = Disturbance(disturbance.observation, disturbance.flipped, 0.0, disturbance.pole)
    return float(np.median(np.mean([pole_returns(policies, 10**6 + k, same) for k in range(episodes)], axis=0)))


def run(seed: int = 0, quick: bool = False) -> Finding:
    kinds = ("none", "return") if quick else tuple(KINDS)
    steps, runs, episodes = (25, 1, 6) if quick else (25, 5, 12)
    found: dict[tuple[str, str], float] = {}
    for kind in kinds:
        for name, method in METHODS.items():
            ends = [searched(method, KINDS[kind], steps, 100 * seed + k) for k in range(runs)]
            found[kind, name] = judged(np.array(ends), KINDS[kind], episodes)
    numbers = {f"median steps, {kind} disturbed, {name}": value for (kind, name), value in found.items()}

    # %% Strength: one kind, from nothing to twice its setting, for a policy that was searched without it.
    policy = searched(METHODS["ranks"], KINDS["none"], steps, seed)
    strengths = (0.0, 0.1, 0.2, 0.4)
    lines = (
        Line(
            "noise of observation", strengths, [judged(policy, Disturbance(observation=s), episodes) for s in strengths]
        ),
        Line(
            "share of flipped actions", strengths, [judged(policy, Disturbance(flipped=s), episodes) for s in strengths]
        ),
    )
    claims = (
        Claim("undisturbed, ranks find policies that stay up for most of the time", found["none", "ranks"] > 150),
        Claim("with broken returns ranks end above values", found["return", "ranks"] > found["return", "values"]),
        Claim("under all disturbances too", quick or found["all", "ranks"] > found["all", "values"], full_only=True),
        Claim("at the largest strength the policy falls earlier", all(line.y[-1] < line.y[0] for line in lines)),
    )  # fmt: skip
    figure = Figure("A policy under stronger disturbances", "strength", "steps", lines)
    return Finding(numbers, claims, (figure,))
