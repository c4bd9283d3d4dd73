"""The menu, first page: gradient descent on finite differences, and its nearest relatives."""

from __future__ import annotations

from zograd.core.method import Method
from zograd.estimators import Central, OneSided, Ranked, Spread
from zograd.estimators.ranked import Weights
from zograd.laws import Gaussian, Law, Rademacher
from zograd.methods.menu import MU, LearningRate, Queries, Radius, Sides, differences, entry, inside
from zograd.rules import SGD, Adafactor, Adam, FrankWolfe, Momentum, ReplayMomentum, Sign, SpreadSGD
from zograd.rules.moments import Moments
from zograd.sets import L1Ball, LinearMinimizer

__all__ = ["frank_wolfe", "fzoo", "mezo", "mezo_momentum", "rank", "zo_adafactor", "zo_adam", "zo_sgd", "zo_sign"]


@entry(
    source="Spall 1992 (SPSA); Nesterov and Spokoiny 2017",
    extra_memory="none",
    formula="x <- x - lr (1/n) sum_j (f(x + mu v_j) - f(x - mu v_j)) / (2 mu) v_j",
)
def zo_sgd(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    n: int = 1,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
    central: Sides = True,
) -> Method[None]:
    """Two-point gradient descent with minimum-variance (Rademacher) directions, n averaged.

    central=False takes forward differences, (f(x + mu v_j) - f(x)) / mu, of n + 1 values in place of 2 n. "auto" takes
    them while f repeats and central ones in noise, which lr="auto" or mu="auto" measures.
    """
    return Method(differences(n, central), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Malladi et al. 2023, arXiv 2305.17333, Algorithm 1; lr 1e-6 or 1e-7, eps 1e-3, one direction",
    extra_memory="none",
    formula="x <- x - lr (f(x + mu z) - f(x - mu z)) / (2 mu) z,  z ~ N(0, I)",
)
def mezo(
    lr: LearningRate = 1e-6, mu: Radius = 1e-3, n: int = 1, law: Law = Gaussian(), weight_decay: float = 0.0
) -> Method[None]:
    """MeZO as published: Gaussian directions. `zo_sgd` is the same with cheaper and better Rademacher ones."""
    return Method(Central(n), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Malladi et al. 2023, section 3.3 (momentum and Adam from replayed scalars); Polyak 1964",
    extra_memory="none (`replay=True`), or one slot a trained weight in float32 or bfloat16",
    formula="m <- beta m + g,  x <- x - lr m,  g as in mezo",
)
def mezo_momentum(
    lr: LearningRate = 1e-7,
    mu: Radius = 1e-3,
    beta: float = 0.9,
    n: int = 1,
    replay: bool = True,
    window: int | None = None,
    moments: Moments = "full",
    law: Law = Gaussian(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """MeZO with heavy ball, by default from replayed seeds instead of a buffer.

    moments="bfloat16" keeps the buffer of replay=False in 16 bits, rounded stochastically.
    """
    if replay and moments != "full":
        raise ValueError(f"moments={moments!r} is how a buffer is kept, and replay=True has none; add replay=False")
    rule = ReplayMomentum(beta, window) if replay else Momentum(beta, moments)
    return Method(Central(n), law, rule, mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Malladi et al. 2023 (MeZO-Adam); Zhang et al. 2024, arXiv 2402.11592; Kingma and Ba 2015",
    extra_memory="two float32 slots a trained weight, or bfloat16 ones (moments=bfloat16)",
    formula="Adam on g = (1/n) sum_j (f(x + mu v_j) - f(x - mu v_j)) / (2 mu) v_j",
)
def zo_adam(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    n: int = 1,
    moments: Moments = "full",
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Adam fed with the two-point estimate. moments="bfloat16" keeps them in 16 bits, rounded stochastically."""
    rule = Adam(beta1, beta2, eps, moments)
    return Method(Central(n), law, rule, mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Shazeer and Stern 2018, arXiv 1804.04235, Algorithm 4, on the estimate of MeZO",
    extra_memory="a float32 a row and a float32 a column of each trained matrix",
    formula="u = g / sqrt(R C / mean R),  x <- x - lr u / max(1, rms(u)),  R, C means of g^2 over rows and columns",
)
def zo_adafactor(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    decay: float = 0.8,
    n: int = 1,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Adafactor fed with the two-point estimate: Adam's scaling in the memory of SGD."""
    return Method(Central(n), law, Adafactor(decay), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Liu et al. 2019, ZO-signSGD (ICLR), Algorithm 1",
    extra_memory="none",
    formula="x <- x - lr sign((1/n) sum_j (f(x + mu v_j) - f(x - mu v_j)) / (2 mu) v_j)",
)
def zo_sign(
    lr: LearningRate = 1e-6, mu: Radius = MU, n: int = 4, law: Law = Rademacher(), weight_decay: float = 0.0
) -> Method[None]:
    """The sign of the averaged estimate, elementwise."""
    return Method(Central(n), law, Sign(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="FZOO, arXiv 2506.09034, Algorithm 1; N 8, lr 1e-5, eps 1e-3",
    extra_memory="none",
    formula="x <- x - lr (1/n) sum_j (f_j - f_0) / std(f_1..f_n) u_j,  f_j = f(x + mu u_j), u_j in {-1, 1}^d",
)
def fzoo(
    lr: LearningRate = 1e-5, mu: Radius = MU, n: int = 8, law: Law = Rademacher(), weight_decay: float = 0.0
) -> Method[Spread]:
    """Batched one-sided differences, normalised by the spread of the losses."""
    return Method(OneSided(n), law, SpreadSGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Ye, arXiv 2512.16200 (rank-based zeroth-order); linear ranks are our choice",
    extra_memory="none",
    formula="x <- x - lr sum_k w_k v_(k),  v_(1) .. v_(n) from best to worst loss, w rises with k, sum |w_k| = 1",
)
def rank(
    lr: LearningRate = 1e-2,
    mu: Radius = MU,
    n: int = 16,
    weights: Weights = "linear",
    top: int | None = None,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Only the order of the losses matters: invariant under any increasing map of f.

    weights: "linear" in the rank, "log" as CMA-ES, or the "top" best against the `top` worst."""
    return Method(Ranked(n, weights, top), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Frank and Wolfe 1956; Mokhtari, Hassani, Karbasi 2020 (averaging); Balasubramanian and Ghadimi 2018",
    extra_memory="one float32 slot a trained weight",
    formula="m <- (1 - rho_t) m + rho_t g,  x <- x + gamma_t (argmin_{s in set} <m, s> - x),  gamma_t = lr 2/(t + 2)",
    example={"set": L1Ball(1.0)},
)
def frank_wolfe(
    set: LinearMinimizer,
    lr: LearningRate = 1.0,
    mu: Radius = MU,
    n: int = 8,
    rho: float = 1.0,
    queries: Queries = "relaxed",
    law: Law = Rademacher(),
) -> Method[None]:
    """Projection-free descent over a set with a linear minimiser (`zograd.sets`). queries: with "feasible" every point
    at which f is evaluated lies in the set too, from a start in it: `estimators.Feasible` states the bias, which is
    less than one part in 128 of the way to the middle of the set."""
    return Method(inside(queries, Central(n), set), law, FrankWolfe(set, rho), mu=mu, lr=lr)
