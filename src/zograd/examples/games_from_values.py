"""Games from values: saddle points, a generator against a critic, and three levels, from evaluations alone.

Rows      19
Paper     a research programme; Rakhlin and Sridharan 2013 for the optimistic step
Formula   z <- z - lr (2 F_t - F_{t-1}),  F = (g_x, -g_y) for min_x max_y f,  (g_1, ..., g_k) for k players
Evidence  the solutions in closed form: 0 of the bilinear game, mean and deviation of the data, a linear system
Extent    games of a few numbers; levels follow their own slopes, total derivatives are in `bilevel_by_penalty`
Needs     nothing more
Seconds   16
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import zograd as zo
from zograd.estimators import Central, Coordinates, Players
from zograd.examples import Claim, Figure, Finding, Line

SIZE = 2


def distances(
    f: Callable[[dict[str, Any]], float],
    start: dict[str, Any],
    end: dict[str, Any],
    method: Any,
    budget: int,
    seed: int,
) -> tuple[list[float], list[float]]:
    """Evaluations, and the distance from `end`, along a run that stops when it is 1000 away."""
    loop, spent, away = zo.AskTell(start, method, seed=seed), [0.0], []
    while True:
        away.append(float(np.sqrt(sum(np.sum((loop.x[name] - end[name]) ** 2) for name in end))))
        if loop.evaluations + method.estimator.in_dimensions(2 * SIZE).evaluations > budget or away[-1] > 1e3:
            return spent, away
        loop.tell([f(p) for p in loop.ask()])
        spent.append(float(loop.evaluations))


# %% A bilinear game: min_x max_y x^T A y turns around its solution 0.
def bilinear(seed: int, budget: int) -> tuple[dict[str, float], Figure, tuple[Claim, ...]]:
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((SIZE, SIZE)))
    a = q @ np.diag(np.linspace(0.7, 1.0, SIZE))
    start, end = ({name: np.full(SIZE, value) for name in "xy"} for value in (1.0, 0.0))
    optimistic = zo.methods.zo_saddle(("y",), lr=0.45)
    single = {lr: zo.methods.zo_saddle(("y",), lr=lr, inner=Central(1)) for lr in (0.3, 0.2, 0.1)}
    runs = {
        "optimistic step, all coordinates": optimistic,
        "descent and ascent, all coordinates": replace(optimistic, rule=zo.rules.SGD()),
        **{f"optimistic step, one direction, lr {lr}": method for lr, method in single.items()},
    }
    lines = tuple(
        Line(name, *distances(lambda p: float(p["x"] @ a @ p["y"]), start, end, method, budget, seed))
        for name, method in runs.items()
    )
    last = [line.y[-1] / line.y[0] for line in lines]
    claims = (
        Claim("with all coordinates the optimistic step converges on the bilinear game", last[0] < 1e-3),
        Claim("descent and ascent along the same estimates spiral outwards", last[1] > 10.0),
        Claim("with one direction a step the optimistic step diverges at all three rates", min(last[2:]) > 1.0),
    )
    numbers = {f"distance left, {line.name}": share for line, share in zip(lines, last, strict=True)}
    return numbers, Figure("A bilinear game", "evaluations", "distance from the solution", lines, log="y"), claims


# %% Strong convexity and concavity: then one direction a step is enough, at a small rate.
def curved(seed: int, budget: int) -> tuple[dict[str, float], Line, Claim]:
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((SIZE, SIZE)))

    def f(p: dict[str, Any]) -> float:
        return float(p["x"] @ q @ p["y"] + (p["x"] @ p["x"] - p["y"] @ p["y"]) / 2)

    start, end = ({name: np.full(SIZE, value) for name in "xy"} for value in (1.0, 0.0))
    method = zo.methods.zo_saddle(("y",), lr=0.03, inner=Central(1))
    line = Line("one direction, strongly convex and concave", *distances(f, start, end, method, budget, seed))
    claim = Claim("with strong convexity and concavity one direction a step converges", line.y[-1] < 1e-3)
    return {"distance left, strongly convex and concave": line.y[-1]}, line, claim


# %% A generator m + s z against a critic a u + b u^2 that is paid for telling data from samples, by moments.
def generator(seed: int, budget: int) -> tuple[dict[str, float], Figure, tuple[Claim, ...]]:
    data = 1.5 + 0.7 * np.random.default_rng(seed).standard_normal(1000)
    first, second = float(data.mean()), float(np.mean(data**2))

    def f(p: dict[str, Any]) -> float:
        m, s, (a, b) = float(p["m"]), float(p["s"]), p["critic"]
        return float(a * (first - m) + b * (second - m * m - s * s) - 0.1 * (a * a + b * b))

    start = {"m": 0.0, "s": 0.2, "critic": np.zeros(2)}
    loop, path = zo.AskTell(start, zo.methods.zo_saddle(("critic",), lr=0.1), seed=seed), []
    while loop.evaluations + 8 <= budget:
        loop.tell([f(p) for p in loop.ask()])
        path.append((float(loop.x["m"]), abs(float(loop.x["s"]))))
    error = max(abs(path[-1][0] - first), abs(path[-1][1] - float(data.std())))
    steps = [8.0 * k for k in range(1, len(path) + 1)]
    lines = tuple(
        Line(name, steps, values)
        for name, values in zip(("mean", "deviation"), np.transpose(path).tolist(), strict=True)
    )
    figure = Figure("A generator finds mean and deviation of the data", "evaluations", "parameter", lines)
    claims = (
        Claim("the generator ends at the mean and the deviation of the data, to 1e-2", error < 1e-2),
        Claim("the generator ends there to 1e-6", error < 1e-6, full_only=True),
    )
    return {"error of the generator": error}, figure, claims


# %% Three levels: theta, and two inner variables with losses of their own and rates 5 and 20 times as large.
def levels(seed: int, steps: int) -> tuple[dict[str, float], Claim]:
    rng = np.random.default_rng(seed)
    c, b = torch.from_numpy(0.2 * rng.standard_normal((6, 6))), torch.from_numpy(rng.standard_normal(6))
    own = [slice(0, 2), slice(2, 4), slice(4, 6)]
    for part in own:
        c[part, part] = torch.eye(2, dtype=torch.float64)
    z = {name: torch.zeros(2, dtype=torch.float64, requires_grad=True) for name in ("theta", "omega1", "omega2")}

    def loss(part: slice) -> Callable[[], torch.Tensor]:
        def value() -> torch.Tensor:
            point = torch.cat(list(z.values()))
            return point[part] @ (c[part] @ point - point[part] / 2 + b[part])

        return value

    exact = Coordinates(2, central=True)
    method = zo.Method(Players((("theta",), ("omega1",), ("omega2",)), exact), zo.laws.Rademacher(), zo.rules.SGD())
    groups = [{"params": [(n, p)], "lr": lr} for (n, p), lr in zip(z.items(), (0.05, 0.25, 1.0), strict=True)]
    optimizer, oracle = zo.ZOOptimizer(groups, method, seed=seed), zo.oracles.by_round(*map(loss, own))
    for _ in range(steps):
        optimizer.step_by(oracle)
    gap = float((torch.cat(list(z.values())).detach() - torch.linalg.solve(c, -b)).abs().max())
    return {"gap of three levels": gap}, Claim(
        "three levels meet at the solution of the linear system, to 1e-6", gap < 1e-6
    )


def run(seed: int = 0, quick: bool = False) -> Finding:
    numbers, orbits, claims = bilinear(seed, 1_200 if quick else 5_000)
    more, line, claim = curved(seed, 600 if quick else 5_000)
    trained, curve, found = generator(seed, 3_600 if quick else 16_000)
    nested, met = levels(seed, 300 if quick else 1_000)
    orbits = replace(orbits, lines=(*orbits.lines, line))
    numbers = {name: round(value, 9) for name, value in (numbers | more | trained | nested).items()}
    return Finding(numbers, (*claims, claim, *found, met), (orbits, curve))
