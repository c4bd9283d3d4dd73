"""`python -m benchmarks.cosines`: how much of the gradient residual feedback sees, block by block.

Gradients of one batch by residual feedback, by node perturbation recentred by it, and by backpropagation, at the base
model: the cosine between them for all matrices of each block. Of an encoder residual feedback alone, since node
perturbation needs a causal model; also where its blocks do not add to the stream, for which training refuses it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from zograd.blockwise import Backprop, Blockwise, Nodes, Residual
from zograd.cli.options import script
from zograd.core.vector import Slot, Vector
from zograd.llm import loading
from zograd.llm.build import set_up
from zograd.llm.oracle import Forwards
from zograd.llm.settings import TrainSettings
from zograd.stores import Store

GRADIENT = Vector(((Slot("gradient"), 1.0),))


def by_block(source: Blockwise, store: Store, batch: Forwards, key: int = 0) -> dict[int, Tensor]:
    """The gradients of one batch, one vector a block. key: of the noise."""
    source.observe(batch, key)
    store.source = source
    parts: dict[int, dict[str, list[Tensor]]] = {}
    for block in store.blocks(GRADIENT):
        number = source.number[block.leaf.index]
        parts.setdefault(number, {}).setdefault(block.leaf.name, []).append(block.v[0].clone())
    source.end()
    return {k: torch.cat([torch.cat(found[name]) for name in sorted(found)]) for k, found in parts.items()}


def measure(
    model: Annotated[str, "The model."] = "smollm2-135m",
    task: Annotated[str, "The task."] = "trec",
    batch_size: Annotated[int, "Examples of the batch."] = 16,
    seed: Annotated[int, "Which batch, and which noise."] = 0,
    draws: Annotated[int, "Pairs of node perturbation."] = 1,
    train: Annotated[str, "A pattern of the names of the tensors in the blocks."] = "proj",
) -> dict[str, Any]:
    """Compare the gradients of one batch.

    Example: python -m benchmarks.cosines --model minilm-l6 --task mr --train "layer.*(dense|query|key|value).weight"
    """
    settings = TrainSettings(
        model=model, task=task, method="backprop", train=train, dtype="float32", batch_size=batch_size,
        seed=seed, train_examples=batch_size, eval_examples=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        work = set_up(settings, Path(folder) / "run")
    store, batch = work.prepared.store, Forwards(work.scorer, work.batches[0])
    source = work.prepared.store.source
    assert isinstance(source, Blockwise)
    kinds: dict[str, Blockwise] = {"residual": Residual(source.blocks, store.leaves)}
    if loading.kind_of(loading.plain_model(work.prepared.model)) == "causal":
        kinds |= {
            "nodes": Nodes(source.blocks, store.leaves, at="blocks", draws=draws),
            "recentred": Nodes(source.blocks, store.leaves, at="blocks", draws=draws, center=True),
            "recentred, shrink 0.15": Nodes(
                source.blocks, store.leaves, at="blocks", draws=draws, center=True, shrink=0.15
            ),
        }
    exact = by_block(Backprop(source.blocks, store.leaves), store, batch)
    cosines: dict[str, list[float]] = {}
    for name, kind in kinds.items():
        found = by_block(kind, store, batch)
        cosines[name] = [round(float(torch.cosine_similarity(found[k], exact[k], dim=0)), 3) for k in sorted(exact)]
    return {"cosines": cosines}


def text(result: dict[str, Any]) -> str:
    """A line a block, from the first one."""
    kinds = result["cosines"]
    rows = zip(*kinds.values(), strict=True)
    return "\n".join([
        "block " + "  ".join(f"{name:>12}" for name in kinds),
        *(f"{k:>5} " + "  ".join(f"{x:>{max(12, len(name))}.3f}" for name, x in zip(kinds, row, strict=True))
          for k, row in enumerate(rows)),
    ])  # fmt: skip


app = script(measure, text)

if __name__ == "__main__":
    app()
