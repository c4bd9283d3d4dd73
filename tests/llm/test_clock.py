"""Runs that end on the clock, budgets, and estimates of the time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import zograd as zo
import zograd.llm.clock as clock_module
import zograd.llm.loop as loop_module
from zograd.cli import app
from zograd.core.tape import Tape
from zograd.distributed import Peers
from zograd.llm.clock import Clock, Estimate, about
from zograd.llm.recipe import chosen
from zograd.llm.restore import fixed_settings, replay
from zograd.llm.settings import NO_END, TrainSettings, parse
from zograd.llm.train import train
from zograd.stores import Rate

COMMON: dict[str, Any] = {
    "task": "mr", "method": "zo_sgd", "batch_size": 2, "train_examples": 8, "eval_examples": 4, "lr": 1e-2, "mu": 1e-3,
    "dtype": "float32", "threads": 1,
}  # fmt: skip


def settings(model: Path, **more: Any) -> TrainSettings:
    return TrainSettings.model_validate({**COMMON, "model": str(model), **more})


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The loop's clock: each look at it takes `tick` seconds."""
    clock = SimpleNamespace(now=0.0, tick=0.25)

    def perf_counter() -> float:
        clock.now += clock.tick
        return float(clock.now)

    monkeypatch.setattr(loop_module, "time", SimpleNamespace(perf_counter=perf_counter))
    return clock


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_the_rate_follows_the_share_of_the_time(shape: str) -> None:
    clock = Clock(TrainSettings(seconds=10.0, lr_schedule=shape, lr_end=0.1), Peers())
    for elapsed in (0.0, 2.5, 5.0, 9.0, 10.0, 12.0):
        clock.read(elapsed)
        assert clock.over == (elapsed >= 10)
        found = clock.rates((Rate(2.0, 0.5), Rate(4.0)))
        if shape == "constant":
            assert found is None
            continue
        u = min(elapsed / 10, 1.0)
        factor = 0.1 + 0.9 * (1 - u if shape == "linear" else 0.5 * (1 + math.cos(math.pi * u)))
        assert found is not None
        assert [r.lr for r in found] == pytest.approx([2 * factor, 4 * factor], rel=1e-5)
        assert [r.weight_decay for r in found] == [0.5, 0.0]
    without = Clock(TrainSettings(lr_schedule=shape), Peers())
    without.read(1e9)
    assert not without.over
    assert without.rates((Rate(2.0),)) is None


def test_a_run_ends_on_the_clock_and_replays(tiny_model: Path, tmp_path: Path, ticking: SimpleNamespace) -> None:
    s = settings(tiny_model, seconds=6.0, lr_schedule="cosine")
    done = train(s, tmp_path / "run", quiet=True)
    records = Tape(tmp_path / "run" / "tape.zo").records
    assert 5 < done["steps"] == len(records) < 30
    assert done["metric_after"] is not None
    lines = lines_of(tmp_path / "run")[1:]
    assert lines[-1]["seconds"] >= 6.0 > lines[-3]["seconds"]
    rates = [record.rates[0].lr for record in records]
    assert rates[0] == 1e-2
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 2e-3
    assert replay(tmp_path / "run", None, tmp_path / "weights")["sha256"] == done["sha256"]
    stored = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert (stored["steps"], stored["seconds"]) == (NO_END, 6.0)


def test_a_stopped_run_goes_on_with_the_time_that_is_left(
    tiny_model: Path, tmp_path: Path, ticking: SimpleNamespace
) -> None:
    """The rates of the first part are those on the tape, and the whole replays to the same bits."""
    s = settings(tiny_model, seconds=6.0, lr_schedule="linear", steps=5)
    first = train(s, tmp_path / "run", quiet=True)
    assert first["steps"] == 5
    left = 6.0 - lines_of(tmp_path / "run")[-1]["seconds"]
    assert 0 < left < 6
    before = ticking.now
    done = train(TrainSettings(steps=NO_END), tmp_path / "run", resume=True, quiet=True)
    assert left <= ticking.now - before <= left + 2
    rates = [record.rates[0].lr for record in Tape(tmp_path / "run" / "tape.zo").records]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 2e-3
    assert replay(tmp_path / "run", None, tmp_path / "weights")["sha256"] == done["sha256"]
    again = train(TrainSettings(), tmp_path / "run", resume=True, quiet=True)
    assert (again["steps_this_time"], again["sha256"]) == (0, done["sha256"])


