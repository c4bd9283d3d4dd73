"""Attack steps safeguarded by a poll: the sign of a slope where it helps, a direct search where it does not.

Rows      66
Paper     arXiv 2510.01461 (directional attacks with constrained direct search); details are ours
Formula   x+ = clip(x + a sign(s)), accepted if f(x+) > f + 1e-4 a^2, else x +- r q for the rows q of an orthogonal Q,
          random or I in turn, until one is better by 1e-4 r^2; each of a and r doubles on success, else halves
Evidence  the same search without attacks, at equal evaluations; the projected slope by automatic differentiation
Extent    random networks 20-50-8 in a box; the slope of the white box is not counted as an evaluation
Needs     nothing more
Seconds   8
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

import zograd as zo
from zograd.estimators import Central
from zograd.examples import Claim, Figure, Finding, Line

D, OUT, MARKS = 20, 8, (200, 500, 2000)
Array = np.ndarray


# %% The goal: outputs of a network near a target that it can reach, from the corner region of a box; f = -|out - t|^2.
class Goal:
    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.w1, self.w2 = rng.standard_normal((50, D)) / 2, rng.standard_normal((OUT, 50)) / 2
        self.target = self.outputs(rng.uniform(-1, 1, D))
        self.start = rng.uniform(-1, 1, D)

    def outputs(self, x: Array) -> Array:
        return np.asarray(self.w2 @ np.tanh(self.w1 @ x))

    def value(self, x: Array) -> float:
        return -float(np.sum((self.outputs(x) - self.target) ** 2))

    def slope(self, x: Array) -> Array:
        """J^T grad f, by automatic differentiation of the network."""
        z = torch.from_numpy(x).requires_grad_()
        out = torch.from_numpy(self.w2) @ torch.tanh(torch.from_numpy(self.w1) @ z)
        (-(out - torch.from_numpy(self.target)).square().sum()).backward()
        assert z.grad is not None
        return np.asarray(z.grad.numpy())


Slope = Callable[[Callable[[Array], float], Array, int], Array]


# %% The search. `attack` is handed f, which counts, the point and the number of the step; None only polls.
def search(goal: Goal, attack: Slope | None, budget: int, seed: int) -> tuple[list[float], list[float], Array]:
    """The best value after each evaluation, the radius after each step, and the last point."""
    rng, best, radii = np.random.default_rng(seed), list[float](), list[float]()

    def f(x: Array) -> float:
        found = goal.value(x)
        best.append(max(found, best[-1] if best else -np.inf))
        return found

    x, r, reach, step = goal.start, 0.5, 0.1, 0
    here = f(x)
    while len(best) < budget and r > 1e-9:
        step += 1
        if attack is not None:
            at = np.clip(x + reach * np.sign(attack(f, x, step)), -1, 1)
            found = f(at)
            good = found > here + 1e-4 * reach * reach
            reach = min(2 * reach, 1.0) if good else reach / 2
            if good:
                x, here = at, found
                continue
        moved, polled = False, np.linalg.qr(rng.standard_normal((D, D)))[0] if step % 2 else np.eye(D)
        for q in (side * q for q in polled for side in (1.0, -1.0)):
            if len(best) >= budget:
                break
            at = np.clip(x + r * q, -1, 1)
            found = f(at)
            if found > here + 1e-4 * r * r:
                x, here, moved = at, found, True
                break
        r = min(2 * r, 1.0) if moved else r / 2
        radii.append(r)
    return best, radii, x


def white(goal: Goal) -> Slope:
    return lambda f, x, step: goal.slope(x)


def measured(f: Callable[[Array], float], x: Array, step: int) -> Array:
    """From 4 pairs of evaluations, which are counted, around a point that is 2e-3 inside of the box."""
    return np.asarray(zo.gradient(f, np.clip(x, -0.998, 0.998), estimator=Central(4), mu=1e-3, step=step).value)


def stationarity(goal: Goal, x: Array) -> float:
    """|P(x + slope) - x|, P the projection onto the box: 0 where no direction of the box ascends."""
    return float(np.linalg.norm(np.clip(x + goal.slope(x), -1, 1) - x))


def run(seed: int = 0, quick: bool = False) -> Finding:
    goals = [Goal(100 * seed + k) for k in range(20 if quick else 60)]
    marks, long = (MARKS[:2], 6000) if quick else (MARKS, 30_000)
    arms = {"poll": lambda goal: None, "attack, white box": white, "attack, 4 pairs": lambda goal: measured}
    curves = {}
    for name, arm in arms.items():
        found = [search(goal, arm(goal), marks[-1], k)[0] for k, goal in enumerate(goals)]
        curves[name] = np.median([best[: marks[-1]] for best in found], axis=0)
    at = {(name, mark): float(curve[mark - 1]) for name, curve in curves.items() for mark in marks}
    ends = [search(goal, None, long, k) for k, goal in enumerate(goals[:4])]
    left = [stationarity(goal, x) for goal, (_, _, x) in zip(goals, ends, strict=False)]
    first = [stationarity(goal, goal.start) for goal in goals[:4]]
    numbers = {f"f after {mark} evaluations, {name}": value for (name, mark), value in at.items()}
    numbers |= {
        "projected slope, start": float(np.median(first)),
        "projected slope after polls": float(np.median(left)),
    }
    claims = (
        Claim("white-box attacks are ahead of polls at every mark",
              all(at["attack, white box", mark] > at["poll", mark] for mark in marks)),
        Claim("attacks from evaluations do not pay at 200 evaluations", at["attack, 4 pairs", 200] < at["poll", 200]),
        Claim("polls alone take the projected slope below a tenth of the start", max(left) < 0.1 * max(first)),
        Claim("they take it below a hundredth", max(left) < 0.01 * max(first), full_only=True),
    )  # fmt: skip
    lines = tuple(Line(name, range(1, len(curve) + 1), (-curve).tolist()) for name, curve in curves.items())
    figure = Figure("Distance from the goal, median", "evaluations", "-f", lines, log="xy")
    return Finding(numbers, claims, (figure,))
