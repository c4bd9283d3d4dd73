"""A model twice the memory limit trains from the disk, to the bits that it has in memory."""

from __future__ import annotations

import sys

import pytest

from benchmarks.offload import bench_offload


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit private memory")
def test_a_model_twice_the_limit_trains_to_the_bits_of_the_resident_run() -> None:
    found = bench_offload(2.0, limit=1.0, steps=2)
    assert found["model_bytes"] >= 2 * found["limit_bytes"]
    assert found["peak_bytes"] <= found["limit_bytes"]
    assert found["bit_equal"]
    assert found["resident_peak_bytes"] > found["model_bytes"]
    assert "Cannot allocate memory" in found["resident_under_limit"]


def test_sizes_that_show_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes must be positive, got gib=0"):
        bench_offload(0)
