"""`zograd report --live`: the page while a run is under way, its colours, and how a browser shows it."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from zograd.cli import app
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
from zograd.runs.errors import RunError
from zograd.runs.report import live, report
from zograd.runs.report.figures import DARK, LIGHT

REFRESH = '<meta http-equiv="refresh" content="5">'


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "run"
    s = TrainSettings(model=str(tiny_model), task="mr", method="zo_sgd", steps=6, batch_size=2, train_examples=8,
                      eval_examples=8, lr=1e-3, mu=1e-3, dtype="float32", threads=1)  # fmt: skip
    train(s, folder, quiet=True)
    return folder


def unfinished(run: Path, to: Path) -> Path:
    """A copy of the run as it was before its end."""
    shutil.copytree(run, to)
    meta = json.loads((to / "run.json").read_text())
    (to / "run.json").write_text(json.dumps({k: v for k, v in meta.items() if k != "result"}))
    return to


def test_the_page_waits_follows_and_ends_with_the_run(run: Path, tmp_path: Path) -> None:
    """No folder yet, a run under way, and its end: three states of one file."""
    folder, out = tmp_path / "run", tmp_path / "page.html"
    seen: list[str] = []
    said: list[str] = []

    def pause(seconds: float) -> None:
        assert seconds == 5.0
        seen.append(out.read_text())
        if len(seen) == 1:
            unfinished(run, folder)
        elif len(seen) == 2:
            shutil.copy(run / "run.json", folder / "run.json")

    result = live([folder], out, pause=pause, say=said.append)
    assert said == [out.resolve().as_uri()]
    waits, under_way = seen
    assert "Waiting for the first step" in waits
    assert "under way: 6 of 6 steps" in under_way
    for page in seen:
        assert REFRESH in page
        assert "This page loads itself again every 5 seconds." in page
    assert 'http-equiv="refresh"' not in out.read_text()
    assert result["runs"][0]["status"] == "finished"
    report([folder], tmp_path / "other.html")
    assert (tmp_path / "other.html").read_bytes() == out.read_bytes()


def test_ctrl_c_leaves_a_page_that_stays(run: Path, tmp_path: Path) -> None:
    folder, out = unfinished(run, tmp_path / "run"), tmp_path / "page.html"

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    assert "under way" in live([folder], out, pause=interrupted)["runs"][0]["status"]
    assert "refresh" not in out.read_text()


def test_only_a_report_is_overwritten_and_the_command_follows(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("my page")
    with pytest.raises(RunError, match="is not a report of zograd"):
        live([run], tmp_path / "mine.html")
    done = CliRunner().invoke(app, ["report", str(run), "--live", "--json", "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["html"].endswith("page.html")


# ---- colours ---------------------------------------------------------------------------------------------------------

SIGHT = {  # Machado, Oliveira and Fernandes 2009: what is seen of linear RGB, at full severity
    "typical": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.119192, 0.9503041]])


def linear(colour: str) -> Any:
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: Any) -> Any:
    """CIELAB of linear RGB under D65."""
    x = XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("colours", "paper"), [(LIGHT, "#ffffff"), (DARK, "#17181b")], ids=["light", "dark"])
def test_people_with_any_sight_tell_the_runs_apart(colours: tuple[str, ...], paper: str) -> None:
    for name, matrix in SIGHT.items():
        seen = [lab(np.asarray(matrix) @ linear(c)) for c in colours]
        least = min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2))
        assert least > 20, name
    for c in colours:
        dark, bright = sorted(float(XYZ[1] @ linear(x)) for x in (c, paper))
        assert (bright + 0.05) / (dark + 0.05) > 3


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_browser_follows_a_run_from_the_disk(tiny_model: Path, tmp_path: Path) -> None:
    """Headless Chromium opens the file while a run trains: the page changes by itself, and loads nothing else."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
    from site_check import BROWSERS, Browser, View

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of the browsers {', '.join(BROWSERS)} is installed")
    folder, out = tmp_path / "run", tmp_path / "page.html"
    s = TrainSettings(model=str(tiny_model), task="mr", method="zo_sgd", steps=400, batch_size=8, train_examples=64,
                      eval_examples=64, eval_every=50, lr=1e-3, mu=1e-3, dtype="float32", threads=1)  # fmt: skip
    follower = threading.Thread(target=live, args=([folder], out), kwargs={"every": 1.0}, daemon=True)
    follower.start()
    while not out.exists():
        time.sleep(0.05)
    browser = Browser(program, str(tmp_path / "profile"))
    try:
        waits = View("waits", "", "Waiting for the first step", served=False)
        assert not browser.show(waits, out.as_uri(), tmp_path / "waits.png")
        target = browser.call("Target.createTarget", url=out.as_uri())["targetId"]
        page = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        train(s, folder, quiet=True)
        follower.join(60)
        assert not follower.is_alive()
        end, text = time.monotonic() + 30, ""
        while "finished" not in text and time.monotonic() < end:  # the tab that was open all the time
            time.sleep(0.2)
            asked = {"expression": "document.body.innerText", "returnByValue": True}
            text = str(browser.call("Runtime.evaluate", page, **asked)["result"].get("value"))
        assert "finished" in text
        done = View("done", "", "Settings", served=False, height=2400)
        assert not browser.show(done, out.as_uri(), tmp_path / "done.png")
    finally:
        browser.process.terminate()
        browser.process.wait()
    from matplotlib.image import imread

    picture = imread(tmp_path / "done.png")[..., :3]
    first = np.array([int(LIGHT[0][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    assert (np.abs(picture - first).max(-1) < 0.06).sum() > 200  # the curve of run A
