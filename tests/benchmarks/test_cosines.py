"""Cosines with the gradient: 1 for the last block, where residual feedback is exact."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.cosines import measure, text
from tests.families import family
from zograd.llm import loading


def test_the_last_block_sees_the_whole_gradient(tiny_model: Path) -> None:
    found = measure(model=str(tiny_model), task="mr", batch_size=4)
    residual, shrunk, whole = (found["cosines"][k] for k in ("residual", "recentred, shrink 0.15", "recentred"))
    assert residual[-1] == 1.0
    assert sum(shrunk) > sum(whole)  # the noise of all blocks is in the correction of each
    assert all(0.0 < x < 0.9999 for x in residual[:-1])
    assert text(found).splitlines()[1].split()[:2] == ["0", f"{residual[0]:.3f}"]


def test_an_encoder_that_norms_its_sums_has_residual_feedback_alone(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = loading.load(str(tiny_model), dtype="float32")[1]
    bert = family("bert", len(tokenizer), "AutoModelForSequenceClassification")
    with torch.no_grad():
        for p in bert.bert.encoder.parameters():
            p.mul_(10.0 if p.ndim == 2 else 1.0)  # so that a block is far from its first part
    bert.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    found = measure(
        model=str(tmp_path / "bert"), task="mr", batch_size=4, train=r"layer.*(dense|query|key|value).weight"
    )
    assert list(found["cosines"]) == ["residual"]
    first, last = found["cosines"]["residual"]
    assert first < 0.95
    assert last == 1.0
