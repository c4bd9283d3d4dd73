"""COCO's functions at equal evaluations: `minimize` with its defaults, and peers, by the share of targets hit.

    python -m benchmarks.coco --suite bbob --dim 20 --budget 200 --methods auto,cma,lbfgs,scipy

`clipped:NAME` runs a method of the menu that takes no bounds. The first line of several methods is what a perfect
choice would reach. With `--picture FILE.png` the shares are drawn against evaluations / d. Needs the package
coco-experiment (extra `blackbox-bench`), and cma, fcmaes, nevergrad or evotorch for peers of that name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coco_picture import draw, hits

TARGETS = 10.0 ** np.linspace(2, -8, 51)
"""Differences to the optimum that count, as in COCO's own figures."""
BUDGETS = (10, 50, 200)
"""Evaluations a variable at which shares are read; in noise at the end only."""
AGAIN = 21
"""Evaluations of the recommended point, in noise, whose median counts."""


class Done(Exception):
    """The budget of a run is used."""


class Counted:
    """A function of COCO, ended at the budget: the lowest value so far after each evaluation."""

    def __init__(self, problem: Any, optimum: float, budget: int, noisy: bool) -> None:
        self.problem, self.optimum, self.budget, self.noisy = problem, optimum, budget, noisy
        self.history: list[float] = []

    def __call__(self, x: Any) -> float:
        if len(self.history) >= self.budget:
            raise Done
        value = float(self.problem(np.asarray(x, dtype=np.float64)))
        best = value - self.optimum
        self.history.append(min(best, self.history[-1]) if self.history else best)
        return value


Solver = Callable[[Counted, Any, int], Any]
"""(function, problem, seed) -> the recommended point; or it ends by `Done`."""


def ours(method: str) -> Solver:
    def run(f: Counted, problem: Any, seed: int) -> Any:
        import zograd as zo

        bounds = list(zip(problem.lower_bounds, problem.upper_bounds, strict=True))
        return zo.minimize(f, problem.initial_solution, method, bounds=bounds, budget=f.budget, seed=seed).x

    return run


def unbounded(f: Counted, problem: Any, seed: int) -> Any:
    import zograd as zo

    return zo.minimize(f, problem.initial_solution, budget=f.budget, seed=seed).x


def clipped(method: str) -> Solver:
    """A name of the menu that knows no bounds: f sees the nearest point within them."""

    def run(f: Counted, problem: Any, seed: int) -> Any:
        import zograd as zo

        low, high = problem.lower_bounds, problem.upper_bounds
        result = zo.minimize(
            lambda x: f(np.clip(x, low, high)), problem.initial_solution, method, budget=f.budget, seed=seed
        )
        return np.clip(result.x, low, high)

    return run


def solver(method: str) -> Solver:
    """What is run: `peer:NAME`, `clipped:NAME`, or a name that `minimize` takes."""
    kind, _, name = method.rpartition(":")
    return {"peer": PEERS.get, "clipped": clipped, "": ours}[kind](name)  # type: ignore[operator,no-any-return]


def pycma(separable: bool) -> Solver:
    def run(f: Counted, problem: Any, seed: int) -> Any:
        import cma

        options = {"verbose": -9, "seed": seed + 1, "CMA_diagonal": separable}
        if not f.noisy:
            return cma.fmin2(f, problem.initial_solution, 2.0, options, restarts=20)[0]
        es = cma.CMAEvolutionStrategy(problem.initial_solution, 2.0, options)
        while len(f.history) + es.popsize <= f.budget:
            points = es.ask()
            es.tell(points, [f(x) for x in points])
        return es.result.xfavorite

    return run


def scipy_restarts(f: Counted, problem: Any, seed: int) -> Any:
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    x = problem.initial_solution
    while True:
        minimize(f, x, method="L-BFGS-B", bounds=list(zip(problem.lower_bounds, problem.upper_bounds, strict=True)))
        x = rng.uniform(problem.lower_bounds, problem.upper_bounds)


def fcmaes(f: Counted, problem: Any, seed: int) -> Any:
    from fcmaes import crfmnes
    from scipy.optimize import Bounds

    while True:
        crfmnes.minimize(
            f, Bounds(problem.lower_bounds, problem.upper_bounds), problem.initial_solution, 0.4, max_evaluations=10**6,
            rg=np.random.Generator(np.random.MT19937(seed)),
        )  # fmt: skip
        seed += 1000


def nevergrad(f: Counted, problem: Any, seed: int) -> Any:
    """Its TwoPointsDE; its NGOpt does not run on NumPy 2.4 (nevergrad 1.0.12)."""
    import nevergrad as ng

    array = ng.p.Array(init=np.array(problem.initial_solution))
    array.set_bounds(problem.lower_bounds, problem.upper_bounds)
    array.random_state = np.random.RandomState(seed)
    search = ng.optimizers.TwoPointsDE(array, budget=f.budget)
    while len(f.history) < f.budget:
        asked = search.ask()
        search.tell(asked, f(asked.value))
    return search.provide_recommendation().value


