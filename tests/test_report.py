"""`zograd report`: the page says what the runs say, needs nothing else, and never breaks on a run that broke."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from zograd import methods
from zograd.cli import app
from zograd.core.run import Record
from zograd.core.tape import Tape, TapeError, TapeWriter
from zograd.core.vector import Vector
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
from zograd.runs.errors import RunError
from zograd.runs.report import report
from zograd.runs.report.figures import letter, png
from zograd.runs.report.panels import GROUPS, panels_of, thinned
from zograd.runs.report.read import Margin, margin, read
from zograd.stores import Rate

COMMON: dict[str, Any] = {
    "task": "mr", "steps": 8, "batch_size": 2, "train_examples": 8, "eval_examples": 8, "mu": 1e-3, "dtype": "float32",
    "threads": 1,
}  # fmt: skip
VOID = {"meta", "link", "br", "img"}


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three short runs: SGD with evaluations on the way, lr=auto with two directions, signs."""
    root = tmp_path_factory.mktemp("runs")
    variants: dict[str, dict[str, Any]] = {
        "plain": {"lr": 1e-3, "eval_every": 4},
        "auto": {"lr": "auto", "set": {"n": 2}, "steps": 14},
        "sign": {"method": "zo_sign", "lr": 1e-4, "steps": 3},
    }
    for name, more in variants.items():
        train(TrainSettings.model_validate({**COMMON, "model": str(tiny_model), **more}), root / name, quiet=True)
    return {name: root / name for name in variants}