def test_more_time_may_be_given_where_no_rate_depends_on_it(
    tiny_model: Path, tmp_path: Path, ticking: SimpleNamespace
) -> None:
    train(settings(tiny_model, seconds=3.0), tmp_path / "run", quiet=True)
    more = train(TrainSettings(seconds=6.0), tmp_path / "run", resume=True, quiet=True)
    assert more["steps_this_time"] > 0
    assert lines_of(tmp_path / "run")[-1]["seconds"] >= 6.0
    assert fixed_settings(settings(tiny_model, seconds=3.0)) == ()
    assert fixed_settings(settings(tiny_model, seconds=3.0, lr_schedule="cosine")) == ("seconds",)
    assert fixed_settings(settings(tiny_model, lr_schedule="cosine")) == ("steps", "seconds")


@pytest.mark.parametrize(
    ("given", "steps", "examples"),
    [
        ({"budget": "small"}, 100, 1000),
        ({"budget": "medium"}, 400, 4000),
        ({"budget": "large"}, 1600, None),
        ({"budget": "large", "train_examples": 7}, 1600, 7),
        ({"budget": "medium", "method": "fzoo"}, 4000, 4000),
        ({"budget": "medium", "mu": 1e-3}, 4000, 4000),
        ({"seconds": 60.0}, NO_END, 1000),
        ({"seconds": 60.0, "steps": 9}, 9, 1000),
        ({"seconds": 60.0, "method": "fzoo"}, NO_END, 1000),
    ],
)
def test_a_budget_becomes_steps_and_examples(given: dict[str, Any], steps: int, examples: int | None) -> None:
    new, why = chosen(TrainSettings.model_validate(given))
    assert (new.steps, new.train_examples, new.budget) == (steps, examples, None)
    assert chosen(new)[0] == new == parse(new.stored())
    if "seconds" in given and "method" not in given and "steps" not in given:
        assert "1 min in steps of 32 examples" in why


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--budget", "large", "--steps", "5"], "--budget large chooses the steps, and --steps 5 is given"),
        (["--budget", "small", "--seconds", "5"], "budget and seconds both say how long to train: choose one"),
        (["--budget", "huge"], "budget = 'huge': expected small, medium or large"),
        (["--seconds", "0"], "seconds = '0': expected a number above 0"),
        (
            ["--seconds", "9", "--lr", "auto", "--lr-schedule", "cosine"],
            "a rate that is measured does not follow the clock",
        ),
    ],
)
def test_what_does_not_fit_is_said_first(tmp_path: Path, options: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["train", "--out", str(tmp_path / "run"), "--task", "mr", *options])
    assert done.exit_code == 2
    assert says in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_the_time_is_estimated_before_the_first_step_and_after_three(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings(tiny_model, steps=6), tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("for 6 steps, counting forward passes alone") == 1
    assert said.count(" s a step: about ") == 1
    assert "for 3 steps" in said
    train(settings(tiny_model, seconds=1.0, lr=1e-6), tmp_path / "timed")
    said = capsys.readouterr().err
    assert said.count("steps in the 1 s that are left, counting forward passes alone") == 1
    train(settings(tiny_model, steps=6), tmp_path / "quiet", quiet=True)
    assert "steps" not in capsys.readouterr().err


def test_steps_that_store_states_are_not_taken_for_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 examples in batches of 128, 29 of 30 blocks frozen: 8 steps of 6 s, and 92 of 0.2 s."""
    scorer: Any = SimpleNamespace(prefix=object(), share=1 / 30, tokens=lambda batch: 600)
    batches: Any = type("Some", (), {"examples": range(1000), "size": 128, "__getitem__": lambda self, step: []})()
    method = SimpleNamespace(estimator=None)
    run: Any = SimpleNamespace(step_number=0, most_evaluations=1, method=method)
    s = TrainSettings.model_validate({**COMMON, "model": "m", "steps": 100})
    estimate = Estimate(s, run, scorer, batches, 0.01, Clock(s, Peers(None)))
    estimate.say_first(quiet=False)
    assert "about 1 min 6 s for 100 steps, counting forward" in capsys.readouterr().err  # 8 * 5.8 + 100 * 0.2
    method.estimator = zo.methods.residual(lr=1e-3).estimator
    estimate.say_first(quiet=False)
    said = "about 2 min 6 s for 100 steps, counting a derivative as two forward passes"  # 8 * 5.8 + 100 * 4 * 0.2
    assert said in capsys.readouterr().err

    now, told = 0.0, []
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now)
    bar: Any = SimpleNamespace(write=lambda text, file: told.append(text))
    for step in range(100):
        now += 6.0 if step < 8 else 0.2
        run.step_number = step + 1
        estimate.count(bar, quiet=False)
    assert told == ["zograd: 0.2 s a step: about 18 s for 89 steps"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.03, "0.03 s"), (7.31, "7 s"), (60, "1 min"), (80, "1 min 20 s"), (3600, "1 h"), (4000, "1 h 6 min"),
     (86_400 * 2 + 3600 * 7, "2 days 7 h")],
)  # fmt: skip
def test_times_are_words(seconds: float, text: str) -> None:
    assert about(seconds) == text
