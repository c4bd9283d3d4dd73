"""Low-rank optimizers whose basis are columns of the cosine transform: Trion and DCT-AdamW (arXiv 2505.17967)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zograd.core.query import Estimate
from zograd.core.slots import PerRow
from zograd.core.vector import Slot, Vector
from zograd.laws.cosine import cosines
from zograd.laws.factors import PANEL
from zograd.rules.base import Rule
from zograd.rules.lowrank import msign_newton_schulz5
from zograd.rules.sgd import check_beta
from zograd.sets.base import one_thread
from zograd.stores import Iterate


def transformed(g: Tensor) -> Tensor:
    """G Q for G (m, n) in float64, Q the orthonormal cosine matrix of n columns: a fast transform, O(mn log n).

    Q_jk = sqrt(2 / n) cos(pi (2 j + 1) k / (2 n)), Q_j0 = sqrt(1 / n). By the Fourier transform of a row in the order
    0, 2, 4, .. , 5, 3, 1 (Makhoul 1980).
    """
    rows, n = g.shape
    half = n // 2 + 1
    angle = torch.arange(half, dtype=torch.float64, device=g.device) * (math.pi / (2 * n))
    cos, sin = angle.cos().mul_(math.sqrt(2.0 / n)), angle.sin().mul_(math.sqrt(2.0 / n))
    out = torch.empty_like(g)
    size = max(1, PANEL // n)
    for start in range(0, rows, size):
        part = g[start : start + size]
        spectrum = torch.fft.rfft(torch.cat((part[:, ::2], part[:, 1::2].flip(1)), dim=1), dim=1)
        real, imaginary = spectrum.real, spectrum.imag
        to = out[start : start + size]
        to[:, n - half + 1 :] = (real * sin - imaginary * cos)[:, 1:].flip(1)
        to[:, :half] = real * cos + imaginary * sin
    out[:, 0] *= math.sqrt(0.5)
    return out


def columns(n: int, chosen: Tensor) -> Tensor:
    """The chosen columns of Q, transposed: [r, n]."""
    return torch.from_numpy(cosines(n, chosen.tolist())).to(chosen.device).mul_(math.sqrt(2.0 / n))


def strongest(s: Tensor, rank: int) -> Tensor:
    """The `rank` columns of S = G Q of the largest sum of absolute values, in ascending order."""
    return s.abs().sum(0).argsort(descending=True, stable=True)[:rank].sort().values


def check_rank(rank: int) -> None:
    if rank < 1:
        raise ValueError(f"rank is the number of cosines that are kept, at least 1, got {rank}")


@dataclass(frozen=True, slots=True)
class Trion(Rule[Any]):
    """M <- M + G, S = M Q, I the r columns of S of largest l1 norm, M <- M - (1 - b) S_I Q_I^T,
    W <- W - lr sqrt(max(1, m / n)) msign(S_I) Q_I^T for a leaf of m x n (first axis by the rest).

    Q is the orthonormal cosine matrix (`laws.DCT`), msign five quintic Newton-Schulz steps, so lr is in units of the
    spectral norm of a step, as in Muon. What I leaves out stays in M whole: that is the error feedback. With r = n and
    b = 0 it is Muon without momentum. A vector is a matrix with one column, and moves by about lr sqrt(m) M / |M|.
    arXiv 2505.17967.

    Memory: one slot of d elements; the workspace is several times the largest leaf in float64. Cost: a fast transform
    of each row, and the Newton-Schulz steps on m x r. ValueError for a rank below 1 and a beta outside [0, 1).

    >>> import zograd as zo
    >>> sorted(zo.rules.Trion(rank=4).slots)
    ['momentum']
    """

    rank: int = 16
    beta: float = 0.95
    newton_schulz: int = 5

    whole_leaf: ClassVar[bool] = True
    works_on_pieces: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_beta("beta", self.beta)

    @property
    def slots(self) -> Mapping[str, float]:
        return {"momentum": 0.0}

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        total = estimate.vector + Vector(((Slot("momentum"), 1.0),))
        for b in x.blocks(total, whole_leaf=True):
            rows, n = b.leaf.matrix_shape
            momentum = b.v[0].double().view(rows, n)
            with one_thread():
                s = transformed(momentum)
                chosen = strongest(s, self.rank)
                s, q = s[:, chosen], columns(n, chosen)
                momentum -= (1.0 - self.beta) * (s @ q)
                step = msign_newton_schulz5(s, self.newton_schulz) @ q
            b.slots["momentum"].copy_(momentum.view(-1))
            b.step_(b.v[0].copy_(step.mul_(math.sqrt(max(1.0, rows / n))).view(-1)))


@dataclass(frozen=True, slots=True)
class CosineAdam(Rule[Any]):
    """S = G Q, I the r columns of S of largest l1 norm, m <- b1 m + (1 - b1) S_I, s <- b2 s + (1 - b2) S_I^2,
    W <- W - lr m^ / (sqrt(s^) + eps) Q_I^T, with m^ = m / (1 - b1^t): DCT-AdamW of arXiv 2505.17967.

    I is chosen again every `refresh` steps. A column that stays keeps its moments, one that comes in starts at 0: Q is
    orthogonal, so the change of basis moves columns and mixes none. t counts the steps of the run, also for columns
    that came late, whose first steps are then as large as b1 and b2 make them. With r = n it is Adam on G Q. A vector
    is a matrix with one column, and has Adam.

    Memory: two slots of r numbers a row, r / n of what Adam keeps, and the r numbers of columns of each leaf. Cost: a
    fast transform of each row. ValueError for a rank or refresh below 1, and betas outside [0, 1).

    >>> import zograd as zo
    >>> zo.rules.CosineAdam(rank=4).slots["cosine_avg"].width
    4
    """

    rank: int = 16
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    refresh: int = 1

    whole_leaf: ClassVar[bool] = True
    works_on_pieces: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_beta("beta1", self.beta1)
        check_beta("beta2", self.beta2)
        if self.refresh < 1:
            raise ValueError(f"the columns are chosen again every `refresh` steps, at least 1, got {self.refresh}")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"cosine_avg": PerRow(0.0, width=self.rank), "cosine_avg_sq": PerRow(0.0, width=self.rank)}

    def gradient(self, estimate: Estimate[Any]) -> Vector:
        """What is transformed: the estimate."""
        return estimate.vector

    def left(self, slots: Mapping[str, Tensor], rest: Tensor) -> None:
        """What the chosen columns did not take, G - S_I Q_I^T."""

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        t = state["t"] = state.get("t", 0) + 1
        correct1, correct2 = 1.0 - self.beta1**t, 1.0 - self.beta2**t
        kept: list[list[int]] = state.get("columns", [])
        state["columns"] = [[] for _ in x.store.leaves]
        for b in x.blocks(self.gradient(estimate), whole_leaf=True):
            n = b.leaf.matrix_shape[1]
            g = b.v[0].double().view(b.leaf.matrix_shape)
            r = min(self.rank, n)
            moments = [b.leaf.slots[name][:, :r] for name in ("cosine_avg", "cosine_avg_sq")]
            with one_thread():
                s = transformed(g)
                before = kept[b.leaf.index] if kept else []
                again = (t - 1) % self.refresh == 0
                chosen = strongest(s, r) if again else torch.tensor(before, device=s.device)
                if again and before:
                    regroup_(moments, before, chosen.tolist())
                state["columns"][b.leaf.index] = chosen.tolist()
                s, q = s[:, chosen], columns(n, chosen)
                self.left(b.slots, g - s @ q)
                m, v = moments
                m.copy_(self.beta1 * m.double() + (1.0 - self.beta1) * s)
                v.copy_(self.beta2 * v.double() + (1.0 - self.beta2) * s.square())
                step = (m.double() / correct1) / ((v.double() / correct2).sqrt_() + self.eps)
                b.step_(b.v[0].copy_((step @ q).view(-1)))


def regroup_(moments: list[Tensor], before: list[int], after: list[int]) -> None:
    """Columns of the moments that stood for the cosines `before` now stand for `after`; new ones are 0."""
    places = {column: place for place, column in enumerate(before)}
    for moment in moments:
        new = torch.zeros_like(moment)
        for place, column in enumerate(after):
            if column in places:
                new[:, place] = moment[:, places[column]]
        moment.copy_(new)


@dataclass(frozen=True, slots=True)
class CosineAdamFeedback(CosineAdam):
    """`CosineAdam` with error feedback: G <- G + E before the transform, E <- G - S_I Q_I^T after it.

    What a step leaves out is not lost but comes back in the next ones. Costs another slot of d elements. The paper
    keeps E in 8 or 4 bits; here it has the dtype of the arithmetic.
    """

    @property
    def slots(self) -> Mapping[str, float]:
        return {**CosineAdam.slots.fget(self), "error": 0.0}  # type: ignore[attr-defined]

    def gradient(self, estimate: Estimate[Any]) -> Vector:
        return estimate.vector + Vector(((Slot("error"), 1.0),))

    def left(self, slots: Mapping[str, Tensor], rest: Tensor) -> None:
        slots["error"].copy_(rest.view(-1))
