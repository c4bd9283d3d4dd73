"""The table of learning per forward pass: what a run writes, and the page as a function of the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import defaults, forwards
from benchmarks.forwards import Line, measure, read, written


def line(method: str, lr: float, seed: int, accuracy: float, loss: float) -> Line:
    return Line("trec", "last", method, lr, seed, 50, [(0, 0.25, 2.0), (50, accuracy, loss)], 9.0, 110, 100)


def test_the_page_shows_the_best_rate_of_seed_0_and_how_soon_it_is_where_mezo_ends() -> None:
    lines = [line("residual", 1e-3, s, 0.9 - s / 10, 0.5) for s in range(3)]
    lines += [line("residual", 2e-3, 0, 0.99, 0.6)]
    lines += [line("zo_sgd", 1e-3, 0, 0.4, 1.4), line("backprop", 1e-3, 0, 0.3, 1.4)]
    page = written(lines)
    cells = "| trec | last | `residual` | 0.001 of 2 | 3 | 50 | 200 | 25.0 | 80.0 [70.0, 90.0] | 0.500 | 1.100 "
    assert cells + "| 200 (0.5 times fewer) |" in page
    assert "| trec | last | `zo_sgd` | 0.001 of 1 | 1 | 50 | 100 | 25.0 | 40.0 | 1.400 | 1.100 |  |" in page
    assert "| 30.0 | 1.400 | 1.100 | never |" in page


def test_what_is_in_the_file_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rates with seed 0 of each method, five of MeZO, and the best of them with seed 1."""
    ran: list[tuple[str, float, int, int]] = []

    def run(task: str, part: str, method: str, lr: float, seed: int, steps: int) -> Line:
        ran.append((method, lr, seed, steps))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return replace(line(method, lr, seed, 0.5, 1.0 - lr), steps=steps)

    monkeypatch.setattr(forwards, "run", run)
    file = tmp_path / "results.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure(seeds=2, out=str(file), progress=lambda text: None)
    assert len(read(file)) == 2
    assert measure(seeds=2, out=str(file), progress=lambda text: None) == {"runs": 3 + 3 + 6}
    assert len(set(ran)) == len(ran) - 1 == 12
    assert [of for of in dict.fromkeys(ran) if of[2] == 1] == [
        ("residual", 2e-3, 1, 50), ("backprop", 2e-3, 1, 50), ("zo_sgd", 3e-2, 1, 1500),
    ]  # fmt: skip


@pytest.mark.parametrize("measure", [forwards.measure, defaults.measure])
def test_a_run_that_was_stopped_early_is_not_kept(
    measure: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train` ends between two steps on SIGTERM, and returns as usual, without a last evaluation."""
    monkeypatch.setattr("zograd.llm.train.train", lambda *_, **__: {"metric_after": None, "steps": 5})
    file = tmp_path / "results.jsonl"
    with pytest.raises(SystemExit, match="stopped after 5 steps, so nothing of this run is kept"):
        measure(tasks="trec", out=str(file), progress=lambda text: None)
    assert not file.exists()


def test_the_page_in_docs_is_that_of_the_file() -> None:
    assert forwards.PAGE.read_text(encoding="utf-8") == written(read(forwards.RESULTS))


def test_a_rate_that_wins_short_runs_and_loses_whole_ones_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates of MeZO are compared over a fifth of the steps; the best one and the next lower one make whole runs."""
    ran: list[tuple[float, int, int]] = []

    def run(task: str, part: str, method: str, lr: float, seed: int, steps: int) -> Line:
        ran.append((lr, seed, steps))
        loss = abs(lr - (1e-3 if steps < 1500 else 3e-4))
        return replace(line(method, lr, seed, 0.5, loss), part=part, steps=steps)

    monkeypatch.setattr(forwards, "run", run)
    out = tmp_path / "lines.jsonl"
    measure(parts="four", methods="zo_sgd", seeds=2, out=str(out), progress=lambda text: None)
    assert ran[:5] == [(lr, 0, 300) for lr in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)]
    assert ran[5:] == [(1e-3, 0, 1500), (3e-4, 0, 1500), (3e-4, 1, 1500)]
    assert "| trec | four | `zo_sgd` | 0.0003 of 5 | 2 | 1,500 |" in written(read(out))


def test_shorter_runs_have_a_row_of_their_own_beside_the_same_end_of_mezo() -> None:
    """15 steps end on their own schedule: after 60 forwards, of 3,000."""
    runs = [
        replace(line(method, 1e-3, 0, value, 1.0), part="four", steps=steps, curve=[(0, 0.2, 2.0), (steps, value, 1.0)])
        for method, value, steps in (("residual", 0.8, 50), ("residual", 0.7, 15), ("zo_sgd", 0.6, 1500))
    ]
    page = written(runs)
    assert "| 50 | 200 | 20.0 | 80.0 | 1.000 | 1.100 | 200 (15 times fewer) |" in page
    assert "| 15 | 60 | 20.0 | 70.0 | 1.000 | 1.100 | 60 (50 times fewer) |" in page
