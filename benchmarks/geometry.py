"""`python -m benchmarks.geometry`: ways to move on problems with a domain, at equal evaluations.

A way is a method of the menu on one of the two views of a problem, with what it does about the outside. Its learning
rate falls to 0 as a cosine over each run, from a value that is tuned: every way with as many values, the same share of
the budget and the same seed. Then it runs once a seed. The results file has the lines of `benchmarks/methods.py`;
`geometry_page.py` makes the page from them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from benchmarks import results
from benchmarks.methods import significant
from benchmarks.results import Line, Results
from zograd import methods
from zograd.cli.options import script
from zograd.cli.output import say
from zograd.core.run import Method
from zograd.core.schedules import cosine
from zograd.errors import UsageError
from zograd.problems import PROBLEMS, problem_named
from zograd.problems.base import Census, GeometryProblem, View, Walk, leaving
from zograd.spaces import PositiveOrthant

TUNING_SEED = 1000
LOST = 20
"""Refused steps in a row after which a run whose iterate is outside of the domain ends: no step can bring it back."""
MARKS = 20
"""Points of the budget at which the value of the iterate is taken."""

NAIVE = "flat naive, sgd"
REFERENCE = "space, sgd"
"""The way at whose first end it is counted how many probes would leave."""


def versions() -> dict[str, str]:
    """Of everything that decides the last digits."""
    found = {k: v for k, v in results.versions().items() if k != "transformers"}
    for package in ("scipy", "scikit-fem"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Way:
    """A method of the menu on a view; `outside`: "never", "leave", "project" or "revert", see `base.Walk`.

    other: a view in place of the problem's own, with the same coordinates.
    """

    method: str
    view: str
    outside: str
    other: View | None = None

    def on(self, problem: GeometryProblem) -> View:
        return problem.view(self.view) if self.other is None else self.other

    def build(self, view: View, lr: float, budget: int) -> Method[Any]:
        """With a rate that falls from lr to 0 as a cosine over the budget."""
        method = methods.make(self.method, lr=1.0, mu=view.mu)
        return replace(method, lr=cosine(lr, max(budget // method.evaluations, 1)), space=view.space)


def ways_on(problem: GeometryProblem) -> dict[str, Way]:
    """What is compared on a problem, by name: on the space, and flat with and without a remedy for the outside."""
    kept = "project" if problem.flat.project is not None else "revert"
    short = {"zo_sgd": "sgd", "zo_adam": "adam", "fzoo": "fzoo"}
    curved = {**short, "hozo": "hozo"} if isinstance(problem.space, PositiveOrthant) else short
    others = {label: (coordinates, "never", view) for label, (coordinates, view) in problem.others.items()}
    found = {f"space, {curved[m]}": Way(m, "curved", "never") for m in curved}
    found |= {f"{label}, sgd": Way("zo_sgd", *at) for label, at in others.items()}
    found |= {f"flat {kept}ed, {short[m]}": Way(m, "flat", kept) for m in short}
    return found | {NAIVE: Way("zo_sgd", "flat", "leave")}


@dataclass(frozen=True)
class GeometryComparison:
    """budget: evaluations of a run, None for the problem's. fraction: share of it for each rate that tuning tries.

    grid: the rates; None takes those of the view.
    """

    budget: int | None = None
    seeds: int = 5
    fraction: float = 0.3
    grid: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1 or not 0 < self.fraction <= 1:
            raise UsageError(
                f"a comparison needs seeds >= 1 and 0 < fraction <= 1, got seeds={self.seeds}, fraction={self.fraction}"
            )

    def budget_on(self, problem: GeometryProblem) -> int:
        budget = problem.budget if self.budget is None else self.budget
        if budget * self.fraction < 9:
            raise UsageError(f"budget={budget} leaves less than a step of 9 to tune with; use {9 / self.fraction:.0f}")
        return budget


def walk(problem: GeometryProblem, way: Way, lr: float, budget: int, seed: int) -> tuple[Walk, Line]:
    """One run: its end, and start, value, curve, census as a line. A run that ends outside has value None."""
    view = way.on(problem)
    method = way.build(view, lr, budget)
    here = Walk(view, method, way.outside, seed)
    curve: list[float | None] = []
    lost = False

    def value() -> float | None:
        f = here.value - problem.minimum if view.inside(here.x) else math.nan
        return f if math.isfinite(f) else None

    start = value()
    while here.census.probes + method.evaluations <= budget and not lost:
        here.step()
        while len(curve) < MARKS and here.census.probes + method.evaluations > (len(curve) + 1) * budget / MARKS:
            curve.append(value())
        lost = here.run.refused_in_a_row >= LOST and not view.inside(here.x)
    end = None if lost or here.census.refused == here.run.step_number else value()
    curve += [end] * (MARKS - len(curve))
    line = {
        "start": significant(start), "value": significant(end), "diverged": end is None,
        "evaluations": here.census.probes, "steps": here.run.moves, **here.census.lines(),
        "curve": [significant(f) for f in curve],
    }  # fmt: skip
    return here, line


def tune(
    problem: GeometryProblem, way: Way, budget: int, plan: GeometryComparison
) -> tuple[float, dict[str, float | None], Census]:
    """(the learning rate whose last iterate is best, the value of each, all points that were stood at)."""
    part, total = int(budget * plan.fraction), Census()
    values: dict[float, float | None] = {}
    for lr in sorted(plan.grid or way.on(problem).rates):
        here, line = walk(problem, way, lr, part, TUNING_SEED)
        values[lr], total = line["value"], total + here.census
    best = min(values, key=lambda lr: (math.inf if values[lr] is None else values[lr], lr))
    return best, {f"{lr:g}": value for lr, value in values.items()}, total


def digest(problem: GeometryProblem, way: Way, budget: int, plan: GeometryComparison) -> str:
    """16 digits that change with anything that changes the numbers of a cell, but for the code itself."""
    view = way.on(problem)
    parts = re.sub(r" at 0x[0-9a-f]+", "", repr(way.build(view, 1.0, budget)))
    text = json.dumps(
        [problem.name, problem.about(), way.outside, parts, budget, plan.fraction, plan.grid or view.rates]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cell(name: str, way_name: str, plan: GeometryComparison, have: Sequence[Line] = ()) -> Iterator[Line]:
    """The lines of one way on one problem that are not in `have` yet."""
    problem = problem_named(name)
    way, budget = ways_on(problem)[way_name], plan.budget_on(problem)
    setup = digest(problem, way, budget, plan)
    known = [line for line in have if line["setup"] == setup]
    head: Line = {"problem": name, "method": way_name, "budget": budget, "setup": setup}
    tuned = next((line for line in known if line["type"] == "tuning"), None)
    if tuned is None:
        lr, values, points = tune(problem, way, budget, plan)
        tuned = {
            "type": "tuning", **head, "lr": lr, "grid": values, "fraction": plan.fraction,
            "seed": TUNING_SEED, "title": problem.title, "about": problem.about(), "outside": way.outside,
            **points.lines(), "versions": versions(),
        }  # fmt: skip
        yield tuned
    done = {line["seed"] for line in known if line["type"] == "run"}
    for seed in range(plan.seeds):
        if seed in done:
            continue
        here, line = walk(problem, way, tuned["lr"], budget, seed)
        more: dict[str, Any] = {key: significant(v) for key, v in problem.measure(way.view, here.x).items()}
        if seed == 0 and problem.picture is not None:
            more["picture"] = problem.picture(way.view, here.x)
        if seed == 0 and way == ways_on(problem)[REFERENCE]:
            at = {"space": (problem.curved, here.x), "flat": (problem.flat, problem.flatten(here.x))}
            more["leaving"] = {k: {f"{mu:g}": s for mu, s in leaving(*v).items()} for k, v in at.items()}
        yield {
            "type": "run", **head, "seed": seed, "lr": tuned["lr"], **line, "measured": more,
            "versions": versions(),
        }  # fmt: skip
    if way_name in (REFERENCE, NAIVE) and not any(line["type"] == "sweep" for line in known):
        yield {"type": "sweep", **head, **sweep(problem, way, budget, plan), "seed": 0, "versions": versions()}


def sweep(problem: GeometryProblem, way: Way, budget: int, plan: GeometryComparison) -> Line:
    """Where a way stands after a tuning run at each rate: value, points outside, a picture of the first one lost."""
    rates: dict[str, Line] = {}
    picture = None
    for lr in sorted(plan.grid or way.on(problem).rates):
        here, line = walk(problem, way, lr, int(budget * plan.fraction), 0)
        c = here.census
        points, outside = c.probes + c.iterates, c.probes_outside + c.iterates_outside
        rates[f"{lr:g}"] = {"value": line["value"], "points": points, "outside": outside}
        if picture is None and line["value"] is None and problem.picture is not None:
            picture = {"lr": lr, "evaluations": c.probes, "nodes": problem.picture(way.view, here.x)}
    return {"rates": rates, "picture": picture}


def compare(
    names: Sequence[str] | None,
    plan: GeometryComparison,
    out: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compute what the results file lacks for these problems (None: all); lines are written as they come."""
    names = list(PROBLEMS) if names is None else names
    if unknown := [name for name in names if name not in PROBLEMS]:
        raise UsageError(f"there is no problem {unknown[0]!r}; use names of {', '.join(PROBLEMS)}")
    results = Results(out)
    counts = {"tuning": 0, "run": 0, "sweep": 0, "diverged": 0}
    for name in names:
        for way in ways_on(problem_named(name)):
            for line in cell(name, way, plan, results.of(name, way)):
                results.append(line)
                counts[line["type"]] += 1
                counts["diverged"] += bool(line.get("diverged"))
                progress(shown(line))
    return {**counts, "out": str(out)}


