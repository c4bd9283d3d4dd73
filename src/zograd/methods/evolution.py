"""The menu: evolution strategies, which adapt the spread of their population and so have no learning rate to set."""

from __future__ import annotations

from typing import Any

from zograd.core.method import Method
from zograd.estimators import Evolution, Restricted, RestrictedEvolution, population_size
from zograd.laws import Gaussian
from zograd.methods.menu import entry
from zograd.rules import FastMovingNES, SeparableCMA, SeparableNES
from zograd.spaces import Diagonal

__all__ = ["cr_fm_nes", "sep_cma", "snes"]

RELATIVE = 0.3
"""The first spread over |x0| / sqrt(d), where none is given."""


def sized(dim: int) -> dict[str, Any]:
    return {"n": population_size(dim)}


def evenly_sized(dim: int) -> dict[str, Any]:
    return {"n": population_size(dim) + population_size(dim) % 2}


def spreads(sigma: float | None) -> tuple[float, float | None]:
    """mu, and what rules call `relative`."""
    if sigma is None:
        return 1.0, RELATIVE
    if not sigma > 0:
        raise ValueError(f"sigma is the first standard deviation of the population, in units of x: > 0, got {sigma}")
    return sigma, None


@entry(
    source="Schaul, Glasmachers and Schmidhuber 2011; Wierstra et al. 2014 (JMLR 15), Algorithm 6",
    extra_memory="one float32 slot a trained weight (log h)",
    formula="x <- x + sigma sum_k u_k z_k,  log sigma <- log sigma + eta/2 sum_k u_k (z_k^2 - 1),  u_k by rank of f",
    sized=sized,
)
def snes(sigma: float | None = None, n: int = 16) -> Method[None]:
    """Separable natural evolution strategy: n points of a normal population, whose mean and whose standard deviation of
    every weight follow the ranks of f. Only the order of the values counts; NaN and infinity rank last. sigma: the
    first standard deviation, in units of x; None: 0.3 |x0| / sqrt(d), and 1 at x0 = 0. By name, `minimize` and
    `AskTell` take n = 4 + floor(3 ln d), `zograd.estimators.population_size(d)`."""
    mu, relative = spreads(sigma)
    return Method(Evolution(n), Gaussian(), SeparableNES(relative), Diagonal(), mu=mu, lr=mu)


@entry(
    source="Ros and Hansen 2008; constants of Hansen 2016, arXiv 1604.00772, without negative weights",
    extra_memory="three float32 slots a trained weight (log h and two paths)",
    formula="x <- x + sigma sqrt(C) z_w,  C <- (1 - c_1 - c_mu) C + c_1 p_c^2 + c_mu sum_k w_k C z_k^2,  sigma by p_s",
    sized=sized,
)
def sep_cma(sigma: float | None = None, n: int = 16) -> Method[None]:
    """CMA-ES with a diagonal covariance matrix: in linear time and memory, and with rates (d + 2) / 3 times those of
    the full matrix. Faster than `snes` where coordinates have scales of their own. sigma and n: as of `snes`."""
    mu, relative = spreads(sigma)
    return Method(Evolution(n, "cma"), Gaussian(), SeparableCMA(relative), Diagonal(), mu=mu, lr=mu)


@entry(
    source="Nomura and Ono 2022, arXiv 2201.11422, Algorithm 1",
    extra_memory="four float32 slots a trained weight (log h, v and two paths)",
    formula="x <- x + sigma D sum_k w_k y_k,  y_k ~ N(0, I + v v^T),  natural gradients for v and D,  sigma by p_sigma",
    sized=evenly_sized,
)
def cr_fm_nes(sigma: float | None = None, n: int = 16) -> Method[Restricted]:
    """Fast moving natural evolution strategy with the covariance sigma^2 D (I + v v^T) D, in linear time and memory: it
    also follows one direction that is no coordinate. n is even (pairs +-z). sigma and n: as of `snes`."""
    mu, relative = spreads(sigma)
    return Method(RestrictedEvolution(n), Gaussian(), FastMovingNES(relative), Diagonal(), mu=mu, lr=mu)
