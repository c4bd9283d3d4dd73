"""`python -m benchmarks.ranks` on a tiny model: its keys, exact equality, what it refuses. Speed is not asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ranks import bench_ranks


@pytest.mark.slow  # loads the libraries in two processes more
def test_two_ranks_on_a_tiny_model(tiny_model: Path) -> None:
    found = bench_ranks(str(tiny_model), batch_size=4, seq_len=8, rounds=2, steps=2)
    assert found["identical"]
    assert found["bytes_per_step"] == 24
    assert (found["ranks"], found["threads"], found["parallel"], found["rounds"], found["steps"]) == (
        2,
        1,
        "data",
        2,
        2,
    )
    assert all(found[f"seconds_{way}"] > 0 for way in ("together", "alone", "whole"))
    assert found["speedup_quartiles"][0] <= found["speedup"] <= found["speedup_quartiles"][1]
    assert found["speedup_cpu"] > 1.0  # each rank does half of the evaluations


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": 1}, "nobody to share with"),
        ({"batch_size": 1}, "cannot be cut into 2 parts"),
        ({"rounds": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench_ranks("any", **settings)  # type: ignore[arg-type]
