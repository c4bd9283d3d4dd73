"""Targets before weights: a judge of outputs is asked about outputs, and the weights are fitted to better ones.

Rows      42
Paper     Lavington, Vaswani, Babanezhad, Schmidt and Le Roux, ICML 2023, arXiv 2302.02607
Formula   t = z - eta g with g a zeroth-order estimate at the outputs z of the model, then theta = argmin |model - t|^2
Evidence  the same judge with zeroth order on the weights, tuned, at equal calls; the least-squares fit by its equations
Extent    one minus the F1 score of 200 outputs, 1500 random features; the paper's judges have derivatives
Needs     bench
Seconds   12
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

import zograd as zo
from zograd.estimators import Central
from zograd.examples import Claim, Figure, Finding, Line

FEATURES, TRAIN = 1500, 200


# %% The judge: 1 - F1 of the outputs' signs. It has no derivative; probes of radius 0.5 change signs.
def judge(outputs: np.ndarray, labels: np.ndarray) -> float:
    said = outputs > 0
    return 1 - 2 * float(np.sum(said & labels)) / max(float(np.sum(said) + np.sum(labels)), 1.0)


def data(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random features of digits 3 and 8 with signs of pixels blurred, 200 to train and the rest to test."""
    digits = load_digits()
    kept = np.flatnonzero(np.isin(digits.target, (3, 8)))
    rng = np.random.default_rng(seed)
    rng.shuffle(kept)
    x = digits.data[kept] / 16 + 0.3 * rng.standard_normal((len(kept), 64))
    w, b = rng.standard_normal((64, FEATURES)) / 4, rng.uniform(0, 2 * np.pi, FEATURES)
    features, labels = np.cos(x @ w + b) * np.sqrt(2 / FEATURES), digits.target[kept] == 3
    return features[:TRAIN], labels[:TRAIN], features[TRAIN:], labels[TRAIN:]


# %% Targets: an estimate at the outputs, then a fit of the weights, which asks the judge nothing.
def by_targets(seed: int, calls: int, eta: float, q: int = 10) -> tuple[list[float], list[float], list[float]]:
    train, labels, test, others = data(seed)
    fit = np.linalg.solve(train @ train.T + 1e-3 * np.eye(TRAIN), train)
    rng = np.random.default_rng(seed)
    theta = 0.1 * rng.standard_normal(FEATURES)
    spent, ours, held_out = [], [], []
    for step in range(calls // (2 * q)):
        z = train @ theta
        g = zo.gradient(lambda z: judge(z, labels), z, estimator=Central(q), mu=0.5, seed=seed, step=step).value
        theta = theta - fit.T @ (eta * g)  # the regularised fit of the change of outputs
        spent.append(2.0 * q * (step + 1))
        ours.append(judge(train @ theta, labels))
        held_out.append(judge(test @ theta, others))
    return spent, ours, held_out


# %% The rival: the same judge, zeroth order on the weights, at each of four rates.
def by_weights(seed: int, calls: int, lr: float) -> tuple[list[float], list[float], list[float]]:
    train, labels, test, others = data(seed)
    theta = 0.1 * np.random.default_rng(seed).standard_normal(FEATURES)
    method = zo.methods.zo_sgd(lr=lr, mu=0.5, n=10)
    loop = zo.AskTell(theta, method, seed=seed)
    spent, ours, held_out = [], [], []
    while loop.evaluations + 20 <= calls:
        loop.tell([judge(train @ p, labels) for p in loop.ask()])
        spent.append(float(loop.evaluations))
        ours.append(judge(train @ loop.x, labels))
        held_out.append(judge(test @ loop.x, others))
    return spent, ours, held_out


def run(seed: int = 0, quick: bool = False) -> Finding:
    calls, seeds = (200, 1) if quick else (1600, 3)
    targets = [by_targets(seed + k, calls, 3.0) for k in range(seeds)]
    rates = {
        lr: [by_weights(seed + k, calls, lr) for k in range(seeds)] for lr in ((0.3,) if quick else (0.3, 1.0, 3.0))
    }
    best = min(rates, key=lambda lr: np.mean([trained[-1] for _, trained, _ in rates[lr]]))
    numbers, lines, trained = {"best rate of weights": best}, [], {}
    for name, runs in (("targets", targets), ("weights", rates[best])):
        for part, column in (("training", 1), ("test", 2)):
            curve = np.mean([run[column] for run in runs], axis=0)
            numbers |= {f"1 - F1 at the end, {name}, {part}": float(curve[-1])}
            lines.append(Line(f"{name}, {part}", runs[0][0], curve.tolist()))
            trained[name, part] = curve
    early = len(trained["targets", "test"]) // 4
    numbers |= {
        f"1 - F1 at a quarter, {name}, test": float(trained[name, "test"][early]) for name in ("targets", "weights")
    }
    claims = (
        Claim("the judge's loss falls on the training outputs",
              trained["targets", "training"][-1] < trained["targets", "training"][0]),
        Claim("targets end below weights on the training outputs, at equal calls",
              trained["targets", "training"][-1] < trained["weights", "training"][-1], full_only=True),
    )  # fmt: skip
    return Finding(
        numbers, claims, (Figure("A judge without a derivative", "calls of the judge", "1 - F1", tuple(lines)),)
    )
