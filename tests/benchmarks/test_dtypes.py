"""`python -m benchmarks.dtypes`: both dtypes in turn. Which one is faster is not asserted."""

from __future__ import annotations

from pathlib import Path

from benchmarks.dtypes import SHAPES, in_turn, measure, text
from zograd.llm.loading import models


def test_forwards_and_steps_are_compared(tiny_model: Path) -> None:
    result = measure(str(tiny_model), "mr", rounds=1)
    assert len(result["rows"]) == len(SHAPES) + 1
    for row in result["rows"]:
        assert row["ratio"] == row["float32"] / row["bfloat16"] > 0
    assert text(result).splitlines()[-1] == "--dtype auto takes float32"  # the one dtype of all tests


def test_a_round_that_does_not_count_goes_first() -> None:
    ran: list[str] = []
    in_turn("x", {name: lambda name=name: ran.append(name) for name in ("float32", "bfloat16")}, 2)
    assert ran == ["float32", "bfloat16"] * 3


def test_a_processor_with_either_kind_of_instructions_takes_bfloat16(monkeypatch) -> None:
    import importlib.util

    spec = importlib.util.find_spec(models.__name__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for amx, avx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda avx=avx: avx)
        assert fresh.fast_bfloat16() is (amx or avx)
