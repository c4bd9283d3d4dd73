"""Time of passes of noise: shape of the answer here, numbers in `zograd bench noise`."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from zograd.bench.noise import as_text, bench_noise
from zograd.cli import app


def test_noise_reports_the_contract():
    threads = torch.get_num_threads()
    out = bench_noise(dtype="float32,bfloat16", elements=4099, rounds=3, threads=1)
    assert out["passes"]["float32"].keys() == {"add", "sign", "signs", "normal", "normals"}
    assert out["passes"]["bfloat16"].keys() == out["passes"]["float32"].keys() | {"stochastic", "split"}
    for ways in out["passes"].values():
        assert ways["add"]["ratio"] == 1
        for r in ways.values():
            assert r["ratio_quartiles"][0] <= r["ratio"] <= r["ratio_quartiles"][1]
            assert r["ns_per_element"] > 0
            assert r["gb_per_s"] > 0
    assert (out["elements"], out["rounds"], out["threads"], out["clock"]) == (4099, 3, 1, "thread_time")
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(out)) == out
    assert len(as_text(out).splitlines()) == 1 + 5 + 7 + 1


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"elements": 0}, "elements must be at least 1"),
        ({"dtype": "float64"}, "'float64' is not measured"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_bad_settings_are_named(bad: dict[str, object], says: str):
    with pytest.raises(ValueError, match=says):
        bench_noise(**{"elements": 100, "rounds": 1, **bad})


def test_the_command_prints_one_json_object():
    run = CliRunner().invoke(
        app, ["bench", "noise", "--elements", "100", "--rounds", "1", "--dtype", "float16", "--json"]
    )
    assert run.exit_code == 0
    assert list(json.loads(run.stdout)["passes"]) == ["float16"]
