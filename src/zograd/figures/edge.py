"""Does zeroth order hover at its edge of stability? Step size times trace over a run, for three optimizers.

Rows      21
Paper     arXiv 2604.14669: the mean-square edge of zeroth-order descent is eta tr H / 2 near 1, at one direction
Formula   edge of SGD, momentum and Adam: learning_rate.critical_lr(eig(P^-1 H), beta=, averaged=); ratio = eta / edge
Evidence  the Hessian of a network of 99 weights on digits, by automatic differentiation, at every mark
Extent    one small network, full batch, one seed; whatever it shows
Needs     bench
Seconds   55
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line

INPUTS, HIDDEN, BETA, MARKS = 12, 6, 0.9, 10


# %% A network small enough for its whole Hessian: 12 principal components of three classes of digits, 6 hidden units.
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits(return_X_y=True)
    kept = y < 3
    x = (x[kept] - x[kept].mean(0)) / 16
    _, _, vt = np.linalg.svd(x, full_matrices=False)
    return torch.from_numpy(x @ vt[:INPUTS].T), torch.from_numpy(y[kept].astype(np.int64))


def loss(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    cut = (INPUTS + 1) * HIDDEN
    a, b = w[:cut].reshape(INPUTS + 1, HIDDEN), w[cut:].reshape(HIDDEN + 1, 3)
    h = torch.tanh(x @ a[:-1] + a[-1])
    return torch.nn.functional.cross_entropy(h @ b[:-1] + b[-1], y)


def eigenvalues(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor | None = None) -> np.ndarray:
    """Of the Hessian, or of P^(-1/2) H P^(-1/2) with P = diag(scale); negative ones count as zero."""
    h = torch.func.hessian(lambda v: loss(v, x, y))(w)
    if scale is not None:
        root = scale.rsqrt()
        h = root[:, None] * h * root
    return np.maximum(torch.linalg.eigvalsh(h).numpy(), 0)


# %% A run; at every mark the edge is computed from the Hessian there, and eta over it is drawn.
def course(name: str, lr: float, steps: int, seed: int) -> tuple[list[int], list[float], list[float]]:
    x, y = problem()
    torch.manual_seed(seed)
    w = 0.3 * torch.randn((INPUTS + 1) * HIDDEN + (HIDDEN + 1) * 3, dtype=torch.float64)
    rule = {"descent": zo.rules.SGD(), "momentum": zo.rules.Momentum(BETA), "Adam": zo.rules.Adam(BETA, 0.999)}[name]
    method = zo.Method(zo.estimators.Central(1), zo.laws.Gaussian(), rule, lr=lr, mu=1e-4)
    store = zo.Store({"w": w})
    run = zo.Run(store, method, seed)
    oracle = zo.oracles.sequential(lambda: float(loss(w, x, y)))
    marks, ratios, losses = [], [], []
    for step in range(1, steps + 1):
        run.step(oracle)
        if step % (steps // MARKS) == 0:
            scale = None
            if name == "Adam":
                v = store.leaves[0].slots["exp_avg_sq"].double().reshape(-1)
                scale = (v / (1 - 0.999**step)).sqrt() + 1e-8
            beta = 0.0 if name == "descent" else BETA
            edge = zo.learning_rate.critical_lr(eigenvalues(w, x, y, scale), beta=beta, averaged=name == "Adam")
            marks.append(step)
            ratios.append(lr / edge)
            losses.append(float(loss(w, x, y)))
    return marks, ratios, losses


def run(seed: int = 0, quick: bool = False) -> Finding:
    steps = 100 if quick else 2_500
    rates = {"descent": (0.3, 1.0, 3.0), "momentum": (0.03, 0.1, 0.3), "Adam": (0.01, 0.1)}
    numbers: dict[str, float] = {}
    lines, reached, above = [], {}, 0
    for name, grid in rates.items():
        for lr in grid[:1] if quick else grid:
            marks, ratios, losses = course(name, lr, steps, seed)
            numbers[f"{name}, lr = {lr:g}: eta / edge at the first mark"] = ratios[0]
            numbers[f"{name}, lr = {lr:g}: eta / edge at the last mark"] = ratios[-1]
            numbers[f"{name}, lr = {lr:g}: largest eta / edge"] = max(ratios)
            numbers[f"{name}, lr = {lr:g}: loss at the end"] = losses[-1]
            lines.append(Line(f"{name}, {lr:g}", marks, ratios))
            reached[name, lr] = ratios
            above += sum(r > 1.5 for r in ratios)
    late = [r for ratios in reached.values() for r in ratios[len(ratios) // 2 :]]
    hovering = sum(0.8 < r < 1.25 for r in late) / len(late)
    numbers["share of late marks within 0.8 to 1.25 of the edge"] = hovering
    numbers["marks above 1.5 of the edge"] = above
    slow = [key for key in reached if key not in (("descent", 3.0), ("momentum", 0.3))]
    claims = (
        Claim("every run stays finite", all(np.isfinite(r).all() for r in reached.values())),
        Claim("runs do not hover at their edge here: less than half of the late marks lie within 0.8 to 1.25 of it",
              hovering < 0.5, full_only=True),
        Claim("below the edge the ratio falls with the loss, at each rate but the largest of descent and momentum",
              all(reached[key][-1] < reached[key][0] for key in slow), full_only=True),
    )  # fmt: skip
    return Finding(numbers, claims, (Figure("Rate over its edge", "step", "eta / edge", tuple(lines), log="y"),))
