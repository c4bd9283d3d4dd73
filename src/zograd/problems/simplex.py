"""Distributions close to the boundary of the simplex: relative entropy and squared distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from zograd.core.vector import Array
from zograd.problems.base import FLAT_RATES, OUTSIDE, GeometryProblem, View
from zograd.spaces import Simplex

ROUNDING = 1e-12
"""An element is counted as 0 if it is not below minus this."""


def target(d: int, seed: int = 0) -> Array:
    """A distribution: half of the elements are log-uniform in 1e-6 .. 1e-3, the others share the rest."""
    rng = np.random.default_rng(seed)
    small = 10 ** rng.uniform(-6, -3, d // 2)
    rest = rng.dirichlet(np.full(d - d // 2, 5.0)) * (1 - small.sum())
    return rng.permutation(np.concatenate([small, rest]))


def relative_entropy(p: Array, q: Array) -> float:
    """KL(p || q) = sum_i p_i log(p_i / q_i), 0 log 0 = 0."""
    with np.errstate(all="ignore"):
        return float(np.sum(np.where(p > 0, p * np.log(p / q), 0.0)))


def half_square(p: Array, q: Array) -> float:
    return float(0.5 * np.sum((p - q) ** 2))


def project(y: Array) -> Array:
    """The nearest point of the simplex: max(y - t, 0) with t such that it sums to 1 (Duchi et al. 2008)."""
    u = np.sort(y)[::-1]
    over = (np.cumsum(u) - 1) / np.arange(1, u.size + 1)
    return np.asarray(np.maximum(y - over[np.nonzero(u > over)[0][-1]], 0.0))


def on_plane(x: Array) -> Array:
    """The nearest point with sum 1, so that flat methods lose nothing to errors of the sum."""
    return np.asarray(x + (1 - x.sum()) / x.size)


def near_boundary(kind: str, d: int) -> GeometryProblem:
    """KL(p || q) or |p - q|^2 / 2, from the centre. Undefined outside, like any loss that samples from p."""
    f = {"kl": relative_entropy, "square": half_square}[kind]
    formula = {"kl": "KL(p || q)", "square": "|p - q|^2 / 2"}[kind]
    q, centre = target(d), np.full(d, 1.0 / d)

    def inside(x: Array) -> bool:
        return bool(np.all(on_plane(x) >= -ROUNDING))

    def flat(x: Array) -> float:
        return f(np.maximum(on_plane(x), 0.0), q) if inside(x) else OUTSIDE

    def measure(view: str, x: Array) -> Mapping[str, float]:
        p = np.maximum(on_plane(x), 0.0) if view == "flat" else x
        return {"least_ratio": float(np.min(p / q)), "largest_ratio": float(np.max(p / q))}

    space = View(centre, lambda p: f(p, q), lambda p: bool(np.all(p > 0)), mu=1e-3, space=Simplex())
    return GeometryProblem(
        f"simplex-{kind}-{d}",
        f"{formula} on the simplex, d = {d}",
        f"f = {formula}, half of the q_i between 1e-6 and 1e-3, from p_i = 1/d; a flat x stands for its nearest point "
        f"with sum 1",
        space,
        View(centre, flat, inside, mu=1e-6, rates=FLAT_RATES, project=lambda x: project(on_plane(x))),
        budget=2000,
        others={
            "conformal": ("curved", replace(space, space=Simplex("conformal"))),
            "Fisher-Rao": ("curved", replace(space, space=Simplex("fisher-rao"))),
        },
        measure=measure,
    )
