"""Anchored steps: the gradient at the last iterate falls, on a sum of many terms and in a matrix game.

Rows      48
Paper     Cai, Alacaoglu and Diakonikolas 2023, arXiv 2310.02987; Halpern 1967; Lieder 2021
Formula   u <- b_k u_0 + (1 - b_k)(u - lr F~), b_k = 2 / (k + 4), F~ of PAGE; the game by u <- b_k u_0 + (1 - b_k) J u,
          b_k = 1 / (k + 2), J u the saddle of f + |x - u_x|^2 / (2 r) - |y - u_y|^2 / (2 r)
Evidence  least squares in closed form; the bound 2 |u_0 - u*| / (r (k + 1)) on the residual of the game
Extent    8 variables; the game's inner saddles are solved to a fixed number of steps, without variance reduction
Needs     nothing more
Seconds   30
"""

from __future__ import annotations

import numpy as np
import torch

import zograd as zo
from zograd.estimators import Coordinates, Page, Saddle
from zograd.examples import Claim, Figure, Finding, Line
from zograd.laws import Walsh
from zograd.rules import SGD, Halpern

D = 8
EXACT = Coordinates(D, central=True)


# %% A finite sum: least squares with N terms. An evaluation is that of one term.
def least_squares(terms: int, method: zo.Method[None], budget: int, seed: int) -> tuple[list[float], list[float]]:
    """Evaluations of terms, and |grad f| at the iterate, by the formula."""
    rng = np.random.default_rng(seed)
    a = torch.from_numpy(rng.standard_normal((terms, D)) * np.geomspace(1, 0.03, D))
    b = a @ torch.from_numpy(10 * rng.standard_normal(D)) + torch.from_numpy(rng.standard_normal(terms))
    x = torch.zeros(D, dtype=torch.float64)

    def loss(rows: tuple[int, ...] | None = None) -> torch.Tensor:
        part = slice(None) if rows is None else list(rows)
        return (a[part] @ x - b[part]).square().mean() / 2

    run = zo.Run(zo.Store({"x": x}), method, seed, terms=terms)
    oracle, spent, norms = zo.oracles.sequential(loss), list[float](), list[float]()
    while run.evaluations + run.most_evaluations <= budget:
        run.step(oracle)
        if not spent or run.evaluations > 1.02 * spent[-1]:
            spent.append(float(run.evaluations))
            norms.append(float((a.T @ (a @ x - b)).norm()) / terms)
    return spent, norms


def sums(terms: int, steps: int, seed: int) -> tuple[Line, Line]:
    """Variance-reduced and plain Halpern steps, for as many evaluations of terms as `steps` plain ones take."""
    batch = round(terms**0.5)
    reduced = zo.Method(Page(D, batch, None, EXACT), Walsh(), Halpern(2.0, 4.0), mu=0.1, lr=0.7)
    plain = zo.Method(EXACT, Walsh(), Halpern(2.0, 4.0), mu=0.1, lr=0.7)
    budget = (steps + 1) * EXACT.evaluations * terms
    found = [Line(name, *least_squares(terms, method, budget, seed)) for name, method in
             ((f"batches of {batch}, N = {terms}", reduced), (f"all terms, N = {terms}", plain))]  # fmt: skip
    return found[0], found[1]


# %% A matrix game: its field is not cocoercive, so the anchored step is taken with its resolvent, from values.
def game(outer: int, inner: int, seed: int) -> tuple[list[float], list[float], float]:
    """Residuals |u - J u| / r along the run, their bound, and the distance of anchored steps without the resolvent."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((D // 2, D // 2)))
    r, field = 0.5, np.block([[np.zeros_like(q), q], [-q.T, np.zeros_like(q)]])

    def resolvent(u: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        def f(p: dict[str, np.ndarray]) -> float:
            pulls = np.sum((p["x"] - u["x"]) ** 2) - np.sum((p["y"] - u["y"]) ** 2)
            return float(p["x"] @ q @ p["y"] + pulls / (2 * r))

        loop = zo.AskTell(u, zo.Method(Saddle(("y",), EXACT), Walsh(), SGD(), mu=0.1, lr=0.4), seed=seed)
        for _ in range(inner):
            loop.tell([f(p) for p in loop.ask()])
        found: dict[str, np.ndarray] = loop.x
        return found

    start = u = {"x": np.ones(D // 2), "y": np.ones(D // 2)}
    direct = np.ones(D)
    residuals, bounds = [], []
    for k in range(outer):
        moved = resolvent(u)
        residuals.append(float(np.sqrt(sum(np.sum((u[n] - moved[n]) ** 2) for n in u))) / r)
        bounds.append(2 * float(np.sqrt(D)) / (r * (k + 1)))
        pull = 1 / (k + 2)
        u = {name: pull * start[name] + (1 - pull) * moved[name] for name in u}
        direct = pull * np.ones(D) + (1 - pull) * (direct - 0.5 * field @ direct)
    return residuals, bounds, float(np.linalg.norm(direct))


def run(seed: int = 0, quick: bool = False) -> Finding:
    large = sums(4000, 12 if quick else 110, seed)
    small = sums(60, 8 if quick else 400, seed)
    residuals, bounds, direct = game(12 if quick else 120, 10 if quick else 16, seed)
    ends = {line.name: line.y[-1] for line in (*large, *small)}
    numbers = {f"|grad f| at the end, {name}": value for name, value in ends.items()}
    numbers |= {"residual of the game at the end": residuals[-1], "its bound": bounds[-1]}
    numbers["distance of anchored steps on the game without the resolvent"] = direct
    gain, loss = large[1].y[-1] / large[0].y[-1], small[1].y[-1] / small[0].y[-1]
    claims = (
        Claim("with 4000 terms batches end below all terms, at equal evaluations of terms", gain > 1, full_only=True),
        Claim("with 60 terms they gain less than with 4000", loss < gain, full_only=True),
        Claim(
            "the gradient at the last iterate falls on each sum", all(line.y[-1] < line.y[0] for line in large + small)
        ),
        Claim("the residual of the game keeps its bound", all(np.array(residuals) <= np.array(bounds) * (1 + 1e-6))),
        Claim("without the resolvent anchored steps on the game run away", direct > 1e3, full_only=True),
    )
    rounds = range(1, len(residuals) + 1)
    lines = (Line("residual", rounds, residuals), Line("bound", rounds, bounds))
    figures = (
        Figure("|grad f| at the last iterate", "evaluations of terms", "|grad f|", (*large, *small), log="xy"),
        Figure("A matrix game by its resolvent", "step", "|u - J u| / r", lines, log="xy"),
    )
    return Finding(numbers, claims, figures)
