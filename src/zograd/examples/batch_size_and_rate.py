"""Batch size and learning rate: noise of batches raises the largest eigenvalue, and leaves the trace as it is.

Rows      45
Paper     Granziol, Zohren and Roberts 2020, arXiv 2006.09092
Formula   H_B = lam u u^T + W with |W| = 2 s, s = s_1 / sqrt(B): its largest eigenvalue is lam + s^2 / lam if lam > s,
          else 2 s; largest rate of exact gradients 2 / that; of zeroth-order steps with one direction about 2 / tr H
Evidence  eigenvalues of random matrices; eigenvalues by Lanczos with products by autograd
Extent    spiked matrices of 300 dimensions, and one network of 2,410 weights; momentum and Adam are left out
Needs     bench
Seconds   14
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from zograd.diagnostics import batch_curvature, spiked_edge
from zograd.examples import Claim, Figure, Finding, Line


# %% What is exact: matrices with one spike and noise of variance s^2 / P.
def simulated(lam: float, noise: float, size: int, repeats: int, rng: np.random.Generator) -> float:
    tops = []
    for _ in range(repeats):
        g = rng.standard_normal((size, size))
        h = noise * (g + g.T) / np.sqrt(2 * size)
        h[0, 0] += lam
        tops.append(np.linalg.eigvalsh(h)[-1])
    return float(np.mean(tops))


# %% A network: 64 pixels, 32 hidden units, 10 classes; trained for some steps, so that it has a spike.
class Digits:
    def __init__(self, seed: int, steps: int) -> None:
        pixels, labels = load_digits(return_X_y=True)
        self.x, self.y = torch.from_numpy(pixels / 16), torch.from_numpy(labels)
        torch.manual_seed(seed)
        layers = torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)
        self.network = torch.nn.Sequential(*layers).double()
        optimizer = torch.optim.Adam(self.network.parameters(), 1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss(np.arange(len(self.y))).backward()
            optimizer.step()

    def loss(self, rows: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.network(self.x[rows]), self.y[rows])


def run(seed: int = 0, quick: bool = False) -> Finding:
    rng = np.random.default_rng(seed)
    size, repeats = (200, 2) if quick else (300, 8)
    batches = (4, 16, 64, 256, 1024)
    measured = [simulated(2.0, 5 / np.sqrt(b), size, repeats, rng) for b in batches]
    predicted = [spiked_edge(2.0, 5 / np.sqrt(b)) for b in batches]
    apart = float(np.max(np.abs(np.divide(measured, predicted) - 1)))
    # %% Batches of digits.
    digits = Digits(seed, steps=30)
    sizes = (8, 64, 1797) if quick else (8, 32, 128, 1797)
    found = batch_curvature(
        digits.loss, digits.network.parameters(), 1797, sizes, repeats=4 if quick else 40, n=16, seed=seed
    )
    top, sums = [m.value for m in found.largest], [m.value for m in found.traces]
    full = sums[-1]
    off = float(max(abs(t.value - full) / np.hypot(t.error, found.traces[-1].error) for t in found.traces))
    numbers = {"spiked matrices: largest relative error": apart}
    numbers |= {f"largest eigenvalue, batches of {b}": v for b, v in zip(sizes, top, strict=True)}
    numbers |= {f"trace, batches of {b}": v for b, v in zip(sizes, sums, strict=True)}
    numbers |= {"fit: lam": found.lam, "fit: noise of one term": found.noise, "fit: relative misfit": found.misfit}
    numbers |= {
        "trace: largest distance from that of all terms, in standard errors": off,
        "rate 2 / lam, all terms over batches of 8": top[0] / top[-1],
        "rate 2 / tr H, all terms over batches of 8": sums[0] / sums[-1],
    }
    claims = (
        Claim("spiked matrices have the eigenvalue of the formula within 3 %", apart < (0.06 if quick else 0.03)),
        Claim("on digits the largest eigenvalue falls as the batch grows", bool(np.all(np.diff(top) < 0))),
        Claim("the largest rate of exact gradients changes by more than 1.5 times between 8 and all terms",
              top[0] > 1.5 * top[-1]),
        Claim("the spiked model fits its means within 8 %", found.misfit < 0.08),
        Claim("the trace does not follow the batch: all within 3.5 standard errors of that of all terms", off < 3.5),
        Claim("so the zeroth-order edge 2 / tr H moves by less than a quarter of that",
              abs(sums[0] / sums[-1] - 1) < 0.25 * (top[0] / top[-1] - 1)),
    )  # fmt: skip
    edge = [found.edge(b) for b in sizes]
    lines = (
        Line("largest eigenvalue", sizes, top, points=True),
        Line("fit of the spiked model", sizes, edge),
        Line("trace / 10", sizes, [t / 10 for t in sums], points=True),
    )
    return Finding(numbers, claims, (Figure("Curvature of batches of digits", "terms in a batch", "", lines, "xy"),))
