"""Cosines with the gradient: 1 for the last block, where residual feedback is exact."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cosines import measure, text


def test_the_last_block_sees_the_whole_gradient(tiny_model: Path) -> None:
    found = measure(model=str(tiny_model), task="mr", batch_size=4)
    residual, shrunk, whole = (found["cosines"][k] for k in ("residual", "recentred, shrink 0.15", "recentred"))
    assert residual[-1] == 1.0
    assert sum(shrunk) > sum(whole)  # the noise of all blocks is in the correction of each
    assert all(0.0 < x < 0.9999 for x in residual[:-1])
    assert text(found).splitlines()[1].split()[:2] == ["0", f"{residual[0]:.3f}"]
