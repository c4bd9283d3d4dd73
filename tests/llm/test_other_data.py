"""Other data than that of a run: it is read as the run reads it, at every door."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from zograd.cli import app
from zograd.hub import TaskError
from zograd.llm.evaluate import evaluate
from zograd.llm.robustness import measure
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.llm.tuned import Tuned
from zograd.runs.errors import RunError

TEMPLATE = "{text}\nIt was"


def table(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three classes with a prompt of its own."""
    folder = tmp_path_factory.mktemp("other")
    rows = [(f"film number {k} was {word}", word) for k in range(40) for word in ("good", "bad", "maybe")]
    data = table(folder / "three.csv", rows)
    common: dict[str, Any] = {"model": str(tiny_model), "dtype": "float32", "steps": 2, "batch_size": 4, "layers": 1}
    train(TrainSettings(**common, task=str(data), prompt_template=TEMPLATE), folder / "run", quiet=True)
    return folder / "run"


def test_the_classes_of_the_run_compete(run: Path, tmp_path: Path) -> None:
    """A file with fewer labels made a task of its own, with fewer classes and other words."""
    two = table(tmp_path / "two.csv", [(f"it was {w} indeed {k}", w) for k in range(10) for w in ("good", "bad")])
    found = evaluate(None, two, run, split="all")
    assert {line["class"] for line in found["classes"]} == {"good", "bad", "maybe"}
    answers = Tuned(str(run)).predict([f"it was {w} indeed {k}" for k in range(10) for w in ("good", "bad")])
    right = sum(a.label == w for a, w in zip(answers, ["good", "bad"] * 10, strict=True))
    assert found["accuracy"] == pytest.approx(right / 20)
    one = table(tmp_path / "one.csv", [("it was fine", "Good")])
    assert evaluate(None, one, run, split="all")["examples"] == 1


def test_a_label_that_the_run_does_not_have_is_named(run: Path, tmp_path: Path) -> None:
    other = table(tmp_path / "other.csv", [("it was", "good"), ("it is", "terrible")])
    with pytest.raises(TaskError, match=r"the label 'terrible' .*The run was trained with these labels and words; for"):
        evaluate(None, other, run, split="all")
    words = {"good": " good", "terrible": " bad"}
    assert evaluate(None, other, run, split="all", label_words=words)["examples"] == 2


def test_robustness_begins_where_eval_ends(run: Path) -> None:
    """It took the default prompt, and trec where no task was named."""
    found = measure(None, None, run=run, kind="numbers", split="all", examples=120)
    assert found["task"] == "three"
    assert {row["before"] for row in found["rows"]} == {evaluate(None, None, run, split="all")["accuracy"]}
    with pytest.raises(SettingsError, match="--dtype cannot be chosen for a run"):
        measure(None, None, run=run, kind="numbers", dtype="float32")
    shown = CliRunner().invoke(app, ["robustness", "--run", str(run), "--kind", "numbers", "--examples", "4"])
    assert "examples of three (test) were scored" in shown.output


def test_protect_remembers_what_the_run_reads(run: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in ("own", "said", "default")]
    more = [[], ["--task", str(run.parent / "three.csv"), "--prompt-template", TEMPLATE], []]
    for file, words in zip(files, more, strict=True):
        args = ["protect", "--run", str(run), "--layers", "1", "--calibration", "8", "--out", str(file)]
        if file is files[2]:
            args += ["--prompt-template", "{text}"]
        done = CliRunner().invoke(app, [*args, *words])
        assert done.exit_code == 0, done.output
    own, said, default = (file.read_bytes() for file in files)
    assert own == said
    assert own != default


def test_that_the_data_of_the_run_is_gone_is_said(run: Path, tmp_path: Path) -> None:
    two = table(tmp_path / "two.csv", [("it was so good", "good"), ("it was so bad", "bad")])
    data = run.parent / "three.csv"
    away = data.rename(run.parent / "away.csv")
    try:
        with pytest.warns(UserWarning, match="whether the run was trained on examples of .* is not known"):
            assert evaluate(None, two, run, split="all")["trained_on"] is None
    finally:
        away.rename(data)


def test_another_tokenizer_is_refused_on_resume(tiny_model: Path, tmp_path: Path) -> None:
    """A chat template that changed gave other prompts, and the run went on with them."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    rows = [(f"film number {k} was {word}", word) for k in range(40) for word in ("good", "bad")]
    common: dict[str, Any] = {"model": str(model), "dtype": "float32", "batch_size": 4, "layers": 1}
    settings = TrainSettings(**common, task=str(table(tmp_path / "two.csv", rows)), steps=2, method="zo_sgd", lr=1e-4)
    train(settings, tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "run.json").read_bytes()
    file = model / "tokenizer.json"
    text = json.loads(file.read_text())
    vocabulary = text["model"]["vocab"]
    one, two = (word for word in vocabulary if word in ("film", "was"))
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(text))
    with pytest.raises(RunError, match="other tokens than those that the run began with: the tokenizer of the base"):
        train(TrainSettings(steps=4), tmp_path / "run", resume=True, quiet=True)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_from_another_folder_the_base_model_is_asked_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "copy")
    meta = json.loads((tmp_path / "copy" / "run.json").read_text())
    meta["settings"]["model"] = "../model"
    (tmp_path / "copy" / "run.json").write_text(json.dumps(meta))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"on the base model \.\./model, which is not to be found from .* with --model"):
        Tuned("copy").predict(["it was"])
