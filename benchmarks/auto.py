"""`python -m benchmarks.auto`: lr="auto" against the best of a grid over five decades, counted in evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

from zograd import methods
from zograd.bench.arguments import MethodName
from zograd.cli.options import script
from zograd.cli.output import say
from zograd.core.run import Run
from zograd.problems.problem import Problem, as_store
from zograd.problems.small import auto_problems

GRID = tuple(float(v) for v in 10.0 ** np.arange(-4.0, 1.01, 0.5))


def curve(
    problem: Problem, lr: Any, budget: int, seed: int, *, method: str = "zo_sgd", target: float | None = None
) -> list[tuple[int, float]]:
    """(evaluations, clean value) every 20 steps, until the budget, the target, or divergence."""
    made = methods.make(method, lr=lr, mu=problem.mu)
    store: Any = as_store(problem)
    run: Run[Any] = Run(store, made, seed)
    oracle, points = problem.oracle(seed), [(0, problem.value(problem.x0))]
    with np.errstate(all="ignore"):
        while run.evaluations < budget:
            run.step(oracle)
            if run.step_number % 20 == 0:
                points.append((run.evaluations, problem.value(store.array)))
                f = points[-1][1]
                if not math.isfinite(f) or f > 1e9 * (1 + abs(points[0][1])) or run.refused_in_a_row > 20:
                    return [*points, (run.evaluations, math.inf)]
                if target is not None and f <= target:
                    break
    return points


def reached(points: list[tuple[int, float]], target: float) -> float:
    """Evaluations until the value first is at the target or below; infinity if never."""
    return next((n for n, f in points if f <= target), math.inf)


def measure(
    budget: Annotated[int, "Evaluations of each run of the grid."] = 20_000,
    seeds: Annotated[int, "Runs of lr=auto per problem."] = 3,
    *,
    method: MethodName = "zo_sgd",
    problems: list[Problem] | None = None,
    progress: Callable[[str], None] = say,
) -> dict[str, Any]:
    """lr="auto" against the best learning rate of a grid over five decades, on ten problems.

    One row a problem: the best of the grid, and lr="auto" from the same start.

    The target of a problem is the value that the grid's best learning rate (by its value at the end of the budget,
    seed 0) has at 60 % of the budget. `ratio` = evaluations of auto over those of the grid's fastest learning rate,
    median over the seeds. auto may use 3 budgets, so ratios above 5 show as infinite.

    Example: python -m benchmarks.auto --budget 5000
    """
    rows: list[dict[str, Any]] = []
    for p in problems or auto_problems():
        grid = {lr: curve(p, lr, budget, 0, method=method) for lr in GRID}
        best = min(grid, key=lambda lr: grid[lr][-1][1])
        target = next(f for n, f in grid[best] if n >= 0.6 * budget)
        best_n = min(reached(points, target) for points in grid.values())
        ratios, diverged = [], 0
        for seed in range(seeds):
            points = curve(p, "auto", 3 * budget, seed, method=method, target=target)
            ratios.append(reached(points, target) / best_n)
            diverged += points[-1][1] > 10 * abs(points[0][1]) + 1
        rows.append(
            {
                "problem": p.name, "dim": p.dim, "start": p.value(p.x0), "target": target, "best_lr": best,
                "best_evaluations": best_n, "ratios": ratios, "ratio": float(np.median(ratios)), "diverged": diverged,
            }
        )  # fmt: skip
        progress(f"{p.name:24s} best lr {best:8.2g}  ratio {rows[-1]['ratio']:.2f}  {[round(r, 2) for r in ratios]}")
    within = sum(row["ratio"] <= 2 for row in rows)
    return {
        "rows": rows,
        "within_factor_2": within,
        "problems": len(rows),
        "diverged": sum(r["diverged"] for r in rows),
    }


app = script(measure)

if __name__ == "__main__":
    app()
