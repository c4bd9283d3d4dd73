"""The comparison of a compiled block with the block runs, and its ratio is that of its times."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.compiled_blocks import measure


@pytest.mark.slow
def test_times_of_a_block_are_compared(tiny_model: Path) -> None:
    found = measure(model=str(tiny_model), batch_size=2, tokens=4, rounds=3)
    assert found["seconds_of_compiling"] > 0
    for part in ("forward", "derivative"):
        times = found[part]
        assert times["eager_over_compiled"] == pytest.approx(times["eager"] / times["compiled"], rel=0.3)
