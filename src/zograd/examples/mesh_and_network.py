"""A solver without derivatives inside of a network: its mesh and the network train together, from evaluations of it.

Rows      8, 12
Paper     Ma et al. 2025, arXiv 2404.11766; Belbute-Peres, Economon and Kolter, ICML 2020 (CFD-GCN)
Formula   u = coarse solver (mesh of softmax(m)); output = u + network(x, y, place, u), three layers relu(A h W);
          gradient in m: (1/n) sum_j <(S(m + mu v_j) - S(m - mu v_j)) / 2 mu, a> v_j, in the weights by autograd
Evidence  solutions by quadratic elements on 48 x 48 cells; tests compare the gradient with the Jacobian of the solver
Extent    Poisson's equation with 24 places of its source in place of fluid dynamics; 3 seeds; the solver is ours
Needs     pde,bench
Seconds   30
"""

from __future__ import annotations

import numpy as np
import torch

from zograd.examples import Claim, Figure, Finding, Line
from zograd.problems.mesh_network import cases, error, softmax, train
from zograd.problems.sources import Sources

MESH_RATE, WARM = 0.05, 0.25


# %% The place of the source differs from case to case, by its angle and distance. Half of the test lies outside.
def run(seed: int = 0, quick: bool = False) -> Finding:
    problem = Sources(4, 12) if quick else Sources(6, 16)
    steps, repeats, number = (24, 1, 8) if quick else (100, 3, 24)
    known = cases(problem, number, 0.1, 0.3, seed)
    inside, outside = cases(problem, 6, 0.1, 0.3, seed + 1), cases(problem, 6, 0.3, 0.38, seed + 2)
    ways = {
        "network alone": (False, 0.0, 1.0),
        "solver and network, mesh kept": (True, 0.0, 1.0),
        "solver and network, mesh trained": (True, MESH_RATE, 0.0),
        "the same after a warm start": (True, MESH_RATE, WARM),
    }
    flat = torch.zeros(problem.shape)
    numbers = {f"{place}: solver alone": error(problem, None, flat, test)
               for place, test in (("inside", inside), ("outside", outside))}  # fmt: skip
    lines, valid = [], []
    for name, (solver, rate, warm) in ways.items():
        found = [
            train(problem, known, steps, seed + 10 * r, solver=solver, mesh_rate=rate, warm=warm)
            for r in range(repeats)
        ]
        for place, test in (("inside", inside), ("outside", outside)):
            errors = [error(problem, t.network, t.mesh, test) for t in found]
            numbers[f"{place}: {name}"] = float(np.median(errors))
        numbers[f"solves: {name}"] = found[0].solves
        valid += [problem.net.valid(problem.net.place(softmax(t.mesh.double().numpy()))) for t in found]
        lines.append(Line(name, range(1, steps + 1), np.median([t.losses for t in found], axis=0)))
    kept, trained, warmed = (
        {what: numbers[f"{what}: {name}"] for what in ("inside", "outside", "solves")} for name in list(ways)[1:]
    )
    claims = (
        Claim("every mesh is valid: no triangle is turned over", all(valid)),
        Claim("inside: the network corrects the solver", kept["inside"] < numbers["inside: solver alone"], True),
        Claim("inside: both beat the network alone", kept["inside"] < numbers["inside: network alone"]),
        Claim("outside: both beat the network alone", kept["outside"] < numbers["outside: network alone"]),
        Claim("inside: a trained mesh is better than the uniform one", trained["inside"] < kept["inside"], True),
        Claim("outside: a trained mesh gains less than 5 %", trained["outside"] > 0.95 * kept["outside"], True),
        Claim("a warm start takes fewer solves, for an error inside at most 5 % larger",
              warmed["solves"] < trained["solves"] and warmed["inside"] < 1.05 * trained["inside"], True),
    )  # fmt: skip
    figure = Figure("Training loss (median of the seeds)", "step", "mean square error", tuple(lines), log="y")
    return Finding(numbers, claims, (figure,))
