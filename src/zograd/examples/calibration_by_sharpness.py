"""Calibration by the loss at the ascent point: sharpness-aware descent whose outer loss takes weight from confidence.

Rows      35
Paper     CSAM, arXiv 2505.23866; Foret et al. 2021 (SAM); Guo et al. 2017 (calibration error)
Formula   x <- x - lr grad h(x + rho g / |g|), g the gradient of cross-entropy at x; h = -(1 + p)^-gamma log p where
          p > 1/2, else -log p, with p the probability of the right class; gamma 0 is SAM
Evidence  the same runs with gradients of autograd; calibration error and accuracy on held-out examples
Extent    500 movie reviews as 64 hashed words and a network of 1,074 weights; no large model; gamma 1, 2 with gradients
Needs     bench
Seconds   40
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

import zograd as zo
from zograd.examples import Claim, Figure, Finding, Line
from zograd.hub import load_task

RHO = 0.5


# %% Movie reviews as hashed counts of words: too little to tell them apart, and enough to be sure of 500 of them.
def hashed(texts: Sequence[str]) -> Tensor:
    x = np.zeros((len(texts), 64))
    for row, text in zip(x, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()):
            code = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
            row[code % 64] += 1 - 2 * ((code >> 20) & 1)
    return torch.tensor(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9))


Data = tuple[Tensor, Tensor, Tensor, Tensor]


def reviews(seed: int, tested: int) -> Data:
    splits = load_task("mr").splits
    train = [splits["train"][i] for i in np.random.default_rng(seed).permutation(len(splits["train"]))[:500]]
    test = splits["test"][:tested]
    x, z = (hashed([e.prompt for e in part]) for part in (train, test))
    y, t = (torch.tensor([e.label for e in part]) for part in (train, test))
    return x, y, z, t


def digits() -> Data:
    found = load_digits()
    x, y = torch.tensor(found.data / 16.0), torch.tensor(found.target)
    return x[:1000], y[:1000], x[1000:], y[1000:]


# %% Two models as functions of one vector of weights: a network for reviews, softmax regression for digits.
def network(w: Tensor, x: Tensor) -> Tensor:
    into, offset, out, last = w.split((1024, 16, 32, 2))  # one read of w: each read adds the probe anew
    return torch.addmm(last, torch.tanh(torch.addmm(offset, x, into.view(64, 16), alpha=3)), out.view(16, 2))


def regression(w: Tensor, x: Tensor) -> Tensor:
    return x @ w.view(64, 10)


def start(seed: int, size: int) -> Tensor:
    return 0.3 * torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# %% The reference: both gradients by autograd.
def by_gradients(model: Callable[[Tensor, Tensor], Tensor], w: Tensor, data: Data, gamma: float, steps: int) -> Tensor:
    x, y = data[:2]
    for _ in range(steps):
        w = w.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(model(w, x), y), w)
        there = (w + RHO * g / g.norm()).detach().requires_grad_(True)
        (g,) = torch.autograd.grad(zo.objectives.overconfidence(model(there, x), y, gamma).mean(), there)
        w = w - 0.5 * g
    return w.detach()


# %% From evaluations alone: each step asks twice, and each round has a loss of its own.
def by_evaluations(w: Tensor, data: Data, gamma: float, steps: int, seed: int) -> Tensor:
    x, y = data[:2]
    w = w.clone()
    oracle = zo.oracles.by_round(
        lambda: F.cross_entropy(network(w, x), y),
        lambda: zo.objectives.overconfidence(network(w, x), y, gamma).mean(),
    )
    estimator = zo.estimators.SAM(zo.estimators.Central(16), RHO)
    method = zo.Method(estimator, zo.laws.Rademacher(), zo.rules.Adam(), mu=1e-2, lr=0.02)
    run = zo.Run(zo.Store({"w": w}), method, seed)
    for _ in range(steps):
        run.step(oracle)
    return w


def judged(model: Callable[[Tensor, Tensor], Tensor], w: Tensor, data: Data) -> tuple[float, float]:
    found = zo.diagnostics.calibration(torch.softmax(model(w, data[2]), 1).numpy(), data[3].numpy())
    return found.ece, found.accuracy


# %% Calibration error beside accuracy, for each way and each seed.
def run(seed: int = 0, quick: bool = False) -> Finding:
    seeds, steps, walk = (1, 80, 10) if quick else (3, 300, 130)
    found: dict[str, list[tuple[float, float]]] = {}
    for s in range(seed, seed + seeds):
        data, w = reviews(s, 200 if quick else 1000), start(s, 1074)
        for gamma in (0.0, 1.0, 2.0):
            after = by_gradients(network, w, data, gamma, steps)
            found.setdefault(f"gradients, gamma {gamma:g}", []).append(judged(network, after, data))
        for gamma in (0.0, 2.0):
            after = by_evaluations(w, data, gamma, walk, s)
            found.setdefault(f"evaluations, gamma {gamma:g}", []).append(judged(network, after, data))
    sure = digits()
    for gamma in (0.0, 2.0):
        after = by_gradients(regression, start(seed, 640), sure, gamma, steps)
        found[f"digits, gradients, gamma {gamma:g}"] = [judged(regression, after, sure)]
    means = {name: np.mean(values, axis=0) for name, values in found.items()}
    numbers = {f"calibration error, {name}": float(mean[0]) for name, mean in means.items()}
    numbers |= {f"accuracy, {name}": float(mean[1]) for name, mean in means.items()}
    pairs = list(zip(found["evaluations, gamma 0"], found["evaluations, gamma 2"], strict=True))
    error = {name: float(mean[0]) for name, mean in means.items()}
    claims = (
        Claim("with gradients, gamma 2 has a lower calibration error than SAM",
              error["gradients, gamma 2"] < error["gradients, gamma 0"]),
        Claim("with gradients, the error falls with gamma",
              error["gradients, gamma 2"] < error["gradients, gamma 1"] < error["gradients, gamma 0"], full_only=True),
        Claim("from evaluations, gamma 2 has a lower calibration error than SAM on every seed",
              all(outer[0] < sam[0] for sam, outer in pairs), full_only=True),
        Claim("at an accuracy within two points in the mean",
              abs(means["evaluations, gamma 2"][1] - means["evaluations, gamma 0"][1]) < 0.02, full_only=True),
        Claim("on digits, where the model is not overconfident, it makes the error larger",
              error["digits, gradients, gamma 2"] > error["digits, gradients, gamma 0"], full_only=True),
    )  # fmt: skip
    lines = (
        Line("gradients", (0, 1, 2), [error[f"gradients, gamma {g}"] for g in (0, 1, 2)]),
        Line("evaluations", (0, 2), [error[f"evaluations, gamma {g}"] for g in (0, 2)]),
    )
    return Finding(numbers, claims, (Figure("Movie reviews", "gamma", "calibration error", lines),))
