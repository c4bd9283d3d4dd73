"""Sets and penalties of singular values: blocks are whole leaves, each a matrix (its first axis by the rest)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zograd.sets.balls import outside
from zograd.sets.base import Ball, Extent, Gathered, OneTensor, Place, one_thread, positive

SMALL = 128
"""Matrices whose shorter side is at most this are factorised; of larger ones the top pair is found by iteration."""


def as_matrix(x: Tensor) -> Tensor:
    return x.double().reshape(x.shape[0] if x.ndim else 1, -1)


def top_singular_pair(g: Tensor, iterations: int = 100, tolerance: float = 1e-10) -> tuple[float, Tensor, Tensor]:
    """sigma_1, u, v of a matrix, in float64, |u| = |v| = 1: from the SVD, or by power iteration from the row sums.

    Deterministic, threads included. The iteration stops when sigma grows by less than `tolerance`, relative.
    """
    with one_thread():
        g = g.double()
        if min(g.shape) <= SMALL:
            u, s, vt = torch.linalg.svd(g, full_matrices=False)
            return float(s[0]), u[:, 0], vt[0]
        v = g.mT @ g.sum(1) + g[int(g.square().sum(1).argmax())]
        sigma, last = 0.0, -1.0
        for _ in range(iterations):
            v = v / v.norm().clamp_min(1e-300)
            u = g @ v
            sigma = float(u.norm())
            if sigma == 0.0 or sigma - last <= tolerance * sigma:
                break
            last = sigma
            v = g.mT @ u
        return sigma, u / max(sigma, 1e-300), v / v.norm().clamp_min(1e-300)


@dataclass(frozen=True, slots=True)
class NuclearBall(OneTensor):
    """{x : sum of the singular values of all leaves <= radius}. argmin <g, s> = -radius u_1 v_1^T.

    (sigma_1, u_1, v_1) is the top singular triple among all leaves; the other leaves of the vertex are 0, so it has
    rank one. Workspace: the largest leaf in float64.

    The projection projects all singular values onto the simplex of the radius when their sum is larger, by two singular
    value decompositions a leaf (the first without vectors). Workspace: the largest leaf in float64, several times.
    """

    radius: float
    whole_leaf: ClassVar[bool] = True
    unit: ClassVar[Extent] = "leaf"

    def __post_init__(self) -> None:
        positive(self, "radius", self.radius)

    def scan(
        self, g: Tensor, at: Place, found: tuple[float, int, Tensor, Tensor] | None
    ) -> tuple[float, int, Tensor, Tensor]:
        sigma, u, v = top_singular_pair(g.view(at.shape))
        return (sigma, at.start, u, v) if found is None or sigma > found[0] else found

    def vertex_(self, out: Tensor, g: Tensor, at: Place, found: tuple[float, int, Tensor, Tensor]) -> Tensor:
        sigma, start, u, v = found
        if at.start != start or sigma == 0.0:
            return out.zero_()
        torch.outer((-self.radius * u).to(out.dtype), v.to(out.dtype), out=out.view(at.shape))
        return out

    def lowest(self, found: tuple[float, int, Tensor, Tensor]) -> float:
        return -self.radius * found[0]

    def measure(self, y: Tensor, found: Gathered | None) -> Gathered:
        values = Gathered() if found is None else found
        with one_thread():
            values.add(torch.linalg.svdvals(y.double()))
        return values

    def project_block_(self, y: Tensor, found: Gathered) -> Tensor:
        return shrink_(y, lambda s: found.over_(s, self.radius)) if found.total > self.radius else y

    def explain(self, *leaves: Tensor) -> str | None:
        size = math.fsum(float(torch.linalg.svdvals(as_matrix(x)).sum()) for x in leaves if x.numel())
        return outside("the nuclear norm", size, "nuclear ball", self.radius)

    def ball(self, dim: int) -> Ball:
        """Radius / sqrt(d): all leaves together have at most d singular values, whose squares add up to |r|^2."""
        return Ball(0.0, self.radius / math.sqrt(dim))


@dataclass(frozen=True, slots=True)
class Nuclear:
    """r(x) = weight sum of the singular values of each leaf. prox: singular values shrunk by t weight, at least 0.

    Costs a singular value decomposition a leaf and step. Workspace: the largest leaf in float64, several times.
    """

    weight: float
    unit: ClassVar[Extent] = "leaf"

    def __post_init__(self) -> None:
        positive(self, "weight", self.weight)

    def prox_(self, y: Tensor, t: float) -> Tensor:
        return shrink_(y, lambda s: (s - t * self.weight).clamp_min_(0.0))


def shrink_(y: Tensor, shrunk: Callable[[Tensor], Tensor]) -> Tensor:
    """y <- the matrix with its singular values s replaced by shrunk(s)."""
    with one_thread():
        u, s, vt = torch.linalg.svd(y.double(), full_matrices=False)
        return y.copy_((u * shrunk(s)) @ vt)
