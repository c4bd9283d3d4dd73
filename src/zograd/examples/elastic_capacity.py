"""Elastic capacity: a matrix trained from evaluations towards a low-rank one plus a sparse one, then cut to any size.

Rows      25
Paper     SALAAD, arXiv 2602.00942
Formula   x <- x - lr (g + rho (x - M)), M = L + S - Y; L by shrinking singular values, S by shrinking elements;
          a <- [a + 0.02 rho (rank(L) / min(m, n) - target)]_+ and b likewise by the density of S
Evidence  the planted parts; the singular value decomposition of the same weights, cut to as many numbers
Extent    one 20 x 20 matrix, a least-squares loss; 8 directions an estimate; no language model
Needs     nothing more
Seconds   40
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import zograd as zo
from zograd.examples import Claim, Figure, Finding, Line

N, RANK, DENSE = 20, 2, 20


# %% The goal: rank 2 plus one element in twenty of size 3, seen through the loss alone.
def planted(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    low = torch.tensor(rng.standard_normal((N, RANK)) @ rng.standard_normal((RANK, N)))
    sparse = torch.zeros(N * N, dtype=torch.float64)
    sparse[torch.tensor(rng.permutation(N * N)[:DENSE])] = torch.tensor(3.0 * rng.choice([-1.0, 1.0], DENSE))
    return low + sparse.view(N, N), low, sparse.view(N, N)


# %% Each step estimates the gradient of the loss; the pull towards M is exact.
def train(goal: Tensor, rule: zo.rules.Rule, directions: int, steps: int, seed: int) -> tuple[Tensor, zo.Store]:
    w = torch.zeros(N, N, dtype=torch.float64)
    store = zo.Store({"w": w})
    method = zo.Method(zo.estimators.Central(directions), zo.laws.Rademacher(), rule, mu=1e-3, lr=0.01)
    run = zo.Run(store, method, seed)
    oracle = zo.oracles.sequential(lambda: 0.5 * (w - goal).square().sum())
    for _ in range(steps):
        run.step(oracle)
    return w, store


def rank_of(low: Tensor) -> int:
    squares = torch.linalg.svdvals(low).square().cumsum(0)
    return int((squares < 0.999 * squares[-1]).sum()) + 1


# %% One run, several sizes: L by its leading singular values, S by its largest elements; a sparse number counts double.
def cut(low: Tensor, sparse: Tensor, rank: int, count: int) -> tuple[Tensor, int]:
    u, s, vt = torch.linalg.svd(low)
    kept = torch.zeros(N * N, dtype=torch.float64)
    largest = sparse.abs().view(-1).argsort(descending=True)[:count]
    kept[largest] = sparse.view(-1)[largest]
    return (u[:, :rank] * s[:rank]) @ vt[:rank] + kept.view(N, N), rank * 2 * N + 2 * count


def error(w: Tensor, goal: Tensor) -> float:
    return float((w - goal).norm() / goal.norm())


def run(seed: int = 0, quick: bool = False) -> Finding:
    seeds, steps = (1, 300) if quick else (2, 6000)
    sizes = ((1, 0), (2, 0), (2, 10), (2, 20))
    ranks, densities, apart, elastic, plain, counts = [], [], [], [], [], []
    for s in range(seed, seed + seeds):
        goal, low, _ = planted(s)
        rule = zo.rules.LowRankSparse(rank=RANK / N, density=DENSE / N**2)
        w, store = train(goal, rule, 8, steps, s)
        ((found, sparse),) = rule.parts(store).values()
        ranks.append(rank_of(found))
        densities.append(float((sparse != 0).double().mean()))
        apart.append(error(found, low))
        curve = [cut(found, sparse, *size) for size in sizes]
        counts = [count for _, count in curve]
        elastic.append([error(x, goal) for x, _ in curve])
        plain.append([error(cut(w, 0 * w, max(1, count // (2 * N)), 0)[0], goal) for count in counts])
    numbers = {"rank of L, mean": float(np.mean(ranks)), "density of S, mean": float(np.mean(densities)),
               "relative error of L, mean": float(np.mean(apart))}  # fmt: skip
    ours, svd = np.mean(elastic, axis=0), np.mean(plain, axis=0)
    for k, count in enumerate(counts):
        numbers |= {f"error at {count} numbers, L and S": ours[k], f"error at {count} numbers, SVD": svd[k]}
    claims = (
        Claim("the rank of L ends at that of the goal, 2", all(rank == RANK for rank in ranks), full_only=True),
        Claim("the density of S ends within two points of the 5 % of the goal",
              all(abs(d - DENSE / N**2) < 0.02 for d in densities), full_only=True),
        Claim("without S the singular values of the weights do better", all(ours[:2] > svd[:2]), full_only=True),
        Claim("cut to any size it errs no more as the size grows", all(np.diff(ours) < 1e-9), full_only=True),
        Claim("with elements of S it is nearer to the goal than the SVD of the same weights of that size",
              all(ours[2:] < svd[2:]), full_only=True),
        Claim("training ends nearer to the goal than it began",
              all(e[-1] < 1.0 for e in elastic)),
    )  # fmt: skip
    lines = (Line("L and S of one run", counts, ours), Line("singular values of the weights", counts, svd))
    return Finding(numbers, claims, (Figure("Cut to size", "numbers kept", "relative error", lines),))
