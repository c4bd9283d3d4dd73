"""The table of the default: the data that it makes, a run at a small size, and the page as a function of the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import defaults
from benchmarks.defaults import DEFAULT, EXACT, Line, measure, pairs, read, run, written
from zograd.hub import load_task


def line(task: str, way: str, seed: int, after: float) -> Line:
    metric = "perplexity" if task == "completions" else "accuracy"
    calibrated = None if task == "completions" else 0.4
    return Line(task, way, seed, "smollm2-135m", 500, metric, 0.25, calibrated, after, 100, 10.0, 20.0 + seed)


def test_pairs_are_questions_with_what_they_ask_for(tmp_path: Path) -> None:
    """Read as RTE; half of each class entails, and the words of another class do not."""
    task, trec = load_task(f"rte:{pairs(tmp_path)}"), load_task("trec")
    for split in ("train", "validation", "test"):
        questions, found = trec.splits[split], task.splits[split]
        assert len(questions) == len(found)
        for q, e in zip(questions, found, strict=True):
            assert q.prompt.removeprefix("Question: ").removesuffix("\nAnswer type:") in e.prompt
            says = f'"The question asks for {defaults.ASKS[trec.classes[q.label]]}."' in e.prompt
            assert says == (task.classes[e.label] == "entailment")
        for label in range(6):
            entails = [e.label == 0 for q, e in zip(questions, found, strict=True) if q.label == label]
            assert abs(sum(entails) - len(entails) / 2) <= 0.5
    assert pairs(tmp_path).read_text() == pairs(tmp_path).read_text()


@pytest.mark.parametrize(("task", "way"), [("pairs", DEFAULT), ("completions", EXACT)])
def test_a_run_at_a_small_size(tiny_model: Path, task: str, way: str) -> None:
    found = run(task, way, 0, str(tiny_model), 8, steps=2, warmup=0, train_examples=8, batch_size=4, max_length=32)
    assert (found.task, found.way, found.held_out, found.steps) == (task, way, 8, 2)
    assert found.metric == ("perplexity" if task == "completions" else "accuracy")
    assert (found.calibrated is None) == (task == "completions")
    assert found.before > 0 <= found.after


def test_the_page_shows_spreads_and_what_was_not_run() -> None:
    lines = [line("trec", DEFAULT, s, 0.8 + s / 100) for s in range(3)] + [line("completions", EXACT, 0, 61.5)]
    page = written(lines)
    cells = "| `trec` | six types of questions | accuracy | 25.0 | 40.0 | 81.0 [80.0, 82.0] | 3 "
    assert cells + "| not run | 0 | 100 | 30 to 32 |" in page
    assert page.endswith("\n\nNot run so far: `mr`, `pairs`.\n")
    assert "| perplexity | 0.2 | - | not run | 0 | 61.5 | 1 | 100 | 30 |" in page


def test_what_is_in_the_file_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, str, int]] = []

    def instead(task: str, way: str, seed: int, model: str, held_out: int) -> Line:
        ran.append((task, way, seed))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return replace(line(task, way, seed, 0.5), held_out=held_out)

    monkeypatch.setattr(defaults, "run", instead)
    file = tmp_path / "results.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure(tasks="mr,trec", seeds=2, out=str(file), progress=lambda text: None)
    assert len(read(file)) == 2
    assert measure(tasks="mr,trec", seeds=2, out=str(file), progress=lambda text: None) == {"runs": 8}
    assert len(ran) == 9
    monkeypatch.setattr(defaults, "run", lambda *of: line("mr", DEFAULT, 9, float("nan")))
    with pytest.raises(ArithmeticError, match="see the run by hand"):
        measure(tasks="mr", seeds=1, held_out=7, out=str(file), progress=lambda text: None)
    assert json.loads(file.read_text().splitlines()[-1])["seed"] == 1


def test_the_page_in_docs_is_that_of_the_file() -> None:
    assert defaults.PAGE.read_text(encoding="utf-8") == written(read(defaults.RESULTS))
