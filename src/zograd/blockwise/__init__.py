"""Gradients that a model's blocks give one after the other, while the weights of each block move.

A forward on a batch (`record`) keeps what enters the first trained block, and the derivative H of the loss at the
output of the last block, which needs no backward pass through any block. A second pass then visits block by block,
takes that block's derivative, and its weights move before the next block is visited (`Residual`, `Backprop`). `Nodes`
estimates what is wanted at the outputs of layers or blocks from pairs of forwards, and `ResidualByValues` from pairs of
forwards of one block.
"""

from __future__ import annotations

from zograd.blockwise.calls import Around, Call, adds_to_its_input, observe, record
from zograd.blockwise.nodes import Nodes, Terms
from zograd.blockwise.sources import NO_ENDS, Backprop, Batch, Blockwise, Ends, Lookup, Residual, starts
from zograd.blockwise.values import ResidualByValues

__all__ = [
    "NO_ENDS", "Around", "Backprop", "Batch", "Blockwise", "Call", "Ends", "Lookup", "Nodes", "Residual",
    "ResidualByValues", "Terms", "adds_to_its_input", "observe", "record", "starts",
]  # fmt: skip
