"""Errors of estimates of a soft prompt's gradient: below those of one direction, and less with more examples."""

from __future__ import annotations

from pathlib import Path

from benchmarks.prompts import measure


def test_noise_of_each_example_lowers_the_error(tiny_model: Path) -> None:
    found = {
        size: measure(model=str(tiny_model), tokens=3, batch_size=size, estimates=20) for size in (1, 12)
    }  # fmt: skip
    assert found[1]["weights"] == 3 * 32
    assert 0.6 < found[1]["ratio"] < 1.6  # one example: the same estimate
    assert found[12]["ratio"] < 0.4 * found[1]["ratio"]
    assert found[12]["cosine_of_the_mean"] > 0.3
