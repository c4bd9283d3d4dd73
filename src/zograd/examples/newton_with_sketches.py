"""Newton steps on the conditions of optimality: solved by random sketches, no closer than the step deserves.

Rows      40
Paper     Hong, Na, Mahoney and Kolar 2023, arXiv 2305.18379
Formula   [B G^T; G 0] (dx, dlam) = -(grad L, c) by projections onto S A z = S b with 5 random sums S of rows, until
          |residual| <= theta |right side|; Armijo on L + e1 / 2 |c|^2 + e2 / 2 |G grad L|^2; where that is no descent,
          theta <- theta / 2, e1 <- 2 e1, e2 <- e2 / 2. B, G and grad L from differences of values
Evidence  known minima; derivatives in closed form in the tests
Extent    equalities and 2 to 10 variables; the norm of the right side bounds theta, so the end is faster than linear
Needs     nothing more
Seconds   2
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import zograd as zo
from zograd.examples import Claim, Figure, Finding, Line
from zograd.problems.constrained import PROBLEMS, Case


class Counted:
    """f and its constraints from one evaluation, which is counted."""

    def __init__(self, case: Case) -> None:
        self.case, self.calls = case, 0

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.calls += 1
        return self.case.both(x)


# %% Newton: all derivatives are differences of (value, c), so that f and the constraints share their evaluations.
class Point(NamedTuple):
    """of f and c together: values (1 + m,), first derivatives (1 + m, n), second ones (1 + m, n, n)."""

    values: np.ndarray
    first: np.ndarray
    second: np.ndarray


def examined(f: Counted, x: np.ndarray, curved: bool, h: float = 1e-5, wide: float = 1e-3) -> Point:
    def at(step: np.ndarray) -> np.ndarray:
        value, c = f(x + step)
        return np.r_[value, c]

    axes, here = np.eye(x.size), at(np.zeros(x.size))
    first = np.array([(at(h * e) - at(-h * e)) / (2 * h) for e in axes]).T
    second = np.zeros((len(here), x.size, x.size))
    for i in range(x.size if curved else 0):
        for j in range(i + 1):
            a, b = wide * axes[i], wide * axes[j]
            second[:, i, j] = second[:, j, i] = (at(a + b) - at(a - b) - at(b - a) + at(-a - b)) / (4 * wide**2)
    return Point(here, first, second)


def sketched(a: np.ndarray, b: np.ndarray, theta: float, rng: np.random.Generator, block: int = 5) -> np.ndarray:
    """z with |a z - b| <= theta |b|: each pass projects onto the solutions of `block` random sums of rows."""
    z, least = np.zeros(len(b)), theta * np.linalg.norm(b)
    for _ in range(100_000):
        if np.linalg.norm(a @ z - b) <= least:
            break
        s = rng.standard_normal((block, len(b)))
        z = z + np.linalg.pinv(s @ a) @ (s @ (b - a @ z))
    return z


def newton(case: Case, seed: int, most: int = 30) -> tuple[np.ndarray, list[float], int]:
    """(x, |(grad L, c)| of the steps, evaluations)."""
    f, rng, x = Counted(case), np.random.default_rng(seed), np.array(case.x0)
    theta, e1, e2 = 0.1, 1.0, 0.01
    residuals: list[float] = []
    point = examined(f, x, curved=False)
    lam = -np.linalg.lstsq(point.first[1:].T, point.first[0], rcond=None)[0]

    def merit(p: Point, lam: np.ndarray) -> float:
        slope, c = p.first[0] + lam @ p.first[1:], p.values[1:]
        return float(p.values[0] + lam @ c + e1 / 2 * c @ c + e2 / 2 * np.sum((p.first[1:] @ slope) ** 2))

    for _ in range(most):
        p = examined(f, x, curved=True)
        c, g = p.values[1:], p.first[1:]
        slope, b = p.first[0] + lam @ g, p.second[0] + np.tensordot(lam, p.second[1:], 1)
        right = -np.r_[slope, c]
        residuals.append(float(np.linalg.norm(right)))
        if residuals[-1] < 1e-8:
            break
        tangents = np.linalg.svd(g)[2][len(c) :]  # along which c does not change: there the model must curve upwards
        shift = max(0.0, 0.1 - float(np.linalg.eigvalsh(tangents @ b @ tangents.T)[0]))
        a = np.block([[b + shift * np.eye(x.size), g.T], [g, np.zeros((len(c), len(c)))]])
        for _ in range(30):
            z = sketched(a, right, min(theta, residuals[-1]), rng)
            inner = g @ slope
            up = slope + e1 * g.T @ c + e2 * (g @ b + p.second[1:] @ slope).T @ inner
            fall = float(np.r_[up, c + e2 * g @ g.T @ inner] @ z)
            if fall <= -e2 / 4 * (right @ right):
                break
            theta, e1, e2 = theta / 2, 2 * e1, e2 / 2
        step, before = 1.0, merit(p, lam)
        while step > 1e-8 and merit(examined(f, x + step * z[: x.size], False), lam + step * z[x.size :]) > (
            before + 1e-4 * step * fall + 1e-12 * abs(before)
        ):
            step /= 2
        x, lam = x + step * z[: x.size], lam + step * z[x.size :]
    return x, residuals, f.calls


def run(seed: int = 0, quick: bool = False) -> Finding:
    numbers: dict[str, float] = {}
    lines, ends = [], []
    for case in (PROBLEMS[1], PROBLEMS[4]):
        x, residuals, calls = newton(case, seed)
        ends.append((abs(float(case.f(x)) - case.best), residuals[-1], len(residuals), residuals[-1] / residuals[-2]))
        lines.append(Line(case.name, range(len(residuals)), residuals))
        numbers |= {f"{case.name}: steps": float(len(residuals)), f"{case.name}: evaluations": float(calls)}
        numbers |= {
            f"{case.name}: distance from the minimum": ends[-1][0],
            f"{case.name}: last residual": residuals[-1],
        }
    valley = newton(PROBLEMS[0], seed)[1]
    lines.append(Line(PROBLEMS[0].name, range(len(valley)), valley))
    numbers |= {f"{PROBLEMS[0].name}: residual after 30 steps": valley[-1]}
    plane = PROBLEMS[4]
    other = zo.minimize(plane.both, np.array(plane.x0), "lbfgs", constraints=zo.Constraints(equal=1))
    numbers |= {f"{plane.name}: evaluations of the augmented Lagrangian": float(other.nfev)}
    claims = (
        Claim("it ends at the minimum with a residual below 1e-8 on two problems, in at most 22 steps",
              all(gap < 1e-6 and r < 1e-8 and steps <= 22 for gap, r, steps, _ in ends)),
        Claim("faster than linearly: the last residual is below a hundredth of the one before",
              all(ratio < 0.01 for *_, ratio in ends)),
        Claim("on HS6, a curved valley, its steps stay short: 30 are not enough", valley[-1] > 1e-2),
        Claim("differences for B cost more evaluations than the augmented Lagrangian of `minimize` in ten variables",
              numbers["sphere, plane: evaluations"] > other.nfev),
    )  # fmt: skip
    return Finding(numbers, claims, (Figure("Newton with sketches", "step", "|(grad L, c)|", tuple(lines), "y"),))
