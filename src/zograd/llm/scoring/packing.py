"""Packing: several sequences in one row of a batch, so that little of it is padding.

Positions restart with each sequence, and a mask [rows, 1, width, width] lets a token attend to earlier tokens of its
own sequence only. So a sequence gets the states that it would get in a row of its own. In the same way several tails
may follow one sequence and share its keys and values: each tail attends to the sequence and to itself. Some models mix
the tokens of a row in another way (recurrent models, ALiBi with a mask of two axes): `supports_packing` tests the model
itself.
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
"""In a row of ATTENTION x hidden size tokens, attention costs as much as the layers: 12 h^2 weights, 2 h a position,
with scores at half the speed of a matrix product."""


@dataclass(frozen=True)
class Layout:
    """The places of sequences of given lengths: sequence i lies in row rows[i], from column starts[i] on."""

    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    starts: tuple[int, ...]
    width: int
    whole: bool = False
    """Whether each has all states of its row, however many (an image)."""

    @property
    def count(self) -> int:
        """Number of rows of the batch."""
        return max(self.rows) + 1

    @property
    def tokens(self) -> int:
        """Number of tokens of the batch, padding included."""
        return self.count * self.width

    @property
    def one_per_row(self) -> bool:
        """Whether each sequence has a row of its own."""
        return self.count == len(self.lengths)

    @property
    def cells(self) -> list[tuple[int, Any]]:
        """Row and columns of each sequence, as an index of states."""
        if self.whole:
            return [(row, ...) for row in self.rows]
        ends = zip(self.rows, self.starts, self.lengths, strict=True)
        return [(row, slice(start, start + length)) for row, start, length in ends]

    @functools.cached_property
    def owners(self) -> Tensor:
        """int64 [count, width]: the sequence of each token, -1 for padding."""
        owner = torch.full((self.count, self.width), -1)
        for i, (row, columns) in enumerate(self.cells):
            owner[row, columns] = i
        return owner

    def inputs(
        self,
        sequences: Sequence[Sequence[int]],
        pad: int,
        device: torch.device,
        dtype: torch.dtype,
        tails: Sequence[Sequence[int]] = (),
    ) -> dict[str, Any]:
        """The inputs of a transformers backbone: ids with a mask of 0s and 1s if each sequence has its own row;
        otherwise also positions, and a mask of `dtype` that is added to the attention scores.

        pad: the id of padding.
        tails: tokens after every sequence, in its cells. Each tail has the positions and the mask that it would have if
            it followed the sequence alone.
        """
        ids = torch.full((self.count, self.width), pad)
        owner = self.owners
        positions = torch.zeros(self.count, self.width, dtype=torch.int64)
        # the number of the tail of a token, from 1 on; 0 in the sequence itself
        tail = torch.zeros(self.count, self.width, dtype=torch.int64)
        behind = [token for t in tails for token in t]
        number = [k for k, t in enumerate(tails, 1) for _ in t]
        step = [j for t in tails for j in range(len(t))]
        for (row, here), sequence in zip(self.cells, sequences, strict=True):
            n = len(sequence)
            ids[row, here] = torch.tensor([*sequence, *behind])
            positions[row, here] = torch.tensor([*range(n), *(n + j for j in step)])
            tail[row, here] = torch.tensor([0] * n + number)
        common = {"input_ids": ids.to(device), "use_cache": False}
        if self.one_per_row and not tails:
            return common | {"attention_mask": (owner >= 0).long().to(device)}
        seen = (owner[:, :, None] == owner[:, None, :]).tril()
        seen &= (tail[:, None, :] == 0) | (tail[:, :, None] == tail[:, None, :])
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
        return common | {"position_ids": positions.to(device), "attention_mask": mask.to(device)}

    def places(self, offsets: Sequence[int], copies: int = 1) -> tuple[Tensor, Tensor]:
        """Rows and columns of the position `offsets[i]` in each sequence i, for `copies` copies of the batch."""
        rows = torch.tensor([copy * self.count + row for copy in range(copies) for row in self.rows])
        columns = torch.tensor([start + offset for start, offset in zip(self.starts, offsets, strict=True)] * copies)
        return rows, columns


def padded_layout(lengths: Sequence[int]) -> Layout:
    """The layout of a right-padded batch: each sequence in its own row."""
    return Layout(tuple(lengths), tuple(range(len(lengths))), (0,) * len(lengths), max(lengths))


@functools.lru_cache(maxsize=16)  # a step needs the layout of its batch several times
def packed_layout(lengths: tuple[int, ...], hidden_size: int, widest: int) -> Layout:
    """The layout of least cost, tokens x (1 + width / (ATTENTION hidden_size)), over all numbers of rows.

    The longest sequence that is not placed yet goes to the shortest row. A row with several sequences is at most
    `widest` tokens wide.
    Cost: n^2 log n operations for n sequences.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    best, least = padded_layout(lengths), float("inf")
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
"""Two tails with which `supports_packing` tests whether several tails may follow one sequence."""


@torch.no_grad()
def supports_packing(model: Any, device: torch.device, tails: Sequence[Sequence[int]] = ()) -> bool:
    """Whether three sequences packed in one row of a causal model get the same states as in rows of their own.

    tails: these follow each sequence; then the comparison has one row for each sequence with each tail. A model whose
        attention counts positions by columns (linear biases) may support packing but not tails.

    Equal means up to rounding. Cost: two forwards of some 20 tokens, 50 with `TAILS`.
    """
    backbone, dtype = getattr(model, model.base_model_prefix), model.dtype
    vocabulary = model.config.get_text_config().vocab_size
    tails = [[token % vocabulary for token in tail] for tail in tails]
    ids = [[(7 * k + 3 * i + 5) % vocabulary for k in range(n)] for i, n in enumerate((3, 9, 6))]
    lengths = [len(s) + sum(map(len, tails)) for s in ids]
    one_row = Layout(tuple(lengths), (0, 0, 0), (0, lengths[0], lengths[0] + lengths[1]), sum(lengths))
    try:
        beside = backbone(**one_row.inputs(ids, 0, device, dtype, tails)).last_hidden_state[0]
    except Exception:  # models refuse positions or a mask of four axes with errors of many kinds
        return False
    whole = [[*s, *tail] for s in ids for tail in tails or [[]]]
    layout = padded_layout([len(s) for s in whole])
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
