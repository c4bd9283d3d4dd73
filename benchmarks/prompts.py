"""`python -m benchmarks.prompts`: how far estimates of a soft prompt's gradient are from it, by node perturbation.

Node perturbation has noise of its own for each example of a batch, a direction of weights has one for all. Both
evaluate the batch twice. Compared is E|G - g|^2 / |g|^2, with g the gradient of the batch by backpropagation: measured
for the first, and D - 1 for signs in the D weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch

from benchmarks.cosines import by_block
from zograd.blockwise import Backprop, Blockwise, Ends
from zograd.cli.options import script
from zograd.llm.build import set_up
from zograd.llm.oracle import Forwards
from zograd.llm.settings import TrainSettings


def measure(
    model: Annotated[str, "The model."] = "smollm2-135m",
    task: Annotated[str, "The task."] = "mr",
    tokens: Annotated[int, "Virtual tokens."] = 10,
    batch_size: Annotated[int, "Examples of the batch."] = 16,
    seed: Annotated[int, "Which batch, and which noise."] = 0,
    estimates: Annotated[int, "Estimates of node perturbation, of two evaluations each."] = 10,
) -> dict[str, Any]:
    """Compare the squared errors of the two estimates on one batch.

    Example: python -m benchmarks.prompts --batch-size 16
    """
    settings = TrainSettings(
        model=model, task=task, method="node_perturbation", train="prompt", tokens=tokens, dtype="float32",
        batch_size=batch_size, seed=seed, train_examples=batch_size, eval_examples=1, threads=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        work = set_up(settings, Path(folder) / "run")
    store, batch = work.prepared.store, Forwards(work.scorer, work.batches[0])
    source = store.source
    assert isinstance(source, Blockwise)
    ends = Ends(front=[leaf.name for leaf in store.leaves])
    (exact,) = by_block(Backprop(source.blocks, store.leaves, ends), store, batch).values()
    errors, found = [], torch.zeros_like(exact)
    for key in range(estimates):
        (one,) = by_block(source, store, batch, key).values()
        errors.append(float((one - exact).square().sum() / exact.square().sum()))
        found += one / estimates
    mean = sum(errors) / estimates
    return {
        "weights": exact.numel(),
        "batch_size": batch_size,
        "by_node_perturbation": round(mean, 1),
        "by_one_direction": exact.numel() - 1,
        "ratio": round(mean / (exact.numel() - 1), 3),
        "cosine_of_the_mean": round(float(torch.cosine_similarity(found, exact, dim=0)), 3),
    }


app = script(measure)

if __name__ == "__main__":
    app()
