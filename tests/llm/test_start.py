"""The start of a run: what is shown, what is computed and when, and what stands on the disk by then."""

from __future__ import annotations

import gc
import json
import re
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from zograd.cli import app
from zograd.llm.restore import replay
from zograd.llm.scoring.prefix import Prefix
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import TrainSettings
from zograd.llm.stages import Stages, importing
from zograd.llm.train import train
from zograd.runs.folder import began

COMMON: dict[str, Any] = {
    "task": "mr", "method": "residual", "layers": 2, "steps": 3, "batch_size": 8, "train_examples": 64,
    "eval_examples": 16, "dtype": "float32", "threads": 1,
}  # fmt: skip


@pytest.fixture
def settings(tiny_model: Path) -> TrainSettings:
    return TrainSettings(model=str(tiny_model), **COMMON)


def test_states_are_stored_when_a_step_needs_them_and_once(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of 8 examples and an evaluation of 16 store 32 of the 80; a resumed run ends at the same bits."""
    stored: list[int] = []
    record = Prefix.record

    def counted(self: Prefix, numbers: Any, layout: Any) -> Any:
        stored.extend(numbers)
        return record(self, numbers, layout)

    monkeypatch.setattr(Prefix, "record", counted)
    monkeypatch.setattr(Scorer, "_prefix", lambda self, below, last_only: Prefix(self.base, below))
    whole = train(settings, tmp_path / "whole", quiet=True)
    assert len(stored) == len(set(stored)) == 16 + 3 * 8
    stored.clear()
    train(settings.model_copy(update={"steps": 2}), tmp_path / "parts", quiet=True)
    assert len(stored) == 16 + 2 * 8
    resumed = train(TrainSettings(steps=3), tmp_path / "parts", resume=True, quiet=True)
    assert resumed["sha256"] == whole["sha256"]
    assert resumed["eval_loss_after"] == whole["eval_loss_after"]


def test_the_folder_is_there_before_the_evaluation_that_takes_long(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed in it does not count as begun, and its folder can be used again."""

    def killed(self: Scorer, *_: Any, **__: Any) -> None:
        assert json.loads((tmp_path / "run" / "run.json").read_text())["model"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "run", quiet=True)
    assert not began(tmp_path / "run")
    assert train(settings, tmp_path / "run", quiet=True)["steps"] == 3


def test_the_evaluation_before_the_first_step_can_be_left_out(settings: TrainSettings, tmp_path: Path) -> None:
    with_it = train(settings, tmp_path / "with", quiet=True)
    without = settings.model_copy(update={"baseline": False})
    train(without.model_copy(update={"steps": 2}), tmp_path / "without", quiet=True)
    done = train(TrainSettings(steps=3), tmp_path / "without", resume=True, quiet=True)
    assert done["sha256"] == with_it["sha256"]
    assert done["metric_before"] is done["eval_loss_before"] is done["metric_calibrated"] is None
    assert done["metric_after"] == with_it["metric_after"]
    assert done["metric"] == "accuracy"
    assert "metric_before" not in (tmp_path / "without" / "metrics.jsonl").read_text()


def test_a_command_shows_each_stage_and_both_times(tiny_model: Path, tmp_path: Path) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in COMMON.items()]
    command = ["train", "--model", str(tiny_model), "--out", str(tmp_path / "run"), *options]
    done = CliRunner().invoke(app, [*command, "--no-baseline"])
    assert done.exit_code == 0, done.output
    for stage in ("importing torch ...", "reading mr ...", f"loading {tiny_model} ...", "trying the model ..."):
        assert stage in done.stderr
    assert "evaluating before the first step" not in done.stderr
    assert "s after a start of" in done.stdout
    assert re.search(r"^accuracy: \d+\.\d % \(largest class", done.stdout, re.M)  # it was not evaluated before
    assert "of the whole process" in done.stdout
    result = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert result["process_peak_bytes"] >= max(result["peak_bytes"], result["inference_peak_bytes"]) > 0
    assert result["start_seconds"] > 0


def test_stages_have_their_times_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    stages = Stages()
    with stages.stage("loading"):
        pass
    with stages.counted("evaluating", 4) as progress:
        progress(1.5)
        progress(2.5)
    with pytest.raises(ValueError, match="no"), stages.stage("reading"):
        raise ValueError("no")
    with Stages(quiet=True).stage("nothing"), Stages(quiet=True).counted("nothing", 2) as progress:
        progress(2)
    said = capsys.readouterr().err
    assert "zograd: loading ... 0.0 s\n" in said
    assert "zograd: evaluating: 100%" in said
    assert said.endswith("zograd: reading ...\n")


def test_what_is_said_within_a_stage_has_lines_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    stages = Stages()
    with stages.stage("reading 3 examples"):
        print("zograd: conversations are written with the chat template", file=sys.stderr)
        print("zograd: 2 of 3 are used", file=sys.stderr)
    with stages.stage("loading"), pytest.warns(UserWarning, match="old"):
        warnings.warn("old", stacklevel=1)
    with suppress(KeyError), stages.stage("trying"):
        print("a", file=sys.stderr)
        raise KeyError("b")
    assert capsys.readouterr().err.splitlines() == [
        "zograd: reading 3 examples ...", "zograd: conversations are written with the chat template",
        "zograd: 2 of 3 are used", "zograd: reading 3 examples ... 0.0 s", "zograd: loading ... 0.0 s",
        "zograd: trying ...", "a",
    ]  # fmt: skip


@pytest.mark.parametrize("on", [True, False])
def test_the_garbage_collector_waits_for_imports_and_is_as_before_behind_them(on: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with suppress(ImportError), importing():
            assert not gc.isenabled()
            raise ImportError("no such module")
        assert gc.isenabled() is on
    finally:
        (gc.enable if before else gc.disable)()


def test_no_step_is_a_run_too(tiny_model: Path, tmp_path: Path) -> None:
    """Without a method, too, whose schedule has nothing to do: the model is evaluated and the run replayed as it is."""
    s = TrainSettings(model=str(tiny_model), task="mr", steps=0, train_examples=8, eval_examples=8, dtype="float32")
    done = train(s, tmp_path / "run", quiet=True)
    assert (done["steps"], done["evaluations"], done["metric_after"]) == (0, 0, done["metric_before"])
    assert replay(tmp_path / "run", None, tmp_path / "weights")["sha256"] == done["sha256"]
