"""The menu, page of estimators: other ways to turn losses into a direction."""

from __future__ import annotations

from typing import Any

from zograd.core.method import Method
from zograd.estimators import (
    SAM,
    SVRG,
    ZPDVR,
    AdaptiveSAM,
    Central,
    Conservative,
    Coordinates,
    Curvatures,
    Geometric,
    InfoSAM,
    LooplessSVRG,
    Mirrored,
    Preference,
    ProbeWeighted,
    Recentred,
    Richardson,
    Unbiased,
)
from zograd.estimators.base import Estimator
from zograd.estimators.reduced import Memory
from zograd.estimators.unbiased import Radii
from zograd.laws import Coordinate, Gaussian, Law, Rademacher, Sphere
from zograd.methods.menu import MU, LearningRate, Radius, entry
from zograd.rules import SGD, Momentum
from zograd.rules.base import Rule

__all__ = [
    "cge",
    "deepzero",
    "infosam",
    "mirrored_es",
    "p3",
    "p4",
    "preference",
    "spsa15",
    "zo_asam",
    "zo_clip",
    "zo_conservative",
    "zo_lsvrg",
    "zo_recentred",
    "zo_richardson",
    "zo_sam",
    "zo_svrg",
    "zpdvr",
]


@entry(
    source="Chaubard et al., arXiv 2609.38095, Eq. 3 to 5; 160 probes, lr = eps = 5e-4, alpha 0.1, floor 1",
    extra_memory="none",
    formula="x <- x - lr (1/n) sum_j w_j D_j z_j,  w_j = 1 / max(floor, |c_j|^alpha),  c_j = (f+ - 2 f0 + f-) / mu^2",
)
def spsa15(
    lr: LearningRate = 5e-4,
    mu: Radius = 5e-4,
    n: int = 160,
    alpha: float = 0.1,
    floor: float = 1.0,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[Curvatures]:
    """1.5-SPSA: probes of strong curvature count less. Meant for large batches, many probes and few steps (70 for
    OPT-13B); the paper ties lr to mu, and both are settings here."""
    estimator = ProbeWeighted(n, alpha, floor)
    return Method(estimator, law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Richardson 1911; the extrapolation is standard, its use on directional derivatives is our choice",
    extra_memory="none",
    formula="x <- x - lr (1/n) sum_j (4 D_j(mu/2) - D_j(mu)) / 3 v_j,  D_j(m) = (f(x + m v_j) - f(x - m v_j)) / (2 m)",
)
def zo_richardson(
    lr: LearningRate = 1e-6, mu: Radius = 2.0**-6, n: int = 1, law: Law = Rademacher(), weight_decay: float = 0.0
) -> Method[None]:
    """Two radii cancel the bias in mu^2, so that mu can be large: for noisy losses that are far from quadratic."""
    return Method(Richardson(n), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="QZO, arXiv 2505.13430 (directional-derivative clipping); lr 1e-7, eps 1e-3, C 100",
    extra_memory="none",
    formula="x <- x - lr (1/n) sum_j min(max(D_j, -C), C) z_j,  D_j = (f(x + mu z_j) - f(x - mu z_j)) / (2 mu)",
)
def zo_clip(
    lr: LearningRate = 1e-7,
    mu: Radius = 1e-3,
    clip: float = 100.0,
    n: int = 1,
    law: Law = Gaussian(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """MeZO with bounded slopes. The paper calls the clipped estimate unbiased; it is the gradient shrunk by
    2 Phi(C/|grad f|) - 1, which acts as a cap on the learning rate where the gradient is long."""
    return Method(Central(n, clip), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Ma and Huang, NeurIPS 2025, arXiv 2510.19953, Eq. 6 (P4); lr 1e-4, mu_1 1e-3; geometric c = 1/2 is ours",
    extra_memory="none",
    formula="x <- x - lr [D(mu_1) + (D(mu_{m+1}) - D(mu_m)) / p_m] v,  D(r) = (f(x + r v) - f(x)) / r,  m ~ p",
)
def p4(
    lr: LearningRate = 1e-4,
    mu: Radius = 1e-3,
    n: int = 1,
    radii: Radii = Geometric(0.5),
    levels: int = 2,
    law: Law = Sphere(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Unbiased for the gradient at any mu, but for the bias of the smallest radius.

    The paper's series is infinite. Here it ends at `levels`, by default where float32 losses end at this mu
    (`zograd.estimators.deepest_level`); for exact losses take mu = 0.5 and levels = 16. It pays where mu has to be
    large and losses are nearly exact; otherwise two-point differences are as good for less."""
    estimator = Unbiased(n, 4, radii, levels)
    return Method(estimator, law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Ma and Huang, NeurIPS 2025, arXiv 2510.19953, Eq. 7 (P3), with the factor 2 that is missing in print",
    extra_memory="none",
    formula="x <- x - 2 lr P v,  P = D(mu_1) or (D(mu_{m+1}) - D(mu_m)) / p_m by a fair coin",
)
def p3(
    lr: LearningRate = 1e-4,
    mu: Radius = 1e-3,
    n: int = 1,
    radii: Radii = Geometric(0.5),
    levels: int = 2,
    law: Law = Sphere(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """One half of P4 by a coin: 2 or 3 evaluations a step, and twice the variance (the paper's bound misses that)."""
    estimator = Unbiased(n, 3, radii, levels)
    return Method(estimator, law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Control variates; variance law and memories are ours, the tracker is that of ZPDVR (ICML 2024)",
    extra_memory="one float32 slot a trained weight",
    formula="x <- x - lr [h + (1/n) sum_j (D_j - <v_j, h>) v_j],  h a memory of the gradient",
)
def zo_recentred(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    n: int = 1,
    memory: Memory = "momentum",
    beta: float = 0.9,
    every: int = 100,
    pilot: int = 64,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Two-point differences of what the memory h does not know yet: unbiased, variance (d - 1)/n |grad f - h|^2."""
    estimator = Recentred(n, memory, beta, every, pilot)
    return Method(estimator, law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="ZO-SVRG, Liu et al. 2018; MeZO-SVRG, arXiv 2404.08080: q 2, batch 64, eps 1e-3, lr 1e-6",
    extra_memory="two float32 slots a trained weight",
    formula="x <- x - lr [(1/n) sum_j (D_j f_B(x) - D_j f_B(w)) v_j + G],  w the iterate every q steps, G ~ grad f(w)",
)
def zo_svrg(
    lr: LearningRate = 1e-6,
    mu: Radius = 1e-3,
    n: int = 1,
    batch: int = 64,
    every: int = 2,
    full: Estimator[Any] = Central(1),
    law: Law = Gaussian(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Variance reduction over the terms of a finite sum. `full` estimates the gradient at the anchor: directions as
    published, or `Coordinates(d)`. One learning rate for both kinds of steps, and no annealing, unlike MeZO-SVRG."""
    estimator = SVRG(n, batch, every, full)
    return Method(estimator, law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Kovalev, Horvath and Richtarik 2020 (loopless SVRG), on zeroth-order differences",
    extra_memory="two float32 slots a trained weight",
    formula="x <- x - lr [(1/n) sum_j (D_j f_B(x) - D_j f_B(w)) v_j + G],  w moves to x with probability p",
)
def zo_lsvrg(
    lr: LearningRate = 1e-6,
    mu: Radius = 1e-3,
    n: int = 1,
    batch: int = 1,
    p: float = 0.1,
    full: Estimator[Any] = Central(16),
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """`zo_svrg` without the inner loop: a coin decides when the anchor moves. 16 directions for G, which about 1/p
    steps follow."""
    estimator = LooplessSVRG(n, batch, p, full)
    return Method(estimator, law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Di et al., ICML 2024 (ZPDVR, PMLR 235), from a third party's port; p = 1/N, tracker factor 1/(d + 2)",
    extra_memory="three float32 slots a trained weight, and those of the rule",
    formula="x <- rule(x, lr, (D_u f_i(x) - D_u f_i(w)) u + h + (D_u' f(w) - <u', h>) u'),  h tracks grad f(w)",
)
def zpdvr(
    lr: LearningRate = 1e-3,
    mu: Radius = MU,
    batch: int = 1,
    p: float | None = None,
    rule: Rule[Any] = SGD(),
    law: Law = Gaussian(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Reduces the variance of the terms and of the directions, so that a constant lr converges to the minimum.

    rule: what takes the step; the paper's is proximal. O(d (N + condition) log 1/eps) evaluations of single terms."""
    return Method(ZPDVR(batch, p), law, rule, mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Pairwise comparisons, N = 2 of Ye, arXiv 2512.16200; Yue and Joachims 2009 (duelling bandit descent)",
    extra_memory="none",
    formula="x <- x - lr 1/(2 n) sum_j sign(f(x + mu u_j) - f(x + mu w_j)) (u_j - w_j)",
)
def preference(
    lr: LearningRate = 1e-2, mu: Radius = MU, n: int = 8, law: Law = Rademacher(), weight_decay: float = 0.0
) -> Method[None]:
    """Which of two is better, n times: all that a judge has to say."""
    return Method(Preference(n), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Salimans et al. 2017 (OpenAI-ES); Qiu et al., arXiv 2509.24372: population 30, sigma 1e-3, lr 5e-4",
    extra_memory="none",
    formula="x <- x - lr 1/(2 n) sum_j (A_j+ - A_j-) v_j,  A = (f - mean f) / std f over the 2 n losses f(x +- mu v_j)",
)
def mirrored_es(
    lr: LearningRate = 5e-4,
    mu: Radius = 1e-3,
    n: int = 15,
    floor: float = 1e-8,
    law: Law = Gaussian(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Evolution strategies with z-scored fitness, in n antithetic pairs (Qiu et al. draw all 30 members freely).

    Their released code seeds every tensor alike, so that equal shapes get equal noise; here noise is addressed by
    tensor and element. `floor` bounds the deviation from below where they add 1e-8 to it."""
    return Method(Mirrored(n, floor), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Coordinate-wise gradient estimation: Kiefer and Wolfowitz 1952; Lian et al. 2016; Liu et al. 2018",
    extra_memory="none",
    formula="x <- x - lr sum_{i in S} (f(x + mu e_i) - f(x)) / mu e_i,  S drawn anew every `refresh` steps",
)
def cge(
    lr: LearningRate = 1e-3,
    mu: Radius = 5e-3,
    count: int = 64,
    densities: tuple[float, ...] = (),
    central: bool = False,
    refresh: int = 1,
    weight_decay: float = 0.0,
) -> Method[None]:
    """Coordinate descent by differences; with count >= d the gradient itself."""
    estimator = Coordinates(count, densities, central, refresh)
    return Method(estimator, Coordinate(), SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="DeepZero, Chen et al. 2024, arXiv 2310.02025; lr 0.1, mu 5e-3, momentum 0.9, decay 5e-4, density 0.1",
    extra_memory="one float32 slot a trained weight",
    formula="m <- beta m + sum_{i in S} (f(x + mu e_i) - f(x)) / mu e_i,  x <- x - lr m",
    example={"count": 64},
)
def deepzero(
    count: int,
    lr: LearningRate = 0.1,
    mu: Radius = 5e-3,
    beta: float = 0.9,
    densities: tuple[float, ...] = (),
    refresh: int = 1000,
    weight_decay: float = 5e-4,
) -> Method[None]:
    """Sparse coordinate-wise estimation with momentum, for training small networks from scratch.

    count: coordinates a step, in the paper a tenth of the weights: count = d / 10, a cost that should be seen.
    densities: `zograd.estimators.grasp_densities(loss, tensors)` measures them as ZO-GraSP does. refresh: the paper
    draws new coordinates every 5 epochs. The decay is decoupled here. `zograd.oracles.feature_reuse` evaluates
    sequential models from the layer that a coordinate lies in."""
    estimator = Coordinates(count, densities, False, refresh)
    rule = Momentum(beta)
    return Method(estimator, Coordinate(), rule, mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="ZO-SGD-Cons of Zhang et al. 2024, arXiv 2402.11592; stochastic three points, Bergou et al. 2020",
    extra_memory="none",
    formula="x <- argmin f over {x - lr g, x, x + lr g},  g = (1/n) sum_j (f(x + mu v_j) - f(x - mu v_j)) / (2 mu) v_j",
)
def zo_conservative(lr: LearningRate = 1e-6, mu: Radius = 1e-3, n: int = 1, law: Law = Gaussian()) -> Method[None]:
    """A step only where the loss of the batch confirms it: 5 evaluations with one direction."""
    return Method(Conservative(Central(n)), law, SGD(), mu=mu, lr=lr)


@entry(
    source="Foret et al. 2021 (SAM), rho 0.05, with zeroth-order gradients",
    extra_memory="none",
    formula="x <- x - lr g(x + rho g(x) / |g(x)|),  g = (1/n) sum_j (f(x + mu v_j) - f(x - mu v_j)) / (2 mu) v_j",
)
def zo_sam(
    lr: LearningRate = 1e-6,
    mu: Radius = 1e-3,
    n: int = 8,
    rho: float = 0.05,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Sharpness-aware descent: the gradient at the estimated worst point of a small ball."""
    return Method(SAM(Central(n), rho), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Kwon et al. 2021, arXiv 2102.11600 (ASAM); as a preconditioner arXiv 2501.06603; rho and floor are ours",
    extra_memory="none",
    formula="x <- x - lr g(x + rho D^2 g(x) / |D g(x)|),  D = |x| + floor elementwise",
)
def zo_asam(
    lr: LearningRate = 1e-6,
    mu: Radius = 1e-3,
    n: int = 8,
    rho: float = 0.5,
    floor: float = 0.01,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Sharpness-aware descent in units of the weights: a large weight is moved further to find the worst point near."""
    return Method(AdaptiveSAM(Central(n), rho, floor), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="infoSAM, arXiv 2501.06603: the idea; the form of the preconditioner, beta and eps are ours",
    extra_memory="two float32 slots a trained weight",
    formula="x <- x - lr g(x + rho D^2 g(x) / |D^2 g(x)|),  D^-2 = v + eps,  v the running variance of g elementwise",
)
def infosam(
    lr: LearningRate = 1e-6,
    mu: Radius = 1e-3,
    n: int = 8,
    rho: float = 0.05,
    beta: float = 0.9,
    eps: float = 1e-8,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Sharpness-aware descent whose ascent trusts the coordinates whose gradient varies least. From few random
    directions all coordinates vary alike, and it is `zo_sam`."""
    return Method(InfoSAM(Central(n), rho, beta, eps), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)
