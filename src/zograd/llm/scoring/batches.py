"""Training batches as a function of seed and step, and the cut of a batch into forwards of similar lengths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from zograd.hub import Example, TaskError
from zograd.noise import fold

FORWARD_TOKENS = 256
"""Cost of one more forward, in tokens: a short forward takes the time of reading the weights."""


class Batches:
    """Deterministic batches: batch t depends on (seed, t) alone; each epoch is another permutation of the examples.

    size: examples in a batch; at most all of them. Raises TaskError without examples, ValueError for size < 1.

    >>> batches = Batches([Example(str(i), 0) for i in range(5)], 2, seed=0)
    >>> [e.prompt for e in batches[7]] == [e.prompt for e in batches[7]]
    True
    """

    def __init__(self, examples: Sequence[Example], size: int, seed: int) -> None:
        if not examples:
            raise TaskError("the training split is empty; give the task more data")
        if size < 1:
            raise ValueError(f"the batch size must be at least 1, got {size}")
        self.examples, self.size, self.seed = examples, min(size, len(examples)), seed

    def __getitem__(self, step: int) -> list[Example]:
        n, first = len(self.examples), step * self.size
        return [self.examples[self._order(k // n)[k % n]] for k in range(first, first + self.size)]

    def first_uses(self) -> list[list[Example]]:
        """The examples by the step that takes them first: a list a step, until all have been taken."""
        n = len(self.examples)
        order = [self.examples[k] for k in self._order(0)]
        return [order[first : first + self.size] for first in range(0, n, self.size)]

    def _order(self, epoch: int) -> Any:
        if getattr(self, "_kept", (None,))[0] != epoch:
            rng = np.random.Generator(np.random.Philox(fold(self.seed, epoch)))
            self._kept = (epoch, rng.permutation(len(self.examples)))
        return self._kept[1]


def length_buckets(lengths: Sequence[int], most: int, *, packs: bool) -> list[list[int]]:
    """Positions sorted by length and cut into batches of at most `most`, at the least total cost.

    A batch costs its tokens plus `FORWARD_TOKENS`. Its tokens are the sum of its lengths where sequences share rows
    (`packs`), and those of a padded batch otherwise. Cost: len(lengths) x most operations.

    >>> length_buckets([500, 3, 4, 490], 64, packs=False)
    [[1, 2], [3, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    best: list[tuple[float, int]] = [(0.0, 0)]  # least cost of the first k, and where their last batch begins
    up_to = [0, *itertools.accumulate(lengths[i] for i in order)]

    def tokens(j: int, k: int) -> int:
        return up_to[k] - up_to[j] if packs else (k - j) * lengths[order[k - 1]]

    for k in range(1, len(order) + 1):
        best.append(min((best[j][0] + tokens(j, k) + FORWARD_TOKENS, j) for j in range(max(0, k - most), k)))
    cut, k = [], len(order)
    while k:
        cut.append(order[best[k][1] : k])
        k = best[k][1]
    return cut[::-1]
