"""Losses and metrics of examples from their scores: cross-entropy, accuracy, calibrated accuracy, majority share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Metrics:
    """The result of an evaluation on `examples` examples.

    metric: "accuracy" of a classification, or "loss" of completions; value: its value in [0, 1], or in nats.
    calibrated: accuracy after the mean log-score of each class over all examples is subtracted.
    majority: share of the largest class. Both are None for completions.
    loss: mean loss in nats.
    not_finite: examples with a score that is NaN or infinite. If there are any, value, calibrated and loss are NaN.
    """

    metric: str
    value: float
    calibrated: float | None
    majority: float | None
    examples: int
    loss: float
    not_finite: int = 0


def losses_of(scores: Tensor, labels: Tensor | None) -> Tensor:
    """float32 [N]: cross-entropy of scores [N, classes] with labels; without labels (completions) minus the score.

    labels: int64, of one copy of the batch; N is a multiple of their number.
    """
    if labels is None:
        return -scores[:, 0]
    return F.cross_entropy(scores, labels.repeat(len(scores) // len(labels)), reduction="none")


def metrics_of(scores: Tensor, labels: Tensor | None) -> Metrics:
    """The metrics of scores [N, classes] and labels [N]; of completions, without labels, the mean loss alone.

    >>> metrics_of(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])).value
    0.5
    """
    examples = len(scores)
    bad = int((~scores.isfinite()).any(1).sum())
    loss = math.nan if bad else float(losses_of(scores, labels).mean())
    if labels is None:
        return Metrics("loss", loss, None, None, examples, loss, bad)
    scores, labels = scores.cpu(), labels.cpu()
    majority = float(torch.bincount(labels).max() / len(labels))
    if bad:
        return Metrics("accuracy", math.nan, math.nan, majority, examples, math.nan, bad)
    hit = (scores.argmax(1) == labels).double().mean()
    logp = torch.log_softmax(scores.double(), 1)
    calibrated = ((logp - logp.mean(0)).argmax(1) == labels).double().mean()
    return Metrics("accuracy", float(hit), float(calibrated), majority, examples, loss)


def why_not_finite(metrics: Metrics, model: Any) -> str | None:
    """One sentence for metrics of scores that are not finite; None where all are finite. Reads every weight."""
    if not metrics.not_finite:
        return None
    plain = ((name, p.detach()) for name, p in model.named_parameters() if type(p) is nn.Parameter)
    found = next((name for name, p in plain if not bool(p.isfinite().all())), None)
    held, overflow = f"its weight {found!r} holds numbers that are not", f"its forward overflows {model.dtype}"
    why = held if found else overflow
    what = f"{metrics.not_finite} of {metrics.examples} examples have scores that are not finite"
    return f"{what}, so there is no {metrics.metric} of this model: {why}"
