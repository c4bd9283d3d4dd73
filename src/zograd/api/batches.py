"""What all evaluations of a step share: a batch of data, and a seed of random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from zograd.core import keys
from zograd.core.keys import Part
from zograd.noise import fold

COMPARED = 32
"""Draws in which f is evaluated at x0 and at the result, at most, so that the two can be compared."""

HELD = 8
"""The same where batches come from an iterable, which are kept for that."""

SPENT = 40
"""Evaluations of the budget for each of them, at least."""


class Exhausted(Exception):
    """An iterator had no more batches."""


class Draws:
    """Draw number k + 1 belongs to step k; x0 and the result have the first ones, as many as `compared` says.

    data: a sequence of batches, which are drawn in a seeded order, another one in each epoch; or an iterable, of which
        the next batch is taken for each draw. At its end it is begun again; an iterator, which cannot be, ends the run.
    common_random: f gets `seed`, an integer below 2^32 that is the same within a draw and differs between draws.
    """

    def __init__(self, data: Any, common_random: bool, seed: int) -> None:
        self.data, self.common_random = data, common_random
        self.key, self.base = keys.seed_of(seed, Part.BATCHES), keys.seed_of(seed, Part.COMMON)
        self.sequence = data is not None and hasattr(data, "__len__") and hasattr(data, "__getitem__")
        self.epoch = -1
        self.order: list[int] = []
        self.iterator: Iterator[Any] | None = None
        self.drawn = -1
        self.batch: Any = None
        self.first: list[Any] = []
        """The first `HELD` batches of an iterable."""
        if data is None:
            return
        if isinstance(data, str | bytes | Mapping) or not (self.sequence or isinstance(data, Iterable)):
            raise TypeError(
                f"data is a {type(data).__name__}; pass a sequence of batches, or an iterable of them such as a "
                f"DataLoader"
            )
        if self.sequence and len(data) == 0:
            raise ValueError("data is empty; pass at least one batch")

    @property
    def shared(self) -> bool:
        """Whether evaluations of a step share what those of the next one do not."""
        return self.data is not None or self.common_random

    @property
    def kind(self) -> str | None:
        """What the data are, for a file that is to be the same run's."""
        if self.data is None:
            return None
        return f"{len(self.data)} batches" if self.sequence else "batches from an iterable"

    def compared(self, budget: int) -> int:
        """In how many draws f is evaluated at x0 and at the result."""
        number = max(1, min(COMPARED, budget // SPENT))
        if self.data is None or self.sequence:
            return number if self.common_random else min(number, len(self.data))
        for k in range(number := min(number, HELD)):
            try:
                self.drawn_batch(k)
            except Exhausted:
                return k
        return number

    def all_of(self, number: int) -> bool:
        """Whether that many draws are all that there are."""
        return self.sequence and not self.common_random and number == len(self.data)

    def at(self, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What f gets behind x, and by name, in this draw; numbers do not fall, but for those of `compared`."""
        first = () if self.data is None else (self.drawn_batch(number),)
        return first, {"seed": (self.base + number * 2654435761) % 2**32} if self.common_random else {}

    def drawn_batch(self, number: int) -> Any:
        if self.sequence:
            epoch, place = divmod(number, len(self.data))
            if epoch != self.epoch:
                self.epoch = epoch
                self.order = np.random.default_rng(fold(self.key, epoch)).permutation(len(self.data)).tolist()
            return self.data[self.order[place]]
        while self.drawn < number:
            self.batch = self.next_batch()
            self.drawn += 1
            if self.drawn < HELD:
                self.first.append(self.batch)
        return self.first[number] if number < HELD else self.batch

    def next_batch(self) -> Any:
        for _ in range(2):
            if self.iterator is None:
                self.iterator = iter(self.data)
            try:
                return next(self.iterator)
            except StopIteration:
                if self.iterator is self.data:
                    break
                self.iterator = None
        if self.drawn < 0:
            raise ValueError("data gave no batch; pass an iterable with at least one")
        raise Exhausted(f"data ended after {self.drawn + 1} batches")
