"""--lr-schedule refined:RUN: the rates of a run follow the gradient norms of an earlier one, without its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_clock import settings

from zograd.core.tape import Tape
from zograd.learning_rate import refined, slope_norms
from zograd.llm.restore import replay
from zograd.llm.schedule import settled, shaped
from zograd.llm.settings import SettingsError, TrainSettings, parse
from zograd.llm.train import train


def test_rates_follow_an_earlier_run_and_do_not_need_its_folder(tiny_model: Path, tmp_path: Path) -> None:
    train(settings(tiny_model, steps=12), tmp_path / "first", quiet=True)
    text = f"refined:{tmp_path / 'first'}"
    second = settings(tiny_model, steps=12, lr_schedule=text, seed=1)
    done = train(second, tmp_path / "second", quiet=True)
    norms = slope_norms(r.vector for r in Tape(tmp_path / "first" / "tape.zo").records)
    shape = refined(norms, second.lr)
    rates = [r.rates[0].lr for r in Tape(tmp_path / "second" / "tape.zo").records]
    assert rates == pytest.approx([shape(t) for t in range(12)], rel=1e-3)
    shutil.rmtree(tmp_path / "first")
    again = train(TrainSettings(), tmp_path / "second", resume=True, quiet=True)
    assert replay(tmp_path / "second", None, tmp_path / "weights")["sha256"] == again["sha256"] == done["sha256"]


def test_texts_of_schedules() -> None:
    assert shaped("linear", 2.0, 10)(5) == pytest.approx(1.0)
    assert shaped("table:1,0", 2.0, 11)(5) == pytest.approx(1.0)
    assert settled("cosine") == "cosine"
    for text, says in (("wavy", "refined:RUN"), ("table:1,x", "numbers between commas"), ("table:-1", "finite")):
        with pytest.raises(SettingsError, match=says):
            parse({"lr_schedule": text})


def test_a_run_that_is_not_there_or_has_no_slopes_is_refused_before_training(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent"):
        train(settings(tiny_model, steps=3, lr_schedule=f"refined:{tmp_path / 'absent'}"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    train(settings(tiny_model, steps=3), tmp_path / "short", quiet=True)
    with pytest.raises(ValueError, match="a shape needs at least 10 steps, and this run has 3; name a longer one"):
        train(settings(tiny_model, steps=3, lr_schedule=f"refined:{tmp_path / 'short'}"), tmp_path / "run", quiet=True)
