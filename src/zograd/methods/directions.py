"""The menu, page of directions: what changes from `zo_sgd` is where the probes point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from zograd.core.method import Method
from zograd.estimators import Aligned, Central, Forward, Mirrored, Watching
from zograd.laws import (
    DCT,
    Components,
    Gaussian,
    Law,
    LowRank,
    OnLayerInputs,
    Orthogonal,
    Projected,
    SmallWeights,
    Sphere,
    Subspace,
    TopScores,
    squared_weights,
)
from zograd.methods.menu import MU, LearningRate, Radius, differences, entry
from zograd.rules import SGD, FactorMomentum, SubspaceMuon
from zograd.stores import Leaf

__all__ = [
    "agzo",
    "dap",
    "eggroll",
    "lozo",
    "lozo_m",
    "senszoq",
    "sparse_mezo",
    "subzero",
    "tezo",
    "zo_dct",
    "zo_muon",
    "zo_orthogonal",
]


@entry(
    source="orthogonal blocks of directions: Choromanski et al. 2018 (structured evolution); Kozak et al. 2021",
    extra_memory="none",
    formula="x <- x - lr (1/n) sum_j (f(x + mu v_j) - f(x - mu v_j)) / (2 mu) v_j,  <v_j, v_k> = d [j = k]",
)
def zo_orthogonal(
    lr: LearningRate = 1e-6, mu: Radius = MU, n: int = 8, law: Law = Orthogonal(), weight_decay: float = 0.0
) -> Method[None]:
    """Two-point gradient descent along n orthogonal directions: total variance d/n - 1 instead of (d - 1)/n.

    With n = d and no noise this is the gradient itself. `law=Walsh()` has nearly orthogonal Rademacher directions at
    the price of independent ones; the default (exactly orthogonal, Haar) generates n^2 / 2 noises a probe side.
    """
    return Method(Central(n), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="LOZO, ICLR 2025, arXiv 2410.07698; rank 1 or 2, interval 50 or 100, lr 1e-6 or 1e-7, eps 1e-3",
    extra_memory="none (the thin factor of the matrix in use)",
    formula="X <- X - lr (f(X + mu Z) - f(X - mu Z)) / (2 mu) Z,  Z = U V^T / sqrt(r),  V kept for `refresh` steps",
)
def lozo(
    lr: LearningRate = 1e-6,
    mu: Radius = 1e-3,
    n: int = 1,
    rank: int = 2,
    refresh: int = 50,
    weight_decay: float = 0.0,
) -> Method[None]:
    """Low-rank two-point gradient descent with a lazily resampled right factor.

    Different from the released code: Z has elements of variance 1 (the code has no 1/sqrt(r), so its lr is r times
    larger), and the update is along the very Z that was probed, also on steps that resample V (the code draws V anew
    before the update there: cosine 0.01 to 0.1).
    """
    return Method(Central(n), LowRank(rank, refresh), SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="SubZero, ICCV 2025, arXiv 2410.08989; rank 24, interval 1000, eps 1e-3",
    extra_memory="none (r x r numbers a matrix)",
    formula="X <- X - lr (f(X + mu Z) - f(X - mu Z)) / (2 mu) Z,  Z = sqrt(mn/r^2) U Z0 V^T,  U, V orthonormal",
)
def subzero(
    lr: LearningRate = 1e-6,
    mu: Radius = 1e-3,
    n: int = 1,
    rank: int = 24,
    refresh: int = 1000,
    weight_decay: float = 0.0,
) -> Method[None]:
    """Two-point gradient descent in r x r subspaces of each matrix, with orthonormal sides kept for `refresh` steps.

    Leaves are matrices by their first axis; the released code reshapes LoRA and prompt tensors to near squares.
    """
    return Method(Central(n), Subspace(rank, refresh), SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="TeZO, arXiv 2501.19057; the rank is by layer there, 31.5 on average",
    extra_memory="none (the thin factor of the matrix in use)",
    formula="X <- X - lr (f(X + mu Z) - f(X - mu Z)) / (2 mu) Z,  Z = r^-1/2 sum_s tau_s u_s v_s^T,  u, v fixed",
)
def tezo(
    lr: LearningRate = 1e-6, mu: Radius = 1e-3, n: int = 1, rank: int = 32, weight_decay: float = 0.0
) -> Method[None]:
    """Two-point gradient descent in r fixed rank-one components of each matrix: only their weights tau are sampled.

    One rank for all matrices, where the paper reads it off the spectrum of each weight.
    """
    return Method(Central(n), Components(rank), SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="EGGROLL, arXiv 2511.16652; rank 1, antithetic pairs, z-scored fitness",
    extra_memory="none",
    formula="X <- X - lr 1/(2 n) sum_i (A_i+ - A_i-) E_i,  E_i = A_i B_i^T / sqrt(r),  A the z-scored losses",
)
def eggroll(
    lr: LearningRate = 1e-3,
    mu: Radius = 1e-2,
    n: int = 16,
    rank: int = 1,
    shaped: bool = True,
    weight_decay: float = 0.0,
) -> Method[None]:
    """Evolution strategy with low-rank noise: n antithetic pairs, each with factors of its own in every matrix.

    shaped: z-scored fitness, so lr is in units of x; False takes the differences of the losses, with lr in units of the
    gradient. The released code multiplies the mean by the square root of the population on top. No two matrices share
    noise.
    """
    estimator = Mirrored(n) if shaped else Central(n)
    return Method(estimator, LowRank(rank, 1), SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="DCT subspace of arXiv 2505.17967 (Trion, DCT-AdamW) for probes: our combination",
    extra_memory="none",
    formula="X <- X - lr (f(X + mu Z) - f(X - mu Z)) / (2 mu) Z,  Z = sqrt(n/r) U Q_I^T,  Q the orthonormal DCT",
)
def zo_dct(
    lr: LearningRate = 1e-6,
    mu: Radius = MU,
    n: int = 1,
    rank: int = 16,
    refresh: int = 100,
    columns: tuple[int, ...] = (),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Two-point gradient descent in the span of r cosines of each row, random ones or those given as `columns`."""
    law = DCT(rank, refresh, tuple(columns))
    return Method(Central(n), law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="LOZO-M, ICLR 2025, arXiv 2410.07698; rank 1 or 2, interval 50 or 100, beta 0.9",
    extra_memory="r numbers a row of each matrix",
    formula="N <- b N + (1-b) (f(X + mu Z) - f(X - mu Z)) / (2 mu) U,  X <- X - lr N V^T / sqrt(r)",
)
def lozo_m(
    lr: LearningRate = 1e-6,
    mu: Radius = 1e-3,
    n: int = 1,
    rank: int = 2,
    refresh: int = 50,
    beta: float = 0.9,
    weight_decay: float = 0.0,
) -> Method[None]:
    """LOZO with momentum in the thin coordinates; N is re-expressed, N V_old^T V_new / n, when V is resampled."""
    rule = FactorMomentum(beta, rank)
    return Method(Central(n), LowRank(rank, refresh), rule, mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="ZO-Muon, arXiv 2602.17155; rank 64, 4 directions, forward differences",
    extra_memory="none (r x n numbers of the matrix in use)",
    formula="G = sum_j (f(X + mu sqrt(m/r) P Psi_j) - f(X)) Psi_j,  X <- X - lr P msign(G),  P^T P = I",
)
def zo_muon(
    lr: LearningRate = 1e-3,
    mu: Radius = 1e-3,
    n: int = 4,
    rank: int = 64,
    refresh: int = 100,
    plain: float = 1e-4,
    weight_decay: float = 0.0,
) -> Method[None]:
    """The orthogonalised estimate in a random column space of each matrix; lr is in units of the step's spectral norm.

    The published code draws P anew for every one of the n directions and steps with the last one, so n - 1 of n
    estimates are in coordinates of another subspace; here all share P for `refresh` steps. Vectors move by `plain` lr
    times their plain estimate (a fixed lr of 1e-7 there).
    """
    method = Method(Forward(n), Projected(rank, refresh), SubspaceMuon(plain), mu=mu, lr=lr, weight_decay=weight_decay)
    return method


