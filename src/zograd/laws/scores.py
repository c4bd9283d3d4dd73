"""How important each weight is, without gradients: what the mask of `TopScores` is chosen by."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from zograd.core import keys
from zograd.core.query import Query
from zograd.core.vector import combination
from zograd.files import write_tensors
from zograd.laws.base import Draw, Law, Rademacher

if TYPE_CHECKING:
    from zograd.oracles import Oracle
    from zograd.stores import Leaf, Store


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores by the names of the tensors, for `TopScores`; any dtype, boolean for a mask."""

    by_name: Mapping[str, Tensor]

    def __call__(self, leaf: Leaf) -> Tensor:
        if leaf.name not in self.by_name:
            raise ValueError(
                f"there are no scores for {leaf.name!r}; there are some for {', '.join(list(self.by_name)[:4])}, ..."
            )
        return self.by_name[leaf.name]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """From a safetensors file with one tensor a trained weight, under the same names."""
        return cls(load_file(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """To a safetensors file."""
        write_tensors(Path(path), {name: t.contiguous() for name, t in self.by_name.items()})


def squared_weights(leaf: Leaf) -> Tensor:
    """x_i^2, a stand-in where nothing better is known: the largest weights."""
    return leaf.tensor.detach().double().square()


def sensitivity(
    store: Store,
    oracles: Sequence[Oracle],
    n: int = 64,
    mu: float = 2.0**-10,
    law: Law = Rademacher(),
    seed: int = 0,
) -> Scores:
    """Mean over `oracles` (one a batch of data) of g_i^2, g the forward-difference estimate from n directions.

    SensZOQ takes these numbers from gradients on pre-training text; this is what evaluations alone give. With n
    directions a batch, E[g_i^2] = grad_i^2 + (|grad|^2 - grad_i^2) / n for Rademacher: weights below |grad|^2 / n
    drown, averaging over many batches brings them out. Costs (n + 1) len(oracles) evaluations, and a float32 a weight.
    The directions are others than those of a run with the same seed: a mask that was chosen along the directions that
    it is then trained with would favour weights which those happened to agree with.
    """
    own = keys.seed_of(seed, keys.Part.SENSITIVITY)
    scores = {leaf.name: torch.zeros(leaf.shape, device=leaf.tensor.device) for leaf in store.leaves}
    for k, oracle in enumerate(oracles):
        directions = [law(Draw(own, k, j, store.shapes, store.gram)) for j in range(n)]
        f0, *f = oracle(store, [Query(), *(Query(mu * v) for v in directions)], k)
        g = combination([(fj - f0) / (mu * n) for fj in f], directions)
        for block in store.blocks(g):
            part = scores[block.leaf.name].view(-1)[block.start : block.start + block.x.numel()]
            part.add_(block.v[0].square_(), alpha=1.0 / len(oracles))
    return Scores(scores)
