"""plan --seconds: the steps that it promises are those that a run on the clock makes; energy from counters."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_clock import settings, ticking
from typer.testing import CliRunner

from zograd.cli import app
from zograd.llm.rehearsal import Rehearsal, rehearse
from zograd.llm.restore import replay
from zograd.llm.train import train
from zograd.runs.memory import Energy

__all__ = ["ticking"]


def test_the_promised_steps_are_made(tiny_model: Path, tmp_path: Path, ticking: SimpleNamespace) -> None:
    """On a clock of which each look takes as long, within one step."""
    found = rehearse(settings(tiny_model, steps=500))
    assert found.step > 0
    for seconds in (4.0, 9.0):
        done = train(settings(tiny_model, seconds=seconds), tmp_path / f"run{seconds:g}", quiet=True)
        assert abs(found.steps(seconds) - done["steps"]) <= 1


@pytest.mark.slow
def test_the_promised_steps_are_made_on_a_real_clock(tiny_model: Path, tmp_path: Path) -> None:
    """Within 25 %, in the median of three runs."""
    shares = []
    for k in range(3):
        promised = rehearse(settings(tiny_model, steps=500), steps=20).steps(3.0)
        shares.append(train(settings(tiny_model, seconds=3.0), tmp_path / f"run{k}", quiet=True)["steps"] / promised)
    assert sorted(shares)[1] == pytest.approx(1.0, abs=0.25)


@pytest.mark.slow
@pytest.mark.model
def test_the_promised_steps_are_made_by_the_bundled_model(tmp_path: Path) -> None:
    """By the default recipe with fewer examples a step. Other processes may have taken a half of the time of either."""
    s = settings(Path("smollm2-135m"), method="auto", batch_size=8, train_examples=100, lr=None, mu=None, dtype="auto")
    promised = rehearse(s).steps(20.0)
    done = train(s.model_copy(update={"seconds": 20.0}), tmp_path / "run", quiet=True)
    print(promised, done["steps"])
    assert promised / 2 <= done["steps"] <= 2 * promised
    assert replay(tmp_path / "run", None, tmp_path / "weights")["sha256"] == done["sha256"]


@pytest.mark.parametrize("more", [{"method": "auto", "lr": None, "mu": None}, {"warmup": 50, "lr_schedule": "linear"}])
def test_a_warm_up_that_is_longer_than_the_rehearsal_is_left_out(tiny_model: Path, more: dict[str, Any]) -> None:
    """`zograd plan --task mr --seconds 600` has the default recipe, whose rate rises for ten steps."""
    assert rehearse(settings(tiny_model, steps=100, **more)).steps(1e6) > 0


def test_steps_are_counted_from_the_first_one() -> None:
    found = Rehearsal(step=2.0, first=5.0, loading=30.0, joules=None)
    assert [found.steps(s) for s in (4.9, 5.0, 6.9, 7.0, 25.0)] == [0, 1, 1, 2, 11]


def test_nothing_is_left_behind_and_the_command_says_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    command = ["plan", "--model", str(tiny_model), "--task", "mr", "--method", "zo_sgd", "--batch-size", "2"]
    done = CliRunner().invoke(app, [*command, "--seconds", "60", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])["time"]
    assert result["seconds"] == 60
    assert result["steps"] > 60
    assert result["joules"] is None or result["joules"] > 0
    assert not list(tmp_path.iterdir())
    text = CliRunner().invoke(app, [*command, "--seconds", "60"])
    assert "steps in 60 s" in text.stdout
    refused = CliRunner().invoke(app, ["plan", "--model", str(tiny_model), "--seconds", "60"])
    assert refused.exit_code == 2
    assert "measures steps on the data of --task, and none is given: add --task NAME" in refused.stderr
    for seconds in ("0", "-5", "inf", "nan"):
        refused = CliRunner().invoke(app, [*command, "--seconds", seconds])
        assert refused.exit_code == 2
        assert f"--seconds {seconds}: expected a number above 0" in refused.stderr


def counters(root: Path, first: int, second: int) -> None:
    for k, value in enumerate((first, second)):
        package = root / f"intel-rapl:{k}"
        package.mkdir(exist_ok=True, parents=True)
        (package / "energy_uj").write_text(f"{value}\n")
        (package / "max_energy_range_uj").write_text("9999999\n")
    part = root / "intel-rapl:0:0"
    part.mkdir(exist_ok=True)
    (part / "energy_uj").write_text("123\n")


def test_energy_is_that_of_the_packages_and_wraps(tmp_path: Path) -> None:
    counters(tmp_path, 1_000_000, 9_000_000)
    with Energy(tmp_path) as energy:
        counters(tmp_path, 4_000_000, 500_000)  # the second counter has begun again
    assert energy.joules == pytest.approx(3.0 + 1.5)


def test_energy_without_a_counter_is_not_known(tmp_path: Path) -> None:
    with Energy(tmp_path) as energy:
        pass
    assert energy.joules is None
    counters(tmp_path, 1, 2)
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("denied")
    with Energy(tmp_path) as energy:
        counters(tmp_path, 5, 6)
    assert energy.joules is None