def evotorch(f: Counted, problem: Any, seed: int) -> Any:
    """Its SNES, from the same start and with the same spread as pycma."""
    import torch
    from evotorch import Problem
    from evotorch.algorithms import SNES

    def value(x: Any) -> Any:
        return torch.tensor(f(x.numpy()), dtype=torch.float64)

    center = torch.tensor(np.array(problem.initial_solution), dtype=torch.float64)
    dim = len(center)
    asked = Problem("min", value, solution_length=dim, initial_bounds=(-5, 5), dtype=torch.float64, seed=seed + 1)
    size = 4 + int(3 * np.log(dim))
    search = SNES(asked, stdev_init=2.0, center_init=center, popsize=size)
    while len(f.history) + size <= f.budget:
        search.step()
    return search.status["center"].numpy()


PEERS: dict[str, Solver] = {
    "cma": pycma(False), "sep-cma": pycma(True), "scipy": scipy_restarts, "fcmaes": fcmaes, "nevergrad": nevergrad,
    "evotorch": evotorch, "auto-unbounded": unbounded,
}  # fmt: skip


def read_at(budget: int) -> list[int]:
    """Where shares are read, in evaluations a variable: `BUDGETS` below the budget, and the budget."""
    return [*(b for b in BUDGETS if b < budget), budget]


def one(task: tuple[str, str, int, int, int, str, int]) -> tuple[str, int, list[float], list[float]]:
    """(method, function, lowest difference after each share of the budget, `hits` of the targets)."""
    suite_name, instance, dim, index, budget, method, seed = task
    import cocoex

    problem = cocoex.Suite(suite_name, "", f"dimensions:{dim} instance_indices:{instance}")[index]
    problem._best_parameter("print")
    optimum = float(problem(np.loadtxt("._bbob_problem_best_parameter.txt")))
    problem.free()
    problem = cocoex.Suite(suite_name, "", f"dimensions:{dim} instance_indices:{instance}")[index]
    f = Counted(problem, optimum, budget * dim, noisy="noisy" in suite_name)
    x = None
    with contextlib.suppress(Done):
        x = solver(method)(f, problem, seed)
    if f.noisy:
        again = [float(problem(np.asarray(x))) - optimum for _ in range(AGAIN)]
        return method, index, [float(np.median(again))], []
    lowest = [f.history[min(b * dim, len(f.history)) - 1] for b in read_at(budget)]
    return method, index, lowest, hits(f.history, list(TARGETS), dim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="bbob")
    parser.add_argument("--dim", type=int, default=20)
    parser.add_argument("--budget", type=int, default=200, help="evaluations a variable")
    parser.add_argument("--methods", default="auto,peer:cma,peer:sep-cma,peer:scipy")
    parser.add_argument("--functions", default="", help="indices, comma-separated; all without")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="PNG of the shares against evaluations / d; not for noisy suites")
    given = parser.parse_args()
    if given.picture and "noisy" in given.suite:
        parser.error("--picture needs values that repeat: in noise only the point at the end is judged")
    import cocoex

    suite = cocoex.Suite(given.suite, "", f"dimensions:{given.dim} instance_indices:1")
    functions = [int(i) for i in given.functions.split(",")] if given.functions else list(range(len(suite)))
    methods = given.methods.split(",")
    tasks = [
        (given.suite, "1", given.dim, i, given.budget, method, seed)
        for i in functions for method in methods for seed in range(given.seeds)
    ]  # fmt: skip
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, dict[int, list[list[float]]]] = {m: {i: [] for i in functions} for m in methods}
    reached: dict[str, list[float]] = {m: [] for m in methods}
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for method, index, values, after in pool.imap_unordered(one, tasks):
            found[method][index].append(values)
            reached[method] += after
    if given.picture:
        title = f"{given.suite}, d = {given.dim}, {len(functions)} functions, runs of each: {given.seeds}"
        draw(given.picture, reached, given.budget, title)
    shown = [given.budget] if "noisy" in given.suite else read_at(given.budget)
    if len(methods) > 1:  # what a perfect choice for each function would reach
        best = [float(np.mean([
            max(np.mean([np.mean(v[k] <= TARGETS) for v in found[m][i]]) for m in methods) for i in functions
        ])) for k in range(len(shown))]  # fmt: skip
        print(
            json.dumps(
                {"method": "the best of these", **{f"{b} d": round(s, 3) for b, s in zip(shown, best, strict=True)}}
            )
        )
    for method in methods:
        shares = [
            float(np.mean([np.mean(values[k] <= TARGETS) for i in functions for values in found[method][i]]))
            for k in range(len(shown))
        ]
        print(json.dumps({"method": method, **{f"{b} d": round(s, 3) for b, s in zip(shown, shares, strict=True)}}))
        print(
            "   ",
            " ".join(f"{float(np.mean([np.mean(v[-1] <= TARGETS) for v in found[method][i]])):.2f}" for i in functions),
        )


if __name__ == "__main__":
    main()
