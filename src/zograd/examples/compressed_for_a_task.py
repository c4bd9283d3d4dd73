"""A network compressed for a task: which weights stay, and what thin factors keep, by what the task puts in.

Rows      33, 63
Paper     arXiv 2510.22489; Sun et al. 2023, arXiv 2306.11695 (Wanda); Hsu et al. 2022 (FWSVD)
Formula   scores |W_ij| |X_j|_2 with norms of any images, of the task, or fused; d_i^2 = E sum_j (df/dW_ij)^2 and
          W ~ diag(1/d) U_r S_r V_r^T with U S V^T = SVD(diag(d) W), d from evaluations and by autograd
Evidence  accuracy and loss on held-out images of the task; the plain SVD and magnitudes at the same size
Extent    digits and a network of 2 hidden layers, where the works have language models (`zograd compress` has those)
Needs     bench
Seconds   40
"""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from zograd import compress
from zograd.examples import Claim, Figure, Finding, Line
from zograd.oracles import sequential
from zograd.stores import Store

TASK = (3, 5, 8, 9)
"""The task: to tell these digits apart, by their outputs alone."""


# %% A network that knows all ten digits; pixels are cut to the task by nothing but the images that come in.
Sets = dict[str, tuple[torch.Tensor, torch.Tensor]]


def data(seed: int) -> Sets:
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x, y = torch.tensor(digits.data[order] / 16.0), torch.tensor(digits.target[order])
    of_task = torch.isin(y, torch.tensor(TASK))
    first = torch.arange(len(y)) < 1000
    return {"any": (x[first], y[first]), "task": (x[first & of_task], y[first & of_task]),
            "test": (x[~first & of_task], y[~first & of_task])}  # fmt: skip


def trained(x: torch.Tensor, y: torch.Tensor, seed: int, steps: int) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)).double()
    adam = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(steps):
        adam.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(x), y))
        adam.step()
    return net.requires_grad_(False)


def task_loss(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(net(x)[:, TASK], torch.searchsorted(torch.tensor(TASK), y))


def measured(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    said = torch.tensor(TASK)[net(x)[:, TASK].argmax(1)]
    return float((said == y).double().mean()), float(task_loss(net, x, y))


# %% Scores that differ in the images whose norms they read.
def pruned(net: nn.Sequential, sets: Sets, how: str, sparsity: float) -> nn.Sequential:
    new = copy.deepcopy(net)
    layers = compress.linear_layers(new, "0|2")
    norms = {k: compress.activation_norms(layers, [partial(new, sets[k][0])]) for k in ("any", "task")}
    scores = {}
    for name, layer in layers.items():
        w, seen, wanted = layer.weight, norms["any"][name], norms["task"][name]
        ways = {"magnitude": compress.magnitude(w), "any images": compress.wanda(w, seen),
                "task": compress.wanda(w, wanted), "fused": compress.task_aware(w, seen, wanted)}  # fmt: skip
        scores[name] = ways[how]
    compress.prune_(layers, scores, sparsity)
    return new


# %% Weights of rows: E sum_j g_ij^2 over single images of the task.
def fisher(net: nn.Sequential, sets: Sets, images: int) -> dict[str, dict[str, torch.Tensor]]:
    x, y = sets["task"]
    layers = compress.linear_layers(net, "0|2")

    def loss(k: int) -> torch.Tensor:
        return task_loss(net, x[k : k + 1], y[k : k + 1])

    exact = compress.row_fisher_by_autograd(layers, [partial(loss, k) for k in range(len(y))])
    store = Store({name: layer.weight for name, layer in layers.items()})
    found = compress.row_fisher(store, [sequential(partial(loss, k)) for k in range(images)])
    return {"svd": {name: torch.ones_like(d) for name, d in exact.items()}, "autograd": exact, "evaluations": found}


def ranks(x: torch.Tensor) -> torch.Tensor:
    return x.argsort().argsort().double()


def weighted_error(net: nn.Sequential, thin: nn.Sequential, d: dict[str, torch.Tensor]) -> float:
    """sum_i d_i^2 |(W - A B)_i|^2 over the layers: what FWSVD minimises."""
    eye = torch.eye(64).double()  # both layers have 64 inputs, and the biases cancel
    apart = {n: (net.get_submodule(n)(eye) - thin.get_submodule(n)(eye)).T for n in d}
    return float(sum((d[n] ** 2 @ apart[n].square()).sum() for n in d))


# %% Each share of numbers that stays, for each way; means over seeds.
def run(seed: int = 0, quick: bool = False) -> Finding:
    seeds, steps, images = (1, 60, 3) if quick else (3, 200, 96)
    sparsities, keeps = ((0.7,), (0.3,)) if quick else ((0.5, 0.6, 0.7, 0.8), (0.15, 0.2, 0.3, 0.4, 0.6))
    ways = ("magnitude", "any images", "task", "fused")
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    alike, least = [], True
    for s in range(seed, seed + seeds):
        sets = data(s)
        net = trained(*sets["any"], s, steps)
        models = {("dense", 0.0): net} | {(w, z): pruned(net, sets, w, z) for z in sparsities for w in ways}
        rows = fisher(net, sets, images)
        alike.append(torch.corrcoef(torch.stack([ranks(rows[k]["2"]) for k in ("autograd", "evaluations")]))[0, 1])
        for keep in keeps:
            for way, d in rows.items():
                models[way, keep] = copy.deepcopy(net)
                compress.factorise_(models[way, keep], compress.linear_layers(models[way, keep], "0|2"), keep, d)
            errors = [weighted_error(net, models[way, keep], rows["autograd"]) for way in rows]
            least = least and min(errors) == errors[1]
        for key, model in models.items():
            found.setdefault(key, []).append(measured(model, *sets["test"]))
    loss = {key: float(np.mean([both[1] for both in v])) for key, v in found.items()}
    numbers = {f"accuracy, {w}, {share:g}": float(np.mean([a for a, _ in v])) for (w, share), v in found.items()}
    numbers |= {f"loss, {way}, {share:g}": value for (way, share), value in loss.items()}
    numbers["rank correlation of d by evaluations and by autograd"] = float(np.mean(alike))
    numbers["FWSVD better than SVD"] = wins = sum(loss["autograd", k] < loss["svd", k] for k in keeps)
    claims = (
        Claim("norms of any images beat magnitudes at every share", all(
            loss["any images", z] < loss["magnitude", z] for z in sparsities)),
        Claim("half of the weights by norms of any images cost less than two points of accuracy",
              quick or numbers["accuracy, any images, 0.5"] > numbers["accuracy, dense, 0"] - 0.02, full_only=True),
        Claim("norms of the task, alone or fused, gain nothing here: those of any images are better at every share",
              all(loss["any images", z] < min(loss["task", z], loss["fused", z]) for z in sparsities)),
        Claim("FWSVD has the least weighted error of the three at every share", least),
        Claim("and still no lower loss than the plain SVD at most shares", 2 * wins < len(keeps)),
        Claim("d from evaluations is ordered as by autograd (rank correlation above 0.7)", float(np.mean(alike)) > 0.7,
              full_only=True),
    )  # fmt: skip
    figures = tuple(
        Figure(title, f"share of {what}", "loss on the task",
               tuple(Line(w, shares, [loss[w, share] for share in shares]) for w in names), log="y")
        for title, what, names, shares in (("Pruned", "zeros", ways, sparsities),
                                           ("Thin factors", "numbers", tuple(rows), keeps))
    )  # fmt: skip
    return Finding(numbers, claims, figures)
