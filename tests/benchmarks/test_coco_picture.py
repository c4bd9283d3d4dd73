"""The picture of the COCO command: what it counts, against counting by hand, and that it is drawn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from benchmarks.coco_picture import draw, ecdf, hits


def test_hits_are_the_first_evaluations_at_or_below_a_target() -> None:
    assert hits([50.0, 10.0, 10.0, 1.0], [100.0, 10.0, 5.0, 0.1], dim=2) == [0.5, 1.0, 2.0, math.inf]


def test_the_share_counts_targets_of_all_runs() -> None:
    rng = np.random.default_rng(0)
    reached = [*rng.uniform(0, 10, 20), math.inf, math.inf]
    at = [0.0, 2.5, 10.0]
    assert ecdf(reached, at).tolist() == [sum(r <= b for r in reached) / 22 for b in at]


def test_a_png_is_written(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", {"a": [1.0, 2.0, math.inf], "b": [0.5]}, 200, "toy")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
