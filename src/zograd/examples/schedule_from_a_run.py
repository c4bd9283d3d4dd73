"""A learning rate refined from a run: its gradient norms say when to rise and when to fall.

Rows      49
Paper     Defazio, Cutkosky, Mehta and Mishchenko 2023, arXiv 2310.07831
Formula   eta_t = w_t sum_{p > t} w_p, w_t = S_t^-2, S the running median (a tenth of the run) of the norms G_t;
          G_t = sqrt(n sum_j c_j^2) from the coefficients that are recorded anyway
Evidence  constant, linear and cosine schedules, each at the best of five rates, over 20 seeds
Extent    logistic regression with 31 weights and 400 steps of 16 examples; zeroth-order slopes in place of gradients
Needs     bench
Seconds   40
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import zograd as zo
from zograd.core.schedules import Schedule, constant, cosine, linear
from zograd.examples import Claim, Figure, Finding, Line
from zograd.learning_rate import refined, slope_norms
from zograd.problems.small import logistic
from zograd.spaces import Euclidean

DIRECTIONS = 4
PROBLEM = logistic(batch=16)


# %% A run: 400 steps of 16 examples and 4 pairs each. Its records hold the slopes.
def trained(lr: Schedule, steps: int, seed: int) -> tuple[float, np.ndarray]:
    """(loss above the minimum at the end, gradient norms of the steps)."""
    session = PROBLEM.begin(Euclidean(), seed)
    run = zo.Run(session.store, zo.methods.make("zo_sgd", n=DIRECTIONS, lr=lr, mu=PROBLEM.mu), seed=seed)
    norms = slope_norms(run.step(session.oracle).vector for _ in range(steps))
    return session.judge()["value"], norms


# %% Shapes, each a function of its rate and of the number of steps. The refined one reads one run of another seed.
def shapes(norms: np.ndarray, steps: int) -> dict[str, Callable[[float], Schedule]]:
    return {
        "constant": constant,
        "linear": lambda rate: linear(rate, steps),
        "cosine": lambda rate: cosine(rate, steps),
        "refined": lambda rate: refined(norms, rate),
    }


def run(seed: int = 0, quick: bool = False) -> Finding:
    steps, trials, repeats = (100, 1, 2) if quick else (400, 5, 20)
    rates = (0.2, 0.6) if quick else (0.1, 0.2, 0.4, 0.8, 1.6)
    norms = trained(linear(0.4, steps), steps, seed + 10_000)[1]
    best, losses = {}, {}
    for name, shape in shapes(norms, steps).items():
        found = [np.mean([trained(shape(r), steps, seed + 1000 + k)[0] for k in range(trials)]) for r in rates]
        best[name] = rates[int(np.argmin(found))]
        losses[name] = np.array([trained(shape(best[name]), steps, seed + k)[0] for k in range(repeats)])
    numbers = {f"{name}: best rate": best[name] for name in losses}
    numbers |= {f"{name}: loss above the minimum, mean": float(x.mean()) for name, x in losses.items()}
    numbers |= {f"{name}: standard error": float(x.std() / np.sqrt(repeats)) for name, x in losses.items()}
    gain = losses["linear"] - losses["refined"]
    error = float(gain.std() / np.sqrt(repeats))
    numbers |= {"refined below linear, mean of pairs": float(gain.mean()), "its standard error": error}
    peak = int(np.argmax(refined(norms).values))
    numbers["step of the peak"] = float(peak)
    doubled = refined(2 * norms).values
    claims = (
        Claim("the unit of the norms does not matter", bool(np.allclose(doubled, refined(norms).values, rtol=1e-9))),
        Claim("it rises first: the norms fall, so the peak is not at the start", peak > steps // 20),
        Claim("each shape at its best rate, refined is not worse than linear (within two standard errors)",
              gain.mean() > -2 * error, full_only=True),
        Claim("but constant is as good here at its own best rate (within two standard errors)",
              losses["constant"].mean() < losses["refined"].mean() + 2 * numbers["refined: standard error"],
              full_only=True),
        Claim("no shape is more than twice as good as another at its best rate",
              max(x.mean() for x in losses.values()) < 2 * min(x.mean() for x in losses.values()), full_only=True),
    )  # fmt: skip
    t = range(steps)
    lines = tuple(Line(name, t, [shape(1.0)(s) for s in t]) for name, shape in shapes(norms, steps).items())
    smooth = Line("norms of the run", t, (norms / norms.max()).tolist(), points=True)
    return Finding(
        numbers, claims, (Figure("Shapes, and the norms that made one", "step", "of the peak", (*lines, smooth)),)
    )
