"""The menu: accelerated proximal descent on differences along all coordinates, for few dimensions."""

from __future__ import annotations

from zograd.core.method import Method
from zograd.estimators import Coordinates, Extrapolated, Trial
from zograd.laws import Rademacher
from zograd.methods.menu import LearningRate, Radius, entry
from zograd.rules import FISTA
from zograd.sets import L1, Projection, Prox

__all__ = ["fd_fista"]

MOST = 1000
"""The largest d for which all coordinates are taken unasked."""


@entry(
    source="FISTA, Beck and Teboulle 2009; restart: O'Donoghue and Candes 2015; growing steps: Scheinberg et al. 2014",
    extra_memory="four float32 slots a trained weight",
    formula="g_i = (f(y + mu e_i) - f(y)) / mu,  z = prox(y - lr g),  y <- z + (t - 1) / t' (z - x),  x <- z",
    example={"prox": L1(1.0)},
)
def fd_fista(
    prox: Prox | Projection,
    lr: LearningRate = "auto",
    mu: Radius = 2.0**-20,
    count: int | None = None,
    central: bool = False,
    inside: bool = False,
) -> Method[Trial]:
    """FISTA with finite differences and adaptive restart: min f(x) + r(x), f smooth, values that repeat, small d.

    prox: a penalty or a set of `zograd.sets`; f alone is evaluated, at points that may leave a set. With `inside` they
    leave it by mu, and one point of the first step by sqrt(mu). lr: "auto" finds the step by backtracking, 1/lr near
    the curvature of f. d + 3 evaluations a step (2 d + 2 with `central`), and 2 more for each trial that is repeated; a
    fixed lr saves the 2. mu is for float64 values; pass 2**-10 with float32 ones. count: of coordinates that are
    differenced, the same random ones in each step, where not all of them; None is all, and refuses d > 1000. No other
    randomness: the seed does not matter.
    """
    inner = Coordinates(count or MOST, central=central, refresh=0)
    return Method(Extrapolated(inner, whole=count is None), Rademacher(), FISTA(prox, inside), mu=mu, lr=lr)
