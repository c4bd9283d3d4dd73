"""The triangle in four metrics: balls of one radius, and whether geodesics leave the simplex.

Rows      5
Paper     Riemannian zeroth order with complete metrics, ICLR 2026, arXiv 2601.08039, Figure on the simplex
Formula   log-ratio, conformal (h = 1 + sum_k p_k^-2), Fisher-Rao (sum v_i^2 / p_i), Euclidean
Evidence  points counted outside of the triangle; the conformal geodesic by an integrator of SciPy
Extent    pictures of geometry; no optimization
Needs     nothing more
Seconds   8
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.integrate import solve_ivp

import zograd as zo
from zograd.figures import Claim, Figure, Finding, Line

SIDE = np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
SIDE /= np.linalg.norm(SIDE, axis=1, keepdims=True)
"""Two orthonormal directions within the plane sum p = 1."""
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])


def centres() -> np.ndarray:
    """12 points: three rings around the middle."""
    out = []
    for share in (0.3, 0.6, 0.85):
        for k in range(4):
            corner = np.eye(3)[k % 3] if k < 3 else np.array([0.5, 0.5, 0.0])
            out.append((1 - share) / 3 + share * corner)
    return np.array(out)


# %% A geodesic from p with a unit velocity in each of 72 directions of the plane, for time `radius`.
def ball(metric: str, p: np.ndarray, radius: float, steps: int = 72) -> np.ndarray:
    ends = []
    for angle in np.linspace(0, 2 * np.pi, steps):
        v = np.array([np.cos(angle), np.sin(angle)]) @ SIDE
        if metric == "Euclidean":
            ends.append(p + radius * v)
        elif metric == "conformal":
            ends.append(conformal(p, v, radius))
        else:
            space = zo.spaces.Simplex("log-ratio" if metric == "log-ratio" else "fisher-rao")
            x, u = torch.from_numpy(p[None]), torch.from_numpy(v[None])
            size = float(space.inner(x, u, u, {}).sqrt())
            ends.append(space.exp(x, u * radius / size).numpy()[0])
    return np.array(ends)


def conformal(p: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """x'' = -2 <grad u, x'> x' + |x'|^2 grad u within the plane, for the metric e^(2 u) = 1 + sum_k p_k^-2."""
    flat = np.eye(3) - 1 / 3

    def slope(x: np.ndarray) -> np.ndarray:
        return flat @ (-(x**-3)) / (1 + (x**-2).sum())

    def field(_: float, state: np.ndarray) -> np.ndarray:
        x, w = state[:3], state[3:]
        g = slope(x)
        return np.r_[w, -2 * (g @ w) * w + (w @ w) * g]

    start = np.r_[p, v / np.sqrt(1 + (p**-2).sum())]
    return solve_ivp(field, (0, radius), start, rtol=1e-8, atol=1e-10).y[:3, -1]


def run(seed: int = 0, quick: bool = False) -> Finding:
    metrics = {"Euclidean": 0.2, "conformal": 0.8, "log-ratio": 0.8, "Fisher-Rao": 0.5}
    places, steps = (centres()[::4], 24) if quick else (centres(), 72)
    numbers: dict[str, float] = {}
    figures = []
    for metric, radius in metrics.items():
        balls = [ball(metric, p, radius, steps) for p in places]
        outside = sum(int((points <= 0).any(1).sum()) for points in balls)
        numbers[f"{metric}: points outside of the simplex, of {len(places) * steps}"] = outside
        sums = max(float(np.abs(points.sum(1) - 1).max()) for points in balls)
        numbers[f"{metric}: largest |sum p - 1|"] = sums
        edge = Line("simplex", *(np.r_[CORNERS, CORNERS[:1]] @ np.eye(2)).T)
        lines = [Line("", *(points @ CORNERS).T) for points in balls]
        figures.append(Figure(f"{metric}, radius {radius:g}", "", "", (edge, *lines), equal=True))
    counts = {metric: next(v for k, v in numbers.items() if k.startswith(f"{metric}: points")) for metric in metrics}
    x = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    u = torch.tensor([[0.05, -0.02, -0.03]], dtype=torch.float64)
    space = zo.spaces.Simplex("conformal")
    numbers["conformal: metric of the space over 1 + sum p^-2"] = float(
        space.inner(x, u, u, {}) / ((1 + (x**-2).sum()) * (u * u).sum())
    )
    claims = (
        Claim("Euclidean balls leave the simplex", counts["Euclidean"] > 0),
        Claim("balls of the complete metrics, log-ratio and conformal, never do",
              counts["log-ratio"] == 0 and counts["conformal"] == 0),
        Claim("geodesics of Fisher-Rao are reflected at the walls and stay as well", counts["Fisher-Rao"] == 0),
        Claim("each geodesic stays in the plane sum p = 1", max(v for k, v in numbers.items() if "|sum" in k) < 1e-6),
        Claim("the conformal metric drawn is the one of zograd.spaces.Simplex",
              abs(numbers["conformal: metric of the space over 1 + sum p^-2"] - 1) < 1e-9),
    )  # fmt: skip
    return Finding(numbers, claims, tuple(figures))
