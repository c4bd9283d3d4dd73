"""Time and memory of a step beside forwards and the baseline: shape of the answers here, numbers in `zograd bench`."""

from __future__ import annotations

import json
import math

import pytest
import torch

from zograd.bench import bench_memory, bench_step
from zograd.bench.batches import bench_batches
from zograd.bench.directions import bench_directions
from zograd.bench.step import comparison, interleaved
from zograd.bench.workload import TimedModel

pytest.importorskip("transformers")


def test_step_reports_the_contract(tiny: str, capsys: pytest.CaptureFixture[str]):
    threads = torch.get_num_threads()
    out = bench_step(tiny, batch_size=2, seq_len=8, rounds=3, threads=1)
    assert {"ratio", "baseline_ratio", "overhead_ns_per_param", "baseline_overhead_ns_per_param"} <= out.keys()
    assert out["rounds"] == 3
    assert out["forwards"] == 2
    assert out["threads"] == 1
    assert out["clock"] == "thread_time"
    assert out["dtype"] == "float32"
    assert out["ratio"] > 0
    assert out["ratio_quartiles"][0] <= out["ratio"] <= out["ratio_quartiles"][1]
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(out)) == out
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_compiled_steps_are_named(tiny: str):
    out = bench_step(tiny, batch_size=2, seq_len=8, rounds=1, threads=1, compile=True)
    assert out["compiled"] is True
    assert out["t_first_compiled"] > out["t_step"]
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0


def test_packed_batches_beside_padded_ones(tiny: str):
    out = bench_batches(tiny, "mr", batch_size=6, steps=2, rounds=2, threads=1)
    assert out["packs"] is True
    assert out["real_padded"] < out["real_packed"] <= 1.0
    assert out["ratio"] > 0
    assert json.loads(json.dumps(out)) == out
    words = ["very bad", "no good yes"]
    out = bench_batches(tiny, "mr", batch_size=6, steps=1, rounds=1, threads=1, label_words=words)
    assert out["label_words"] == words
    with pytest.raises(ValueError, match="steps and rounds must be at least 1"):
        bench_batches(tiny, "mr", steps=0)


def test_half_precision_says_nothing_about_its_tiny_steps(tiny: str):
    out = bench_step(tiny, batch_size=1, seq_len=4, rounds=1, dtype="bf16")
    assert out["dtype"] == "bfloat16"


def test_a_method_is_compared_with_as_many_forwards_as_it_makes(tiny: str):
    out = bench_step(tiny, batch_size=1, seq_len=4, rounds=1, method="fzoo")
    assert out["forwards"] == 9
    assert out["ratio"] == pytest.approx(out["t_step"] / (9 * out["t_forward"]))
    assert out["ratio_quartiles"] == [out["ratio"], out["ratio"]]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"seq_len": 1}, "no next token"),
        ({"method": "nonesuch"}, "no method 'nonesuch'"),
        ({"method": "frank_wolfe"}, "frank_wolfe needs set"),
    ],
)
def test_bad_settings_are_named(tiny: str, bad: dict[str, object], says: str):
    with pytest.raises(ValueError, match=says):
        bench_step(tiny, **{"batch_size": 1, "seq_len": 4, **bad})


def test_memory_reports_the_contract(tiny: str, capsys: pytest.CaptureFixture[str]):
    out = bench_memory(tiny, batch_size=2, seq_len=8, rounds=1)
    assert {"step_peak_bytes", "inference_peak_bytes", "ratio", "baseline_ratio", "weights_bytes"} <= out.keys()
    assert out["ratio"] == pytest.approx(out["step_peak_bytes"] / out["inference_peak_bytes"])
    assert math.isfinite(out["net_ratio"])
    assert out["measured_by"] in ("VmHWM", "ru_maxrss", "unavailable")
    assert json.loads(json.dumps(out)) == out
    assert capsys.readouterr().out == ""


def test_the_three_ways_run_the_same_loss_and_leave_the_model_usable(tiny: str):
    work = TimedModel(tiny, batch_size=2, seq_len=8, dtype="float32", method="zo_sgd", device="cpu", seed=0)
    with torch.no_grad():
        before = work.loss()
        work.forwards(2)
        assert work.loss() == before
        work.step()
        with torch.random.fork_rng():
            work.baseline()
        work.step()  # on the tensors that the baseline has put in place
        assert work.loss() == pytest.approx(before, abs=1e-4)


def test_rounds_alternate_their_order():
    seen: list[str] = []
    ways = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    ticks = iter(range(100))
    seconds = interleaved(ways, 2, lambda: float(next(ticks)))
    assert "".join(seen) == "abc" + "cba" + "abc"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_comparison_is_the_median_of_ratios_of_a_round():
    out = comparison("", [2.0, 6.0, 4.0], [1.0, 2.0, 4.0], dim=10**9)
    assert out == {
        "ratio": 2.0,
        "ratio_quartiles": [1.5, 2.5],
        "ratio_min": 2.0,
        "overhead_ns_per_param": pytest.approx(1.0),
    }


@pytest.mark.parametrize("compile_", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_directions_report_losses_of_one_at_a_time(tiny: str, compile_: bool):
    out = bench_directions(tiny, 3, batch_size=2, seq_len=8, rounds=2, threads=1, compile=compile_)
    assert out["max_relative_error"] < 1e-5
    assert out["ratio"] > 0
    assert out["ratio_stacked"] > 0
    assert (out["n"], out["compiled"]) == (3, compile_)
    assert json.loads(json.dumps(out)) == out
    with pytest.raises(ValueError, match="n and rounds must be at least 1"):
        bench_directions(tiny, 0)
