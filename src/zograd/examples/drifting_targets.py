"""Losses that drift: the last gradient as a hint of the next one pays where they move slowly, and costs under noise.

Rows      46
Paper     Chen, Tu, Zhao and Zhang 2023, arXiv 2302.04552 (SEA); Rakhlin and Sridharan 2013
Formula   y <- argmin <g_t, z> + D(z, y) / eta_t,  x <- argmin <g_t, z> + D(z, y) / eta_{t+1},
          eta_t = diameter / sqrt(1 + sum_{s < t} |g_s - g_{s-1}|^2)
Evidence  the best fixed point in closed form; both maps in NumPy; descent with its own adaptive rate as the rival
Extent    linear losses in 4 dimensions, gradients by differences along all coordinates
Needs     nothing more
Seconds   17
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import zograd as zo
from zograd.estimators import Coordinates
from zograd.examples import Claim, Figure, Finding, Line
from zograd.rules import Entropy, EuclideanMap, MirrorMap, OptimisticMirror

D = 4
Map = Callable[[np.ndarray, np.ndarray], np.ndarray]


# %% Linear losses <g_t, x>: a mean that turns slowly, and noise around it.
def losses(rounds: int, noise: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    phase = 6 * np.pi * np.arange(rounds)[:, None] / rounds + np.arange(D) * np.pi / 2
    return np.asarray(np.sin(phase) / np.sqrt(2) + noise * rng.standard_normal((rounds, D)))


# %% The two sets: the step from y along g, and the loss of the best fixed point.
def ball(y: np.ndarray, g: np.ndarray) -> np.ndarray:
    z = y - g
    return np.asarray(z / max(1.0, float(np.linalg.norm(z))))


def simplex(y: np.ndarray, g: np.ndarray) -> np.ndarray:
    z = y * np.exp(-g)
    return np.asarray(z / z.sum())


def best_in_ball(g: np.ndarray) -> float:
    return -float(np.linalg.norm(g.sum(0)))


def best_on_simplex(g: np.ndarray) -> float:
    return float(g.sum(0).min())


# %% Three players of the same losses: from values by zograd, its formula in NumPy, and descent without a hint.
def from_values(g: np.ndarray, start: np.ndarray, map: MirrorMap, diameter: float) -> np.ndarray:
    """The loss of each round; the slopes are measured by differences at the point that is played."""
    method = zo.Method(
        Coordinates(D, central=True), zo.laws.Rademacher(), OptimisticMirror(map, diameter), lr=1.0, mu=0.25
    )
    loop, paid = zo.AskTell(start, method), []
    for g_t in g:
        paid.append(float(g_t @ loop.x))
        loop.tell([float(g_t @ p) for p in loop.ask()])
    return np.array(paid)


def by_formula(g: np.ndarray, start: np.ndarray, step: Map, diameter: float) -> np.ndarray:
    x = y = start
    hint, wrong, paid = np.zeros(D), 0.0, []
    for g_t in g:
        paid.append(float(g_t @ x))
        y = step(y, diameter / np.sqrt(1 + wrong) * g_t)
        wrong += float((g_t - hint) @ (g_t - hint))
        x, hint = step(y, diameter / np.sqrt(1 + wrong) * g_t), g_t
    return np.array(paid)


def without_hint(g: np.ndarray, start: np.ndarray, step: Map, diameter: float) -> np.ndarray:
    x, seen, paid = start, 0.0, []
    for g_t in g:
        paid.append(float(g_t @ x))
        seen += float(g_t @ g_t)
        x = step(x, diameter / np.sqrt(1 + seen) * g_t)
    return np.array(paid)


def run(seed: int = 0, quick: bool = False) -> Finding:
    rounds = 150 if quick else 2500
    sets = {
        "ball": (np.zeros(D), EuclideanMap(zo.sets.L2Ball(1.0)), ball, 2.0, best_in_ball),
        "simplex": (np.full(D, 1 / D), Entropy(), simplex, float(np.sqrt(np.log(D))), best_on_simplex),
    }
    numbers, figures, apart = {}, [], 0.0
    regrets: dict[tuple[str, float], tuple[float, float]] = {}
    for name, (start, map, step, diameter, best) in sets.items():
        lines = []
        for noise in (0.0, 0.3, 1.0):
            g = losses(rounds, noise, seed)
            ours, same, rival = (
                from_values(g, start, map, diameter),
                by_formula(g, start, step, diameter),
                without_hint(g, start, step, diameter),
            )
            apart = max(apart, float(np.abs(ours - same).max()))
            regrets[name, noise] = float(ours.sum()) - best(g), float(rival.sum()) - best(g)
            numbers[f"{name}, noise {noise}: regret with the hint"] = regrets[name, noise][0]
            numbers[f"{name}, noise {noise}: regret without"] = regrets[name, noise][1]
            gained = np.cumsum(rival - ours)
            lines.append(Line(f"noise {noise}", range(1, rounds + 1), gained.tolist()))
        figures.append(Figure(f"What the hint gains in the {name}", "round", "loss saved so far", tuple(lines)))
    better = {key: ours < rival for key, (ours, rival) in regrets.items()}
    claims = (
        Claim("from values the losses are those of the formula, to 1e-8", apart < 1e-8),
        Claim("without noise the hint lowers the regret in both sets", better["ball", 0.0] and better["simplex", 0.0]),
        Claim("with noise 1 the hint costs in the ball", not better["ball", 1.0]),
    )
    return Finding(numbers, claims, tuple(figures))
