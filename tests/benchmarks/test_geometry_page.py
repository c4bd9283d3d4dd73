"""`python -m benchmarks.geometry`: equal budgets and tuning, resumption, and a page that the file alone decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import geometry as contest
from benchmarks.geometry import TUNING_SEED, GeometryComparison, cell, compare, digest, tune, walk, ways_on
from benchmarks.geometry_page import at_a_glance, page, pictured, rows_of, write
from benchmarks.methods_page import fingerprint
from benchmarks.results import Results, load
from zograd.problems import PROBLEMS, problem_named

TINY = GeometryComparison(budget=60, seeds=2, fraction=0.3)
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", [n for n in PROBLEMS if n != "mesh-helmholtz"])
def test_every_way_keeps_to_the_budget_and_spaces_to_their_domain(name: str) -> None:
    problem = problem_named(name)
    ways = ways_on(problem)
    assert {"space, sgd", "space, adam", "space, fzoo", "flat naive, sgd"} <= set(ways)
    counts = {len(way.on(problem).rates) for way in ways.values()}
    assert len(counts) == 1, "all are tuned over as many rates"
    for way_name, way in ways.items():
        here, line = walk(problem, way, way.on(problem).rates[3], 37, 0)
        assert 37 - 9 < line["evaluations"] <= 37 or line["diverged"], way_name
        assert line["evaluations"] == here.census.probes == line["probes"]
        assert len(line["curve"]) == contest.MARKS
        assert line["curve"][-1] == line["value"]
        if way.outside == "never":
            assert line["probes_outside"] == line["iterates_outside"] == line["refused"] == 0, way_name
        if way.outside in ("project", "revert"):
            assert way.on(problem).inside(here.x), way_name


def test_marks_hold_the_iterate_that_the_budget_so_far_had_reached() -> None:
    problem = problem_named("simplex-square-20")
    way = ways_on(problem)["space, sgd"]
    _, line = walk(problem, way, 1.0, 40, 3)
    here, _ = walk(problem, way, 1.0, 40, 3)
    assert line["steps"] == here.run.moves == 20
    fresh = contest.Walk(way.on(problem), way.build(way.on(problem), 1.0, 40), seed=3)
    for mark in line["curve"]:
        fresh.step()
        assert fresh.value == pytest.approx(mark, rel=1e-4)


def test_tuning_takes_the_best_of_the_rates() -> None:
    problem = problem_named("simplex-kl-20")
    way = ways_on(problem)["space, adam"]
    lr, values, points = tune(problem, way, 60, TINY)
    assert len(values) == 9
    assert values[f"{lr:g}"] == min(v for v in values.values() if v is not None)
    assert values["0.1"] == walk(problem, way, 0.1, 18, TUNING_SEED)[1]["value"]
    assert (points.probes, points.iterates) == (9 * 18, 9 * 9)


def test_a_run_that_left_the_domain_has_no_value() -> None:
    problem = problem_named("mesh-poisson")
    _, line = walk(problem, ways_on(problem)["flat naive, sgd"], 0.1, 400, 0)
    assert line["diverged"]
    assert line["value"] is None
    assert line["iterates_outside"] > 0
    assert line["evaluations"] < 400, "it ends when nothing can bring it back"
    off = problem_named("stiefel-trace")
    _, line = walk(off, ways_on(off)["flat naive, sgd"], 0.01, 100, 0)
    assert line["value"] is None, "f is finite off the manifold, and worth nothing"
    assert line["probes_outside"] == line["probes"] == 100


def test_results_resume_without_computing_anything_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "geometry" / "results.jsonl"
    counts = compare(["stiefel-trace"], TINY, out)
    ways = len(ways_on(problem_named("stiefel-trace")))
    assert (counts["tuning"], counts["run"]) == (ways, 2 * ways)
    before = out.read_bytes()
    monkeypatch.setattr(contest, "walk", lambda *a: pytest.fail("nothing is left to compute"))
    compare(["stiefel-trace"], TINY, out)
    assert out.read_bytes() == before
    assert list(cell("stiefel-trace", "space, sgd", TINY, load(out))) == []


def test_the_setup_changes_with_what_decides_the_numbers() -> None:
    setups = {
        digest(problem, way, budget, plan)
        for problem in map(problem_named, ("simplex-kl-20", "simplex-square-20"))
        for way in ways_on(problem).values()
        for budget in (60, 90)
        for plan in (TINY, GeometryComparison(fraction=0.5))
    }
    assert len(setups) == 2 * 9 * 2 * 2


def run(way: str, seed: int, value: float | None, outside: int = 0, **measured: Any) -> Any:
    return {
        "type": "run", "problem": "p", "method": way, "budget": 100, "setup": "s", "seed": seed, "lr": 0.1,
        "evaluations": 100, "steps": 50, "start": 8.0, "value": value, "diverged": value is None, "probes": 100,
        "probes_outside": outside, "iterates": 50, "iterates_outside": 0, "curve": [value] * 4, "measured": measured,
        "versions": {"torch": "9.9"},
    }  # fmt: skip


def tuning(way: str, outside: str) -> Any:
    return {
        "type": "tuning", "problem": "p", "method": way, "budget": 100, "setup": "s", "lr": 0.1,
        "grid": {"0.01": 5.0, "0.1": 3.0}, "fraction": 0.3, "seed": 1000, "title": "A problem", "about": "d = 4",
        "outside": outside, "probes": 60, "probes_outside": 0, "iterates": 30, "iterates_outside": 0,
        "versions": {"torch": "9.9"},
    }  # fmt: skip


def test_the_table_shows_medians_ranges_and_who_left() -> None:
    share = {"leaving": {"space": {"0.1": 0.0}, "flat": {"0.1": 0.625}}}
    lines = [
        tuning("space, sgd", "never"),
        *(run("space, sgd", s, v, inverted=0, **(share if s == 0 else {})) for s, v in enumerate([3.0, 1.0, 2.0])),
        tuning("flat reverted, sgd", "revert"),
        *(run("flat reverted, sgd", s, 4.0, outside=10, inverted=0) for s in range(3)),
        tuning("flat naive, sgd", "leave"),
        *(run("flat naive, sgd", s, v, outside=40, inverted=s) for s, v in enumerate([5.0, None, None])),
    ]
    text = page(lines)
    assert "| space, sgd | **2 [1, 3]** | 0 of 300 | 0 of 150 | 0 | 0.1* |" in text
    assert "| flat naive, sgd | left the domain (2 of 3) | 120 of 300 | 0 of 150 | 2 | 0.1* |" in text
    assert "| p | 8 | space, sgd: 2 [1, 3] | 540 of 540 | flat reverted, sgd: 4 [4, 4] | 10.0% | 2 of 3 |" in text
    assert "| flat coordinates | 62.5% |" in text
    assert "torch 9.9" in text


def test_the_page_is_a_function_of_the_file(tmp_path: Path) -> None:
    from PIL import Image

    out = tmp_path / "geometry" / "results.jsonl"
    results, plan = Results(out), GeometryComparison(budget=31, seeds=1, fraction=0.3, grid=(0.01, 0.1))
    for way in ("space, sgd", "flat reverted, sgd", "flat naive, sgd"):
        for found in cell("mesh-poisson", way, plan):
            results.append(found)
    first = write(out)
    lines = load(out)
    assert (tmp_path / "geometry.md").read_text() == page(lines)
    assert [Path(f).name for f in first["figures"]] == ["mesh-poisson.png", "mesh-poisson-meshes.png"]
    for figure in first["figures"]:
        with Image.open(figure) as image:
            assert image.text["Description"] == fingerprint(lines)
    assert "mesh-poisson" in at_a_glance(out)
    pictures = pictured(rows_of(lines)["mesh-poisson"])
    assert [title.splitlines()[0] for title, _ in pictures][1] == "flat naive, sgd, lr 0.1 (best 0.01)"
    assert pictures[1][0].startswith("flat naive")
    assert {len(numbers) for _, numbers in pictures} == {2 * 81}


@pytest.mark.skipif(not (DOCS / "geometry" / "results.jsonl").exists(), reason="no results are published")
def test_the_published_page_shows_the_published_results() -> None:
    from PIL import Image

    lines = load(DOCS / "geometry" / "results.jsonl")
    assert (DOCS / "geometry.md").read_text() == page(lines), "run: python -m benchmarks.geometry --page"
    found = rows_of(lines)
    figures = [f"{name}.png" for name in found] + [f"{n}-meshes.png" for n, rows in found.items() if pictured(rows)]
    assert {path.name for path in (DOCS / "geometry").glob("*.png")} == set(figures)
    for name in figures:
        with Image.open(DOCS / "geometry" / name) as image:
            assert image.text["Description"] == fingerprint(lines), "run: python -m benchmarks.geometry --page"
    assert sum((DOCS / "geometry" / name).stat().st_size for name in figures) < 500_000


@pytest.mark.skipif(not (DOCS / "geometry" / "results.jsonl").exists(), reason="no results are published")
def test_what_the_published_results_show() -> None:
    """Spaces never left their domain, in tuning neither; errors of meshes fell on every seed; flat moves left."""
    found = rows_of(load(DOCS / "geometry" / "results.jsonl"))
    assert set(found) == set(PROBLEMS)
    for problem, rows in found.items():
        for row in rows:
            assert len(row.runs) == 5
            if row.tuning["outside"] == "never":
                for line in (row.tuning, *row.runs):
                    assert line["probes_outside"] == line["iterates_outside"] == 0, (problem, row.way)
            if problem.startswith("mesh") and row.tuning["outside"] == "never":
                assert all(r["value"] < 0.9 * r["start"] for r in row.runs), (problem, row.way)
                assert all(r["measured"]["rescored"] < 1.1 * r["value"] for r in row.runs), (problem, row.way)
            if problem == "stiefel-trace" and row.tuning["outside"] == "never":
                assert all(r["measured"]["orthogonality"] <= 1e-12 for r in row.runs)


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "geometry" / "results.jsonl"
    args = ["--problems", "stiefel-trace", "--budget", "40", "--seeds", "1", "--out", str(out)]
    result = CliRunner().invoke(contest.app, [*args, "--page", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["run"], told["page"]) == (7, str(tmp_path / "geometry.md"))
    shown = CliRunner().invoke(contest.app, ["--page", "--out", str(out)])
    assert shown.stdout.splitlines()[0].startswith("| problem | start | best on the space |")


@pytest.mark.parametrize(
    ("args", "message", "code"),
    [
        (["--problems", "nope"], "there is no problem 'nope'; use names of simplex-kl-20", 2),
        (["--problems", "stiefel-trace", "--budget", "20"], "leaves less than a step of 9 to tune with; use 30", 2),
        (["--seeds", "0"], "needs seeds >= 1", 2),
        (["--page"], "holds no finished run", 1),
    ],
)
def test_mistakes_are_named(args: list[str], message: str, code: int, tmp_path: Path) -> None:
    result = CliRunner().invoke(contest.app, [*args, "--out", str(tmp_path / "g" / "r.jsonl")])
    assert result.exit_code == code
    assert message in result.stderr
