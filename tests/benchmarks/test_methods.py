"""`python -m benchmarks.methods`: budgets, tuning, resumption, divergence, and a page that the file alone decides."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import methods as bench
from benchmarks import needs
from benchmarks.methods import (
    Comparison,
    Meter,
    compare,
    problem_named,
    trial,
    tune,
    unfit,
)
from benchmarks.methods_page import cells_of, columns_of, fingerprint, page, write
from benchmarks.needs import NEEDS, need_of
from benchmarks.results import Results, load
from zograd import methods
from zograd.estimators import Estimator
from zograd.llm.problems import LoraTask
from zograd.problems.base import half_decades
from zograd.problems.problem import Problem, Session
from zograd.problems.small import METHOD_PROBLEMS, method_problem

TINY = Comparison(budget=100, seeds=2, fraction=0.2, grid=half_decades(1e-3, 1e-1))
DOCS = Path(__file__).parents[2] / "docs"


def test_every_entry_has_its_needs_met_on_some_problem() -> None:
    """Entries without a place in the table run with their defaults; the table has no stranger."""
    assert set(NEEDS) <= set(methods.names())
    problems = [problem_named(name) for name in ("quadratic-100", "sparse-logistic", "scales-mr")]
    for name in methods.names():
        if name not in NEEDS:
            assert not methods.describe(name)["required"], f"{name} needs settings; give it a line in NEEDS"
        if need_of(name).only:
            assert any(unfit(p, name, 10_000, Comparison()) is None for p in problems), name
        else:
            assert need_of(name).why, f"{name} has no place on any problem; say why"


def test_what_the_table_says_of_entries_is_what_they_are() -> None:
    sparse = method_problem("sparse-logistic")
    for name in methods.names():
        need = need_of(name)
        method = methods.make(name, **needs.settings_of(sparse, name))
        estimator = getattr(method.estimator, "inner", method.estimator)  # a wrapper asks what it has inside
        own = type(estimator).most_evaluations is not Estimator.most_evaluations
        assert need.sums == own, name
        rule = getattr(method.rule, "map", method.rule)  # the set of a mirror map is the rule's
        assert need.constrained == (hasattr(rule, "set") or hasattr(rule, "prox")), name
        accepts = methods.describe(name)["defaults"]
        assert "lr" in accepts if need.tuned else True, f"{name} has no lr; declare it as not tuned"


# Problems of group (g), of positive numbers, need a language model: the tests of `tests/quantized` run their entries.
@pytest.mark.parametrize("name", [n for n in methods.names() if need_of(n).only != "g"])
def test_budgets_are_kept_by_every_entry(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted at the problem itself, in terms of the sum where a method draws terms."""
    need = need_of(name)
    problem = method_problem("sparse-logistic" if need.sums or need.only == "e" else "quadratic-100")
    budget = 350 if name == "spsa15" else 137
    asked: list[int] = []
    whole = need_of(name).sums and problem.terms > 0
    plain = Problem.oracle

    def counting(self: Problem, seed: int, w: bool = False) -> Any:
        inner = plain(self, seed, w)
        assert w == whole

        def oracle(store: Any, queries: Sequence[Any], key: int) -> Sequence[float]:
            asked.extend((problem.terms if whole else 1) if q.rows is None else len(q.rows) for q in queries)
            return inner(store, queries, key)

        return oracle

    monkeypatch.setattr(Problem, "oracle", counting)
    found = trial(problem, name, 1e-3 if need_of(name).tuned else None, budget, 0, marks=5)
    unit = problem.unit if whole else 1
    assert found["evaluations"] == pytest.approx(sum(asked) / unit, rel=1e-4)
    method = methods.make(name, **needs.settings_of(problem, name))
    most = method.estimator.most_evaluations(problem.terms) / unit if whole else method.evaluations
    assert budget - most < sum(asked) / unit <= budget
    assert found["steps"] > 0
    assert len(found["curve"]) == 5
    assert found["curve"][-1] == found["value"]


def test_marks_hold_the_iterate_that_the_budget_so_far_had_reached() -> None:
    """zo_sgd takes 2 evaluations a step: mark k of 5 with budget 20 is the iterate after 2 k steps."""
    problem = method_problem("quadratic-100")
    found = trial(problem, "zo_sgd", 1e-2, 20, 4, marks=5)
    shorter = [trial(problem, "zo_sgd", 1e-2, 4 * k, 4, marks=1)["value"] for k in range(1, 6)]
    assert found["curve"] == shorter
    odd = trial(problem, "zo_sgd", 1e-2, 21, 4, marks=5)
    assert odd["evaluations"] == 20
    assert odd["value"] == found["value"]


