"""`python -m benchmarks.causal`: slopes that count fewer losses have less variance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.causal import measure, text, variance


def test_the_losses_at_and_behind_a_token_have_less_variance_than_all_of_its_example(tiny_model: Path) -> None:
    result = measure(str(tiny_model), layers=1, batch_size=4, draws=30)
    assert 0.0 < result["ratio"] < 0.97
    assert text(result).splitlines()[-1] == f"ratio {result['ratio']:.3f}"


def test_the_variance_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("benchmarks.causal.estimate", lambda source, store, batch, key: drawn[key])
    found = variance(None, None, None, 12)  # type: ignore[arg-type]
    assert found == pytest.approx(float(drawn.double().var(0).sum()), rel=1e-6)
