"""`python -m benchmarks.causal`: the variance of node perturbation on completions, by which losses a slope counts.

A causal model's past does not feel the future, so the slope of a token along its noise counts the losses at and behind
its own position. This compares the variance of that estimate with the variance of the one whose slopes count all losses
of the example, at the base model and on the second halves of sentences of mr (`benchmarks.forwards`).
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from benchmarks.cosines import by_block
from benchmarks.forwards import halves
from zograd.blockwise import Nodes
from zograd.blockwise.nodes import Terms
from zograd.cli.options import script
from zograd.llm.build import set_up
from zograd.llm.oracle import Forwards
from zograd.llm.settings import TrainSettings
from zograd.stores import Store


class Together(Forwards):
    """A batch each of whose losses depends on all tokens of its example, as far as slopes know."""

    def terms(self) -> list[Terms]:
        return [replace(t, columns=torch.full_like(t.columns, t.cells.shape[1] - 1)) for t in super().terms()]


def estimate(source: Nodes, store: Store, batch: Forwards, key: int) -> Tensor:
    """The estimate of the gradient of all trained weights by one pair of forwards. key: of the noise."""
    blocks = by_block(source, store, batch, key)
    return torch.cat([blocks[number] for number in sorted(blocks)])


def variance(source: Nodes, store: Store, batch: Forwards, draws: int) -> float:
    """The unbiased variance over the draws, summed over the weights; one pass (Welford's)."""
    mean = square = torch.zeros(())
    for key in range(draws):
        found = estimate(source, store, batch, key).double()
        change = found - mean
        mean = mean + change / (key + 1)
        square = square + change * (found - mean)
    return float(square.sum()) / (draws - 1)


def measure(
    model: Annotated[str, "The model."] = "smollm2-135m",
    layers: Annotated[int, "The last so many blocks are trained."] = 1,
    batch_size: Annotated[int, "Examples of the batch."] = 16,
    draws: Annotated[int, "Pairs of forwards of each estimate."] = 20,
    seed: Annotated[int, "Which batch."] = 0,
) -> dict[str, Any]:
    """Compare the two variances on one batch.

    Example: python -m benchmarks.causal --layers 4
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(
            model=model, task=str(halves(Path(folder))), method="node_perturbation", train="proj", layers=layers,
            dtype="float32", batch_size=batch_size, seed=seed, train_examples=batch_size, eval_examples=1, eos=False,
        )  # fmt: skip
        work = set_up(settings, Path(folder) / "run")
        store, source = work.prepared.store, work.prepared.store.source
        assert isinstance(source, Nodes)
        ways = {
            "at and behind": Forwards(work.scorer, work.batches[0]), "all": Together(work.scorer, work.batches[0])
        }  # fmt: skip
        found = {name: variance(source, store, batch, draws) for name, batch in ways.items()}
    return {"variances": found, "ratio": found["at and behind"] / found["all"]}


def text(result: dict[str, Any]) -> str:
    """The variances, and their ratio."""
    lines = [f"losses counted: {name:<14} variance {value:.4g}" for name, value in result["variances"].items()]
    return "\n".join([*lines, f"ratio {result['ratio']:.3f}"])


app = script(measure, text)

if __name__ == "__main__":
    app()
