"""The noise of the values, and the radii that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from zograd.core.vector import Array, Vector
from zograd.diagnostics.problem import Measurement, Problem, mean
from zograd.laws import Law, Rademacher


@dataclass(frozen=True)
class NoiseFloor:
    """sigma: standard deviation of one value. mu_forward, mu_central, mu_curvature: the radii that balance noise error
    and truncation error, along random directions of norm sqrt(d). evaluations: the cost.

    For a smooth f they minimise the bound of the mean square error of D_v (forward, central) and of v^T H v:
        forward    mu = (2 sqrt(2) sigma / |f''|)^(1/2)       central    mu = (3 sigma / |f'''|)^(1/3)
        curvature  mu = (12 sqrt(6) sigma / |f''''|)^(1/4)
    Differences measure the derivatives along the direction. A radius is infinite if noise hides its derivative.
    """

    sigma: float
    mu_forward: float
    mu_central: float
    mu_curvature: float
    evaluations: int


def noise_floor(
    p: Problem, h: float = 2.0**-10, *, points: int = 9, directions: int = 3, law: Law = Rademacher(), seed: int = 0
) -> NoiseFloor:
    """ECNoise (More and Wild 2011): the noise of f from the table of differences of `points` equidistant values.

    Differences of order k of a smooth function vanish as h^k; those of noise do not:
    sigma_k^2 = (k!)^2 / (2k)! mean_i (Delta^k f_i)^2. The first order k is used from which three estimates agree within
    a factor 4. Costs directions x points evaluations, along x + i h v, and so many again for each other spacing.
    Returns the median over the directions.
    Deterministic rounding counts as noise. h: a spacing at which f is smooth and the noise is visible. If no order
    agrees, h is divided by 100; if all values are equal, h is multiplied by 100; at most three times. Raises ValueError
    if that does not help.
    """
    if points < 6:
        raise ValueError(f"the table of differences needs points >= 6, got {points}")
    v = p.directions(law, directions, seed)
    used, sigmas = 0, []
    for vj in v:
        spacing = h
        for attempt in range(4):
            f = _along(p, vj, spacing, points, used)
            used += points
            if np.ptp(f) == 0.0 and attempt < 3:
                spacing *= 100
            elif (sigma := _table(f)) is not None:
                sigmas.append(sigma)
                break
            else:
                spacing /= 100
    if not sigmas:
        raise ValueError(
            f"no noise level found at spacings from {h:g} to {h / 1e6:g}: the values vary smoothly down to there, "
            f"or jump. Pass another h"
        )
    sigma = float(np.median(sigmas))
    second, third, fourth, cost = _derivatives(p, v[0], sigma)
    return NoiseFloor(
        sigma,
        _radius(2 * math.sqrt(2) * sigma, second, 2),
        _radius(3 * sigma, third, 3),
        _radius(12 * math.sqrt(6) * sigma, fourth, 4),
        used + cost,
    )


def _along(p: Problem, v: Vector, h: float, points: int, key: int) -> Array:
    """The values along v, each with its own random state, because the noise between calls is wanted."""
    return np.array([p.values([i * h * v], key=key + i)[0] for i in range(points)])


def _table(f: Array) -> float | None:
    """The noise level from a difference table, or None if no three successive orders agree."""
    levels, changes, table = [], [], f
    for k in range(1, f.size - 1):
        table = np.diff(table)
        gamma = math.exp(2 * math.lgamma(k + 1) - math.lgamma(2 * k + 1))
        levels.append(math.sqrt(gamma * float(np.mean(table**2))))
        changes.append(bool(table.min() < 0 < table.max()))
    if max(levels) == 0.0:
        return 0.0
    for k in range(len(levels) - 2):
        three = levels[k : k + 3]
        if min(three) > 0 and max(three) <= 4 * min(three) and changes[k]:
            return levels[k]
    return None


def _derivatives(p: Problem, v: Vector, sigma: float) -> tuple[float, float, float, int]:
    """|f''|, |f'''|, |f''''| along v, each at the smallest spacing at which its difference is at least 10 sigma."""
    found = [0.0, 0.0, 0.0]
    spacing, cost = 2.0**-12, 0
    while not all(found) and spacing <= 1.0:
        f = p.values([i * spacing * v for i in (-2, -1, 0, 1, 2)])
        cost += 5
        differences = (f[1] - 2 * f[2] + f[3], (f[4] - 2 * f[3] + 2 * f[1] - f[0]) / 2, float(np.diff(f, 4)[0]))
        for k, (d, gain) in enumerate(zip(differences, (6, 2.5, 70), strict=True)):
            least = max(10 * math.sqrt(gain) * sigma, 1e-13 * abs(f[2]))
            if not found[k] and abs(d) > least:
                found[k] = abs(d) / spacing ** (k + 2)
        spacing *= 4
    return found[0], found[1], found[2], cost


def _radius(noise: float, derivative: float, order: int) -> float:
    return float(noise / derivative) ** (1 / order) if derivative > 0 else math.inf


def signal_to_noise(
    p: Problem, mu: float = 2.0**-10, *, sigma: float, n: int = 16, law: Law = Rademacher(), seed: int = 0
) -> Measurement:
    """The standard deviation of f(x + mu v) - f(x - mu v) due to the slope, over that due to the noise.

    sqrt(max(mean (f+ - f-)^2 / (2 sigma^2) - 1, 0)) over n directions. Below 1, steps follow the noise more than the
    loss; use a larger mu. sigma: from `noise_floor`. Costs 2n evaluations. Raises ValueError for sigma <= 0.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be > 0, got {sigma}; values without noise have no signal-to-noise ratio")
    f = p.values([side * mu * vj for vj in p.directions(law, n, seed) for side in (1.0, -1.0)])
    power = mean((f[::2] - f[1::2]) ** 2 / (2 * sigma**2), 2 * n)
    ratio = math.sqrt(max(power.value - 1.0, 0.0))
    return Measurement(ratio, power.error / (2 * ratio) if ratio else power.error, 2 * n)
