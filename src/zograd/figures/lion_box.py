"""Lion in a box: weight decay w holds every coordinate below 1 / w, and the iterate solves the problem in that box.

Rows      65
Paper     Chen, Liu, Liang and Liu 2024, arXiv 2310.05898
Formula   x <- x - lr (sign(b1 m + (1 - b1) g) + w x);  H = f(x) + distance to the box |x|_inf <= 1 / w
Evidence  the solution in the box in closed form: a separable quadratic, clipped
Extent    a quadratic, gradients from evaluations along every coordinate, so without noise
Needs     nothing more
Seconds   10
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line

TARGET = np.array([3.0, -2.0, 0.4, 0.1, -5.0])
SCALE = np.array([1.0, 2.0, 1.0, 4.0, 0.5])


def f(x: np.ndarray) -> float:
    return float(0.5 * SCALE @ (x - TARGET) ** 2)


# %% The minimum of f lies outside of the box. A run for each decay; its end is compared with the clipped minimum.
def course(decay: float, steps: int, seed: int) -> tuple[np.ndarray, list[float], list[float]]:
    """(last point, largest coordinate, Lyapunov value) of a run from the corner (1.5, ...) / decay."""
    exact = zo.estimators.Coordinates(5, central=True)
    method = zo.Method(
        exact,
        zo.laws.Coordinate(),
        zo.rules.Lion(),
        lr=zo.schedules.Schedule(0.05 / decay, "cosine", steps, end=0.01),
        weight_decay=decay,
    )
    largest: list[float] = []
    lyapunov: list[float] = []

    def seen(now: Any) -> None:
        x = np.asarray(now.x)
        largest.append(float(np.abs(x).max()))
        lyapunov.append(f(x) + float(np.maximum(0, np.abs(x) - 1 / decay).sum()))

    found = zo.minimize(f, np.full(5, 1.5 / decay), method, budget=10 * steps, seed=seed, callback=seen)
    return np.asarray(found.x), largest, lyapunov


def run(seed: int = 0, quick: bool = False) -> Finding:
    steps, decays = (600, (1.0,)) if quick else (1500, (0.5, 1.0, 2.0))
    numbers: dict[str, float] = {}
    claims, lines = [], []
    for w in decays:
        x, largest, lyapunov = course(w, steps, seed)
        inside = np.clip(TARGET, -1 / w, 1 / w)
        apart = float(np.abs(x - inside).max())
        numbers |= {f"w = {w:g}: largest coordinate": largest[-1], f"w = {w:g}: distance to the solution": apart}
        lines.append(Line(f"w = {w:g}", range(1, len(largest) + 1), np.array(largest) * w))
        late = lyapunov[len(lyapunov) // 10 :: max(1, len(lyapunov) // 10)]
        claims += [
            Claim(f"w = {w:g}: the largest coordinate ends at 1 / w within 1 %", abs(largest[-1] * w - 1) < 0.01),
            Claim(f"w = {w:g}: the end is the solution in the box within 2 % of its side", apart * w < 0.02),
            Claim(f"w = {w:g}: f + distance to the box falls from tenth to tenth of the run",
                  all(b < a + 0.01 * lyapunov[0] for a, b in pairwise(late))),
        ]  # fmt: skip
    return Finding(numbers, tuple(claims), (Figure("Largest coordinate", "step", "times w", tuple(lines)),))
