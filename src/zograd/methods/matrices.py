"""The menu: rules that see whole matrices and rows, and rules of few cosines."""

from __future__ import annotations

from zograd.core.method import Method
from zograd.estimators import Central
from zograd.laws import Law, Rademacher
from zograd.methods.menu import MU, LearningRate, Radius, entry
from zograd.rules import CosineAdam, CosineAdamFeedback, LowRankSparse, Rotated, RowLion, Sinkhorn, SpectralLion, Trion
from zograd.rules.rotated import Base

__all__ = ["aro", "dct_adamw", "salaad", "trion", "zo_lion_nuclear", "zo_lion_rows"]

SINKHORN = Sinkhorn()
"""f of `aro` by default: five passes."""


@entry(
    source="Chen, Liu et al. 2023, arXiv 2310.05898 (Lion-K), Table 1; rows and sqrt(columns) are ours",
    extra_memory="one float32 slot a trained weight",
    formula="c = b1 m + (1 - b1) g,  row <- row - lr sqrt(columns) c_row / |c_row|,  m <- b2 m + (1 - b2) g",
)
def zo_lion_rows(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    beta1: float = 0.9,
    beta2: float = 0.99,
    n: int = 1,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Lion-K with a norm of rows for K: each row of a matrix takes a normalised step of the length of Lion's. With
    weight decay w it minimises over max_row |x_row| <= sqrt(columns) / w."""
    return Method(Central(n), law, RowLion(beta1, beta2), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Chen, Liu et al. 2023, arXiv 2310.05898 (Lion-K), Table 1, the nuclear norm",
    extra_memory="one float32 slot a trained weight; the workspace is several times the largest matrix in float64",
    formula="c = b1 m + (1 - b1) g,  W <- W - lr U V^T with c = U S V^T,  m <- b2 m + (1 - b2) g",
)
def zo_lion_nuclear(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    beta1: float = 0.9,
    beta2: float = 0.99,
    n: int = 1,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Lion-K with the nuclear norm for K: each matrix takes the polar factor of its momentum, exactly, by a singular
    value decomposition a step. With weight decay w it minimises over matrices of spectral norm 1 / w."""
    return Method(Central(n), law, SpectralLion(beta1, beta2), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="ARO, arXiv 2602.09006; five Sinkhorn passes, beta 0.95; the shorter side rotates",
    extra_memory="two float32 slots a trained weight; the workspace is several times the largest matrix in float64",
    formula="M <- b M + (1 - b) G,  R <- QR(M f(R^T M)^T),  W <- W - lr R f(R^T M)",
)
def aro(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    beta: float = 0.95,
    base: Base = SINKHORN,
    n: int = 1,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Normalised steps of matrices in a basis that turns with the momentum. `base`: f, `rules.Sinkhorn(5)` or
    `rules.Signs()`."""
    return Method(Central(n), law, Rotated(beta, base), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Trion, arXiv 2505.17967; beta 0.95, rank 16",
    extra_memory="one float32 slot a trained weight; the workspace is several times the largest matrix in float64",
    formula="M <- M + G,  S = M Q,  M <- M - (1 - b) S_I Q_I^T,  W <- W - lr sqrt(max(1, m/n)) msign(S_I) Q_I^T",
)
def trion(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    rank: int = 16,
    beta: float = 0.95,
    n: int = 1,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Muon on the `rank` strongest cosines of the momentum; what they leave out stays in the momentum."""
    return Method(Central(n), law, Trion(rank, beta), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="DCT-AdamW, arXiv 2505.17967; rank 16, new cosines each step",
    extra_memory="two slots of `rank` float32 numbers a row of each matrix; with `feedback` one more number a weight",
    formula="S = G Q,  m <- b1 m + (1 - b1) S_I,  s <- b2 s + (1 - b2) S_I^2,  W <- W - lr m^ / (sqrt(s^) + eps) Q_I^T",
)
def dct_adamw(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    rank: int = 16,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    refresh: int = 1,
    feedback: bool = False,
    n: int = 1,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Adam whose moments live in the `rank` strongest cosines of the estimate. `feedback` adds what a step left out to
    the next estimate, for one number a weight. With few directions an estimate is white noise, and no cosine is
    stronger than another: the gain is in memory."""
    rule = (CosineAdamFeedback if feedback else CosineAdam)(rank, beta1, beta2, eps, refresh)
    return Method(Central(n), law, rule, mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="SALAAD, arXiv 2602.00942; order of its round and gain 0.02 from a public code of its successor",
    extra_memory="three float32 slots a trained weight; the workspace is several times the largest matrix in float64",
    formula="x <- x - lr (g + rho (x - M)),  M = L + S - Y from a round of ADMM each `every` moves",
)
def salaad(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    rank: float = 0.25,
    density: float = 0.05,
    rho: float = 1.0,
    gain: float = 0.02,
    every: int = 20,
    n: int = 1,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Training towards a low-rank matrix plus a sparse one of wanted sizes, so that one run gives models of several
    sizes. The penalty is exact; only the loss is estimated."""
    rule = LowRankSparse(rank, density, rho, gain, every)
    return Method(Central(n), law, rule, mu=mu, lr=lr, weight_decay=weight_decay)