@entry(
    source="AGZO, Lin et al. 2026 (ICML), arXiv 2601.17261, Algorithm 1; one direction, eps 1e-3; rank 4 is ours",
    extra_memory="rank float32 numbers a column of each trained matrix",
    formula="v = R A^T,  x <- x - lr (f(x + mu v) - f(x)) / mu v,  A orthonormal, the leading inputs of the layer",
    needs="layers",
)
def agzo(
    lr: LearningRate = 1e-6,
    mu: Radius = 1e-3,
    rank: int = 4,
    refresh: int = 1,
    n: int = 1,
    central: bool = False,
    weight_decay: float = 0.0,
) -> Method[None]:
    """Perturbs each linear layer in the span of what enters it, which the forward at x shows.

    refresh: steps between two looks. central=True takes differences to both sides, for one more evaluation in a step
    that looks, n more in the others. The tape does not replay; a run goes on from its saved state.
    """
    inner = differences(n, central)
    return Method(Watching(inner, refresh), OnLayerInputs(rank), SGD(), mu=mu, lr=lr, weight_decay=weight_decay)


@entry(
    source="Sparse-MeZO, NeurIPS 2025, arXiv 2402.15751; sparsity 0.5 to 0.8, eps 1e-3",
    extra_memory="one number a tensor",
    formula="x <- x - lr (f(x + mu m z) - f(x - mu m z)) / (2 mu) m z,  m_i = [|x_i| <= h],  z ~ N(0, I)",
)
def sparse_mezo(
    lr: LearningRate = 2e-6, mu: Radius = 1e-3, n: int = 1, sparsity: float = 0.75, law: Law = Gaussian()
) -> Method[None]:
    """MeZO on the small weights of each tensor; the thresholds h are fixed when the run starts.

    The mask comes from the unperturbed weights, for both probes and the update. There is no weight decay: it would
    move the weights that are left alone.
    """
    return Method(Central(n), SmallWeights(sparsity, law), SGD(), mu=mu, lr=lr)


