"""Commands that work for minutes show on stderr what they do, and nothing beside their JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from zograd.cli import app
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "films.csv"
    rows = [f"a {word} film number {k},{k % 2},{'train' if k < 24 else 'test'}" for k in range(32)
            for word in [("bad", "good")[k % 2]]]  # fmt: skip
    file.write_text("\n".join(["text,label,split", *rows]) + "\n", encoding="utf-8")
    return file


def shown(*command: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == 0, done.stderr[-500:]
    return done.stderr


def test_stages_of_the_commands(task: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = ["--model", tiny_model, "--task", task, "--label-words", "0= bad,1= good"]
    pruned = shown("compress", *model, "--out", tmp_path / "pruned", "--calibration", 8)
    for what in ("loading", "evaluating before", "reading films", "pruning", "evaluating after"):
        assert what in pruned
    thin = shown("compress", *model, "--factors", "fwsvd", "--out", tmp_path / "thin", "--calibration", 8)
    assert "differentiating" in thin
    assert "factorising" in thin
    kept = shown("protect", *model, "--layers", 1, "--calibration", 8, "--out", tmp_path / "kept.safetensors")
    assert "loading" in kept
    assert "zograd: reading:" in kept
    changed = shown("robustness", *model, "--kind", "numbers", "--examples", 4)
    assert "changing 4 examples" in changed


def test_packing_shows_what_is_read_and_written(task: Path, tiny_model: Path, tmp_path: Path) -> None:
    given = {"model": str(tiny_model), "task": str(task), "steps": 2, "eval_split": "test", "threads": 1}
    train(TrainSettings.model_validate({**given, "layers": 1}), tmp_path / "run", quiet=True)
    said = shown("pack", tmp_path / "run")
    assert "loading" in said
    assert "writing the difference of" in said
    (tmp_path / "run.zopack").unlink()
    assert "zograd:" not in shown("pack", tmp_path / "run", "--json")
