"""`python -m benchmarks.methods`: the whole menu at equal evaluations, on problems of six kinds.

A cell is one method on one problem: its learning rate is tuned (every method with the same grid, share of the budget
and seed), then it runs once for each seed. A line of the results file is one tuning, one run, or the reason why a
method has no place on a problem. Lines carry `setup`, a digest of all that fixes their numbers: what stands in the file
under the same setup is not computed again. `benchmarks/methods_page.py` makes the page from the file alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from benchmarks.needs import SCORES_SHARE, method_of, need_of, settings_of
from benchmarks.results import Line, Results, versions
from zograd import methods
from zograd.cli.options import script
from zograd.cli.output import say
from zograd.core.run import Run
from zograd.core.vector import Query
from zograd.errors import UsageError
from zograd.laws import sensitivity
from zograd.llm.problems import LANGUAGE
from zograd.problems.base import half_decades
from zograd.problems.problem import ComparedProblem, Session
from zograd.problems.small import METHOD_PROBLEMS, method_problem

TUNING_SEED = 1000
REFUSED = 20
"""Steps in a row without a finite value after which a run counts as diverged."""
WORSE = 1e3
"""A run whose clean value stands this many times as far above the minimum as the start has diverged."""


# ---- plans, cells, trials --------------------------------------------------------------------------------------------


GRID = half_decades(1e-6, 10.0)


@dataclass(frozen=True)
class Comparison:
    """How methods are compared.

    budget: evaluations of a run; None takes that of the problem's group. seeds: runs. grid: learning rates tried.
    fraction: share of the budget that a run has for each of them, from the same start, with a seed of its own.
    """

    budget: int | None = None
    seeds: int = 5
    fraction: float = 0.2
    grid: tuple[float, ...] = GRID

    def __post_init__(self) -> None:
        if self.seeds < 1 or not 0 < self.fraction <= 1 or not self.grid or min(self.grid) <= 0:
            raise UsageError(
                f"a comparison needs seeds >= 1, 0 < fraction <= 1 and positive learning rates, got "
                f"seeds={self.seeds}, fraction={self.fraction}, grid={self.grid}"
            )
        if self.budget is not None and self.budget * self.fraction < 1:
            raise UsageError(f"budget={self.budget} leaves nothing to tune with; use at least {1 / self.fraction:.0f}")

    def budget_on(self, problem: ComparedProblem) -> int:
        return self.budget if self.budget is not None else BUDGETS[problem.kind]


BUDGETS = {"a": 4_000, "b": 2_000, "c": 4_000, "d": 4_000, "e": 2_500, "f": 6_000, "g": 2_000}
"""Evaluations of a run on problems of each kind."""

KINDS = {
    "a": "ill-conditioned quadratics in random rotation",
    "b": "logistic regression, softmax regression and a network on scikit-learn's data",
    "c": "noisy and heavy-tailed losses",
    "d": "ordinal feedback: only the ranks of the values are told",
    "e": "sparse logistic regression over an l1 ball",
    "f": "LoRA on a language model",
    "g": "scales of a 4-bit language model",
}


def problem_named(name: str) -> ComparedProblem:
    """A problem of the comparison by its name."""
    return LANGUAGE[name] if name in LANGUAGE else method_problem(name)


def problem_names(chosen: str = "a,b,c,d,e") -> list[str]:
    """Names for a comma-separated list of names and of letters of groups, in the order of the page."""
    kinds = {name: method_problem(name).kind for name in METHOD_PROBLEMS} | {
        name: p.kind for name, p in LANGUAGE.items()
    }
    wanted = [part.strip() for part in chosen.split(",") if part.strip()]
    if unknown := [part for part in wanted if part not in kinds and part not in KINDS]:
        raise UsageError(f"there is no problem {unknown[0]!r}; use letters a to g, or names of {', '.join(kinds)}")
    return [name for name, kind in kinds.items() if name in wanted or kind in wanted]


class Spent(Exception):
    """The next queries do not fit into the budget."""


class Diverged(Exception):
    """The iterate has left every region of interest."""


class Meter:
    """An oracle that counts evaluations, keeps to a budget, and judges the iterate at equally spaced points of it.

    Counts in terms of the finite sum for methods that draw terms, `unit` of which are one evaluation. The value of
    mark k is that of the last iterate reached with at most k/marks of the budget.
    """

    def __init__(self, session: Session, budget: int, *, marks: int, unit: int = 1, terms: int = 1) -> None:
        self.session, self.unit, self.terms, self.marks = session, unit, terms, marks
        self.limit = budget * unit
        self.spent = 0
        self.curve: list[float] = []

    def __call__(self, store: Any, queries: Sequence[Query], key: int) -> Sequence[float]:
        cost = sum(self.terms if query.rows is None else len(query.rows) for query in queries)
        while self.passed(self.spent + cost):
            self.judge()
        if self.spent + cost > self.limit:
            raise Spent
        self.spent += cost
        return self.session.oracle(store, queries, key)

    def passed(self, spent: int) -> bool:
        """Whether the next mark lies before `spent`."""
        return len(self.curve) < self.marks and spent > (len(self.curve) + 1) * self.limit / self.marks

    def judge(self) -> dict[str, float]:
        """Value of the iterate; appended to the curve. Raises Diverged."""
        found = self.session.judge()
        if self.lost(found["value"]):
            raise Diverged
        self.curve.append(found["value"])
        return found

    def lost(self, value: float) -> bool:
        return not math.isfinite(value) or value > WORSE * abs(self.session.start)

    @property
    def evaluations(self) -> float:
        return self.spent / self.unit


def trial(problem: ComparedProblem, name: str, lr: float | None, budget: int, seed: int, *, marks: int) -> Line:
    """One run: evaluations, steps, start, value, diverged, curve of clean values, and what else the problem judges.

    The value is that of the last iterate, never of the best one. A run that diverges ends with value None: when the
    clean value at a mark is not finite or `WORSE` times the start's, after `REFUSED` refused steps in a row, or when
    the method fails on numbers that are not finite. lr None: the entry's own.
    """
    need = need_of(name)
    whole = need.sums and problem.terms > 0
    settings = {} if lr is None else {"lr": lr}
    method = method_of(problem, name, **settings)
    session = problem.begin(method.space, seed, whole)
    unit, terms = (problem.unit, problem.terms) if whole else (1, 1)
    meter = Meter(session, budget, marks=marks, unit=unit, terms=terms)
    steps, found, diverged = 0, {}, False
    try:
        with np.errstate(all="ignore"):
            if need.scores:
                method = method_of(problem, name, **settings, scores=_scores(problem, session, meter, budget, seed))
            run: Run[Any] = Run(session.store, method, seed, terms=problem.terms if whole else 0)
            while not diverged:
                run.step(meter)
                steps = run.moves
                if session.project is not None and not need.constrained:
                    session.project()
                diverged = run.refused_in_a_row >= REFUSED
    except Spent:
        pass
    except Diverged:
        diverged = True
    except (ArithmeticError, ValueError, RuntimeError):
        if not meter.lost(session.judge()["value"]):
            raise
        diverged = True
    if not diverged:
        found = session.judge()
        diverged = meter.lost(found["value"])
    value = None if diverged else found.pop("value")
    curve = [*meter.curve, *[value] * (marks - len(meter.curve))]
    more = {} if diverged else {key: significant(v) for key, v in found.items()}
    return {
        "evaluations": significant(meter.evaluations), "steps": steps, "start": significant(session.start),
        "value": significant(value), "diverged": diverged, "curve": [significant(v) for v in curve], **more,
    }  # fmt: skip


def _scores(problem: ComparedProblem, session: Session, meter: Meter, budget: int, seed: int, n: int = 16) -> Any:
    """Sensitivities from a share of the budget, several batches of n directions."""
    batches = max(1, round(SCORES_SHARE * budget / (n + 1)))
    return sensitivity(session.store, [meter] * batches, n=n, mu=problem.mu, seed=seed)


def significant(value: float | None, digits: int = 5) -> float | None:
    """Rounded, so that lines stay short; None for what is not a number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def tune(
    problem: ComparedProblem, name: str, budget: int, plan: Comparison
) -> tuple[float | None, dict[str, float | None]]:
    """(the learning rate whose last iterate is best, the value of each); equal values take the smaller rate."""
    part, marks = int(budget * plan.fraction), max(1, problem.marks // 5)
    values = {lr: trial(problem, name, lr, part, TUNING_SEED, marks=marks)["value"] for lr in sorted(plan.grid)}
    best = min(values, key=lambda lr: (math.inf if values[lr] is None else values[lr], lr))
    return best, {f"{lr:g}": value for lr, value in values.items()}


def unfit(problem: ComparedProblem, name: str, budget: int, plan: Comparison) -> str | None:
    """Why this entry has no place on this problem, or None."""
    need = need_of(name)
    if problem.kind not in need.only or problem.kind in need.never:
        return need.why
    if need.matrices and not problem.matrices:
        return need.why
    try:
        method = method_of(problem, name)
    except (TypeError, ValueError) as e:  # a part does not work in the space of the problem
        return str(e)
    whole = need.sums and problem.terms > 0
    most = getattr(method.estimator, "most_evaluations", None)
    cost = most(problem.terms) / problem.unit if whole and most is not None else method.evaluations
    part = int(budget * plan.fraction) if need.tuned else budget
    if cost > part:
        return f"one step takes {cost:,.0f} evaluations, more than the {part:,} that a run has for tuning"
    return None


def digest(problem: ComparedProblem, name: str, budget: int, plan: Comparison) -> str:
    """16 digits that change with anything that changes the numbers of a cell, but for the code itself."""
    method = method_of(problem, name)
    parts = re.sub(r" at 0x[0-9a-f]+", "", repr(method))
    need = need_of(name)
    tuning = [plan.fraction, [f"{lr:g}" for lr in plan.grid], TUNING_SEED] if need.tuned else []
    text = json.dumps([problem.name, problem.about(), parts, need.scores, budget, tuning])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cell(problem_name: str, name: str, plan: Comparison, have: Sequence[Line] = ()) -> Iterator[Line]:
    """The lines of one method on one problem that are not in `have` yet."""
    problem = problem_named(problem_name)
    budget = plan.budget_on(problem)
    why = unfit(problem, name, budget, plan)
    setup = digest(problem, name, budget, plan) if why is None else ""
    known = [line for line in have if line["setup"] == setup]
    head: Line = {
        "problem": problem_name, "kind": problem.kind, "method": name, "budget": budget, "setup": setup,
    }  # fmt: skip
    if why is not None:
        if not any(line["type"] == "skip" and line["why"] == why and line["budget"] == budget for line in have):
            yield {"type": "skip", **head, "why": why}
        return
    need = need_of(name)
    tuned = next((line for line in known if line["type"] == "tuning"), None)
    if tuned is None:
        lr, values = tune(problem, name, budget, plan) if need.tuned else (None, {})
        tuned = {
            "type": "tuning", **head, "lr": lr, "grid": values, "fraction": plan.fraction, "seed": TUNING_SEED,
            **_description(problem, name), "versions": versions(),
        }  # fmt: skip
        yield tuned
    done = {line["seed"] for line in known if line["type"] == "run"}
    for seed in range(plan.seeds):
        if seed not in done:
            found = trial(problem, name, tuned["lr"], budget, seed, marks=problem.marks)
            yield {"type": "run", **head, "seed": seed, "lr": tuned["lr"], **found, "versions": versions()}


def _description(problem: ComparedProblem, name: str) -> Line:
    """What the page says of a method and its problem."""
    method = methods.make(name, **settings_of(problem, name))
    return {
        "about": problem.about(),
        "slots": sorted(method.slots),
        "note": need_of(name).note,
    }


def compare(
    problems: Sequence[str],
    names: Sequence[str] | None,
    plan: Comparison,
    out: Path,
    *,
    jobs: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compute what the results file lacks for these problems and methods (None: the whole menu).

    Returns counts: cells, new tunings, runs and skips. Lines are written as they come, so that an interrupted
    comparison goes on where it was. With jobs > 1 cells are computed in as many processes, and written whole.
    """
    if unknown := sorted(set(names or ()) - set(methods.names())):
        methods.describe(unknown[0])  # raises, with the names of the menu
    results = Results(out)
    cells = [(problem, name) for problem in problems for name in names or methods.names()]
    counts = {"cells": len(cells), "tuning": 0, "run": 0, "skip": 0, "diverged": 0}

    def take(lines: Iterable[Line]) -> None:
        for line in lines:
            results.append(line)
            counts[line["type"]] += 1
            counts["diverged"] += bool(line.get("diverged"))
            progress(_shown(line))

    if jobs <= 1:
        for problem, name in cells:
            take(cell(problem, name, plan, results.of(problem, name)))
        return {**counts, "out": str(out)}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_whole_cell, p, name, plan, results.of(p, name)) for p, name in cells]
        try:
            for future in as_completed(futures):
                take(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {**counts, "out": str(out)}


def _whole_cell(problem: str, name: str, plan: Comparison, have: Sequence[Line]) -> list[Line]:
    return list(cell(problem, name, plan, have))


def _shown(line: Line) -> str:
    place = f"{line['problem']:22s} {line['method']:18s}"
    if line["type"] == "skip":
        return f"{place} not applicable: {line['why']}"
    if line["type"] == "tuning":
        return f"{place} lr {line['lr']}"
    return f"{place} seed {line['seed']}  {'diverged' if line['diverged'] else line['value']}"


# ---- the command -----------------------------------------------------------------------------------------------------


def measure(
    problems: Annotated[str | None, "Letters of groups, a to g, or names of problems, with commas. [a,b,c,d,e]"] = None,
    methods: Annotated[str | None, "Names on the menu, with commas. [all]"] = None,
    budget: Annotated[int | None, "Evaluations of a run. [2,000 to 6,000, by group]"] = None,
    seeds: Annotated[int, "Runs with the tuned learning rate."] = 5,
    fraction: Annotated[float, "Share of the budget for each learning rate that is tried."] = 0.2,
    grid: Annotated[str, "Smallest and largest learning rate that is tried, in half decades."] = "1e-6,10",
    jobs: Annotated[int, "Processes."] = 1,
    out: Annotated[Path, "Results, one per line; those in the file are kept."] = Path("docs/methods/results.jsonl"),
    page: Annotated[bool, "Write the page and figures from the results; alone: only that."] = False,
) -> dict[str, Any]:
    """The whole menu at equal evaluations, with tuned learning rates and several seeds.

    Example: python -m benchmarks.methods --problems a,b --methods mezo,fzoo --budget 2000 --page
    """
    from benchmarks.methods_page import write

    result: dict[str, Any] = {}
    if problems is not None or not page:
        low, _, high = grid.partition(",")
        comparison = Comparison(budget, seeds, fraction, half_decades(float(low), float(high or low)))
        names = [name.strip() for name in methods.split(",") if name.strip()] if methods else None
        chosen = problem_names(problems or "a,b,c,d,e")
        result |= compare(chosen, names, comparison, out, jobs=jobs, progress=say)
    return result | (write(out) if page else {})


app = script(measure)

if __name__ == "__main__":
    app()
