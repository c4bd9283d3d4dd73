"""Node perturbation on layers in 4 bits: the mean of its estimates is the gradient of adapters and of scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.estimates import deviations, gradients
from zograd.blockwise import Backprop, Nodes
from zograd.llm.build import set_up
from zograd.llm.oracle import Forwards
from zograd.llm.settings import TrainSettings


@pytest.mark.parametrize(
    ("kind", "part"),
    [("Q4_0", "lora"), ("Q4_0", "scales"), ("hqq4", "lora")],
    ids=["packed, adapters", "packed, scales", "hqq, adapters"],
)
def test_the_mean_of_the_estimates_is_the_gradient_in_4_bits(
    tiny_model: Path, tiny_gguf: Callable[[str], Path], tmp_path: Path, kind: str, part: str
) -> None:
    packed = kind != "hqq4"
    where: dict[str, Any] = {"quantized": True} if packed else {"quantize": kind}
    s = TrainSettings(
        model=str(tiny_gguf(kind) if packed else tiny_model), task="mr", method="node_perturbation", train=part,
        layers=1, dtype="float32", threads=1, batch_size=4, train_examples=16, eval_examples=4, **where,
    )  # fmt: skip
    work = set_up(s, tmp_path / "run")
    store, source = work.prepared.store, work.prepared.store.source
    assert isinstance(source, Nodes)
    if part == "lora":  # B starts at 0, where A has no gradient
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in store.tensors:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    batch = Forwards(work.scorer, work.batches[0])
    exact = gradients(Backprop(source.blocks, store.leaves), store, batch, 0)
    assert all(bool(g.any()) for g in exact.values())
    z = deviations(lambda key: gradients(source, store, batch, key), exact, 100)
    assert z.abs().max() < 3.5
    assert z.square().mean() < 2.5
