"""A model whose scores are not finite has no metric: exit code 1, one sentence, and JSON that any reader takes."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from zograd.cli import app
from zograd.jsons import dumps, finite
from zograd.llm import loading
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def broken(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one NaN in it."""
    folder = tmp_path_factory.mktemp("broken") / "model"
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    with torch.no_grad():
        model.get_parameter(WEIGHT)[0, 0] = math.nan
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _warnings_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line shows warnings in its own way, for the process."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def strict(text: str) -> dict[str, Any]:
    """JSON without the words NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def zograd(*args: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in args])


def test_eval_of_a_broken_model_fails_and_names_the_weight(broken: Path) -> None:
    result = zograd("eval", "--model", broken, "--task", "mr", "--examples", 8, "--dtype", "float32", "--json")
    assert result.exit_code == 1
    summary = strict(result.stdout)
    assert [summary[key] for key in ("value", "calibrated", "loss", "not_finite")] == [None, None, None, 8]
    assert "8 of 8 examples have scores that are not finite, so there is no accuracy of this model" in result.stderr
    assert f"its weight {WEIGHT!r}" in result.stderr
    assert "Traceback" not in result.stderr


def test_one_example_is_enough(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is an accuracy of which a part is unknown; the weights are fine, so the forward is to blame."""
    from zograd.hub import load_task

    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    examples = list(load_task("mr").splits["test"][:6])
    scorer = Scorer(model, tokenizer, load_task("mr"))
    plain = scorer.scores

    def scores(some: Any) -> torch.Tensor:
        found = plain(some)
        found[[e == examples[2] for e in some]] = math.inf
        return found

    monkeypatch.setattr(scorer, "scores", scores)
    metrics = scorer.evaluate(examples)
    assert (metrics.not_finite, math.isnan(metrics.value), math.isnan(metrics.loss)) == (1, True, True)
    assert "1 of 6 examples" in str(scorer.why_not_finite(metrics))
    assert "its forward overflows torch.float32" in str(scorer.why_not_finite(metrics))


def test_a_run_of_refused_steps_is_a_failure(broken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = zograd(
        "train", "--model", broken, "--task", "mr", "--steps", 3, "--batch-size", 4, "--train-examples", 16,
        "--eval-examples", 4, "--dtype", "float32", "--threads", 1, "--out", run, "--json",
    )  # fmt: skip
    assert result.exit_code == 1
    summary = strict(result.stdout.splitlines()[-1])
    assert (summary["refused"], summary["metric_before"], summary["metric_after"]) == (3, None, None)
    assert "all 3 steps were refused: their losses were not finite" in result.stderr
    strict((run / "run.json").read_text(encoding="utf-8"))
    lines = [strict(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line.get("refused") for line in lines] == [None, True, True, True]


def test_the_summary_counts_refused_steps(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = Scorer.copy_losses, iter(range(100))

    def losses(self: Scorer, batch: Any, copies: int, most: int = 64) -> torch.Tensor:
        return plain(self, batch, copies) * (math.nan if next(calls) in (3, 4) else 1.0)

    monkeypatch.setattr(Scorer, "copy_losses", losses)
    s = TrainSettings.model_validate(
        {"model": str(tiny_model), "task": "mr", "steps": 6, "batch_size": 4, "train_examples": 16, "threads": 1,
         "eval_examples": 4, "dtype": "float32", "lr": 1e-3, "mu": 1e-3, "together": 1}
    )  # fmt: skip
    result = train(s, tmp_path / "run", quiet=True)
    refused = [r for r in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())]
    assert result["refused"] == sum(bool(line.get("refused")) for line in refused) > 0
    assert result["failure"] is None


def test_json_has_no_numbers_that_are_not_finite() -> None:
    value = {"a": [1.0, math.nan, (math.inf,)], "b": {"c": -math.inf}, "d": "NaN", "e": True, "f": 3}
    assert finite(value) == {"a": [1.0, None, [None]], "b": {"c": None}, "d": "NaN", "e": True, "f": 3}
    assert strict(dumps(value)) == finite(value)
