"""Lion and its relatives: the gradient of a convex function of an interpolated momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from zograd.core.query import Estimate
from zograd.core.sums import row_sums_
from zograd.core.vector import Slot, Vector
from zograd.rules.base import Rule
from zograd.rules.sgd import check_beta
from zograd.sets.base import one_thread
from zograd.stores import Iterate


@dataclass(frozen=True, slots=True)
class _LionK(Rule[Any]):
    """What all of them share: c = b1 m + (1 - b1) g, and m <- b2 m + (1 - b2) g in the slot "momentum"."""

    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        check_beta("beta1", self.beta1)
        check_beta("beta2", self.beta2)

    @property
    def slots(self) -> Mapping[str, float]:
        return {"momentum": 0.0}

    def interpolated(self, estimate: Estimate[Any]) -> Vector:
        """c, before m moves."""
        return (1.0 - self.beta1) * estimate.vector + Vector(((Slot("momentum"), self.beta1),))

    def remember_(self, m: torch.Tensor, g: torch.Tensor) -> None:
        """Move m."""
        m.mul_(self.beta2).add_(g, alpha=1.0 - self.beta2)


@dataclass(frozen=True, slots=True)
class Lion(_LionK):
    """c = b1 m + (1 - b1) g, x <- x - lr sign(c), m <- b2 m + (1 - b2) g.

    Chen et al. 2023, arXiv 2302.06675, Algorithm 2; the rule of Lion-K (arXiv 2310.05898) with K the l1 norm, whose
    gradient is the sign. With decoupled weight decay w its fixed points solve min f over |x|_inf <= 1 / w. lr is in
    units of x. Memory: one float32 slot of d elements.
    """

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        c = self.interpolated(estimate)
        for b in x.blocks(c, estimate.vector):
            c_block, g = b.v
            self.remember_(b.slots["momentum"], g)
            b.step_(c_block.sign_())


@dataclass(frozen=True, slots=True)
class NormalizedLion(_LionK):
    """c = b1 m + (1 - b1) g, x <- x - lr sqrt(d) c / |c|, m <- b2 m + (1 - b2) g: Lion-K with K = sqrt(d) |.|_2.

    The factor sqrt(d) gives the step the length of Lion's, |sign(c)| = sqrt(d), so that lr means the same. With
    decoupled weight decay w its fixed points solve min f over |x|_2 <= sqrt(d) / w. Costs one more pass than `Lion`,
    for |c|. Chen, Liu et al. 2023, arXiv 2310.05898, Table 1. Memory: one float32 slot of d elements.
    """

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        c = self.interpolated(estimate)
        norm = math.sqrt(x.gram([c])[0, 0])
        scale = math.sqrt(x.dim) / norm if norm > 0.0 else 0.0
        for b in x.blocks(c, estimate.vector):
            c_block, g = b.v
            self.remember_(b.slots["momentum"], g)
            b.step_(c_block.mul_(scale))


@dataclass(frozen=True, slots=True)
class RowLion(_LionK):
    """c = b1 m + (1 - b1) g, row <- row - lr sqrt(columns) c_row / |c_row|, m <- b2 m + (1 - b2) g: Lion-K with K the
    sum over rows of sqrt(columns) |c_row|_2.

    Rows are those of each leaf as a matrix, first axis by the rest; a vector has rows of one element, and moves as in
    `Lion`. The factor sqrt(columns) gives a step the length of Lion's. With decoupled weight decay w its fixed points
    solve min f over max_row |x_row|_2 <= sqrt(columns) / w. A row of zeros does not move. Chen, Liu et al. 2023,
    arXiv 2310.05898, Table 1 (group norms). Memory: one float32 slot of d elements.
    """

    works_on_pieces: ClassVar[bool] = False

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        c = self.interpolated(estimate)
        for b in x.blocks(c, estimate.vector, whole_row=True):
            c_block, g = b.v
            self.remember_(b.slots["momentum"], g)
            columns = b.leaf.matrix_shape[1]
            rows = c_block.view(-1, columns)
            norm = row_sums_(rows.square()).sqrt_()
            scale = torch.where(norm > 0.0, math.sqrt(columns) / norm, 0.0)
            b.step_(rows.mul_(scale[:, None]).view(-1))


@dataclass(frozen=True, slots=True)
class SpectralLion(_LionK):
    """c = b1 m + (1 - b1) g, W <- W - lr msign(c), m <- b2 m + (1 - b2) g: Lion-K with K the nuclear norm.

    msign(U S V^T) = U V^T, by a singular value decomposition of each leaf as a matrix (first axis by the rest), without
    the singular values that are 0 to rounding. lr is in units of the spectral norm of a step. With decoupled weight
    decay w the fixed points solve min f over |W|_2 <= 1 / w, the spectral norm. A vector moves by lr c / |c|. Chen, Liu
    et al. 2023, arXiv 2310.05898, Table 1. Memory: one float32 slot of d elements; the workspace is several times the
    largest leaf in float64, and the decomposition runs on one thread. `zo_muon` has the cheaper Newton-Schulz steps.
    """

    whole_leaf: ClassVar[bool] = True
    works_on_pieces: ClassVar[bool] = False

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        c = self.interpolated(estimate)
        for b in x.blocks(c, estimate.vector, whole_leaf=True):
            c_block, g = b.v
            self.remember_(b.slots["momentum"], g)
            b.step_(c_block.copy_(msign(c_block.view(b.leaf.matrix_shape)).reshape(-1)))


def msign(c: torch.Tensor) -> torch.Tensor:
    """U V^T in float64 for c = U S V^T, over the singular values above the rounding of the dtype of c."""
    with one_thread():
        u, s, vt = torch.linalg.svd(c.double(), full_matrices=False)
        kept = s > torch.finfo(c.dtype).eps * max(c.shape) * s[0]
        unit: torch.Tensor = (u * kept) @ vt
        return unit
