"""Options of train, eval and plan that are methods of their own, by the command: a tiny model and the bundled one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from zograd.cli import app

BUNDLED = pytest.param("smollm2-135m", marks=[pytest.mark.slow, pytest.mark.model])
FEW = ["--task", "mr", "--train-examples", "16", "--eval-examples", "8", "--batch-size", "2", "--dtype", "float32"]


@pytest.fixture(params=["tiny", BUNDLED])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> str:
    return str(tiny_model) if request.param == "tiny" else request.param


def zograd(*words: object) -> dict[str, Any]:
    """The JSON that a command prints."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def trained(model: str, run: Path, *more: object) -> dict[str, Any]:
    """A run of SGD on the last block; its weights are those of its replay."""
    done = zograd("train", "--model", model, *FEW, "--method", "zo_sgd", "--layers", 1, "--out", run, *more)
    again = zograd("replay", run, "--out", run.with_name(f"{run.name}-weights"))
    assert done["sha256"] == again["sha256"]
    assert (run.with_name(f"{run.name}-weights") / "model.safetensors").is_file()
    return done


def test_seconds(model: str, tmp_path: Path) -> None:
    assert trained(model, tmp_path / "run", "--seconds", 3)["steps"] >= 1


def test_balance(model: str, tmp_path: Path) -> None:
    settings = ["--train", "lora", "--balance", "--steps", 3]
    done = trained(model, tmp_path / "run", *settings)
    assert (done["steps"], done["evaluations"]) == (3, 6)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["balance"] is True


def test_polar(model: str, tmp_path: Path) -> None:
    done = trained(model, tmp_path / "run", "--train", "polar", "--lora-r", 4, "--steps", 3)
    assert 1 <= done["stable_rank"] <= 4


def test_protect(model: str, tmp_path: Path) -> None:
    file = tmp_path / "memory.safetensors"
    words = ["--task", "mr", "--layers", 1, "--calibration", 16, "--energy", 0.9, "--out", file]
    memory = zograd("protect", "--model", model, *words)
    assert 0 < memory["least"] <= memory["most"] < 1
    assert trained(model, tmp_path / "run", "--protect", file, "--steps", 3)["steps"] == 3


def test_refined(model: str, tmp_path: Path) -> None:
    trained(model, tmp_path / "first", "--steps", 12)
    trained(model, tmp_path / "second", "--steps", 12, "--lr-schedule", f"refined:{tmp_path / 'first'}")
    kept = json.loads((tmp_path / "second" / "run.json").read_text())["settings"]["lr_schedule"]
    assert kept.startswith("table:")
    assert max(map(float, kept.removeprefix("table:").split(","))) == pytest.approx(1.0)


def test_calibration(model: str) -> None:
    found = zograd("eval", "--model", model, "--task", "mr", "--examples", 20, "--calibration")["calibration"]
    assert 0 <= found["ece"] <= 1
    assert found["ece_scaled"] >= 0
    assert found["nll"] > 0
    assert found["temperature"] > 0


def test_plan(model: str) -> None:
    found = zograd("plan", "--model", model, *FEW[:4], "--batch-size", 2, "--seconds", 600)["time"]
    assert found["seconds"] == 600
    assert found["steps"] > 0
    assert found["step"] > 0
