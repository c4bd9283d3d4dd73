"""Few evaluations that differ: points drawn by volume fit a model where independent points fail.

Rows      57
Paper     Nouy and Michel 2023, arXiv 2312.14057; Derezinski, Warmuth and Hsu 2018
Formula   the first m points S have probability det(Q_S)^2, the others the leverage |q_i|^2 / m, with Q an orthonormal
          basis of the features; fit argmin_a sum_i w_i (f(x_i) - phi(x_i) a)^2, w_i = m / (N |q_i|^2)
Evidence  the best approximation on all points, from all values
Extent    least squares in a given span; points are not chosen for a language model or for directions of a gradient
Needs     bench
Seconds   8
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_diabetes

from zograd.design import Sample, leverage_sample, volume_sample, weighted_fit
from zograd.examples import Claim, Figure, Finding, Line

Draw = Callable[[np.ndarray, int, np.random.Generator], Sample]


def uniform(features: np.ndarray, n: int, rng: np.random.Generator) -> Sample:
    return Sample(rng.integers(0, len(features), n), np.ones(n))


DRAWS: dict[str, Draw] = {"volume": volume_sample, "leverage": leverage_sample, "uniform": uniform}


# %% Two fits: ten Legendre polynomials to a function with a kink, and a regression on patients, few of them measured.
def kink() -> tuple[np.ndarray, np.ndarray]:
    t = np.linspace(-1, 1, 2000)
    return np.polynomial.legendre.legvander(t, 9), np.abs(t - 0.3) ** 1.5


def patients() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_diabetes(return_X_y=True)
    return np.c_[np.ones(len(x)), x], y


# %% What counts: the error on all points, over that of the best approximation, which has seen all values.
def ratios(problem: tuple[np.ndarray, np.ndarray], draw: Draw, n: int, repeats: int, seed: int) -> np.ndarray:
    features, y = problem
    best = np.linalg.norm(y - features @ np.linalg.lstsq(features, y, rcond=None)[0])
    rng, found = np.random.default_rng([seed, n]), np.empty(repeats)
    for k in range(repeats):
        sample = draw(features, n, rng)
        found[k] = np.linalg.norm(y - features @ weighted_fit(features, y[sample.indices], sample)) / best
    return found


def run(seed: int = 0, quick: bool = False) -> Finding:
    repeats = 40 if quick else 400
    numbers: dict[str, float] = {}
    medians: dict[tuple[str, str], list[float]] = {}
    tails: dict[tuple[str, str], list[float]] = {}
    figures = []
    for name, problem in {"kink": kink(), "patients": patients()}.items():
        m = problem[0].shape[1]
        sizes = (m, m + 2, 2 * m, 4 * m)
        lines = []
        for law, draw in DRAWS.items():
            found = np.array([ratios(problem, draw, n, repeats, seed) for n in sizes])
            low, middle, high = np.quantile(found, [0.05, 0.5, 0.95], axis=1)
            medians[name, law], tails[name, law] = middle.tolist(), high.tolist()
            lines.append(Line(law, sizes, middle.tolist(), low.tolist(), high.tolist()))
            for k, n in enumerate(sizes):
                numbers[f"{name}, {n} points by {law}: median"] = float(middle[k])
                numbers[f"{name}, {n} points by {law}: 95 %"] = float(high[k])
                numbers[f"{name}, {n} points by {law}: mean"] = float(found[k].mean())
        figures.append(
            Figure(f"{name}: error over the least possible", "points", "median, 5 to 95 %", tuple(lines), "xy")
        )
    kink_, patients_ = (np.array([medians[name, law] for law in DRAWS]) for name in ("kink", "patients"))
    late, worst = np.array([tails["kink", law] for law in DRAWS]), np.array([tails["patients", law] for law in DRAWS])
    claims = (
        Claim("kink, as many points as coefficients: volume beats both others by three in the median",
              3 * kink_[0, 0] < kink_[1:, 0].min()),
        Claim("and by fifty in the 95 % quantile: independent points are nearly singular at times",
              50 * late[0, 0] < late[1:, 0].min(), full_only=True),
        Claim("patients: volume beats both others by 1.4 in the median and by four in the 95 % quantile",
              1.4 * patients_[0, 0] < patients_[1:, 0].min() and 4 * worst[0, 0] < worst[1:, 0].min(), full_only=True),
        Claim("it is the best of the three in the median up to twice as many points as coefficients",
              bool(np.all(kink_[0, :3] < kink_[1:, :3]) and np.all(patients_[0, :3] < patients_[1:, :3])),
              full_only=True),
        Claim("on patients with four times as many points it is worth nothing: uniform points are within 5 %",
              patients_[2, 3] < 1.05 * patients_[0, 3]),
    )  # fmt: skip
    return Finding(numbers, claims, tuple(figures))
