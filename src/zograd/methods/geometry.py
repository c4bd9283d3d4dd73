"""The menu, page of geometries: positive numbers, the scales of quantized models first of all."""

from __future__ import annotations

from zograd.core.method import Method
from zograd.estimators import Central
from zograd.laws import Gaussian, Law, Rademacher
from zograd.methods.menu import LearningRate, Radius, entry
from zograd.rules import SGD, Bounded, Proximal
from zograd.sets import NonNegative
from zograd.spaces import PositiveOrthant

__all__ = ["hozo", "qzo"]


@entry(
    source="our derivation from the idea of HoZO (ICML 2026 submission, no public page found) and of Riemannian ZO "
    "(arXiv 2601.08039); no equivalence with HoZO's code is claimed",
    extra_memory="none",
    formula="s <- s exp(clip(-lr c z, +-trust)),  c = (1/n) sum_j (f(s exp(mu z_j)) - f(s exp(-mu z_j))) / (2 mu)",
)
def hozo(
    lr: LearningRate = 1e-3,
    mu: Radius = 2.0**-7,
    n: int = 1,
    clip: float | None = None,
    trust: float | None = 0.1,
    law: Law = Rademacher(),
) -> Method[None]:
    """Two-point gradient descent on positive numbers in the complete metric sum_i u_i v_i / s_i^2 (log-scale ZO).

    mu and lr are relative: a probe changes each scale by the factor exp(+-mu), so that none is ever infeasible, and
    multiplying the scales by any positive numbers beforehand changes nothing. `trust` bounds |log| of a factor of one
    move, `clip` the slope c as QZO does. Every estimator and rule works in this geometry: give a method of your own
    `space=PositiveOrthant()`; momentum and Adam then are those of log s.
    """
    rule = SGD() if trust is None else Bounded(trust)
    return Method(Central(n, clip=clip), law, rule, space=PositiveOrthant(), mu=mu, lr=lr)


@entry(
    source="QZO, arXiv 2505.13430 (ICLR 2026); lr 1e-7, eps 1e-3, C = 100, Gaussian directions",
    extra_memory="none",
    formula="s <- max(s - lr clip(c, +-C) z, 0),  c = (f(s + mu z) - f(s - mu z)) / (2 mu),  z ~ N(0, I)",
)
def qzo(
    lr: LearningRate = 1e-7, mu: Radius = 1e-3, n: int = 1, clip: float | None = 100.0, law: Law = Gaussian()
) -> Method[None]:
    """Two-point gradient descent on scales with clipped slopes, projected onto s >= 0 after each step.

    Probes are additive and not projected, as published: those with mu |z_i| > s_i ask for a model with negative scales,
    which runs show as the meter `infeasible`. Clipping shrinks the expected step by 2 Phi(C / |g|) - 1 and keeps its
    direction (the paper calls the clipped estimate unbiased). A scale that reaches 0 stays trained.
    """
    return Method(Central(n, clip=clip), law, Proximal(NonNegative()), mu=mu, lr=lr)
