"""Diagonal Newton steps from the curvature that the probes themselves measure (HiZOO)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zograd.core.query import Estimate
from zograd.core.sums import row_sums_
from zograd.core.vector import Vector
from zograd.estimators.curved import Curvatures
from zograd.laws import Gaussian
from zograd.rules.base import Rule
from zograd.spaces import Diagonal
from zograd.stores import Iterate

if TYPE_CHECKING:
    from zograd.core.method import Method


TINY = 1e-6
"""The least factor by which a step may shrink h, where an estimate is negative and alpha large."""


class _Curvature(Rule[Curvatures]):
    """What the two rules share: what they read, and where they stand."""

    __slots__ = ()

    @property
    def reads(self) -> type[Curvatures]:
        return Curvatures

    @property
    def remedy(self) -> str:
        return "Use Curved(n), or methods.hizoo()."

    def misfit(self, method: Method[Any]) -> str | None:
        mine, space, law = (type(part).__name__ for part in (self, method.space, method.law))
        if not isinstance(method.space, Diagonal):
            return (
                f"{mine} keeps its curvature in the metric of the space, and {space} has none; "
                f"use space=Diagonal(), or methods.hizoo()"
            )
        if not isinstance(method.law, Gaussian):
            return (
                f"{mine} tells coordinates apart by z_i^2 - 1 with z normal, and {law} draws other directions "
                f"(for signs z_i^2 - 1 = 0); use law=Gaussian()"
            )
        return None


def directions(estimate: Estimate[Curvatures]) -> list[Vector]:
    """z_1 .. z_n, in the order of the curvatures."""
    return [Vector(((e, 1.0),)) for e, _ in estimate.vector.terms]


def grow_(log_h: Tensor, ratio: Tensor, alpha: float, low: float, high: float) -> None:
    """h <- clip((1 - alpha) h + alpha ratio h, low, high), for log h: exact for changes far below the spacing of 1."""
    growth = ratio.sub_(1.0).mul_(alpha).clamp_(min=TINY - 1.0).log1p_()
    log_h.add_(growth).clamp_(math.log(low), math.log(high))


@dataclass(frozen=True, slots=True)
class DiagonalNewton(_Curvature):
    """x <- x - lr (1/n) sum_j D_j z_j / sqrt(h), then h <- clip((1 - a) h + a h (1/n) sum_j c_j (z_j^2 - 1) / 2).

    c_j = (f(x + mu z_j / sqrt(h)) - 2 f(x) + f(x - mu z_j / sqrt(h))) / mu^2, z_j ~ N(0, I). Unbiased: with
    M = h^(-1/2) H h^(-1/2), E[z^T M z (z_i^2 - 1)] / 2 = M_ii. On a space with one h a row, the estimate is the mean
    over the row. Moves along the directions that were probed; the new h counts from the next step on.

    Noise: one step's ratio has a deviation of about tr(M) / sqrt(2), so averaging takes alpha << 1 / tr(M)^2. h stays
    within [low, high], which bounds the radius of the probes, mu / sqrt(h).
    """

    alpha: float = 1e-8
    low: float = 1e-2
    high: float = 1e6

    def __post_init__(self) -> None:
        check_curvature(self.alpha, self.low, self.high)

    def apply(self, x: Iterate, estimate: Estimate[Curvatures], state: dict[str, Any]) -> None:
        c, by_row = estimate.aux, x.store.space.by_row  # type: ignore[attr-defined]
        for b in x.blocks(estimate.vector, *directions(estimate), whole_row=by_row):
            g, *z = b.v
            b.step_(g)
            for c_j, z_j in zip(c, z, strict=True):
                z_j.square_().sub_(1.0).mul_(c_j / (2 * len(c)))
            ratio = z[0]
            for z_j in z[1:]:
                ratio.add_(z_j)
            log_h = b.slots["log_curvature"]
            if by_row:
                columns = b.leaf.matrix_shape[1]
                ratio, log_h = (
                    row_sums_(ratio.view(-1, columns)).div_(columns),
                    b.leaf.slots["log_curvature"][b.rows(), 0],
                )
            grow_(log_h, ratio, self.alpha, self.low, self.high)


@dataclass(frozen=True, slots=True)
class PublishedHiZOO(_Curvature):
    """h <- (1 - a) h + a h (1/n) sum_j |c_j| z_j^2 / 2, then x <- x - lr (1/n) sum_j D_j z_j / sqrt(h) with the new h.

    What the released code does. E[|c| z_i^2] / 2 = tr(M) / 2 + M_ii where H is positive: the trace dominates, so that
    h tells coordinates apart only in few dimensions; and the move is not along the direction that was probed. One
    defect of the release is absent: its h in 16 bits stays exactly 1 at alpha = 1e-8.
    """

    alpha: float = 1e-8
    low: float = 1e-2
    high: float = 1e6

    def __post_init__(self) -> None:
        check_curvature(self.alpha, self.low, self.high)

    def misfit(self, method: Method[Any]) -> str | None:
        if isinstance(method.space, Diagonal) and method.space.by_row:
            return "PublishedHiZOO has one h an element; use space=Diagonal(), or methods.hizoo_row() for one a row"
        return _Curvature.misfit(self, method)

    def apply(self, x: Iterate, estimate: Estimate[Curvatures], state: dict[str, Any]) -> None:
        c = estimate.aux
        for b in x.blocks(estimate.vector, *directions(estimate)):
            g, *z = b.v
            for c_j, z_j in zip(c, z, strict=True):
                z_j.square_().mul_(abs(c_j) / (2 * len(c)))
            ratio = z[0]
            for z_j in z[1:]:
                ratio.add_(z_j)
            grow_(b.slots["log_curvature"], ratio, self.alpha, self.low, self.high)
            b.step_(g)


def check_curvature(alpha: float, low: float, high: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the share of the new curvature and must lie in [0, 1], got {alpha}")
    if not 0 < low <= 1 <= high:
        raise ValueError(f"h starts at 1, so 0 < low <= 1 <= high is needed, got low={low}, high={high}")
