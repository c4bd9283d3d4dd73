"""Scores of a language model on a task: encoding, layout of a batch, forward, loss and accuracy."""

from zograd.llm.scoring.scorer import Batches, Metrics, Scorer

__all__ = ["Batches", "Metrics", "Scorer"]
