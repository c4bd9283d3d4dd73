"""Schedules refined from a run that was made: small rates where its gradients were large, and decay to the end."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from zograd.core.schedules import Table
from zograd.core.vector import Array, Slot, Vector
from zograd.laws.coordinate import Unit
from zograd.laws.orthogonal import WalshSigns

LEAST = 10
"""Steps below which a run says too little."""


def slope_norms(estimates: Iterable[Vector]) -> Array:
    """sqrt(n sum_j c_j^2) for each estimate sum_j c_j v_j of n directions: its square has mean |grad f|^2.

    The estimates are those of records (`record.vector`), such as those of a tape: no evaluation is needed. With
    E[v v^T] = I an average of n slopes has c_j = slope_j / n, where the v_j are independent. Raises ValueError where an
    estimate has a term that is no independent direction (gradients from the blocks of a model, coordinates, signs of
    Walsh). Sums of draws that were made orthogonal (`Orthogonal`) cannot be told from draws, and give other numbers.

        >>> import zograd as zo
        >>> seen = []
        >>> def f(x):
        ...     return float(x @ x)
        >>> run = zo.minimize(f, [3.0] * 4, "zo_sgd", budget=40, callback=lambda now: seen.append(now.record))
        >>> len(slope_norms(record.vector for record in seen)) == len(seen)
        True
    """
    norms = []
    for vector in estimates:
        if any(isinstance(e, Slot | Unit | WalshSigns) for e, _ in vector.terms):
            raise ValueError(
                "these estimates hold gradients, or slopes along coordinates or orthogonal directions, not along "
                "independent random ones; take the run of a method such as zo_sgd or mezo"
            )
        norms.append(math.sqrt(len(vector.terms) * math.fsum(c * c for _, c in vector.terms)))
    return np.array(norms)


def refined(
    norms: npt.ArrayLike, peak: float = 1.0, *, total: int | None = None, width: float = 0.1, knots: int = 0
) -> Table:
    """eta_t = w_t sum_{p > t} w_p with w_t = S_t^-2, scaled to the largest value `peak`: a schedule from a run.

    S is the running median of the gradient norms G_t, over `width` of the run, with reflected ends. On the regret bound
    of a run with these norms, this is the best schedule (Defazio et al. 2023, arXiv 2310.07831, Theorem 3 and
    Algorithm 1 for SGD). Equal norms give linear decay. Norms that fall towards the end give a warm-up; the last step
    has rate 0. The unit of the norms does not matter.

    norms: G_t of each step, as `slope_norms` reads them. total: steps of the run that is to come; by default as many.
    knots: 0 keeps all values; else so many of them, at equal distances. Raises ValueError for fewer than 10 norms, or
    norms that are negative or not finite.

        >>> refined([2.0] * 11).values[::5]
        (1.0, 0.5, 0.0)
    """
    from scipy.ndimage import median_filter

    g = np.asarray(norms, dtype=np.float64)
    if g.ndim != 1 or g.size < LEAST or not np.all(np.isfinite(g)) or g.min() < 0 or g.max() <= 0:
        raise ValueError(
            f"norms has shape {g.shape}; pass the gradient norms of at least {LEAST} steps, finite and >= 0, not all 0"
        )
    if not 0 < width <= 1:
        raise ValueError(f"width={width} is a share of the run, in (0, 1]")
    smooth = median_filter(g, size=2 * (int(width * g.size) // 2) + 1, mode="reflect")
    w = np.square(g.max() / np.maximum(smooth, 1e-6 * g.max()))
    later = w[::-1].cumsum()[::-1] - w
    eta = np.maximum(w * later, 0.0)
    eta = eta / eta.max()
    if knots:
        eta = np.interp(np.linspace(0, 1, knots), np.linspace(0, 1, g.size), eta)
        eta = eta / eta.max()
    return Table(peak, total=g.size if total is None else total, values=tuple(float(v) for v in eta))
