"""Gradients through ten inner steps: a truncated binomial sum, a truncated product, and evaluations alone.

Rows      22
Paper     BinomMAML, ICLR 2026, arXiv 2604.13263
Formula   prod_k (I - a H_k) v = sum_l sum_{k1 < .. < kl} prod (-a H_k) v; e_l <- e_l - a H_k e_{l-1} for k = K-1 .. 0,
          the estimate is e_0 + .. + e_L
Evidence  the exact product; the Hessians by automatic differentiation; the derivative of the loss after the inner steps
Extent    regression of sinusoids by 1-20-1 networks; needs products with Hessians, so it is no zeroth-order method
Needs     nothing more
Seconds   15
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import zograd as zo
from zograd.estimators import Central
from zograd.examples import Claim, Figure, Finding, Line

HIDDEN, INNER, ORDERS = 20, 10, range(6)
SIZE = 3 * HIDDEN + 1


# %% A task is a sinusoid; a network is one vector of 61 weights, adapted by ten steps on ten of its points.
@dataclass(frozen=True)
class Task:
    x: Tensor
    y: Tensor
    new_x: Tensor
    new_y: Tensor

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Task:
        height, phase = rng.uniform(0.1, 5.0), rng.uniform(0, np.pi)
        x = torch.from_numpy(rng.uniform(-5, 5, (2, 10)))
        y = height * torch.sin(x + phase)
        return cls(x[0], y[0], x[1], y[1])

    def inner(self, weights: Tensor) -> Tensor:
        return (network(weights, self.x) - self.y).square().mean() / 2

    def outer(self, weights: Tensor) -> Tensor:
        return (network(weights, self.new_x) - self.new_y).square().mean() / 2

    def adapted(self, weights: Tensor, a: float) -> list[Tensor]:
        """phi_0 .. phi_K."""
        path = [weights]
        for _ in range(INNER):
            path.append(path[-1] - a * torch.func.grad(self.inner)(path[-1]))
        return path


def network(weights: Tensor, x: Tensor) -> Tensor:
    first, bias, second = weights[: 3 * HIDDEN].view(3, HIDDEN)
    return torch.tanh(x[:, None] * first + bias) @ second + weights[-1]


# %% Three estimates of the meta-gradient from the Hessians H_k of the path and v, the outer slope at its end.
def exact(h: list[Tensor], v: Tensor, a: float) -> Tensor:
    for h_k in reversed(h):
        v = v - a * h_k @ v
    return v


def truncated(h: list[Tensor], v: Tensor, a: float, order: int) -> Tensor:
    """The last `order` factors of the product alone."""
    return exact(h[len(h) - order :], v, a)


def binomial(h: list[Tensor], v: Tensor, a: float, order: int) -> Tensor:
    """All products of at most `order` factors a H_k, in the order of the path, by `order` + 1 running vectors."""
    e = [v, *[torch.zeros_like(v) for _ in range(order)]]
    for h_k in reversed(h):
        for level in range(order, 0, -1):
            e[level] = e[level] - a * h_k @ e[level - 1]
    return torch.stack(e).sum(0)


def errors(seed: int, tasks: int, share: float) -> dict[str, np.ndarray]:
    """Median relative error over tasks for each order; the inner rate is `share` / (largest curvature)."""
    rng, found = np.random.default_rng(seed), {"binomial": [], "truncated": []}
    for _ in range(tasks):
        task, weights = Task.drawn(rng), torch.from_numpy(0.5 * rng.standard_normal(SIZE))
        hessian = torch.func.hessian(task.inner)
        a = share / float(torch.linalg.eigvalsh(hessian(weights)).max())
        path = task.adapted(weights, a)
        h, v = [hessian(phi) for phi in path[:-1]], torch.func.grad(task.outer)(path[-1])
        truth = exact(h, v, a)
        for name, estimate in (("binomial", binomial), ("truncated", truncated)):
            found[name].append([float((estimate(h, v, a, k) - truth).norm() / truth.norm()) for k in ORDERS])
    return {name: np.median(values, axis=0) for name, values in found.items()}


# %% Evaluations alone: the outer loss after the inner steps, as a black box of the first weights.
def from_values(seed: int, tasks: int, share: float, n: int) -> float:
    """Median relative error of n pairs of evaluations, each of which runs the inner steps."""
    rng, found = np.random.default_rng(seed), []
    for k in range(tasks):
        task, weights = Task.drawn(rng), 0.5 * rng.standard_normal(SIZE)
        a = share / float(torch.linalg.eigvalsh(torch.func.hessian(task.inner)(torch.from_numpy(weights))).max())

        def after(w: np.ndarray, task: Task = task, a: float = a) -> float:
            return float(task.outer(task.adapted(torch.from_numpy(w), a)[-1]))

        start = torch.from_numpy(weights).requires_grad_()
        truth = torch.autograd.grad(task.outer(task.adapted(start, a)[-1]), start)[0].numpy()
        found.append(np.linalg.norm(zo.gradient(after, weights, estimator=Central(n), seed=k).value - truth))
        found[-1] /= np.linalg.norm(truth)
    return float(np.median(found))


def run(seed: int = 0, quick: bool = False) -> Finding:
    tasks = 3 if quick else 15
    small, large = errors(seed, tasks, 0.1), errors(seed, tasks, 0.4)
    pairs = (4,) if quick else (4, 64)
    values = {n: from_values(seed, 2 if quick else 5, 0.1, n) for n in pairs}
    numbers = {f"{name}, order {k}": float(small[name][k]) for name in small for k in ORDERS}
    numbers |= {f"{name}, order {k}, large steps": float(large[name][k]) for name in large for k in (1, 3, 5)}
    numbers |= {f"{n} pairs of evaluations": value for n, value in values.items()}
    claims = (
        Claim("with small steps the binomial sum is better at each order from 1 to 5",
              bool(np.all(small["binomial"][1:] < small["truncated"][1:]))),
        Claim("its error falls faster from order to order",
              bool(np.all(np.diff(np.log(small["binomial"][1:])) < np.diff(np.log(small["truncated"][1:]))))),
        Claim("with steps four times as large the binomial sum of order 1 is the worse one",
              bool(large["binomial"][1] > large["truncated"][1])),
        Claim("four pairs of evaluations are worse than order 0", values[4] > small["binomial"][0]),
    )  # fmt: skip
    lines = tuple(Line(f"{name}, {kind}", ORDERS, found[name].tolist())
                  for kind, found in (("small steps", small), ("large steps", large)) for name in found)  # fmt: skip
    return Finding(numbers, claims, (Figure("Meta-gradients", "order", "relative error", lines, log="y"),))
