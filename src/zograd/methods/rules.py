"""The menu: what is done with an estimate beyond gradient descent."""

from __future__ import annotations

from typing import Any

from zograd.core.method import Method
from zograd.estimators import (
    ZPDVR,
    Central,
    Compared,
    Consensus,
    Coordinates,
    Curvatures,
    Curved,
    Mixture,
    Page,
    Saddle,
    SimulatedMomentum,
    Tracker,
)
from zograd.estimators.base import Estimator
from zograd.estimators.simulated import Anneal
from zograd.laws import Gaussian, Law, Rademacher
from zograd.methods.menu import MU, LearningRate, Queries, Radius, Sides, differences, entry, inside
from zograd.rules import (
    SGD,
    AdaMU,
    AMSGrad,
    DiagonalNewton,
    EuclideanMap,
    FrankWolfe,
    Halpern,
    InverseFisher,
    Lion,
    MirrorMap,
    NormalizedLion,
    Optimistic,
    OptimisticMirror,
    Proximal,
    PublishedHiZOO,
    ReplayAdam,
)
from zograd.sets import L1, L1Ball, L2Ball, LinearMinimizer, Projection, Prox
from zograd.spaces import Diagonal

__all__ = [
    "adamezo",
    "cbo",
    "frank_wolfe_page",
    "frank_wolfe_vr",
    "hizoo",
    "hizoo_row",
    "mfac",
    "optimistic_mirror",
    "zo_adamm",
    "zo_adamu",
    "zo_halpern",
    "zo_lion",
    "zo_lion_l2",
    "zo_optimistic",
    "zo_prox",
    "zo_saddle",
    "zo_sign_scalar",
]