def test_tuning_is_deterministic_and_takes_the_best_of_the_grid() -> None:
    problem = method_problem("quadratic-noisy")
    first, second = (tune(problem, "mezo", 200, TINY) for _ in range(2))
    assert first == second
    lr, values = first
    assert set(values) == {"0.001", "0.00316", "0.01", "0.0316", "0.1"}
    assert values[f"{lr:g}"] == min(v for v in values.values() if v is not None)
    assert values["0.01"] == trial(problem, "mezo", 0.01, 40, bench.TUNING_SEED, marks=4)["value"]


def test_divergence_is_a_result(tmp_path: Path) -> None:
    problem = method_problem("quadratic-100")
    found = trial(problem, "mezo", 10.0, 400, 0, marks=20)
    assert found["diverged"]
    assert found["value"] is None
    assert found["curve"][-1] is None
    assert found["evaluations"] < 400, "a run that is lost is not paid for to the end"
    plan = Comparison(budget=200, seeds=2, fraction=0.5, grid=(10.0,))
    counts = compare(["quadratic-100"], ["mezo"], plan, tmp_path / "m" / "r.jsonl")
    assert counts["diverged"] == 2
    text = page(load(tmp_path / "m" / "r.jsonl"))
    assert "**mezo** diverged (2 of 2)" in text


@pytest.mark.parametrize("name", [n for n in methods.names() if need_of(n).only not in ("e", "g") and need_of(n).tuned])
def test_no_entry_raises_when_it_diverges(name: str) -> None:
    found = trial(method_problem("logistic-cancer"), name, 1e200, 700, 0, marks=3)
    assert found["value"] is None or math.isfinite(found["value"])


