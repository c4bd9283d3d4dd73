"""Scores of a language model on a task: encoding, layout of a batch, forward, loss and accuracy."""

from __future__ import annotations

from zograd.llm.scoring.batches import Batches
from zograd.llm.scoring.metrics import Metrics
from zograd.llm.scoring.scorer import Scorer

__all__ = ["Batches", "Metrics", "Scorer"]
