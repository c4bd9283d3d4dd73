"""Learned shortcuts: which earlier layers a layer reads, by evaluations alone, while its weights follow gradients.

Rows      24
Paper     ANCRe 2026, arXiv 2602.09009
Formula   h_k = sum_{i<k} c_ki h_i + W_k h_(k-1), c_k = softmax(a_k), the log-ratio coordinates of a simplex; W by
          autograd, a by (1/4) sum_j (f(a + mu v_j) - f(a - mu v_j)) / 2 mu v_j, both in one step of zo.Hybrid
Evidence  the same nets with a by autograd, with residual shortcuts c_k,k-1 = 1, and with none
Extent    deep linear nets of width 6 that learn a matrix; no pretrained model, no transformer
Needs     nothing more
Seconds   40
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import zograd as zo
from zograd.examples import Claim, Figure, Finding, Line

WIDTH, ENOUGH, RATE, ROUTE_RATE = 6, 1e-3, 0.02, 20.0


# %% A deep linear net as its matrix: each layer adds what its routes read from all earlier states.
def matrix(weights: Tensor, routes: Tensor) -> Tensor:
    """weights: (depth, width, width). routes: (depth, depth), row k over the states 0 .. k."""
    states = torch.eye(WIDTH, dtype=torch.float64)[None]
    for k, w in enumerate(weights):
        new = torch.tensordot(routes[k, : k + 1], states, 1) + w @ states[-1]
        states = torch.cat([states, new[None]])
    return states[-1]


def softmax_rows(a: Tensor) -> Tensor:
    """Row k: softmax over its first k + 1 entries, 0 elsewhere."""
    depth = a.shape[0]
    return torch.softmax(a.masked_fill(torch.ones(depth, depth).triu(1).bool(), -torch.inf), 1)


# %% One net, trained until its loss is 1e-3. The start of learned routes is 0.9 on the last state, the rest spread.
def course(way: str, depth: int, most: int, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    target = torch.tensor(np.eye(WIDTH) + 0.4 * rng.standard_normal((WIDTH, WIDTH)))
    weights = torch.tensor(0.05 * rng.standard_normal((depth, WIDTH, WIDTH)), requires_grad=True)
    a = torch.log(0.9 * torch.eye(depth) + 0.1 / torch.arange(1, depth + 1)[:, None]).double().requires_grad_(True)
    fixed = {"no shortcut": torch.zeros(depth, depth), "residual": torch.eye(depth)}.get(way)
    method = zo.methods.zo_sgd(lr=ROUTE_RATE, mu=1e-2, n=4)

    def loss() -> Tensor:
        routes = softmax_rows(a) if fixed is None else fixed.double()
        return (matrix(weights, routes) - target).square().mean()

    descent = torch.optim.SGD([{"params": [weights], "lr": RATE}, {"params": [a], "lr": ROUTE_RATE}])
    hybrid = None
    if way == "routes by evaluations":
        a.requires_grad_(False)
        hybrid = zo.Hybrid(zo.ZOOptimizer([a], method, seed=seed, frozen=True), torch.optim.SGD([weights], lr=RATE))
    losses: list[float] = []
    while len(losses) < most and (not losses or ENOUGH < losses[-1] < 1e6):
        if hybrid is not None:
            found = hybrid.step(loss)
        else:
            descent.zero_grad()
            found = loss()
            torch.autograd.backward(found)
            descent.step()
        losses.append(float(found.detach()))
    return losses


def run(seed: int = 0, quick: bool = False) -> Finding:
    depths, seeds, most = ((6,), 2, 40) if quick else ((12,), 5, 700)
    ways = ("no shortcut", "residual", "routes by autograd", "routes by evaluations")
    numbers: dict[str, float] = {}
    lines, claims = [], []
    for depth in depths:
        steps = {}
        for way in ways:
            found = [course(way, depth, most, seed + s) for s in range(seeds)]
            arrived = [len(losses) if losses[-1] <= ENOUGH else np.nan for losses in found]
            steps[way] = float(np.median([most + 1 if np.isnan(n) else n for n in arrived]))
            numbers[f"depth {depth}, {way}: share that arrives"] = float(np.mean(np.isfinite(arrived)))
            numbers[f"depth {depth}, {way}: median steps (at most {most + 1})"] = steps[way]
            numbers[f"depth {depth}, {way}: median of the last loss"] = float(np.median([x[-1] for x in found]))
            lines.append(Line(f"{way}, {depth}", range(1, len(found[0]) + 1), np.clip(found[0], 1e-4, 1e2)))
        claims += [
            Claim(f"depth {depth}: without shortcuts no net learns",
                  numbers[f"depth {depth}, no shortcut: share that arrives"] == 0),
            Claim(f"depth {depth}: nets with learned routes arrive, by autograd or by evaluations, in the median",
                  max(steps[way] for way in ways[2:]) <= most, True),
            Claim(f"depth {depth}: routes by evaluations take at most 1.3 times the steps of routes by autograd",
                  steps["routes by evaluations"] <= 1.3 * steps["routes by autograd"], True),
            Claim(f"depth {depth}: a residual shortcut that is fixed is faster than routes that begin as 0.9 of it",
                  steps["residual"] < steps["routes by autograd"], True),
            Claim(f"depth {depth}: routes by evaluations lower the loss below that without shortcuts",
                  numbers[f"depth {depth}, routes by evaluations: median of the last loss"]
                  < numbers[f"depth {depth}, no shortcut: median of the last loss"]),
        ]  # fmt: skip
    return Finding(numbers, tuple(claims), (Figure("First net", "step", "loss", tuple(lines), log="y"),))
