"""`python -m benchmarks.gpu` on a tiny model on the CPU: keys, exactness, gates, and what it says without a device."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import gpu

pytest.importorskip("transformers")

SMALLEST = replace(gpu.SIZES["tiny"], tokens=((2, 8),), directions=(3,), queries=6, steps=3, slopes=3, seconds=0.0)
OPT = {
    "vocab_size": 96, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32, "word_embed_proj_dim": 32,
}  # fmt: skip
TWO_POINT = {f"{law} {how}" for law in gpu.LAWS for how in gpu.EXECUTORS}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gpu.SIZES, "tiny", SMALLEST)
        return gpu.bench_gpu("tiny", device="cpu")


def test_every_stage_answers(found: dict[str, Any]) -> None:
    assert found["failed"] == {}
    assert found["notes"] == []
    assert found["params"] == 26784
    assert found["weights_bytes"] == 2 * 26784
    assert min(found["ceilings"].values()) > 0
    passes = {(r["dtype"], r["pass"], r["how"]) for r in found["noise"]}
    noises = {(what, how) for what in ("sign", "signs", "normal", "normals") for how in ("leaves", "group")}
    assert passes == {(dtype, *way) for dtype in gpu.DTYPES for way in noises | {("add", "leaves")}}
    assert {r["way"] for r in found["steps"]} == {"forward", "transformers", "mezo", "rank_one x 3"} | TWO_POINT
    assert json.loads(json.dumps(found)) == found


def test_ratios_are_those_of_the_seconds(found: dict[str, Any]) -> None:
    rows = {r["way"]: r for r in found["steps"]}
    assert rows["forward"]["ratio"] == rows["forward"]["peak_ratio"] == 1
    assert rows["transformers"]["ratio_transformers"] == rows["transformers"]["peak_ratio_transformers"] == 1
    assert rows["rank_one x 3"]["forwards"] == 4
    for r in rows.values():
        assert r["tokens_per_s"] == pytest.approx(16 / r["seconds"])
        assert r["ratio_quartiles"][0] <= r["ratio"] <= r["ratio_quartiles"][1]
        assert r["peak_ratio"] == pytest.approx(r["peak_bytes"] / rows["forward"]["peak_bytes"])


def test_numerics_are_exact(found: dict[str, Any]) -> None:
    n = found["numerics"]
    assert n["trace_free"]
    assert n["felt"] == n["queries"] == 6
    assert n["replayed"]
    assert n["slope_correlation"] > 0.9
    assert 0 < n["slope_error"] < 0.5
    assert all(r["same_bits"] for r in found["noise"] if r["pass"] != "add")


def test_each_requirement_is_a_gate_with_what_was_measured(found: dict[str, Any]) -> None:
    rows = {r["way"]: r for r in found["steps"]}
    by_name = {g["gate"]: g for g in found["gates"]}
    assert len(by_name) == len(found["gates"]) == 2 * len(TWO_POINT) + 4 * len(gpu.DTYPES) + 2
    for way in TWO_POINT:
        g = by_name[f"step / 2 forwards, {way}, 16 tokens"]
        worse = max(rows[way]["ratio"], rows[way]["ratio_transformers"])
        assert (g["measured"], g["passed"]) == (worse, worse <= 1.02)
        worse = max(rows[way]["peak_ratio"], rows[way]["peak_ratio_transformers"])
        assert by_name[f"peak / inference, {way}, 16 tokens"]["measured"] == worse


def test_gates_fail_where_they_should() -> None:
    row = {"way": "rank_one batched", "tokens": 64, "ratio": 0.9, "ratio_transformers": 1.03, "peak_ratio": 1.01}
    row["peak_ratio_transformers"] = 0.9
    bits = {"pass": "sign", "dtype": "float32", "how": "leaves", "same_bits": False}
    numerics = {"trace_free": True, "replayed": False}
    made = gpu.gates({"steps": [row], "noise": [bits], "numerics": numerics})
    assert [g["passed"] for g in made] == [False, True, False, True, False]


def test_the_table_holds_every_row_and_gate(found: dict[str, Any]) -> None:
    lines = gpu.as_text(found).splitlines()
    starts = ("| float32", "| bfloat16", "| 16", *(f"| {g['gate']}" for g in found["gates"]))
    shown = [line for line in lines if line.startswith(starts)]
    assert len(shown) == len(found["noise"]) + len(found["steps"]) + len(found["gates"])


def test_what_runs_out_of_memory_is_noted_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def mezo_step(*_: Any, **__: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def ceilings(self: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def noise(self: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.SIZES, "tiny", SMALLEST)
    monkeypatch.setattr(gpu, "mezo_step", mezo_step)
    monkeypatch.setattr(gpu._Bench, "ceilings", ceilings)
    monkeypatch.setattr(gpu._Bench, "noise", noise)
    out = gpu.bench_gpu("tiny", device="cpu")
    assert out["notes"] == ["ceilings: out of memory, the rest of this stage was not measured", "mezo: out of memory"]
    assert out["failed"] == {"noise": "RuntimeError: no such kernel"}
    assert {r["way"] for r in out["steps"]} == {"forward", "transformers", "rank_one x 3"} | TWO_POINT
    assert out["numerics"]["trace_free"]
    assert "FAILED: noise: RuntimeError: no such kernel" in gpu.as_text(out)


def test_the_shape_of_opt_takes_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.SIZES, "opt", replace(SMALLEST, kind="OPTConfig", config=OPT))
    out = gpu.bench_gpu("opt", device="cpu")
    assert out["failed"] == {}
    assert out["notes"] == []
    assert {r["way"] for r in out["steps"]} == {"forward", "transformers", "mezo", "rank_one x 3"} | TWO_POINT
    assert out["numerics"]["trace_free"]
    assert out["numerics"]["replayed"]


@pytest.mark.parametrize(("name", "weights"), [("llama-8b", 8_030_261_248), ("opt-13b", 12_853_473_280)])
def test_the_large_shapes_have_their_size(name: str, weights: int) -> None:
    model = gpu._Bench(gpu.SIZES[name], torch.device("meta"), 0).model()
    assert sum(p.numel() for p in model.parameters()) == weights


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_without_a_device_one_line_says_so(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = CliRunner().invoke(gpu.app, [*arguments])
    assert run.exit_code == 0
    assert len(run.stdout.splitlines()) == 1
    assert "no CUDA device" in run.stdout
    if arguments:
        assert json.loads(run.stdout)["measured"] is False


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match="no shape 'gpt-5'; use llama-8b, opt-13b, tiny"):
        gpu.bench_gpu("gpt-5", device="cpu")


def test_the_command_ends_in_1_when_a_stage_failed(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]) -> None:
    monkeypatch.setattr(gpu, "bench_gpu", lambda *_, **__: {**found, "failed": {"steps": "RuntimeError: broken"}})
    run = CliRunner().invoke(gpu.app, ["--model", "tiny", "--device", "cpu"])
    assert run.exit_code == 1
    assert "FAILED: steps: RuntimeError: broken" in run.stdout
