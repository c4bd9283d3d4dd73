"""Sequences behind each other in the rows of a batch, so that little of it is padding.

Positions restart with each sequence, and a mask of [rows, 1, width, width] lets a token see its own sequence alone, up
to itself. So a sequence gets the states that it would get in a row of its own. In the same way several tails follow one
sequence, whose keys and values they share: each sees the sequence and itself. Models that mix the tokens of a row in
another way (recurrent ones, ALiBi from a mask of two axes) are found by `packs`, on the model itself.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ATTENTION = 4
"""A row as long as so many hidden sizes costs as much in attention as in the layers: 12 h^2 weights, 2 h a position,
with scores at half the speed of a matrix product."""


@dataclass(frozen=True)
class Layout:
    """Where sequences of given lengths lie: sequence i in row rows[i], from column starts[i] on."""

    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    starts: tuple[int, ...]
    width: int

    @property
    def count(self) -> int:
        """Rows of the batch."""
        return max(self.rows) + 1

    @property
    def tokens(self) -> int:
        """Tokens of the batch, with its padding."""
        return self.count * self.width

    @property
    def alone(self) -> bool:
        """Whether each sequence has a row of its own."""
        return self.count == len(self.lengths)

    @property
    def cells(self) -> list[tuple[int, slice]]:
        """Row and columns of each sequence."""
        ends = zip(self.rows, self.starts, self.lengths, strict=True)
        return [(row, slice(start, start + length)) for row, start, length in ends]

    def inputs(
        self,
        sequences: Sequence[Sequence[int]],
        pad: int,
        device: torch.device,
        dtype: torch.dtype,
        tails: Sequence[Sequence[int]] = (),
    ) -> dict[str, Any]:
        """What a backbone of transformers is given: ids, and a mask of 0s and 1s where sequences are alone; otherwise
        positions, and a mask of `dtype` that is added to the scores. Padding has the id `pad`.

        tails: tokens that lie behind every sequence, in its cells, at the positions and with the mask of one tail alone
        behind it.
        """
        ids = torch.full((self.count, self.width), pad)
        owner = torch.full((self.count, self.width), -1)
        positions = torch.zeros(self.count, self.width, dtype=torch.int64)
        tail = torch.zeros(self.count, self.width, dtype=torch.int64)  # its number from 1 on, 0 in front of all tails
        behind = [token for t in tails for token in t]
        number = [k for k, t in enumerate(tails, 1) for _ in t]
        step = [j for t in tails for j in range(len(t))]
        for i, ((row, here), sequence) in enumerate(zip(self.cells, sequences, strict=True)):
            n = len(sequence)
            ids[row, here] = torch.tensor([*sequence, *behind])
            owner[row, here] = i
            positions[row, here] = torch.tensor([*range(n), *(n + j for j in step)])
            tail[row, here] = torch.tensor([0] * n + number)
        common = {"input_ids": ids.to(device), "use_cache": False}
        if self.alone and not tails:
            return common | {"attention_mask": (owner >= 0).long().to(device)}
        seen = (owner[:, :, None] == owner[:, None, :]).tril()
        seen &= (tail[:, None, :] == 0) | (tail[:, :, None] == tail[:, None, :])
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
        return common | {"position_ids": positions.to(device), "attention_mask": mask.to(device)}

    def places(self, offsets: Sequence[int], copies: int = 1) -> tuple[Tensor, Tensor]:
        """Rows and columns of a position in each sequence, of so many copies of the batch, copy after copy."""
        rows = torch.tensor([copy * self.count + row for copy in range(copies) for row in self.rows])
        columns = torch.tensor([start + offset for start, offset in zip(self.starts, offsets, strict=True)] * copies)
        return rows, columns


def in_rows_of_their_own(lengths: Sequence[int]) -> Layout:
    """The right-padded batch."""
    return Layout(tuple(lengths), tuple(range(len(lengths))), (0,) * len(lengths), max(lengths))


@functools.lru_cache(maxsize=16)  # a step asks for the layout of its batch several times
def packed(lengths: tuple[int, ...], hidden_size: int, widest: int) -> Layout:
    """The layout of least cost, tokens x (1 + width / (ATTENTION hidden_size)), over all numbers of rows.

    The longest sequence not yet placed goes to the shortest row. No row of several sequences is wider than `widest`.
    Cost: n^2 log n operations for n sequences.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    best, least = in_rows_of_their_own(lengths), float("inf")
    for count in range(len(lengths), 0, -1):
        filled = [(0, row) for row in range(count)]
        rows, starts = [0] * len(lengths), [0] * len(lengths)
        for i in order:
            start, row = filled[0]
            rows[i], starts[i] = row, start
            heapq.heapreplace(filled, (start + lengths[i], row))
        width = max(length for length, _ in filled)
        cost = count * width * (1 + width / (ATTENTION * hidden_size))
        if cost < least and (width <= widest or count == len(lengths)):
            best, least = Layout(lengths, tuple(rows), tuple(starts), width), cost
    return best


TAILS = ((4, 11), (2, 9, 3))
"""Two tails, by which `packs` tells whether a model lets several follow one sequence."""


@torch.no_grad()
def packs(model: Any, device: torch.device, tails: Sequence[Sequence[int]] = ()) -> bool:
    """Whether three sequences in one row of a causal model get the states of rows of their own, to rounding.

    tails: that lie behind each; then each sequence with each tail has a row of its own. A model that counts positions
    by columns (linear biases) may pack sequences, but no tails. Cost: two forwards of some 20 tokens, 50 with `TAILS`.
    """
    backbone, dtype = getattr(model, model.base_model_prefix), model.dtype
    vocabulary = model.config.get_text_config().vocab_size
    tails = [[token % vocabulary for token in tail] for tail in tails]
    ids = [[(7 * k + 3 * i + 5) % vocabulary for k in range(n)] for i, n in enumerate((3, 9, 6))]
    lengths = [len(s) + sum(map(len, tails)) for s in ids]
    one_row = Layout(tuple(lengths), (0, 0, 0), (0, lengths[0], lengths[0] + lengths[1]), sum(lengths))
    try:
        beside = backbone(**one_row.inputs(ids, 0, device, dtype, tails)).last_hidden_state[0]
    except Exception:  # a model of any library may refuse positions, or a mask of four axes, in its own way
        return False
    whole = [[*s, *tail] for s in ids for tail in tails or [[]]]
    layout = in_rows_of_their_own([len(s) for s in whole])
    alone = iter(backbone(**layout.inputs(whole, 0, device, dtype)).last_hidden_state)
    tolerance = 1e-3 if beside.dtype in (torch.float32, torch.float64) else 0.1
    for s, start in zip(ids, one_row.starts, strict=True):
        at = start + len(s)
        for tail in tails or [[]]:
            found = torch.cat([beside[start : start + len(s)], beside[at : at + len(tail)]]).float()
            expected = next(alone)[: len(s) + len(tail)].float()
            if not bool((found - expected).norm() <= tolerance * expected.norm()):
                return False
            at += len(tail)
    return True
