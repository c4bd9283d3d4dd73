"""A solver inside of a network: its mesh before and after training, and a cut through solutions that were held out.

Rows      8, 12
Paper     Belbute-Peres, Economon and Kolter, ICML 2020 (CFD-GCN), whose figure has flows around a wing
Formula   as in the example mesh_and_network: output = u + network(x, y, place, u), u on a mesh of softmax(m)
Evidence  solutions by quadratic elements on 48 x 48 cells, at places of the source that were not trained on
Extent    Poisson's equation in place of fluid dynamics, one seed; the example has three
Needs     pde,bench
Seconds   25
"""

from __future__ import annotations

import numpy as np
import torch

from zograd.figures import Claim, Figure, Finding, Line
from zograd.problems.mesh_network import cases, error, output, softmax, train
from zograd.problems.sources import Sources

WAYS = {
    "network alone": (False, 0.0),
    "solver and network, mesh kept": (True, 0.0),
    "solver and network, mesh trained": (True, 0.05),
}
"""Whether the network sees the solver, and the rate of its mesh."""


# %% Training, then the root mean square error on held-out cases, and the values along the row through a source.
def run(seed: int = 0, quick: bool = False) -> Finding:
    problem = Sources(4, 12) if quick else Sources(6, 16)
    steps, number = (24, 8) if quick else (100, 24)
    known, test = cases(problem, number, 0.1, 0.3, seed), cases(problem, 6, 0.1, 0.3, seed + 1)
    flat = torch.zeros(problem.shape)
    found = {
        name: train(problem, known, steps, seed, solver=solver, mesh_rate=rate)
        for name, (solver, rate) in WAYS.items()
    }  # fmt: skip
    numbers = {"held-out error: solver alone": error(problem, None, flat, test)}
    numbers |= {f"held-out error: {name}": error(problem, t.network, t.mesh, test) for name, t in found.items()}
    numbers |= {f"solves: {name}": float(t.solves) for name, t in found.items()}
    side = problem.fine + 1
    line = np.linspace(0, 1, side)
    row = round(test[0][0, 1] * problem.fine)  # the row of the grid that is nearest to the first source

    def cut(values: torch.Tensor) -> np.ndarray:
        return values[0].reshape(side, side)[row].numpy()

    cuts = {"exact": test[1], "solver alone": output(problem, None, flat, test[0])}
    cuts |= {name: output(problem, t.network, t.mesh, test[0]) for name, t in found.items()}
    trained = found["solver and network, mesh trained"]
    meshes = {"uniform": flat, "trained": trained.mesh}
    nodes = {name: problem.net.place(softmax(m.double().numpy())) for name, m in meshes.items()}
    moved = numbers["largest shift of a node, in cells"] = float(
        np.abs(nodes["trained"] - nodes["uniform"]).max() * problem.n
    )
    alone, kept = numbers["held-out error: network alone"], numbers["held-out error: solver and network, mesh kept"]
    learned = numbers["held-out error: solver and network, mesh trained"]
    claims = (
        Claim("the trained mesh is valid: no triangle is turned over", problem.net.valid(nodes["trained"])),
        Claim("its nodes have moved", moved > 0.01),
        Claim("solver and network beat the network alone on cases that were held out", max(kept, learned) < alone),
        Claim("and the solver alone", max(kept, learned) < numbers["held-out error: solver alone"], True),
    )
    figures = (
        Figure("Nodes of the mesh", "x", "y", tuple(
            Line(name, at[:, 0], at[:, 1], points=True) for name, at in nodes.items()), equal=True),
        Figure("A held-out case, along the row of its source", "x", "u", tuple(
            Line(name, line, cut(values)) for name, values in cuts.items())),
        Figure("Training loss", "step", "mean square error", tuple(
            Line(name, range(1, steps + 1), t.losses) for name, t in found.items()), log="y"),
    )  # fmt: skip
    return Finding(numbers, claims, figures)
