"""Metrics of labels and predictions are scikit-learn's; intervals cover; a user's function is called as it expects."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from zograd.cli import app
from zograd.llm.evaluate import evaluate
from zograd.llm.scoring import metrics as m
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.runs.errors import RunError

PEERS = {
    "accuracy": ("accuracy_score", {}), "balanced-accuracy": ("balanced_accuracy_score", {}),
    "macro-f1": ("f1_score", {"average": "macro", "zero_division": 0}), "mcc": ("matthews_corrcoef", {}),
}  # fmt: skip


def drawn(classes: int, seed: int, n: int = 60) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return labels, np.where(rng.random(n) < 0.6, labels, rng.integers(classes, size=n))


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.filterwarnings("ignore:.*not in y_true", "ignore:A single label")
def test_metrics_are_those_of_scikit_learn(name: str, classes: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    function, options = PEERS[name]
    cases = [drawn(classes, seed) for seed in range(5)]
    cases.append((np.array([0, 0, 1]), np.array([0, 0, 0])))
    cases.append((np.array([0, 0, 0]), np.array([0, 1, 0])))
    for labels, predictions in cases:
        expected = getattr(sklearn, function)(labels, predictions, **options)
        assert m.NAMED[name](labels, predictions) == pytest.approx(expected, abs=1e-12)


def test_f1_is_that_of_the_second_class() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        labels, predictions = drawn(2, seed)
        assert m.f1(labels, predictions) == pytest.approx(sklearn.f1_score(labels, predictions), abs=1e-12)
    assert m.f1(np.array([0, 0]), np.array([0, 0])) == 0.0


def test_the_table_of_classes() -> None:
    scores = torch.tensor([[2.0, 0.0, -1.0]] * 3 + [[0.0, 1.0, -1.0]] * 2)
    found = m.metrics_of(scores, torch.tensor([0, 0, 1, 1, 0]), names=("a", "b", "c"))
    assert found.classes[0] == {
        "class": "a", "examples": 3, "predicted": 3, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3,
    }  # fmt: skip
    assert found.classes[2] == {
        "class": "c", "examples": 0, "predicted": 0, "precision": None, "recall": None, "f1": 0.0,
    }  # fmt: skip
    assert (found.low, found.high) == (None, None)


@pytest.mark.parametrize("name", ["accuracy", "macro-f1", "loss"])
def test_intervals_cover_the_value_of_all_examples(name: str) -> None:
    """Of 40 samples of 200 of 20,000 examples, at least 34 hold the value: P(fewer) is 0.3 % at a coverage of 95 %."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(20_000, generator=generator) < 0.2).long()
    scores = torch.randn(20_000, 2, generator=generator)
    scores[range(20_000), labels] += 1.0
    metric = m.metric_of(name, "classification", 2)
    whole = m.metrics_of(scores, labels, metric=metric).value
    held = 0
    for k in range(40):
        rows = slice(200 * k, 200 * k + 200)
        found = m.metrics_of(scores[rows], labels[rows], metric=metric, interval=True)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high
        held += found.low <= whole <= found.high
    assert held >= 34


def test_perplexity_is_that_of_a_token() -> None:
    scores = torch.tensor([[-1.0], [-3.0]])
    found = m.metrics_of(scores, None, tokens=[3, 1], interval=True)
    assert (found.metric, found.value) == ("loss", 2.0)
    assert found.perplexity == pytest.approx(math.exp(1.5))
    asked = m.metrics_of(scores, None, metric=m.metric_of("perplexity", "text", 0), tokens=[3, 1], interval=True)
    assert asked.value == found.perplexity
    assert found.low is not None
    assert found.low < found.value


def test_an_interval_without_a_width_is_none() -> None:
    """All samples of ten right answers have the value 1: "95 % interval 1 to 1" said that there is no error."""
    scores, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).repeat(5, 1), torch.tensor([0, 1]).repeat(5)
    for name in ("balanced-accuracy", "macro-f1"):
        found = m.metrics_of(scores, labels, metric=m.metric_of(name, "classification", 2), interval=True)
        assert (found.value, found.low, found.high) == (1.0, None, None)
    exact = m.of_rewards(found, "exact-match", torch.zeros(4), True)
    assert exact.low == 0.0
    assert exact.high == pytest.approx(0.49, abs=0.01)  # Wilson's of 0 of 4
    length = m.of_rewards(found, "f1", torch.tensor([0.5, 0.5]), True)
    assert (length.low, length.high) == (None, None)


def test_the_largest_class_is_a_share_in_double_precision() -> None:
    """It was rounded to float32, so that 0.9 > 0.8999999761581421 seemed better than the largest class."""
    labels = torch.tensor([0] * 18 + [1] * 2)
    found = m.metrics_of(torch.tensor([[1.0, 0.0]]).repeat(20, 1), labels)
    assert found.value == found.majority == 0.9


def test_scores_that_are_not_finite_have_no_metric() -> None:
    found = m.metrics_of(torch.tensor([[0.0, math.nan], [1.0, 0.0]]), torch.tensor([0, 1]), interval=True)
    assert (found.not_finite, found.macro_f1, found.majority) == (1, None, 0.5)
    assert math.isnan(found.value)


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        (
            "F2",
            "classification",
            "metric = 'F2': choose one of accuracy, .*, or write module:function, such as sklearn",
        ),
        ("f1", "classification", "'f1' is for 2 classes, and this task has 3; use macro-f1"),
        ("perplexity", "classification", "is for completions and texts, and this task has classes; use loss"),
        ("accuracy", "text", "compares classes, and this task has none: choose one of loss, perplexity"),
        ("no_such_module:f", "classification", r"cannot be imported \(ModuleNotFoundError: No module named 'no_such"),
        ("math:no", "classification", "cannot be imported .*AttributeError"),
        ("math:pi", "classification", "'math:pi' is a float, expected a function"),
    ],
)
def test_one_sentence_for_each_mistake(asked: str, kind: str, message: str) -> None:
    with pytest.raises(m.MetricError, match=message):
        m.metric_of(asked, kind, 3)