@pytest.fixture
def copy(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the plain run, to be spoilt."""
    return Path(shutil.copytree(runs["plain"], tmp_path / "copy"))


@pytest.fixture(scope="module")
def whole(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page about all three."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    report(list(runs.values()), out)
    return out.read_text()


def edit(run: Path, **changes: Any) -> dict[str, Any]:
    """Change run.json; a value of None removes the key."""
    meta = json.loads((run / "run.json").read_text()) | changes
    meta = {key: value for key, value in meta.items() if value is not None}
    (run / "run.json").write_text(json.dumps(meta))
    return meta


def rewrite(run: Path, records: Iterator[Record] | list[Record]) -> None:
    """The tape with other records."""
    header = Tape(run / "tape.zo").header
    records = list(records)
    (run / "tape.zo").unlink()
    with TapeWriter(run / "tape.zo", header) as writer:
        for record in records:
            writer.append(record)


# ---- the clock -------------------------------------------------------------------------------------------------------


def test_the_clock_goes_on_over_a_resume(tiny_model: Path, tmp_path: Path) -> None:
    s = TrainSettings.model_validate({**COMMON, "model": str(tiny_model), "lr": 1e-3, "steps": 4})
    train(s, tmp_path / "run", quiet=True)
    log = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[-1]["seconds"] = 1000.0
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = train(s.model_copy(update={"steps": 8}), tmp_path / "run", resume=True, quiet=True)
    seconds = [json.loads(line)["seconds"] for line in log.read_text().splitlines()]
    assert len(seconds) == 9
    assert seconds == sorted(seconds)
    assert seconds[0] == 0.0
    assert 0 < seconds[3] < 100
    assert 1000 < seconds[5] <= seconds[8] <= 1000 + result["seconds"] + 1e-3
    assert read(tmp_path / "run").summary()["seconds"] == seconds[8]


def test_the_progress_line_shows_what_is_measured(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"model": str(tiny_model), "lr": "auto", "steps": 2}
    train(TrainSettings.model_validate({**COMMON, **more}), tmp_path / "run")
    shown = capsys.readouterr().err
    assert "edge=0.70" in shown
    assert re.search(r"trace=-?\d", shown)


# ---- the page --------------------------------------------------------------------------------------------------------


class Checker(HTMLParser):
    """Balanced elements; what is named and what is referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.referred: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for key, value in attrs:
            text = value or ""
            if key == "id":
                self.ids.append(text)
            if key in ("href", "src", "xlink:href"):
                (self.referred.add(text[1:]) if text.startswith("#") else self.addresses.append(text))
            self.referred |= set(re.findall(r"url\(#([^)]+)\)", text))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(page: str) -> Checker:
    """The page is one well-formed document that loads nothing and runs nothing."""
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(checker.seen)
    assert checker.addresses == []
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.referred <= set(checker.ids)
    assert not re.search(r"https?:|@import|@font-face", page)
    return checker


def test_the_page_is_one_document_that_loads_nothing(whole: str) -> None:
    checker = check(whole)
    assert checker.seen.count("svg") >= 11


def test_figures_take_their_colours_from_the_page(whole: str) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", whole, re.S))
    assert not re.search(r"#[0-9a-f]{3,8}\b", re.sub(r'"#\w+"|url\(#\w+\)', "", figures))
    assert "currentColor" in figures
    assert {f"var(--run{k})" for k in range(3)} <= set(re.findall(r"var\(--run\d\)", figures))
    assert "prefers-color-scheme:dark" in whole


def test_the_same_runs_give_the_same_bytes(runs: dict[str, Path], whole: str, tmp_path: Path) -> None:
    report(list(runs.values()), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == whole
    data = [read(runs["sign"])]
    panels = panels_of(data)[:2]
    first = png(data, panels)
    assert first.startswith(b"\x89PNG")
    assert png(data, panels) == first


def test_the_numbers_are_those_of_the_run(runs: dict[str, Path], whole: str) -> None:
    run = read(runs["plain"])
    summary, result = run.summary(), run.result
    for mine, its in {
        "steps": "steps", "evaluations": "evaluations", "before": "metric_before", "calibrated": "metric_calibrated",
        "after": "metric_after", "peak_bytes": "peak_bytes", "eval_loss_after": "eval_loss_after",
        "sha256": "sha256",
    }.items():  # fmt: skip
        assert summary[mine] == result[its], mine
    assert summary["loss_first"] == pytest.approx(result["loss_first"])
    assert summary["memory_ratio"] == result["peak_bytes"] / result["inference_peak_bytes"]
    assert summary["tape_bytes"] == (runs["plain"] / "tape.zo").stat().st_size
    assert [point.step for point in run.held_out] == [0, 4, 8]
    assert [point.evaluations for point in run.held_out] == [0, 8, 16]
    assert run.lr.tolist() == [1e-3] * 8
    assert result["sha256"] in whole
    assert run.meta["packages"]["torch"] in whole
    assert run.meta["data"]["source"].replace("&", "&amp;") in whole


def test_differences_are_marked_and_equal_settings_are_not(whole: str) -> None:
    settings = whole[whole.index("<h2>Settings") : whole.index("<h2>Model")]
    marked = set(re.findall(r'<tr class="differs"><th>≠ ([^<]+)</th>', settings))
    assert marked == {"method", "lr", "steps", "eval_every", "set n"}
    assert "<tr><th>batch_size</th><td>2</td><td>2</td><td>2</td></tr>" in settings


def test_what_a_user_wrote_is_text(copy: Path) -> None:
    evil = """<script>alert("1")</script>&'"""
    meta = json.loads((copy / "run.json").read_text())
    edit(copy, settings=meta["settings"] | {"task": evil, "prompt_template": evil + "{text}\ud800"})
    odd = copy.rename(copy.parent / "_$x^{2$ <b> & \u4e2d")
    report([odd], copy.parent / "r.html", image=True)
    page = (copy.parent / "r.html").read_text()
    check(page)
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#x27;" in page
    assert "<b> &" not in page


def test_long_curves_become_means_with_their_extremes() -> None:
    x, y = np.arange(10_000.0), np.tile([0.0, 2.0], 5_000)
    y[17] = math.nan
    curve = thinned(0, x, y)
    assert curve is not None
    assert curve.low is not None
    assert curve.high is not None
    assert curve.x.size == GROUPS
    assert np.allclose(curve.y, 1.0, atol=0.02)
    assert (curve.low.min(), curve.high.max()) == (0.0, 2.0)
    assert thinned(0, x, np.full(x.size, math.nan)) is None


def test_letters_name_any_number_of_runs() -> None:
    names = [letter(k) for k in range(1000)]
    assert names[:2] + names[25:28] + names[702:703] == ["A", "B", "Z", "AA", "AB", "AAA"]
    assert len(set(names)) == 1000


# ---- stability -------------------------------------------------------------------------------------------------------


def recorded(lr: float, traces: list[float]) -> list[Record]:
    meters = [(("trace", t), ("curvature2", t * t)) for t in traces]
    return [Record(i, Vector(), 1.0, (Rate(lr, 0.0),), None, meters=m) for i, m in enumerate(meters)]


@pytest.mark.parametrize(("q", "beta"), [(1, 0.0), (4, 0.0), (1, 0.9), (4, 0.9)])
def test_margin_of_a_constant_curvature_is_the_closed_form(q: int, beta: float) -> None:
    """v·Hv = T for every direction: lr T / (2q (1 - beta)), and with the bound on L that k measurements leave."""
    make = methods.mezo_momentum(beta=beta, n=q, lr=1e-3) if beta else methods.zo_sgd(n=q, lr=1e-3)
    found = margin(make, recorded(1e-3, [50.0] * 6))
    assert np.allclose(found.low, 1e-3 * 50.0 / (2 * q * (1 - beta)), rtol=1e-12)
    spread = (q * (1 - beta) + 1 + beta) / (1 + beta)
    assert np.allclose(found.high, found.low * (1 + spread / np.arange(1, 7)), rtol=1e-9)


def test_negative_curvature_and_refused_steps_have_no_margin() -> None:
    records = recorded(1e-3, [-50.0, -50.0])
    refused = Record(2, Vector(), math.nan, (Rate(1e-3, 0.0),), None, refused=True)
    assert margin(methods.zo_sgd(lr=1e-3), [*records, refused]).last is None


def test_margin_of_auto_is_the_share_it_aimed_at(runs: dict[str, Path]) -> None:
    """Without momentum, lr=auto takes safety * signal of the lower bound of the edge; `edge` is logged after a step."""
    run = read(runs["auto"])
    assert isinstance(run.margin, Margin)
    aimed = np.concatenate([[0.7], run.meters["edge"][:-1]])
    known = np.isfinite(run.margin.high) & (run.lr > 0)
    assert known.sum() >= 4
    assert np.allclose(run.margin.high[known], aimed[known], rtol=1e-9)
    assert (run.margin.low[known] <= run.margin.high[known]).all()


def test_a_margin_that_is_not_there_says_why(runs: dict[str, Path], whole: str) -> None:
    assert "--lr auto measures it" in str(read(runs["plain"]).margin)
    assert "zo_sign" in str(read(runs["sign"]).margin)
    figure = whole[whole.index("<b>Stability margin</b>") :]
    assert "A: not measured" in figure[: figure.index("</figcaption>")]
    (alone,) = [p for p in panels_of([read(runs["plain"])]) if p.title == "Stability margin"]
    assert alone.empty


def test_every_meter_has_a_figure(whole: str) -> None:
    for name in ("trace", "slope2", "curvature2", "edge"):
        assert f"<b>Meter: {name}</b>" in whole


# ---- runs that are not whole -----------------------------------------------------------------------------------------


def damage_none(run: Path) -> None:
    edit(run, result=None)


def damage_metrics(run: Path) -> None:
    (run / "metrics.jsonl").unlink()


def damage_start_only(run: Path) -> None:
    """Killed before the first evaluation, and before the last step was logged."""
    edit(run, result=None)
    rewrite(run, Tape(run / "tape.zo").records[:3])
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:3]) + '\n{"step": 3, "lo')


