"""Labels of multiple choice as tensors: each example has choices of its own, so rows have ends of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zograd.hub import Example

NONE = -1
"""Stands where an example has no choice."""


def labels_of_choices(examples: Sequence[Example]) -> Tensor:
    """int64 [examples, most choices]: 1 for a right choice, 0 for a wrong one, -1 behind the last one.

    >>> labels_of_choices([Example("a", 0, choices=("b", "c")), Example("a", 2, choices=("b", "c", "d"))]).tolist()
    [[1, 0, -1], [0, 0, 1]]
    """
    most = max(len(e.choices) for e in examples)
    return torch.tensor([[*map(int, e.right), *[NONE] * (most - len(e.choices))] for e in examples])


def choices_there(examples: Sequence[Example]) -> Tensor:
    """bool [examples, most choices]: where an example has a choice."""
    return labels_of_choices(examples) != NONE


def chosen(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The choices with the best scores, and the labels to compare them with, int64 [examples] each.

    Where several choices of an example are right, its label is the chosen one if that is right, else the first of them.
    """
    said = scores.masked_fill(labels == NONE, -torch.inf).argmax(1)
    right = (labels == 1).gather(1, said[:, None])[:, 0]
    return said, torch.where(right, said, (labels == 1).int().argmax(1))