def lost(found: Line) -> str:
    return "lost" if found["value"] is None else f"{found['value']:.3g}"


def shown(line: Mapping[str, Any]) -> str:
    place = f"{line['problem']:18s} {line['method']:22s}"
    if line["type"] == "tuning":
        return f"{place} lr {line['lr']:g}"
    if line["type"] == "sweep":
        return f"{place} at each rate: {', '.join(lost(v) for v in line['rates'].values())}"
    value = "lost" if line["diverged"] else f"{line['value']:.4g}"
    stood = line["probes"] + line["iterates"]
    outside = line["probes_outside"] + line["iterates_outside"]
    return f"{place} seed {line['seed']}  {value:10s} {stood - outside} of {stood} points inside"


# ---- the command -----------------------------------------------------------------------------------------------------


def measure(
    problems: Annotated[str | None, "Names of problems, with commas. [all]"] = None,
    budget: Annotated[int | None, "Evaluations of a run. [800 to 3,000, by problem]"] = None,
    seeds: Annotated[int, "Runs with the tuned learning rate."] = 5,
    fraction: Annotated[float, "Share of the budget for each learning rate that is tried."] = 0.3,
    out: Annotated[Path, "Results, one per line; those in the file are kept."] = Path("docs/geometry/results.jsonl"),
    page: Annotated[bool, "Write the page and figures from the results; alone: only that."] = False,
) -> dict[str, Any]:
    """Spaces against flat coordinates on simplices, adaptive meshes, positive parameters, orthonormal frames.

    Example: python -m benchmarks.geometry --problems mesh-poisson,gp-diabetes --page
    """
    from benchmarks.geometry_page import write

    result: dict[str, Any] = {"out": str(out)}
    if problems is not None or not page:
        names = [name.strip() for name in problems.split(",") if name.strip()] if problems else None
        result |= compare(names, GeometryComparison(budget, seeds, fraction), out, progress=say)
    return result | (write(out) if page else {})


def as_text(result: dict[str, Any]) -> str:
    """The table at a glance, and where the page or the results are."""
    from benchmarks.geometry_page import at_a_glance

    return f"{at_a_glance(Path(result['out']))}\n\n{result.get('page', result['out'])}"


app = script(measure, as_text)

if __name__ == "__main__":
    app()
