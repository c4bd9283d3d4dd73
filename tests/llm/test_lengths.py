"""Lengths of a task's examples without a model: those with which the scorer then counts; `plan --task`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from zograd.cli import app
from zograd.llm.build import set_up
from zograd.llm.lengths import lengths_of
from zograd.llm.settings import TrainSettings
from zograd.runs.plan import plan

PARTS = ("train", "validation")

LINES: dict[str, list[dict[str, Any]]] = {
    "words": [
        {"text": "it was " + "very " * k + "good", "label": ["good", "very bad"][k % 2], "split": PARTS[k // 32]}
        for k in range(40)
    ],
    "choices": [
        {"question": "it was " + "very " * k, "choices": ["good", "bad no", "maybe"][: 2 + k % 2], "answer": 0}
        for k in range(40)
    ],
    "completions": [{"prompt": "it was" + " very" * k, "completion": " good bad"} for k in range(40)],
    "texts": [{"text": "it was " + "very " * k + "good"} for k in range(40)],
}


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("most", [None, 20])
def test_lengths_are_those_of_the_scorer(tiny_model: Path, tmp_path: Path, kind: str, most: int | None) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, LINES[kind])))
    s = TrainSettings.model_validate({
        "model": str(tiny_model), "task": str(file), "method": "zo_sgd", "dtype": "float32", "batch_size": 8,
        "max_length": most, **({"label_words": {"good": " good", "very bad": " very bad"}} if kind == "words" else {}),
    })  # fmt: skip
    found, work = lengths_of(s), set_up(s, tmp_path / "run")
    examples = work.batches.examples
    assert found.examples == len(examples)
    longest = max(sum(work.scorer.lengths([e])) for e in examples)
    batch = max(sum(work.scorer.lengths(part)) for part in work.batches.first_uses())
    if most is None:
        assert (found.longest, found.batch, found.cut) == (longest, batch, 0)
    else:  # what is cut ends at the end of a word
        assert longest <= found.longest
        assert batch <= found.batch <= batch + 3 * 8
        assert found.cut == len(work.scorer.cut & {*examples}) > 0
    assert found.seq_len == -(-found.batch // 8)


def test_a_plan_of_a_task_has_the_length_of_its_largest_batch(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, LINES["completions"])))

    def asked(*more: str) -> Any:
        return CliRunner().invoke(app, ["plan", "--model", str(tiny_model), "--method", "zo_sgd", *map(str, more)])

    task = ("--task", str(file), "--batch-size", "4")
    answer = json.loads(asked(*task, "--json").stdout)
    expected = plan(str(tiny_model), dtype="auto", batch_size=4, seq_len=answer["lengths"]["seq_len"])
    assert answer["method_peak_bytes"] == expected["method_peak_bytes"]
    assert "training examples of" in asked(*task, "--max-length", "20").stdout
    assert "are cut at 20" in asked(*task, "--max-length", "20").stdout
    for more, why in ((("--seq-len", "8"), "both say how long examples are"), ((), "")):
        assert why in asked(*task, *more).output
    assert "--max-length is about the data of --task, and none is given" in asked("--max-length", "20").output
