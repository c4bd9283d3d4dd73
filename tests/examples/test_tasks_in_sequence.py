"""Row 53: what the example calls forgetting, and that the first task does not depend on the memory."""

from __future__ import annotations

import numpy as np
import torch

from zograd.examples.tasks_in_sequence import forgotten, images, learn, orders, sequence
from zograd.laws import Memory


def test_outputs_on_remembered_images_stay_and_others_are_learned() -> None:
    """With all of the inputs of a few images remembered (energy 1), their logits are the same after another task."""
    x, y = images()
    layer = torch.nn.Linear(64, 10, bias=False).double().requires_grad_(False)
    seen = x[:20]
    memory = Memory.from_activations({"layer": layer}, [lambda: layer(seen)], energy=1.0)
    assert memory.by_name["layer.weight"].shape[1] == np.linalg.matrix_rank(seen.numpy())
    before, other = layer(seen).clone(), x[20:520][:, orders(1)[0]]
    first = torch.nn.functional.cross_entropy(layer(other), y[20:520])
    learn(layer, other, y[20:520], memory, 60, 0)
    torch.testing.assert_close(layer(seen), before, rtol=0.0, atol=1e-10)
    assert torch.nn.functional.cross_entropy(layer(other), y[20:520]) < first - 0.1


def test_the_first_task_is_learned_alike() -> None:
    tables = [sequence(0, energy, 10)[0] for energy in (0.0, 0.9)]
    assert tables[0][0] == tables[1][0]
    assert tables[0][2] != tables[1][2]
    assert forgotten([[0.9, 0.1, 0.1], [0.5, 0.8, 0.1], [0.4, 0.6, 0.7]]) == np.mean([0.9 - 0.4, 0.8 - 0.6])
