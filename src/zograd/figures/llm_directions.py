"""Laws of directions on a language model: held-out loss of adapters over evaluations, six laws, one grid of rates.

Rows      3
Paper     Ma and Huang, ICLR 2025, arXiv 2510.19975, Figure 3: OPT-1.3B, 20,000 steps, another setting than this one
Formula   x <- x - lr g, g by central differences along one direction of the law (orthogonal: 8; DAP: pilot of 8)
Evidence  all laws at equal evaluations, the rate of each chosen on another seed; quartiles of three seeds
Extent    SmolLM2-135M on movie reviews, LoRA in its last block, 300 evaluations; no order of laws is claimed
Needs     demo,bench
Seconds   130
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line
from zograd.llm.problems import LoraTask
from zograd.problems.course import QUARTILES, compared
from zograd.problems.problem import ComparedProblem
from zograd.problems.small import mlp_digits

MU = 2.0**-7
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
"""The same for all laws: the directions have E v v^T = I."""


# %% The laws, each as a method of a rate.
def central(law: zo.laws.Law, n: int = 1) -> Callable[[float], zo.Method[Any]]:
    return lambda lr: zo.Method(zo.estimators.Central(n), law, zo.rules.SGD(), lr=lr, mu=MU)


LAWS: dict[str, Callable[[float], zo.Method[Any]]] = {
    "Gaussian": central(zo.laws.Gaussian()),
    "sphere": central(zo.laws.Sphere()),
    "signs": central(zo.laws.Rademacher()),
    "orthogonal, 8": central(zo.laws.Orthogonal(), 8),
    "coordinate": central(zo.laws.Coordinate()),
    "DAP, pilot of 8": lambda lr: zo.methods.dap(lr=lr, mu=MU, n=8),
}


# %% The problem: adapters of the last block on 300 reviews. A quick run has a network on digits in its place.
def problem(quick: bool) -> ComparedProblem:
    if quick:
        return mlp_digits()
    return LoraTask("lora-mr", "mr", batch=32, train_examples=300, eval_examples=200, mu=MU)


def run(seed: int = 0, quick: bool = False) -> Finding:
    budget, seeds, rates = (96, 2, RATES[1:3]) if quick else (300, 3, RATES)
    f = problem(quick)
    marks = np.linspace(0, budget, 13)
    numbers: dict[str, float] = {"weights": f.dim}
    lines, ends = [], {}
    for name, make in LAWS.items():
        found = compared(f, make, rates, budget, seed=seed, seeds=seeds, least=17)  # a step of DAP takes 17
        low, middle, high = found.quartiles(marks)
        ends[name] = low[-1], middle[-1], high[-1]
        numbers[f"{name}: rate"] = found.rate
        numbers |= {f"{name}: held-out loss at the end, {q}": v for q, v in zip(QUARTILES, ends[name], strict=True)}
        if "accuracy" in found.courses[0].measured:
            numbers[f"{name}: accuracy at the end, median"] = found.quartiles(marks, "accuracy")[1, -1]
        lines.append(Line(name, marks, middle, low, high))
    start = numbers["held-out loss at the start"] = float(lines[0].y[0])
    numbers["laws that end below the start in the median"] = float(sum(m < start for _, m, _ in ends.values()))
    claims = (
        Claim("the loss of each law is finite at the end", bool(np.isfinite(list(ends.values())).all())),
        Claim("Gaussian, sphere and signs end below the start in the upper quartile",
              all(ends[name][2] < start for name in ("Gaussian", "sphere", "signs"))),
    )  # fmt: skip
    return Finding(numbers, claims, (Figure("Held-out loss (quartiles)", "evaluations", "loss", tuple(lines)),))