@entry(
    source="Chen et al. 2023, arXiv 2302.06675, Algorithm 2 (betas 0.9, 0.99)",
    extra_memory="one float32 slot a trained weight",
    formula="c = b1 m + (1 - b1) g,  x <- x - lr sign(c),  m <- b2 m + (1 - b2) g",
)
def zo_lion(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    beta1: float = 0.9,
    beta2: float = 0.99,
    n: int = 1,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Lion fed with the two-point estimate. The momentum is what makes the sign informative: with a single direction
    and no memory, sign(g) is a random sign vector."""
    return Method(Central(n), law, Lion(beta1, beta2), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Chen, Liu et al. 2023, arXiv 2310.05898 (Lion-K), Table 1; the factor sqrt(d) is ours",
    extra_memory="one float32 slot a trained weight",
    formula="c = b1 m + (1 - b1) g,  x <- x - lr sqrt(d) c / |c|,  m <- b2 m + (1 - b2) g",
)
def zo_lion_l2(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    beta1: float = 0.9,
    beta2: float = 0.99,
    n: int = 1,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Lion-K with the Euclidean norm for K: normalised momentum, whose steps are as long as Lion's."""
    rule = NormalizedLion(beta1, beta2)
    return Method(Central(n), law, rule, mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="AdaMeZO, Cai, Chen and Zhu 2026, arXiv 2605.00650; eps 1e-3, horizon 10; the weights of the sums are ours",
    extra_memory="none (the seeds and scalars of `window` steps)",
    formula="x <- x - lr m / (sqrt(s) + eps),  m, s means of g_{t-k}, g_{t-k}^2 over k < window, weights ~ b1^k, b2^k",
)
def adamezo(
    lr: LearningRate = 1e-6,
    mu: Radius = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    window: int = 10,
    n: int = 1,
    law: Law = Gaussian(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Adam without moments in memory: each step regenerates the estimates of the last `window` steps from their seeds.

    Until then it takes the steps of `zo_adam`. With one direction of signs a step, g^2 is the same number everywhere,
    and the step is momentum of a length that does not depend on the scale of the loss."""
    rule = ReplayAdam(beta1, beta2, eps, window)
    return Method(Central(n), law, rule, mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="M-FAC, Frantar, Kurtic and Alistarh 2021, arXiv 2107.03356; lr 1e-3; window and damping are ours",
    extra_memory="none (the seeds and scalars of `window` steps)",
    formula="x <- x - lr H^-1 g,  H = damping I + (1/m) sum g_i g_i^T over the last m <= window estimates",
)
def mfac(
    lr: LearningRate = 1e-3,
    mu: Radius = MU,
    window: int = 16,
    damping: float = 1e-2,
    n: int = 1,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Natural gradient with the empirical Fisher matrix of the last estimates, which are regenerated from their seeds.
    Estimates from few directions are near orthogonal to each other; then the step is g / (damping + |g|^2 / window),
    a normalised one, at the cost of `window` noise passes."""
    return Method(Central(n), law, InverseFisher(window, damping), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="ZO-AdaMM, Chen et al. 2019 (NeurIPS), Algorithm 1; beta1 0.9, beta2 0.3",
    extra_memory="three float32 slots a trained weight",
    formula="m <- b1 m + (1 - b1) g,  s <- b2 s + (1 - b2) g^2,  s^ <- max(s^, s),  x <- x - lr m / sqrt(s^)",
)
def zo_adamm(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    beta1: float = 0.9,
    beta2: float = 0.3,
    start: float = 1e-5,
    n: int = 1,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """AMSGrad fed with the two-point estimate, from s = s^ = start. The paper takes one-sided differences; central
    ones cost n - 1 evaluations more and have no curvature noise. Unconstrained: `zo_prox` has the constraints."""
    rule = AMSGrad(beta1, beta2, start)
    return Method(Central(n), law, rule, mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Zhang et al. 2024, ZO-Bench, arXiv 2402.11592 (its ZO-SGD-Sign)",
    extra_memory="none",
    formula="x <- x - lr (1/n) sum_j sign(f(x + mu v_j) - f(x - mu v_j)) v_j",
)
def zo_sign_scalar(
    lr: LearningRate = 1e-6, mu: Radius = MU, n: int = 1, law: Law = Gaussian(), weight_decay: float = 0.0
) -> Method[None]:
    """The sign of the scalar times the direction: what ZO-Bench calls sign. `zo_sign` takes the elementwise sign."""
    return Method(Compared(n), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Rakhlin and Sridharan 2013; Chen et al. 2024, arXiv 2302.04552 (optimistic mirror descent, Euclidean)",
    extra_memory="none",
    formula="x <- x - lr (2 g_t - g_{t-1}),  g_{-1} = 0",
)
def zo_optimistic(
    lr: LearningRate = 1e-6, mu: Radius = MU, n: int = 1, law: Law = Rademacher(), weight_decay: float = 0.0
) -> Method[None]:
    """The optimistic step, the last estimate regenerated from its seeds."""
    return Method(Central(n), law, Optimistic(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Ghadimi, Lan, Zhang 2016 (zeroth-order proximal gradient); Parikh and Boyd 2014 (the maps)",
    extra_memory="none (a penalty of whole matrices needs the workspace it states)",
    formula="x <- argmin_z |z - (x - lr g)|^2 / (2 lr) + r(z),  r the penalty or the indicator of the set `prox`",
    example={"prox": L1(1.0)},
)
def zo_prox(
    prox: Prox | Projection,
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    n: int = 1,
    queries: Queries = "relaxed",
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
    central: Sides = True,
) -> Method[None]:
    """Proximal descent: `prox` is a penalty or a set of `zograd.sets`. The loss that is evaluated is f alone; probes
    may leave a set by mu |v|, or with queries="feasible" never do (`estimators.Feasible`), from a start in it.
    lr="auto" stays below the edge of stability of f. central is as in `zo_sgd`."""
    estimator = inside(queries, differences(n, central), prox)
    return Method(estimator, law, Proximal(prox), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="HiZOO, Zhao et al. 2025, arXiv 2402.15173, Algorithm 1; lr 1e-6, eps 1e-3, alpha 1e-8",
    extra_memory="one float32 slot a trained weight (log h)",
    formula="x <- x - lr D z / sqrt(h),  h <- (1 - a) h + a h c (z^2 - 1) / 2,  D, c slope and curvature along it",
)
def hizoo(
    lr: LearningRate = 1e-6,
    mu: Radius = 1e-3,
    alpha: float = 1e-8,
    n: int = 1,
    low: float = 1e-2,
    high: float = 1e6,
    published: bool = False,
) -> Method[Curvatures]:
    """Diagonal Newton steps with the Hessian's diagonal measured by the probes. Differs from the released code, which
    `published=True` gives: there the -1 is missing, so that h follows the trace and not the coordinate, c loses its
    sign, and the move divides by the new h where the probe had the old one. The
    paper's alpha hardly adapts; h follows within 1/alpha steps, and stays a mean of many probes while alpha is well
    below 1/trace^2 of the scaled Hessian."""
    rule = PublishedHiZOO(alpha, low, high) if published else DiagonalNewton(alpha, low, high)
    return Method(Curved(n), Gaussian(), rule, Diagonal(), mu=mu, lr=lr)


@entry(
    source="HiZOO, Zhao et al. 2025, arXiv 2402.15173; one curvature a row is ours (theirs is low-rank)",
    extra_memory="one float32 number a row of each trained matrix (log h)",
    formula="x <- x - lr D z / sqrt(h_row),  h_row <- (1 - a) h_row + a h_row c mean_row(z^2 - 1) / 2",
)
def hizoo_row(
    lr: LearningRate = 1e-6, mu: Radius = 1e-3, alpha: float = 1e-8, n: int = 1, low: float = 1e-2, high: float = 1e6
) -> Method[Curvatures]:
    """HiZOO in the memory of inference: h is the mean of the Hessian's diagonal over each row (first axis by the rest).
    Averaging over a row of k weights makes its estimate less noisy by sqrt(k)."""
    return Method(Curved(n), Gaussian(), DiagonalNewton(alpha, low, high), Diagonal(True), mu=mu, lr=lr)


@entry(
    source="ZO-AdaMU, Jiang et al. 2024, arXiv 2312.15184, Eq. 3 to 7; lr 1e-4, eps 1e-3, T1 1024, T2 16000",
    extra_memory="one float32 slot a trained weight",
    formula="u = b1 z0 + (1 - b1) zm,  x <- x - lr D_u u / sqrt(b2 z0^2 + (1 - b2) zm^2 + eps),  mean <- sign(D_u) u",
)
def zo_adamu(
    lr: LearningRate = 1e-4,
    mu: Radius = 1e-3,
    start: int = 1024,
    stop: int = 16_000,
    end: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Method[Mixture]:
    """Momentum inside of the direction: z0 ~ N(0, a I), zm ~ N(mean, (1 - a) I). All shares are 1 before `start`, fall
    as (1/2 + cos/2)^phi with phi 1, 0.1, 1.5 for a, b1, b2, and are `end` from `stop` on. Differs from the released
    code, which perturbs along one mixture (b1 fixed at 0.1) and moves along another."""
    a, b1, b2 = (Anneal(phi, start, stop, end) for phi in (1.0, 0.1, 1.5))
    estimator = SimulatedMomentum(a, b1, b2)
    return Method(estimator, Gaussian(), AdaMU(eps), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Rakhlin and Sridharan 2013 (the optimistic step); the field of a saddle from evaluations of f is ours",
    extra_memory="none (the seeds and scalars of one step)",
    formula="z <- z - lr (2 F_t - F_{t-1}),  F = (g_x, -g_y),  g an estimate of the gradient of f at z = (x, y)",
    example={"ascend": ("*",)},
)
def zo_saddle(
    ascend: tuple[str, ...],
    lr: LearningRate = 0.1,
    mu: Radius = MU,
    inner: Estimator[Any] = Coordinates(256, central=True),
    law: Law = Rademacher(),
) -> Method[None]:
    """min_x max_y f(x, y) from evaluations of f: the tensors that `ascend` names are y, one set of evaluations serves
    both. The default measures all coordinates of games of up to 256 numbers, of larger ones 256 a step, and converges
    on bilinear games for lr below about 1 / (2 L). `inner=Central(1)` is for games that are strongly convex in x and
    strongly concave in y, at small rates: see `zograd.estimators.games`."""
    return Method(Saddle(ascend, inner), law, Optimistic(), mu=mu, lr=lr)


@entry(
    source="Pinnau et al. 2017; Riedl et al. 2023, arXiv 2306.09778; defaults of CBXpy (Bailo et al. 2024)",
    extra_memory="n + 1 float32 slots a trained weight",
    formula="c = sum_i w_i x_i, w ~ exp(-alpha f(x_i)),  x_i <- x_i - lam dt (x_i - c) + sigma sqrt(dt) (x_i - c) xi_i",
)
def cbo(
    mu: Radius = 1.0,
    n: int = 20,
    alpha: float = 1.0,
    lam: float = 1.0,
    sigma: float = 1.0,
    dt: float = 0.1,
    componentwise: bool = True,
    law: Law = Gaussian(),
) -> Method[None]:
    """Consensus-based optimization: n particles, at first x + mu v_i, that drift to their softmin and explore in
    proportion to their distance from it. x is the consensus. A global method for few dimensions: it needs a population
    in memory, and mu wide enough to reach the minimum. Componentwise noise by default, where CBXpy has |x_i - c| xi_i
    (`componentwise=False`): that one diverges in more than a few dimensions at sigma = 1."""
    estimator = Consensus(n, alpha, lam, sigma, dt, componentwise)
    return Method(estimator, law, SGD(), mu=mu, lr=1.0)


@entry(
    source="arXiv 2501.07201 (stochastic Frank-Wolfe with double variance reduction), with the estimator of ZPDVR",
    extra_memory="four float32 slots a trained weight",
    formula="g = (D_u f_B(x) - D_u f_B(w)) u + G_w,  x <- x + lr 2/(t+2) (argmin_{s in set} <g, s> - x)",
    example={"set": L1Ball(1.0)},
)
def frank_wolfe_vr(
    set: LinearMinimizer,
    lr: LearningRate = 1.0,
    mu: Radius = MU,
    batch: int = 8,
    p: float | None = None,
    rho: float = 1.0,
    law: Law = Gaussian(),
) -> Method[None]:
    """Frank-Wolfe on a finite sum, without averaging: the variance of the terms is reduced by an anchor w and that of
    the directions by a tracker, so that near the minimum the vertex is the right one. Take batch near sqrt(N). The
    paper's abstract names the parts; that ZPDVR's recursion stands for them is our reading. The tracker has to be
    learned first: on sums of few terms `frank_wolfe`, which averages, needs fewer evaluations."""
    rule = FrankWolfe(set, rho, fade=0.0)
    return Method(ZPDVR(batch, p), law, rule, mu=mu, lr=lr)


@entry(
    source="arXiv 2501.07201 (ZSFW-DVR), reconstructed from a review: a refined estimator and batches of PAGE",
    extra_memory="four float32 slots a trained weight",
    formula="g = h with probability p, else g + (D_u f_B(x) - D_u f_B(x')) u;  x <- x + lr 2/(t+2) (lmo(g) - x)",
    example={"set": L1Ball(1.0)},
)
def frank_wolfe_page(
    set: LinearMinimizer,
    lr: LearningRate = 1.0,
    mu: Radius = MU,
    n: int = 1,
    batch: int = 8,
    p: float | None = None,
    refine: int = 1,
    law: Law = Gaussian(),
) -> Method[None]:
    """Frank-Wolfe on a finite sum along a recursive estimate: `estimators.Page`, whose gradient of all terms is that of
    `estimators.Tracker(refine)`, h <- h + mean_j (D_uj f - <u_j, h>) u_j refine / (refine + d + 1). Take batch near
    sqrt(N). How the paper combines the two parts is our reading. docs/coverage.md says where it was faster."""
    rule = FrankWolfe(set, 1.0, fade=0.0)
    return Method(Page(n, batch, p, Tracker(refine)), law, rule, mu=mu, lr=lr)


@entry(
    source="Cai, Alacaoglu and Diakonikolas 2023, arXiv 2310.02987: pull 2 / (k + 4), PAGE; from values is ours",
    extra_memory="three float32 slots a trained weight",
    formula="x <- b_k x_0 + (1 - b_k)(x - lr g),  b_k = weight / (k + offset),  g of PAGE on two-point differences",
)
def zo_halpern(
    lr: LearningRate = 1e-3,
    mu: Radius = MU,
    n: int = 1,
    batch: int = 1,
    p: float | None = None,
    full: Estimator[Any] = Coordinates(256, central=True),
    weight: float = 2.0,
    offset: float = 4.0,
    law: Law = Rademacher(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Anchored steps on the terms of a finite sum: what falls is the gradient at the last iterate. Take batch near
    sqrt(N) and lr near 1 / L. For a saddle give `full` and a method of your own the estimator `Saddle(names, ...)`; on
    a field that is monotone only, the step needs its resolvent, see `rules.Halpern`."""
    rule = Halpern(weight, offset)
    return Method(Page(n, batch, p, full), law, rule, mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Chen et al. 2023, arXiv 2302.04552; Rakhlin and Sridharan 2013; with two-point estimates",
    extra_memory="one float32 slot a trained weight (the seeds and scalars of one step)",
    formula="y <- argmin_z <g, z> + D(z, y) / eta_t,  x <- argmin_z <g, z> + D(z, y) / eta_{t+1},  eta by wrong hints",
    example={"map": EuclideanMap(L2Ball(1.0))},
)
def optimistic_mirror(
    map: MirrorMap,
    lr: LearningRate = 1.0,
    mu: Radius = MU,
    diameter: float = 1.0,
    floor: float = 1.0,
    n: int = 1,
    law: Law = Rademacher(),
) -> Method[None]:
    """Steps in the geometry of a set, with the last estimate as a hint, and a rate that falls where hints were wrong.

    map: `rules.EuclideanMap(set)` projects, `rules.Entropy(total)` multiplies weights on a simplex. lr is a factor of
    eta; `diameter` is meant to be that of the set."""
    return Method(Central(n), law, OptimisticMirror(map, diameter, floor), mu=mu, lr=lr)
