"""The promise of the quickstart, on the real model: `make test-slow` (a few minutes)."""

from __future__ import annotations

from pathlib import Path

import pytest

from zograd.llm.quickstart import quickstart

pytestmark = [pytest.mark.slow, pytest.mark.model]


def test_three_seeds_learn_clearly_in_the_memory_of_inference(tmp_path: Path) -> None:
    results = [quickstart(tmp_path / str(seed), seed=seed, say=lambda text: None) for seed in range(3)]
    assert all(r["accuracy_after"] >= 0.83 for r in results)
    assert all(r["seconds"] <= 120 for r in results)
    assert all(r["peak_bytes"] / r["inference_peak_bytes"] <= 1.02 for r in results)
    assert all(r["examples"] >= 300 for r in results)


def test_the_same_command_again_takes_a_new_folder(tmp_path: Path) -> None:
    from zograd.llm.quickstart import free

    (tmp_path / "run").mkdir()
    assert free(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run" / "run.json").write_text("{}")
    assert free(tmp_path / "run") == tmp_path / "run-2"
