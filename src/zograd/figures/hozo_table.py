"""Scales of a 4-bit model trained by forward passes: zero-shot, MeZO on de-quantized weights, QZO, HoZO, FZOO.

Rows      6
Paper     HoZO, ICML 2026 submission, of which there is no public page: its models and numbers are not those here
Formula   HoZO: log s <- log s - lr g, probes s exp(+-mu v); QZO: s <- max(s - lr clip(g), 0), probes s +- mu v;
          MeZO: W <- W - lr g; FZOO: on log s, divided by the deviation of 8 one-sided differences
Evidence  all methods at equal evaluations, the rate of each chosen on another seed; quartiles of three seeds
Extent    SmolLM2-135M in Q4_1, MLP of its last block, movie reviews, 400 evaluations; no order of methods is claimed
Needs     demo,bench
Seconds   200
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line
from zograd.llm.problems import ScalesTask, WeightsTask
from zograd.problems.course import QUARTILES, compared
from zograd.problems.problem import ComparedProblem, Session
from zograd.quantized.infeasible import Probes

MU = 2.0**-7
Make = Callable[[float], zo.Method[Any]]
ROWS: dict[str, tuple[str, Make, tuple[float, ...]]] = {
    "MeZO": ("weights", lambda lr: zo.methods.mezo(lr=lr, mu=2.0**-10), (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)),
    "QZO": ("scales", lambda lr: zo.methods.qzo(lr=lr), (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)),
    "HoZO": ("scales", lambda lr: zo.methods.hozo(lr=lr, mu=MU), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    "FZOO on log scales": (
        "scales",
        lambda lr: replace(zo.methods.fzoo(lr=lr, mu=MU), space=zo.spaces.PositiveOrthant()),
        (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    ),
}
"""What is trained, the method of a rate, and the rates that are tried."""


# %% For a quick run: logistic regression on digits, in 4 bits, with a scale for each 16 weights.
@dataclass(frozen=True)
class Digits:
    trained: str

    def begin(self, space: zo.spaces.Space, seed: int, whole: bool = False) -> Session:
        x, y = load_digits(return_X_y=True)
        fit = LogisticRegression(max_iter=200).fit(x[:1200] / 16, y[:1200])
        blocks = torch.from_numpy(fit.coef_).float().reshape(-1, 16)
        scales = blocks.abs().amax(1, keepdim=True) / 7
        codes = (blocks / scales).round()
        held, labels = torch.from_numpy(x[1200:] / 16).float(), torch.from_numpy(y[1200:])
        seen, known = torch.from_numpy(x[:300] / 16).float(), torch.from_numpy(y[:300])
        variable = {"scales": scales, "weights": codes * scales}[self.trained].clone()
        probes = Probes()

        def logits(inputs: torch.Tensor) -> torch.Tensor:
            return inputs @ (codes * variable if self.trained == "scales" else variable).reshape(10, 64).T

        def judge() -> dict[str, float]:
            z = logits(held)
            even = torch.log_softmax(z, 1) - torch.log_softmax(z, 1).exp().mean(0).log()
            right = {"accuracy": z, "calibrated": even}
            found = {name: float((s.argmax(1) == labels).float().mean()) for name, s in right.items()}
            return {"value": float(torch.nn.functional.cross_entropy(z, labels)), **found, **probes.shares()}

        oracle = zo.oracles.sequential(lambda: torch.nn.functional.cross_entropy(logits(seen), known))
        counted = probes.counted(oracle) if self.trained == "scales" else oracle
        return Session(zo.Store({"w": variable}, space=space), counted, judge()["value"], judge)


def problems(quick: bool) -> dict[str, ComparedProblem]:
    """What is trained -> the problem; both start from the same model."""
    if quick:
        return {what: Digits(what) for what in ("weights", "scales")}  # type: ignore[misc]
    of: dict[str, Any] = {"task": "mr", "batch": 32, "train_examples": 300, "eval_examples": 300}
    return {"weights": WeightsTask("weights-mr", **of), "scales": ScalesTask("scales-mr", **of)}


# %% A row for each method: accuracy on held-out reviews after the same number of evaluations.
def run(seed: int = 0, quick: bool = False) -> Finding:
    budget, seeds = (90, 2) if quick else (400, 3)
    of, marks = problems(quick), np.linspace(0, budget, 13)
    numbers: dict[str, float] = {}
    lines, starts, ends, asked = [], {}, {}, {}
    for name, (what, make, rates) in ROWS.items():
        found = compared(of[what], make, rates[1:3] if quick else rates, budget, seed=seed, seeds=seeds)
        starts[what] = {key: float(values[0]) for key, values in found.courses[0].measured.items()}
        low, middle, high = found.quartiles(marks, "accuracy")
        ends[name] = float(middle[-1])
        numbers |= {f"{name}: accuracy, {q}": v[-1] for q, v in zip(QUARTILES, (low, middle, high), strict=True)}
        numbers |= {f"{name}: rate": found.rate, f"{name}: held-out loss, median": found.quartiles(marks)[1, -1]}
        if what == "scales":
            asked[name] = max(float(c.measured["infeasible"][-1]) for c in found.courses)
            numbers[f"{name}: share of probes with a scale that is not positive, largest"] = asked[name]
        lines.append(Line(name, marks, middle, low, high))
    zero, even = starts["scales"]["accuracy"], starts["scales"]["calibrated"]
    numbers = {"zero-shot: accuracy": zero, "zero-shot, calibrated: accuracy": even, **numbers}
    gap = abs(starts["weights"]["value"] - starts["scales"]["value"])
    numbers["loss at the start, packed against de-quantized: difference"] = gap
    logs = max(asked["HoZO"], asked["FZOO on log scales"])
    claims = (
        Claim("the packed and the de-quantized model start with the same loss, within 1e-3", gap < 1e-3),
        Claim("methods on log scales never ask for a scale that is not positive", logs == 0),
        Claim("methods on scales end above zero-shot in the median", min(ends[n] for n in asked) > zero, True),
    )
    return Finding(numbers, claims, (Figure("Accuracy (quartiles)", "evaluations", "held-out", tuple(lines)),))
