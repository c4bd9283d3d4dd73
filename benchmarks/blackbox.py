"""`python -m benchmarks.blackbox`: black boxes with the defaults of `minimize` and peers, in evaluations to a bar.

    python -m benchmarks.blackbox --parts attack,l1,stiefel

A part is a problem with one or two bars. Each solver runs once for each seed, and a line has the median of the
evaluations, the range, and how many seeds reached the bar. Nothing is tuned. Needs the extra `bench`.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from timeit import Timer
from typing import Annotated, Any

import numpy as np

from benchmarks.race import Course, Solver, minimize, pycma, run, scipy, shown, summary
from benchmarks.results import versions
from zograd.cli.options import script
from zograd.cli.output import say
from zograd.errors import UsageError

Row = dict[str, Any]
Found = dict[str, dict[str, float]]
"""For each solver and bar a number: evaluations, unless the bar says another unit."""
GENERAL: dict[str, Solver] = {
    "minimize": minimize(), "snes": minimize("snes"), "sep-cma": pycma(True), "scipy": scipy(),
}  # fmt: skip


def raced(
    make: Callable[[], Course], x0: Any, seed: int, solvers: dict[str, Solver], progress: Callable[[str], None] = say
) -> Found:
    """Every solver on a fresh course. One that needs a package that is not installed is left out, and said so."""
    found: Found = {}
    for name, solver in solvers.items():
        try:
            found[name] = run(solver, make(), np.copy(x0), seed)
        except ImportError as e:
            progress(f"{name} left out: {e}")
    return found


# ---- parts -----------------------------------------------------------------------------------------------------------


def quadratic(seed: int, budget: int = 30_000) -> Found:
    """x^T H x / 2, d = 1000, eigenvalues 1/i in random rotation: f / f(x0) = 1e-1 and 1e-3."""
    from zograd.problems.small import quadratic as made

    problem = made("quadratic-1000", 1 / np.arange(1.0, 1001.0))
    f0 = problem.value(problem.x0)
    bars = {"f/f0 = 0.1": 0.1 * f0, "f/f0 = 0.001": 1e-3 * f0}
    return raced(lambda: Course(problem.value, bars, budget), problem.x0, seed, GENERAL)


def digits_fresh(seed: int, budget: int = 10_000) -> Found:
    """The digits network, d = 2,442, 128 fresh examples an evaluation: the loss on all examples at the iterate."""
    from zograd.problems.small import mlp_digits

    problem = mlp_digits()
    part = problem.part
    assert part is not None

    def make() -> Course:
        rng = np.random.default_rng([seed, 1])
        return Course(
            lambda x: part(x, rng.integers(0, problem.terms, problem.batch)), {"loss 0.3": 0.3, "loss 0.2": 0.2},
            budget, judge=problem.value,
        )  # fmt: skip

    return raced(make, problem.x0, seed, {k: v for k, v in GENERAL.items() if k != "scipy"})


def digits_same(seed: int, budget: int = 10_000) -> Found:
    """The same network: all points of a step see the same 128 examples, by `data=`, or by ask and tell."""
    from zograd.problems.small import mlp_digits

    problem = mlp_digits()
    part = problem.part
    assert part is not None

    def on(rows: Any) -> Callable[[Any], float]:
        return lambda x: part(x, rows)

    def asked(method: str) -> Solver:
        def solve(course: Course, x0: Any, seed: int) -> None:
            import zograd as zo

            loop, rng = zo.AskTell(x0, method, seed=seed), np.random.default_rng([seed, 1])
            while not loop.done:
                rows = rng.integers(0, problem.terms, problem.batch)
                course.f = on(rows)
                loop.tell([course(x) for x in loop.ask()])
                course.watch(loop.x)

        return solve

    def by_data(course: Course, x0: Any, seed: int) -> None:
        import zograd as zo

        rng = np.random.default_rng([seed, 1])
        rows = (rng.integers(0, problem.terms, problem.batch) for _ in range(budget))

        def f(x: Any, batch: Any) -> float:
            course.f = on(batch)
            return course(x)

        zo.minimize(f, x0, budget=budget, seed=seed, data=rows, callback=lambda x: course.watch(x))

    def make() -> Course:
        return Course(problem.value, {"loss 0.3": 0.3, "loss 0.2": 0.2}, budget, judge=problem.value)

    solvers = {"minimize": by_data, "ask-tell": asked("zo_sgd"), "snes": asked("snes")}
    return raced(make, problem.x0, seed, solvers)


def stiefel(seed: int, budget: int = 10_000) -> Found:
    """The leading eigenspace on Stiefel(50, 5): 10 % and 1 % of the gap of the start are left."""
    from zograd.problems.stiefel import polar, trace
    from zograd.spaces import Stiefel

    problem = trace()
    f = problem.value
    gap = f(problem.x0) - problem.minimum
    bars = {f"{share:.0%} of the gap left": problem.minimum + share * gap for share in (0.1, 0.01)}
    solvers = {"minimize": minimize(space=Stiefel()), "zo_sgd": minimize("zo_sgd", space=Stiefel())}

    def projected(solver: Solver) -> Solver:
        def solve(course: Course, x0: Any, seed: int) -> None:
            course.f = lambda x: f(polar(x))
            solver(course, x0, seed)

        return solve

    others = {f"{name}+polar": projected(solver) for name, solver in GENERAL.items()}
    return raced(lambda: Course(f, bars, budget), problem.x0, seed, solvers | others)


def l1(seed: int, budget: int = 10_000) -> Found:
    """Logistic regression on breast cancer + 0.01 |w|_1, d = 31: F within 1 % of its minimum, at the iterate."""
    from zograd import methods
    from zograd.problems.lasso import L1Logistic
    from zograd.sets import L1

    problem, x0 = L1Logistic(0.01), np.zeros(31)
    bars = {"1 % above the minimum": 1.01 * problem.minimum}
    proximal: dict[str, Solver] = {
        "minimize": minimize(penalty=L1(problem.weight)),
        "zo_prox": minimize(methods.zo_prox(L1(problem.weight), lr="auto")),
    }
    found = raced(lambda: Course(problem.smooth, bars, budget, judge=problem.value, every=1), x0, seed, proximal)
    whole = {f"{name}, on the sum": solver for name, solver in GENERAL.items()}
    return found | raced(lambda: Course(problem.value, bars, budget), x0, seed, whole)


def attack(seed: int, budget: int = 1_000) -> Found:
    """20 digits, radius 0.2 in the maximum norm: queries until the class has changed, and the share that changed.

    The median is over the digits of one seed; a digit that resists within 1,000 queries counts as infinite.
    """
    from zograd import methods
    from zograd.problems.attack import digits_attacks

    spent: dict[str, list[float]] = {}
    for problem in digits_attacks():
        low, high, bars = problem.low, problem.high, {"changed": -1e-12}
        bounds = list(zip(low, high, strict=True))

        def clipped(solver: Solver, low: Any = low, high: Any = high, f: Any = problem.margin) -> Solver:
            def solve(course: Course, x0: Any, seed: int) -> None:
                course.f = lambda x: f(np.clip(x, low, high))
                solver(course, x0, seed)

            return solve

        solvers = {
            "vertices": minimize(methods.vertex_search(problem.box)),
            "minimize": minimize(bounds=bounds),
            "zo_sgd": minimize("zo_sgd", bounds=bounds),
            "snes+clip": clipped(minimize("snes")),
            "sep-cma+clip": clipped(pycma(True)),
        }
        found = raced(partial(Course, problem.margin, bars, budget), problem.x0, seed, solvers)
        for name, reached in found.items():
            spent.setdefault(name, []).append(reached["changed"])
    return {
        name: {"median queries": float(np.median(n)), "share changed, %": 100 * float(np.isfinite(n).mean())}
        for name, n in spent.items()
    }


def large(seed: int, budget: int = 200, d: int = 1_000_000) -> Found:
    """sum x_i^2, a million float32 variables: memory above that of the process before, and time of an evaluation."""
    import zograd as zo

    def f(x: Any) -> float:
        return float(x @ x)

    zo.minimize(f, np.ones(1000, dtype=np.float32), budget=50)
    x0 = np.ones(d, dtype=np.float32)
    f(x0)
    before = peak_bytes()
    start = time.perf_counter()
    result = zo.minimize(f, x0, budget=budget, seed=seed)
    spent = time.perf_counter() - start
    return {
        "minimize": {
            "memory / bytes of x": (peak_bytes() - before) / x0.nbytes,
            "ms an evaluation": 1e3 * spent / result.nfev,
            "ms a step": 1e3 * spent / max(1, result.nit),
        }
    }


def overhead(seed: int, evaluations: int = 600, repeats: int = 30) -> Found:
    """Milliseconds an evaluation on top of f, with one pair a step: of `minimize`, and of a plain loop in NumPy.

    The lowest of the repeats, without what a call costs once.
    """
    import zograd as zo

    method = zo.methods.zo_sgd(lr=1e-4, mu=1e-3)

    def f(x: Any) -> float:
        return float(x[0])

    def loop(x0: Any, budget: int) -> None:
        rng, x = np.random.default_rng(seed), x0.copy()
        for _ in range(budget // 2):
            v = 2.0 * rng.integers(0, 2, x.size) - 1.0
            x -= 1e-4 * (f(x + 1e-3 * v) - f(x - 1e-3 * v)) / 2e-3 * v

    def lowest(run: Callable[[Any, int], Any], x0: Any, budget: int) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            run(x0, budget)
            times.append(time.perf_counter() - start)
        return min(times)

    runs: dict[str, Callable[[Any, int], Any]] = {
        "minimize": lambda x0, budget: zo.minimize(f, x0, method, budget=budget, seed=seed), "loop": loop,
    }  # fmt: skip
    found: Found = {name: {} for name in runs}
    for d in (100, 1000):
        x0 = np.ones(d)
        for name, each in runs.items():
            spent = lowest(each, x0, evaluations + 20) - lowest(each, x0, 20)
            found[name][f"ms on top of f, d = {d:,}"] = 1e3 * (spent / evaluations - timeit(lambda x0=x0: f(x0)))
    return found


def timeit(run: Callable[[], object], number: int = 2000) -> float:
    """Seconds of a call."""
    return min(Timer(run).repeat(5, number)) / number


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


PARTS: dict[str, Callable[[int], Found]] = {
    "quadratic": quadratic, "digits-same": digits_same, "digits-fresh": digits_fresh, "stiefel": stiefel, "l1": l1,
    "attack": attack, "large": large, "overhead": overhead,
}  # fmt: skip


# ---- the command -----------------------------------------------------------------------------------------------------


def chosen(parts: str) -> list[str]:
    """Names of parts from a comma-separated list. Raises UsageError, which says what there is."""
    names = [name.strip() for name in parts.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PARTS] or not names:
        raise UsageError(f"there is no part {unknown[0] if names else ''!r}; use {', '.join(PARTS)}")  # type: ignore[index]
    return names


def rows(part: str, found: list[Found]) -> list[Row]:
    """A row for each solver and bar: the numbers of all seeds together."""
    return [
        {"part": part, "solver": solver, "bar": bar, **summary([one[solver][bar] for one in found])}
        for solver in found[0]
        for bar in found[0][solver]
    ]


def _one(task: tuple[str, int]) -> Found:
    return PARTS[task[0]](task[1])


def measure(
    parts: Annotated[str, "Problems, with commas: " + ", ".join(PARTS) + "."] = ",".join(PARTS),
    seeds: Annotated[int, "Runs of each solver."] = 5,
    jobs: Annotated[int, "Processes."] = 1,
    *,
    progress: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Black boxes with the defaults of `minimize` and of peers: evaluations to each bar, median and range.

    Every run has a process of its own, so that its memory can be told. Takes minutes a part; l1 and attack are the
    short ones.

    Example: python -m benchmarks.blackbox --parts attack --seeds 2
    """
    if seeds < 1 or jobs < 1:
        raise UsageError(f"seeds and jobs are at least 1, got {seeds} and {jobs}")
    result: list[Row] = []
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        for part in chosen(parts):
            found = pool.map(_one, [(part, seed) for seed in range(seeds)], chunksize=1)
            result += rows(part, found)
            progress(f"{part}: done")
    return {"rows": result, "versions": versions()}


def table(result: dict[str, Any]) -> str:
    """The rows for people."""
    head = f"{'part':14s} {'solver':14s} {'bar':22s} {'median':>9s}   {'range':24s} reached"
    told = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return "\n".join([head, *map(shown, result["rows"]), told])


app = script(measure, table)

if __name__ == "__main__":
    app()
