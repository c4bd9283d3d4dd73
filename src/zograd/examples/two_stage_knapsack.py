"""A robust knapsack in two stages: a network learns the value of the second stage, and enumeration uses it.

Rows      43
Paper     Dumouchelle, Julien, Kurtz and Khalil 2024, arXiv 2310.04345 (Neur2RO)
Formula   V^(x, xi) = rho(sum_i phi(x_i, xi_i, item i)); x <- argmax min over S of V^; xi <- argmin V^(x, .), joins S
Evidence  enumeration of every choice and scenario with exact second stages (dynamic programming)
Extent    10 items and 56 scenarios, so that enumeration is possible; no integer program with a network inside
Needs     nothing more
Seconds   35
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from zograd.examples import Claim, Figure, Finding, Line
from zograd.problems.two_stage import TwoStageKnapsack


# %% The value of the second stage as a network of sets: the order of the items does not matter to it.
class Value(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(7, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.rho = nn.Sequential(nn.Linear(width + 1, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, sets: torch.Tensor, sure: torch.Tensor) -> torch.Tensor:
        """sets: (pairs, items, 7); sure: (pairs,), what the orders earn before the second stage."""
        return sure + self.rho(torch.cat([self.phi(sets).sum(1), sure[:, None]], 1))[:, 0]


def inputs(problem: TwoStageKnapsack, x: np.ndarray, xi: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Items relative to the capacity and to the sum of profits; what is not accepted is 0."""
    d = problem.data
    room, money = float(d["C"]), float(d["p"].sum())
    item = np.stack([d["c"] / room, d["t"] / room, d["p"] / money, d["f"] / money, d["d"] / money], 1)
    sets = np.concatenate([x[:, :, None], xi[:, :, None] * x[:, :, None], item[None] * x[:, :, None]], 2)
    return torch.tensor(sets, dtype=torch.float32), torch.tensor(x @ (d["p"] - d["f"]) / money, dtype=torch.float32)


def learned(problems: list[TwoStageKnapsack], solves: int, steps: int, seed: int) -> tuple[Value, list[float]]:
    """The network after `steps` of Adam on exact second stages of random pairs, and the course of its error."""
    torch.manual_seed(seed)
    rng, found = np.random.default_rng(seed), []
    for problem in problems:
        x = problem.choices[rng.integers(len(problem.choices), size=solves)]
        xi = problem.scenarios[rng.integers(len(problem.scenarios), size=solves)]
        found.append(
            (*inputs(problem, x, xi), torch.tensor(problem.second_stage(x, xi) / problem.data["p"].sum()).float())
        )
    sets, sure, values = (torch.cat(part) for part in zip(*found, strict=True))
    network, errors = Value(), []
    opt = torch.optim.Adam(network.parameters(), 3e-3)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(opt, max(steps, 1))
    for _ in range(steps):
        rows = torch.randint(len(values), (512,))
        loss = ((network(sets[rows], sure[rows]) - values[rows]) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        falls.step()
        errors.append(float(loss.detach()) ** 0.5)
    return network, errors


# %% Constraint generation on the network; every choice that it visits is judged by exact second stages.
def generate(problem: TwoStageKnapsack, network: Value, rounds: int) -> tuple[float, int]:
    """(worst value of the best visited choice, exact second stages)."""
    x = problem.choices

    def guess(rows: np.ndarray, xi: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(*inputs(problem, rows, np.broadcast_to(xi, rows.shape))).numpy()

    seen, lowest, best, judged = [0], guess(x, problem.scenarios[0]), -np.inf, np.zeros(len(x), bool)
    for _ in range(rounds):
        new = int(np.argmax(np.where(judged, -np.inf, lowest)))
        judged[new] = True
        best = max(best, float(problem.worst(x[new : new + 1])[0]))
        scenarios = problem.scenarios
        answer = int(np.argmin(guess(np.broadcast_to(x[new], scenarios.shape), scenarios)))
        if answer not in seen:
            seen.append(answer)
            lowest = np.minimum(lowest, guess(x, scenarios[answer]))
    return best, rounds * len(problem.scenarios)


def run(seed: int = 0, quick: bool = False) -> Finding:
    number, items, solves, steps, rounds = (2, 6, 150, 150, 4) if quick else (20, 10, 2200, 3500, 60)
    problems = [TwoStageKnapsack(items, 2, seed=100 * seed + k) for k in range(number)]
    trained, errors = learned(problems, solves, steps, seed)
    random, _ = learned(problems, 1, 0, seed + 1)
    gaps: dict[str, list[float]] = {"trained": [], "not trained": []}
    spent = 0
    for problem in problems:
        for name, network in (("trained", trained), ("not trained", random)):
            best, spent = generate(problem, network, rounds)
            gaps[name].append(1 - best / problem.optimum)
    every = len(problems[0].choices) * len(problems[0].scenarios)
    pick = [float(np.mean(p.values <= 0.97 * p.optimum)) for p in problems]
    numbers = {
        "largest gap, trained": max(gaps["trained"]), "mean gap, trained": float(np.mean(gaps["trained"])),
        "largest gap, not trained": max(gaps["not trained"]),
        "mean gap, not trained": float(np.mean(gaps["not trained"])),
        "second stages solved, share of all": (solves + spent) / every,
        "error of the network, share of the profits": errors[-1],
        "choices more than 3 % below the optimum, share": float(np.mean(pick)),
    }  # fmt: skip
    order = np.argsort(gaps["trained"])
    lines = tuple(Line(name, range(1, number + 1), np.array(found)[order], points=True) for name, found in gaps.items())
    claims = (
        Claim("each instance within 3 % of the enumerated optimum", max(gaps["trained"]) < 0.03, full_only=True),
        Claim("with at most a tenth of all second stages", (solves + spent) / every <= 0.1, full_only=True),
        Claim("better than with a network that was not trained",
              np.mean(gaps["trained"]) < np.mean(gaps["not trained"]), full_only=True),
        Claim("no gap is negative: the optimum is one", min(map(min, gaps.values())) > -1e-9),
        Claim("the instances are not easy: most choices lie more than 3 % below the optimum", np.mean(pick) > 0.5),
    )  # fmt: skip
    return Finding(numbers, claims, (Figure("Gap to the optimum", "instance", "relative", lines),))
