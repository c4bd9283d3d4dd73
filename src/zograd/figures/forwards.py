"""Forward passes to the same loss: FZOO's several one-sided probes against MeZO's pair, on two problems of digits.

Rows      34
Paper     FZOO, arXiv 2506.09034: "3 times fewer forward passes" than MeZO, and up to 18 times
Formula   evaluations until the training loss of MeZO after its whole budget; batches as a step has them
Evidence  the same problems, rates tuned for each; three seeds
Extent    digits, 650 and 2,410 weights; no language model here (see docs/forwards.md)
Needs     bench
Seconds   25
"""

from __future__ import annotations

import numpy as np

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line
from zograd.problems.small import mlp_digits, softmax_digits

PROBLEMS = {"softmax": softmax_digits, "network": mlp_digits}
RATES = {"mezo": (1e-2, 3e-2, 1e-1, 0.3), "fzoo": (1e-2, 3e-2, 1e-1, 0.3)}
MU = 5e-3


# %% One run, and the clean loss 40 times over the budget; the forwards to MeZO's last loss are read off.
def course(name: str, problem: str, lr: float, budget: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(evaluations, clean values) at 40 points of a run."""
    method = zo.methods.mezo(lr=lr, mu=MU) if name == "mezo" else zo.methods.fzoo(lr=lr, mu=MU)
    session = PROBLEMS[problem]().begin(method.space, seed)
    run, spent, values = zo.Run(session.store, method, seed), [0], [session.start]
    while run.evaluations + run.most_evaluations <= budget and np.isfinite(values[-1]):
        run.step(session.oracle)
        if run.evaluations >= spent[-1] + budget // 40:
            spent.append(run.evaluations)
            values.append(session.judge()["value"])
    return np.array(spent), np.array(values)


def run(seed: int = 0, quick: bool = False) -> Finding:
    budget, seeds = (400, 1) if quick else (3000, 3)
    numbers: dict[str, float] = {}
    lines, ratios = [], {}
    for problem in PROBLEMS:
        found = {}
        for name, rates in RATES.items():
            ends = {lr: course(name, problem, lr, budget, seed + 100)[1][-1] for lr in (rates[1:2] if quick else rates)}
            lr = min(ends, key=lambda r: ends[r] if np.isfinite(ends[r]) else np.inf)
            found[name] = [course(name, problem, lr, budget, seed + s) for s in range(seeds)]
            numbers[f"{problem}, {name}: learning rate"] = lr
            numbers[f"{problem}, {name}: loss at the end, median"] = float(np.median([v[-1] for _, v in found[name]]))
            spent = found[name][0][0]
            middle = np.median([np.interp(spent, s, v) for s, v in found[name]], axis=0)
            lines.append(Line(f"{problem}, {name}", spent, middle))
        goal = numbers[f"{problem}, mezo: loss at the end, median"]
        reached = [s[np.argmax(v <= goal)] if (v <= goal).any() else np.nan for s, v in found["fzoo"]]
        ratios[problem] = float(budget / np.median(reached))
        numbers[f"{problem}: forwards of mezo over those of fzoo"] = ratios[problem]
    finite = [ratio for ratio in ratios.values() if np.isfinite(ratio)]
    claims = (
        Claim("fzoo reaches MeZO's last loss on both problems", len(finite) == 2, full_only=True),
        Claim("on neither of them with 18 times fewer forwards", all(ratio < 18 for ratio in finite)),
    )
    return Finding(numbers, claims, (Figure("Digits", "evaluations", "loss", tuple(lines), log="y"),))