def broken(labels: Any, predictions: Any) -> float:
    raise ZeroDivisionError("none")


def share_of_second(labels: Any, predictions: Any) -> float:
    return float((predictions == 1).mean())


# ---- in a run --------------------------------------------------------------------------------------------------------


def settings(model: Path, task: str, **more: Any) -> TrainSettings:
    common = {"model": str(model), "task": task, "steps": 1, "batch_size": 4, "dtype": "float32", "threads": 1}
    words = {"prompt_template": "{text} It was", "label_words": "0= terrible,1= great", "method": "zo_sgd", "lr": 1e-3}
    return TrainSettings.model_validate({**common, **words, **more})


@pytest.fixture
def task(tmp_path: Path) -> str:
    rows = [{"text": f"good film {i}", "label": int(i % 10 < 2), "split": ("train", "dev")[i % 2]} for i in range(80)]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_run_reports_the_metric_that_was_asked_for(tiny_model: Path, tmp_path: Path, task: str) -> None:
    result = train(settings(tiny_model, task, metric="mcc"), tmp_path / "run", quiet=True)
    assert result["metric"] == "mcc"
    assert result["metric_after"] == result["mcc_after"]
    assert [c["examples"] for c in result["classes"]] == [32, 8]
    found = evaluate(None, None, tmp_path / "run", split="validation")
    assert (found["metric"], found["value"]) == ("mcc", result["metric_after"])
    other = evaluate(None, None, tmp_path / "run", split="validation", metric="macro-f1")
    assert (other["metric"], other["value"]) == ("macro-f1", result["macro_f1_after"])
    own = evaluate(None, None, tmp_path / "run", split="validation", metric=share_of_second)
    assert own["metric"] == "share_of_second"
    with pytest.raises(m.MetricError, match=r"the metric 'broken' failed on 40 labels .* \(ZeroDivisionError: none\)"):
        evaluate(None, None, tmp_path / "run", split="validation", metric=broken)


def test_code_is_named_again(tiny_model: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """run.json may not choose what is imported; a function is given again, and another one is refused."""
    monkeypatch.chdir(tmp_path)
    code = "def hits(labels, predictions):\n    return (labels == predictions).sum()\n"
    (tmp_path / "my_metric_of_test.py").write_text(code)
    named = "my_metric_of_test:hits"
    s = settings(tiny_model, task, metric=named)
    result = train(s, tmp_path / "run", quiet=True)
    assert result["metric_after"] == 40 * result["accuracy_after"]
    assert evaluate(None, None, tmp_path / "run", split="validation")["metric"] == "accuracy"
    plain = s.model_copy(update={"metric": None, "steps": 2})
    with pytest.raises(SettingsError, match=rf"which is code, .* give --metric {named} again"):
        train(TrainSettings(steps=2), tmp_path / "run", resume=True, quiet=True)
    typed = CliRunner().invoke(app, ["train", "--resume", "--steps", "2", "--out", str(tmp_path / "run")])
    assert typed.exit_code == 2
    assert f"give --metric {named} again" in typed.stderr
    again = TrainSettings(steps=2, metric=named)
    assert train(again, tmp_path / "run", resume=True, quiet=True)["metric"] == named
    train(plain.model_copy(update={"steps": 1}), tmp_path / "own", quiet=True, metric=share_of_second)
    with pytest.raises(RunError, match="the run reports 'share_of_second', and here the metric is 'accuracy'"):
        train(TrainSettings(steps=2), tmp_path / "own", resume=True, quiet=True)
    resumed = train(TrainSettings(steps=2), tmp_path / "own", resume=True, quiet=True, metric=share_of_second)
    assert resumed["metric"] == "share_of_second"


def test_a_metric_is_refused_before_the_model_is_loaded(tmp_path: Path, task: str) -> None:
    for call in (
        lambda: train(settings(tmp_path / "no model", task, metric="F2"), tmp_path / "run", quiet=True),
        lambda: evaluate(str(tmp_path / "no model"), task, None, metric="F2", split="validation"),
    ):
        with pytest.raises(m.MetricError, match="metric = 'F2': choose one of"):
            call()
    assert not (tmp_path / "run").exists()


def test_what_people_see_of_an_unbalanced_task(tiny_model: Path, tmp_path: Path, task: str) -> None:
    given = [
        "--model", str(tiny_model), "--task", task, "--prompt-template", "{text} It was", "--label-words",
        "0= terrible,1= great", "--dtype", "float32", "--threads", "1",
    ]  # fmt: skip
    steps = ["--steps", "1", "--method", "zo_sgd", "--lr", "1e-3", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, ["train", *given, *steps])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "largest class 80.0 %; 40 held-out)" in lines[0]
    assert lines[1].startswith("macro-F1: ")
    assert lines[2].split() == ["class", "examples", "predicted", "precision", "recall", "F1"]
    assert lines[3].split()[:2] == ["0", "32"]
    as_json = CliRunner().invoke(app, ["eval", *given, "--split", "validation", "--json"])
    assert json.loads(as_json.output.splitlines()[-1])["examples"] == 40  # remarks come before it
    shown = CliRunner().invoke(app, ["eval", *given, "--split", "validation"])
    assert shown.exit_code == 0, shown.output
    assert "(95 % interval 0." in shown.stdout
    assert shown.stdout.splitlines()[-2].split()[:2] == ["0", "32"]