@entry(
    source="SensZOQ, ICLR 2025; the 0.1 % most sensitive weights, lr 1e-7 to 1e-6, eps 1e-3",
    extra_memory="one byte a trained weight",
    formula="x <- x - lr (f(x + mu m z) - f(x - mu m z)) / (2 mu) m z,  m = top fraction by squared gradient, fixed",
    example={"scores": squared_weights},
)
def senszoq(
    scores: Callable[[Leaf], Tensor],
    lr: LearningRate = 5e-7,
    mu: Radius = 1e-3,
    n: int = 1,
    density: float = 1e-3,
    law: Law = Gaussian(),
) -> Method[None]:
    """MeZO on a fixed set of sensitive weights, chosen once over the whole model.

    scores: a function of a leaf, such as `laws.Scores.load(file)` (mean squared gradients of the pre-training loss, or
    a mask) or what `laws.sensitivity` estimates. The rest stays as it is; the paper quantises it to 4 bits, which is
    the model's affair here. There is no weight decay: it would move the rest.
    """
    return Method(Central(n), TopScores(density, scores, law), SGD(), mu=mu, lr=lr)


@entry(
    source="DAP: Ma and Huang, ICLR 2025 (OpenReview ywFOSIT9ik), Algorithm 2; lr 1e-4, mu 1e-5 on prompts",
    extra_memory="none (guide='pilot'), or one float32 slot a trained weight",
    formula="g_1 = mean D_z z,  u = g_1/|g_1|,  v = sqrt(d-1) P z/|P z| + xi u,  x <- x - lr (g_1 + mean D_v v)/2",
)
def dap(
    lr: LearningRate = 1e-4,
    mu: Radius = MU,
    n: int = 8,
    guide: Literal["pilot", "momentum", "user"] = "pilot",
    fixed_norm: bool = True,
    central: bool = False,
    beta: float = 0.9,
    law: Law = Sphere(),
    weight_decay: float = 0.0,
) -> Method[None]:
    """Directionally aligned perturbations: half of the directions find a guide, the other half are aligned with it.

    Both halves are averaged; the released code for language models throws the first away, which wastes half of the
    evaluations. At equal evaluations the total error is that of the sphere law: a gain needs n near d, or a good guide.
    """
    estimator = Aligned(n, guide, fixed_norm, central, beta)
    return Method(estimator, law, SGD(), mu=mu, lr=lr, weight_decay=weight_decay)