@pytest.mark.parametrize("name", ["frank_wolfe", "frank_wolfe_vr", "zo_prox", "mezo", "zo_adam"])
def test_iterates_stay_in_the_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the method itself, or by a projection after each step."""
    problem, seen = method_problem("sparse-logistic"), []
    plain = Problem.begin

    def begin(self: Problem, space: Any, seed: int, whole: bool = False) -> Session:
        session = plain(self, space, seed, whole)

        def judge() -> dict[str, float]:
            seen.append(float(np.abs(session.store.array).sum()))  # type: ignore[attr-defined]
            return session.judge()

        return replace(session, judge=judge)

    monkeypatch.setattr(Problem, "begin", begin)
    trial(problem, name, 1.0 if need_of(name).tuned else None, 200, 0, marks=10)
    assert len(seen) >= 10
    assert max(seen) <= problem.radius * (1 + 1e-6)
    assert max(seen) > 0.5 * problem.radius, "the constraint is active"


def test_a_projection_after_each_step_is_the_proximal_step() -> None:
    problem = method_problem("sparse-logistic")
    found = [trial(problem, name, 0.3, 300, 2, marks=5) for name in ("zo_sgd", "zo_prox")]
    assert found[0]["curve"] == pytest.approx(found[1]["curve"], rel=1e-4)


def test_results_resume_without_computing_anything_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "methods" / "results.jsonl"
    names = ["mezo", "lozo", "cbo"]
    counts = compare(["quadratic-100", "logistic-cancer"], names, TINY, out)
    assert (counts["tuning"], counts["run"], counts["skip"]) == (5, 10, 1)
    before = out.read_bytes()
    calls: list[tuple[Any, ...]] = []
    plain = bench.trial
    monkeypatch.setattr(bench, "trial", lambda *a, **k: calls.append(a[1:]) or plain(*a, **k))
    again = compare(["quadratic-100", "logistic-cancer"], names, TINY, out)
    assert (again["tuning"], again["run"], again["skip"], calls) == (0, 0, 0, [])
    assert out.read_bytes() == before
    more = Comparison(TINY.budget, 3, TINY.fraction, TINY.grid)
    compare(["quadratic-100"], names, more, out)
    assert [(name, seed) for name, _, _, seed in calls] == [("mezo", 2), ("lozo", 2), ("cbo", 2)]
    assert out.read_bytes().startswith(before)
    calls.clear()
    compare(["quadratic-100"], ["mezo"], Comparison(120, 1, TINY.fraction, TINY.grid), out)
    assert len(calls) == len(TINY.grid) + 1, "another budget is another cell"


def test_an_interrupted_line_is_computed_again(tmp_path: Path) -> None:
    out = tmp_path / "methods" / "results.jsonl"
    compare(["quadratic-100"], ["mezo"], TINY, out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-40])
    counts = compare(["quadratic-100"], ["mezo"], TINY, out)
    assert (counts["tuning"], counts["run"]) == (0, 1)
    assert out.read_bytes() == whole
    out.write_bytes(b"{oops}\n" + whole)
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        load(out)


def test_processes_give_the_same_lines(tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "r.jsonl", tmp_path / "b" / "r.jsonl"
    compare(["quadratic-100"], ["mezo", "zo_sgd"], Comparison(40, 1, 0.5, (0.01,)), one)
    compare(["quadratic-100"], ["mezo", "zo_sgd"], Comparison(40, 1, 0.5, (0.01,)), two, jobs=2)
    assert sorted(one.read_text().splitlines()) == sorted(two.read_text().splitlines())


def test_the_setup_changes_with_what_decides_the_numbers() -> None:
    a, b = (method_problem(name) for name in ("quadratic-100", "quadratic-noisy"))
    setups = {
        bench.digest(p, name, budget, plan)
        for p in (a, b)
        for name in ("mezo", "zo_sgd", "senszoq")
        for budget in (100, 200)
        for plan in (TINY, Comparison(fraction=0.5))
    }
    assert len(setups) == 24
    assert bench.digest(a, "senszoq", 100, TINY) == bench.digest(a, "senszoq", 100, TINY)


# ---- the page --------------------------------------------------------------------------------------------------------


def line(method: str, seed: int, value: float | None, *, setup: str = "s", lr: float = 0.1, **more: Any) -> Any:
    curve = [value if value is None else value * (4 - k) for k in range(4)]
    return {
        "type": "run", "problem": "quadratic-100", "kind": "a", "method": method, "budget": 100, "setup": setup,
        "seed": seed, "lr": lr, "evaluations": 100.0, "steps": 50, "start": 8.0, "value": value,
        "diverged": value is None, "curve": curve, "versions": {"torch": "9.9"}, **more,
    }  # fmt: skip


def tuning(method: str, *, setup: str = "s", slots: Sequence[str] = ()) -> Any:
    return {
        "type": "tuning", "problem": "quadratic-100", "kind": "a", "method": method, "budget": 100, "setup": setup,
        "lr": 0.1, "grid": {"0.01": 5.0, "0.1": 3.0}, "fraction": 0.2, "seed": 1000, "about": "d = 100",
        "slots": list(slots), "note": "", "versions": {"torch": "9.9"},
    }  # fmt: skip


def test_the_table_shows_medians_quartiles_and_failures() -> None:
    lines = [
        tuning("mezo"),
        *(line("mezo", s, v) for s, v in enumerate([1.0, 2.0, 3.0, 4.0, 100.0])),
        tuning("fast", slots=["m"]),
        *(line("fast", s, v) for s, v in enumerate([0.5, 0.25, 0.75, None, 0.6])),
        tuning("worse"),
        *(line("worse", s, 9.0) for s in range(5)),
        tuning("lost"),
        *(line("lost", s, None) for s in range(3)),
    ]
    column = columns_of(cells_of(lines))[0]
    assert [c.method for c in column.cells] == ["fast", "mezo", "worse", "lost"]
    fast, mezo = column.cells[:2]
    assert (mezo.median, mezo.quartiles) == (3.0, (2.0, 4.0))
    assert (fast.median, fast.quartiles, fast.diverged) == (0.6, (0.5, 0.75), 1)
    assert fast.evaluations_to(mezo.median) == 25.0  # 4 x 0.6 = 2.4 at the first of four marks
    assert mezo.evaluations_to(0.9) == math.inf
    text = page(lines)
    assert "**0.6 [0.5, 0.75], 1 of 5 diverged**" in text
    assert "9 [9, 9], no better than the start" in text
    assert "diverged (3 of 3)" in text
    assert "| mezo 3 | 3, rank 2 of 4 | 25% |" in text
    assert "| fast | 0% | **0.6 [0.5, 0.75], 1 of 5 diverged** | 2 | 1 |" in text
    assert "0.1*" in text, "the edge of the grid is marked"
    assert "torch 9.9" in text


def test_of_several_setups_the_last_one_counts_and_runs_are_never_mixed() -> None:
    old = [tuning("mezo", setup="old"), *(line("mezo", s, 1.0, setup="old") for s in range(5))]
    new = [tuning("mezo"), *(line("mezo", s, 2.0) for s in range(2))]
    (cell,) = cells_of([*old, *new])
    assert cell.values == [2.0, 2.0]


def test_the_page_is_a_function_of_the_file(tmp_path: Path) -> None:
    from PIL import Image

    out = tmp_path / "methods" / "results.jsonl"
    compare(["quadratic-100"], ["mezo", "zo_adam", "frank_wolfe"], TINY, out)
    first = write(out)
    text = (tmp_path / "methods.md").read_text()
    assert text == page(load(out))
    assert text == page(load(out)), "twice the same"
    assert "frank_wolfe on quadratic-100" in text
    assert "20% of the budget" in text
    with Image.open(tmp_path / "methods" / "a.png") as image:
        assert image.size[0] == 1200
        assert image.text["Description"] == fingerprint(load(out))
    assert first["bytes"] < 100_000
    changed = json.loads(out.read_text().splitlines()[1])
    assert changed["type"] == "run"
    Results(out).append({**changed, "seed": 77, "value": 0.123})
    assert page(load(out)) != text


@pytest.mark.skipif(not (DOCS / "methods" / "results.jsonl").exists(), reason="no results are published")
def test_the_published_page_shows_the_published_results() -> None:
    from PIL import Image

    lines = load(DOCS / "methods" / "results.jsonl")
    assert (DOCS / "methods.md").read_text() == page(lines), "run: python -m benchmarks.methods --page"
    kinds = {cell.kind for cell in cells_of(lines)}
    total = 0
    for kind in kinds:
        path = DOCS / "methods" / f"{kind}.png"
        total += path.stat().st_size
        with Image.open(path) as image:
            assert image.text["Description"] == fingerprint(lines), "run: python -m benchmarks.methods --page"
    assert total < 400_000


def test_an_empty_file_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished run"):
        write(tmp_path / "methods" / "results.jsonl")


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "methods" / "results.jsonl"
    args = ["--problems", "quadratic-100", "--methods", "mezo,zo_sgd", "--budget", "50"]
    args += ["--seeds", "1", "--grid", "1e-2,1e-1", "--out", str(out), "--json"]
    runner = CliRunner()
    result = runner.invoke(bench.app, args)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["run"] == 2
    result = runner.invoke(bench.app, ["--page", "--out", str(out), "--json"])
    assert json.loads(result.stdout.splitlines()[-1])["page"] == str(tmp_path / "methods.md")
    assert len(load(out)) == 4, "--page alone computes nothing"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--problems", "z"], "there is no problem 'z'"),
        (["--problems", "a", "--methods", "nope"], "there is no method 'nope'"),
        (["--problems", "a", "--budget", "2"], "leaves nothing to tune with"),
        (["--problems", "a", "--grid", "1,0.1"], "0 < low <= high"),
    ],
)
def test_mistakes_are_named(args: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(bench.app, [*args, "--out", str(tmp_path / "m" / "r.jsonl")])
    assert result.exit_code == 2
    assert message in result.stderr


def test_problem_names() -> None:
    assert bench.problem_names("a,b,c,d,e") == list(METHOD_PROBLEMS)
    assert bench.problem_names("f, quadratic-100") == ["quadratic-100", "lora-mr", "lora-trec"]
    assert bench.problem_names() == list(METHOD_PROBLEMS)


# ---- a language model ------------------------------------------------------------------------------------------------


def test_lora_on_a_tiny_model(tiny_model: Path) -> None:
    """Runs start from the same adapters, share nothing, count forward passes, and are judged on held-out examples."""
    p = LoraTask("lora-tiny", "mr", model=str(tiny_model), layers=1, batch=4, train_examples=12, eval_examples=10)
    assert (p.terms, p.unit) == (12, 4)
    assert "10 held-out examples" in p.about()
    first, second = (trial(p, "mezo", 1e-2, 20, 1, marks=2) for _ in range(2))
    assert first == second
    assert first["evaluations"] == 20
    assert first["start"] != first["value"]
    assert 0 <= first["accuracy"] <= 1
    other = trial(p, "mezo", 1e-2, 20, 2, marks=2)
    assert other["start"] == first["start"]
    assert other["value"] != first["value"]
    summed = trial(p, "zo_svrg", 1e-2, 40, 1, marks=2)  # 2 x 12 terms, then 4 terms a step: 6 and 1 evaluations
    assert 30 < summed["evaluations"] <= 40
    assert unfit(p, "deepzero", 100, TINY) is not None


def test_lora_batches_change_with_steps_and_are_shared_within_one(tiny_model: Path) -> None:
    from zograd.core.vector import Query
    from zograd.spaces import Euclidean

    p = LoraTask("lora-tiny", "mr", model=str(tiny_model), layers=1, batch=4, train_examples=12, eval_examples=10)
    session = p.begin(Euclidean(), 0)
    same = session.oracle(session.store, [Query(), Query()], 11)
    assert same[0] == same[1]
    assert session.oracle(session.store, [Query()], 11)[0] == same[0]
    assert session.oracle(session.store, [Query()], 12)[0] != same[0]
    whole = p.begin(Euclidean(), 0, whole=True)
    every = whole.oracle(whole.store, [Query(), Query(rows=tuple(range(12)))], 1)
    assert every[0] == pytest.approx(every[1], rel=1e-6)


def test_a_meter_stops_before_the_budget_is_passed() -> None:
    problem = method_problem("quadratic-100")
    session = problem.begin(bench.methods.make("mezo").space, 0)
    meter = Meter(session, 5, marks=1)
    from zograd.core.vector import Query

    meter(session.store, [Query()] * 3, 1)
    with pytest.raises(bench.Spent):
        meter(session.store, [Query()] * 3, 1)
    assert meter.spent == 3
    meter(session.store, [Query()] * 2, 1)
    assert meter.evaluations == 5