def damage_no_steps(run: Path) -> None:
    edit(run, result=None, metrics_before=None)
    rewrite(run, [])


def damage_refused(run: Path) -> None:
    records = Tape(run / "tape.zo").records
    bad = {"vector": Vector(), "loss": math.nan, "refused": True, "moved": 0.0}
    rewrite(run, [replace(r, **bad) if r.step in (2, 5) else r for r in records])


def damage_all_refused(run: Path) -> None:
    bad = {"vector": Vector(), "loss": math.inf, "refused": True}
    rewrite(run, [replace(r, **bad) for r in Tape(run / "tape.zo").records])


def damage_loss_only(run: Path) -> None:
    before = {"metric": "loss", "value": 0.7, "calibrated": None, "majority": None, "examples": 8, "loss": 0.7}
    edit(run, metrics_before=before, result=None)


def damage_old_release(run: Path) -> None:
    """No clock, and settings of a method that is no longer there."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps({**x, "seconds": None}) + "\n" for x in lines))
    edit(run, settings={"model": "m", "task": "mr", "method": "gone"}, packages=None, data=None, metrics_before={})


INCOMPLETE = {
    "interrupted": (damage_none, ["stopped or under way: 8 of 8 steps", "not on file"]),
    "no metrics": (damage_metrics, ["this run logged no wall clock"]),
    "start only": (damage_start_only, ["3 of 8 steps", "--eval-every N", "do not parse and are left out: 1"]),
    "no steps": (damage_no_steps, ["0 of 8 steps", "no step was recorded"]),
    "refused steps": (damage_refused, ["<td>8, 0</td><td>8, 2</td>"]),
    "all refused": (damage_all_refused, ["<td>8, 0</td><td>8, 8</td>"]),
    "no accuracy": (damage_loss_only, ["B: measures loss"]),
    "another release": (damage_old_release, ["cannot build the method of the run", "logged no wall clock"]),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_runs_that_are_not_whole_render_beside_a_whole_one(runs: dict[str, Path], copy: Path, case: str) -> None:
    spoil, expected = INCOMPLETE[case]
    spoil(copy)
    out = copy.parent / "report.html"
    result = report([runs["plain"], copy], out)
    page = out.read_text()
    check(page)
    for text in expected:
        assert text in page, text
    json.loads(json.dumps(result, allow_nan=False))


def test_a_run_without_anything_to_draw_still_gives_a_page_and_a_picture(copy: Path) -> None:
    damage_no_steps(copy)
    (copy / "metrics.jsonl").unlink()
    report([copy], copy.parent / "report.html", image=True)
    check((copy.parent / "report.html").read_text())


def test_refused_steps_are_crosses_and_no_losses(copy: Path) -> None:
    damage_refused(copy)
    run = read(copy)
    assert run.refused.nonzero()[0].tolist() == [2, 5]
    assert np.isnan(run.loss[[2, 5]]).all()
    (curve,) = panels_of([run])[0].curves
    assert curve.crosses is not None
    assert curve.crosses.tolist() == [6.0, 12.0]


def test_a_torn_last_record_is_left_out_and_said(copy: Path) -> None:
    tape = copy / "tape.zo"
    tape.write_bytes(tape.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="the last record is torn"):
        run = read(copy)
    assert run.steps == 7
    assert not run.finished
    assert run.summary()["sha256"] is None
    assert run.held_out[-1].step == 4
    assert "torn" in run.notes[0]


# ---- bad input -------------------------------------------------------------------------------------------------------


def bad_folder(run: Path) -> None:
    shutil.rmtree(run)


def bad_empty(run: Path) -> None:
    (run / "run.json").unlink()


def bad_json(run: Path) -> None:
    (run / "run.json").write_text("{")


def bad_shape(run: Path) -> None:
    (run / "run.json").write_text("[]")


def bad_no_tape(run: Path) -> None:
    (run / "tape.zo").unlink()


def bad_tape(run: Path) -> None:
    data = bytearray((run / "tape.zo").read_bytes())
    data[-60] ^= 1
    (run / "tape.zo").write_bytes(data)


BAD = {
    "no folder": (bad_folder, "is not the folder of a run"),
    "no run": (bad_empty, "holds no run"),
    "run.json that does not parse": (bad_json, "does not parse"),
    "run.json of something else": (bad_shape, "has no settings and model of a run"),
    "no tape": (bad_no_tape, "has no tape.zo"),
    "damaged tape": (bad_tape, "restore the file from a copy"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_is_no_whole_run_is_named_and_nothing_is_written(copy: Path, case: str) -> None:
    spoil, expected = BAD[case]
    spoil(copy)
    with pytest.raises((RunError, TapeError), match=expected) as error:
        report([copy], copy.parent / "report.html", image=True)
    assert str(copy) in str(error.value)
    assert not list(copy.parent.glob("report*"))


def test_only_a_report_is_overwritten(copy: Path) -> None:
    out = copy.parent / "report.html"
    out.write_text("my notes")
    with pytest.raises(RunError, match="is not a report of zograd, so it is not overwritten"):
        report([copy], out)
    assert out.read_text() == "my notes"
    out.unlink()
    out.with_suffix(".png").write_bytes(b"my picture")
    with pytest.raises(RunError, match=r"report.png exists and is not a report"):
        report([copy], out, image=True)
    assert not out.exists()
    out.with_suffix(".png").unlink()
    damage_no_steps(copy)
    for _ in range(2):
        report([copy], out, image=True)
    with pytest.raises(RunError, match="there is no folder"):
        report([copy], copy.parent / "nowhere" / "r.html")
    with pytest.raises(RunError, match="is a folder; --out names the file"):
        report([copy], copy.parent)
    with pytest.raises(RunError, match=r"give the page the suffix \.html"):
        report([copy], copy.parent / "r.png", image=True)


def test_without_matplotlib_the_extra_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = CliRunner().invoke(app, ["report", str(copy), "--out", str(copy.parent / "r.html")])
    assert result.exit_code == 1
    assert result.stderr == 'zograd: figures need matplotlib: pip install "zograd[bench]"\n'


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_one_json_line(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    command = ["report", str(runs["plain"]), str(runs["sign"]), "--out", str(out), "--png", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["html"] == str(out)
    assert found["png"] == str(tmp_path / "report.png")
    assert [run["steps"] for run in found["runs"]] == [8, 3]


def test_the_command_fails_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--json"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"zograd: {tmp_path} holds no run")
    assert CliRunner().invoke(app, ["report"]).exit_code == 2
