"""Calibration against torchmetrics and scikit-learn, the outer loss of CSAM against NumPy, and both in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from zograd import methods
from zograd.cli import app
from zograd.core.run import Run
from zograd.diagnostics import calibration
from zograd.objectives import overconfidence
from zograd.oracles import by_round
from zograd.stores import Store


def drawn(n: int = 500, classes: int = 4, sharp: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn from flatter ones: an overconfident model by the temperature `sharp`."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, classes))
    true = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    said = np.exp(sharp * z) / np.exp(sharp * z).sum(1, keepdims=True)
    return said, np.array([rng.choice(classes, p=row) for row in true])


def by_hand(p: np.ndarray, y: np.ndarray, bins: int) -> float:
    """sum over bins of share |accuracy - confidence|, bin by bin."""
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [i for i in range(len(y)) if low <= p[i].max() < high or (b == bins - 1 and p[i].max() == 1.0)]
        if inside:
            hit = np.mean([p[i].argmax() == y[i] for i in inside])
            total += len(inside) / len(y) * abs(hit - np.mean([p[i].max() for i in inside]))
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_error_is_its_definition(bins: int) -> None:
    p, y = drawn()
    assert calibration(p, y, bins).ece == pytest.approx(by_hand(p, y, bins), abs=1e-12)


def test_the_error_is_that_of_torchmetrics() -> None:
    metrics = pytest.importorskip("torchmetrics.functional", reason="torchmetrics is not a dependency of zograd")
    p, y = drawn()
    for bins in (10, 15):
        theirs = metrics.calibration_error(
            torch.from_numpy(p), torch.from_numpy(y), task="multiclass", num_classes=4, n_bins=bins, norm="l1"
        )
        assert calibration(p, y, bins).ece == pytest.approx(float(theirs), abs=1e-6)  # theirs is in float32


def test_brier_and_loss_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import brier_score_loss, log_loss

    p, y = drawn(classes=2)
    found = calibration(p, y)
    assert found.nll == pytest.approx(log_loss(y, p), rel=1e-12)
    assert found.brier == pytest.approx(2 * brier_score_loss(y, p[:, 1]), rel=1e-12)
    assert found.accuracy == np.mean(p.argmax(1) == y)


def test_the_temperature_undoes_the_overconfidence() -> None:
    p, y = drawn(n=6000, sharp=2.0)
    found = calibration(p, y)
    assert found.temperature == pytest.approx(2.0, rel=0.1)
    assert found.ece > 0.1 > 0.04 > found.ece_scaled
    assert found.adaptive_ece == pytest.approx(found.ece, abs=0.02)
    met = calibration(*drawn(n=6000, sharp=1.0))
    assert met.temperature == pytest.approx(1.0, abs=0.1)
    assert met.ece < 0.03
    assert sum(count for _, _, count in found.curve) == 6000


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([[0.5, 0.6], [0.5, 0.5]], [0, 1], "sum to 1; take a softmax first"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, 2], "labels are integers from 0 to 1"),
        ([[0.5, 0.5], [0.5, 0.5]], [0.0, 1.0], "labels are integers"),
        ([[0.5, 0.5]], [0], "pass .examples, classes. and .examples., >= 2"),
        ([[np.nan, 0.5], [0.5, 0.5]], [0, 1], "must be finite"),
    ],
)
def test_what_is_no_prediction_is_refused(p: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration(p, y)
    with pytest.raises(ValueError, match="bins counts"):
        calibration([[0.5, 0.5], [0.5, 0.5]], [0, 1], bins=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_overconfidence_is_its_formula(gamma: float) -> None:
    rng = np.random.default_rng(0)
    z, y = 3 * rng.normal(size=(200, 3)), rng.integers(3, size=200)
    p = (np.exp(z) / np.exp(z).sum(1, keepdims=True))[np.arange(200), y]
    expected = np.where(p > 0.5, (1 + p) ** -gamma, 1.0) * -np.log(p)
    found = overconfidence(torch.from_numpy(z), torch.from_numpy(y), gamma)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert (found <= F.cross_entropy(torch.from_numpy(z), torch.from_numpy(y), reduction="none") + 1e-15).all()


def test_overconfidence_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"pass \[examples, classes\]"):
        overconfidence(torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 0, got -1"):
        overconfidence(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), gamma=-1.0)


def test_csam_evaluates_its_outer_loss_at_the_ascent_point() -> None:
    """`by_round`: the losses of the first round are cross-entropy, those of the second its weighted form."""
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(30) % 3
    w = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points: list[torch.Tensor] = []

    def cross() -> torch.Tensor:
        logits = x @ w.mul(1.0)
        points.append(logits)
        return F.cross_entropy(logits, y)

    def outer() -> torch.Tensor:
        logits = x @ w.mul(1.0)
        points.append(logits)
        return overconfidence(logits, y, 2.0).mean()

    record = Run(Store({"w": w}), methods.zo_sam(lr=0.0, n=2, rho=0.3), 0).step(by_round(cross, outer))
    expected = [float(F.cross_entropy(z, y)) for z in points[:4]]
    expected += [float(overconfidence(z, y, 2.0).mean()) for z in points[4:]]
    np.testing.assert_allclose(record.losses, expected, rtol=1e-12)


def test_the_command_says_whether_probabilities_are_met(tiny_model: Path, tmp_path: Path) -> None:
    common = ["eval", "--model", str(tiny_model), "--task", "mr", "--examples", "20", "--dtype", "float32"]
    plain = CliRunner().invoke(app, [*common, "--json"])
    run = CliRunner().invoke(app, [*common, "--calibration", "--json"])
    assert run.exit_code == 0, run.output
    result, without = (json.loads(r.stdout.splitlines()[-1]) for r in (run, plain))
    found = result.pop("calibration")
    assert result == without, "everything else is as before"
    assert found["examples"] == 20
    assert found["nll"] == pytest.approx(result["loss"], rel=1e-4)
    assert found["accuracy"] == pytest.approx(result["accuracy"])
    shown = CliRunner().invoke(app, [*common, "--calibration"])
    assert "ece_scaled" in shown.stdout
    text = tmp_path / "a.jsonl"
    text.write_text('{"text": "It was a good day"}\n' * 3)
    refused = CliRunner().invoke(app, ["eval", "--model", str(tiny_model), "--task", str(text), "--calibration"])
    assert refused.exit_code == 2
    assert "has no classes with probabilities" in refused.output
