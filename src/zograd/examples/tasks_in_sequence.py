"""Tasks in sequence without forgetting: probes and moves stay off the inputs that earlier tasks had.

Rows      53
Paper     CoSO, arXiv 2505.11816; Saha et al. 2021 (GPM)
Formula   v = sqrt(k / r) U B^T with B^T M = 0; M spans the share `energy` of the inputs of the tasks so far
Evidence  accuracy on all tasks after each; outputs on the remembered part of the inputs, before and after
Extent    softmax regression on permuted digits; projection of probes, where the paper projects gradients for Adam
Needs     bench
Seconds   45
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import zograd as zo
from zograd.examples import Claim, Figure, Finding, Line

TASKS = 3


# %% Each task is the same digits with the pixels in another order; one weight matrix learns them all.
def orders(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(64) for _ in range(TASKS)]


def images() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return torch.tensor(digits.data / 16.0), torch.tensor(digits.target)


# %% A task is learned from evaluations alone: along signs of all weights, or off what is remembered.
def learn(layer: nn.Linear, x: Tensor, y: Tensor, memory: zo.laws.Memory | None, steps: int, seed: int) -> None:
    law = zo.laws.Rademacher() if memory is None else zo.laws.NullSpace(memory, rank=16, refresh=10)
    method = zo.Method(zo.estimators.Central(4), law, zo.rules.SGD(), mu=1e-3, lr=0.1)
    run = zo.Run(zo.Store({"layer.weight": layer.weight}), method, seed)
    oracle = zo.oracles.sequential(lambda: F.cross_entropy(layer(x), y))
    for _ in range(steps):
        run.step(oracle)


# %% After each task: accuracy on held-out images of every task, and what is remembered.
def sequence(seed: int, energy: float, steps: int) -> tuple[list[list[float]], list[float], float]:
    """Accuracies after each task, the share of dimensions taken, and the largest change of what was to stay."""
    x, y = images()
    layer = nn.Linear(64, 10, bias=False).double().requires_grad_(False)
    layer.weight.zero_()
    memory: zo.laws.Memory | None = None
    table, taken, changed = [], [], 0.0
    for task, order in enumerate(orders(seed)):
        before = layer.weight.clone()
        learn(layer, x[:500][:, order], y[:500], memory, steps, seed + task)
        if memory is not None:
            changed = max(changed, float(((layer.weight - before) @ memory.by_name["layer.weight"]).abs().max()))
        if energy:
            seen = x[:500][:, order]
            memory = zo.laws.Memory.from_activations(
                {"layer": layer}, [lambda seen=seen: layer(seen)], energy=energy, before=memory
            )
            taken.append(memory.shares()["layer.weight"])
        table.append([float((layer(x[1000:][:, o]).argmax(1) == y[1000:]).double().mean()) for o in orders(seed)])
    return table, taken, changed


def forgotten(table: list[list[float]]) -> float:
    """The mean over earlier tasks of what accuracy was lost since each was learned."""
    return float(np.mean([table[k][k] - table[-1][k] for k in range(TASKS - 1)]))


def run(seed: int = 0, quick: bool = False) -> Finding:
    seeds, steps = (1, 100) if quick else (3, 300)
    ways = {"no memory": 0.0, "energy 0.9": 0.9, "energy 0.97": 0.97}
    found = {name: [sequence(s, energy, steps) for s in range(seed, seed + seeds)] for name, energy in ways.items()}
    numbers, lines = {}, []
    lost, last = {}, {}
    for name, runs in found.items():
        tables = np.array([table for table, _, _ in runs])
        lost[name] = float(np.mean([forgotten(table) for table, _, _ in runs]))
        last[name] = float(tables[:, -1].mean())
        numbers[f"points forgotten, {name}"] = 100 * lost[name]
        numbers[f"mean accuracy at the end, {name}"] = last[name]
        numbers[f"accuracy on the last task, {name}"] = float(tables[:, -1, -1].mean())
        if runs[0][1]:
            numbers[f"share of dimensions taken at the end, {name}"] = float(np.mean([t[-1] for _, t, _ in runs]))
        lines.append(Line(name, range(1, TASKS + 1), tables[:, :, 0].mean(0)))
    change = max(c for name in ways for _, _, c in found[name])
    numbers["largest change of W M"] = change
    newest = "accuracy on the last task, {}"
    claims = (
        Claim("what W does on the span of the memory stays to 1e-9", change < 1e-9),
        Claim("without a memory more than 15 points are forgotten", lost["no memory"] > 0.15, full_only=True),
        Claim("energy 0.97 loses less than a quarter of that", lost["energy 0.97"] < lost["no memory"] / 4,
              full_only=True),
        Claim("with a memory less is forgotten, and the more is remembered the less",
              lost["energy 0.97"] < lost["energy 0.9"] < lost["no memory"]),
        Claim("the mean accuracy at the end is higher with it", last["energy 0.97"] > last["no memory"],
              full_only=True),
        Claim("the price: the last task is learned less well",
              numbers[newest.format("energy 0.97")] < numbers[newest.format("no memory")]),
        Claim("and after three tasks more than half of the input dimensions are taken",
              numbers["share of dimensions taken at the end, energy 0.97"] > 0.5),
    )  # fmt: skip
    figure = Figure("Accuracy on the first task", "tasks learned", "accuracy", tuple(lines))
    return Finding(numbers, claims, (figure,))
