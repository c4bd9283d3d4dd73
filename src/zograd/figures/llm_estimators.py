"""Estimators on a language model: held-out loss of adapters over evaluations, unbiased series against differences.

Rows      4
Paper     Ma and Huang, NeurIPS 2025, arXiv 2510.19953, Figure 6: OPT-1.3B on SST-2, another setting than this one
Formula   x <- x - lr g, with g of two (one-sided, central), three to four (P3, P4), four (Richardson) evaluations
Evidence  all estimators at equal evaluations, the rate of each chosen on another seed; quartiles of three seeds
Extent    SmolLM2-135M on movie reviews, LoRA in its last block, 400 evaluations; no order of estimators is claimed
Needs     demo,bench
Seconds   150
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

MU, SIGNS = 2.0**-7, zo.laws.Rademacher()
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


# %% The estimators, each as a method of a rate, along signs. The series of P3 and P4 end after three radii.
def stepped(estimator: zo.estimators.Estimator) -> Callable[[float], zo.Method[Any]]:
    return lambda lr: zo.Method(estimator, SIGNS, zo.rules.SGD(), lr=lr, mu=MU)


WAYS: dict[str, Callable[[float], zo.Method[Any]]] = {
    "central": stepped(zo.estimators.Central(1)),
    "one-sided": stepped(zo.estimators.Forward(1)),
    "P3": lambda lr: zo.methods.p3(lr=lr, mu=MU, law=SIGNS),
    "P4": lambda lr: zo.methods.p4(lr=lr, mu=MU, law=SIGNS),
    "Richardson": lambda lr: zo.methods.zo_richardson(lr=lr, mu=MU, law=SIGNS),
}


# %% The problem: adapters of the last block on 300 reviews. A quick run has a network on digits in its place.
def problem(quick: bool) -> ComparedProblem:
    if quick:
        return mlp_digits()
    return LoraTask("lora-mr", "mr", batch=32, train_examples=300, eval_examples=300, mu=MU)


def run(seed: int = 0, quick: bool = False) -> Finding:
    budget, seeds, rates = (96, 2, RATES[2:4]) if quick else (400, 3, RATES)
    f = problem(quick)
    marks = np.linspace(0, budget, 13)
    numbers: dict[str, float] = {"weights": f.dim}
    lines, ends = [], {}
    for name, make in WAYS.items():
        found = compared(f, make, rates, budget, seed=seed, seeds=seeds)
        low, middle, high = found.quartiles(marks)
        ends[name] = low[-1], middle[-1], high[-1]
        numbers[f"{name}: rate"] = found.rate
        numbers |= {f"{name}: held-out loss at the end, {q}": v for q, v in zip(QUARTILES, ends[name], strict=True)}
        lines.append(Line(name, marks, middle, low, high))
    start = numbers["held-out loss at the start"] = float(lines[0].y[0])
    claims = (
        Claim("the loss of each estimator is finite at the end", bool(np.isfinite(list(ends.values())).all())),
        Claim("each estimator ends below the start in the median", all(m < start for _, m, _ in ends.values()), True),
    )
    return Finding(numbers, claims, (Figure("Held-out loss (quartiles)", "evaluations", "loss", tuple(lines)),))
