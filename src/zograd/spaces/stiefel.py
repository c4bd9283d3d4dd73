"""Matrices with orthonormal columns, or with columns of unit norm; leaves are seen whole, matrices of (n, p)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zograd.sets.base import one_thread
from zograd.spaces.base import Extent, Space, length, total
from zograd.spaces.sphere import Sphere


@dataclass(frozen=True, slots=True)
class Stiefel(Space):
    """{X of shape (n, p), n >= p : X^T X = I}, with the metric of the ambient space: compact, complete.

    lift: the projection Z - X sym(X^T Z), symmetric. Retraction: "qr", the Q of X + V with a positive diagonal of R, or
    "polar", (X + V) (I + V^T V)^(-1/2), the nearest point of the manifold, of second order. Both take a
    factorisation of a leaf each probe, n p^2 operations; `Landing` takes products only. Workspace: a few leaves.
    """

    retraction: Literal["qr", "polar"] = "qr"
    flat: ClassVar[bool] = False
    ambient: ClassVar[bool] = True
    unit: ClassVar[Extent] = "leaf"
    curvature: ClassVar[str] = "between -1/2 and 1"
    complete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.retraction not in ("qr", "polar"):
            raise ValueError(f"Stiefel retracts by 'qr' or 'polar', got {self.retraction!r}")

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return to_tangent_(z, x)

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        with one_thread():
            if self.retraction == "qr":
                q, r = torch.linalg.qr(v.add_(x))
                return torch.mul(q, r.diagonal().sign(), out=x)
            u, _, wt = torch.linalg.svd(v.add_(x), full_matrices=False)
            return torch.matmul(u, wt, out=x)

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return (u * v).sum()

    def explain(self, x: Tensor) -> str | None:
        return off_stiefel(x, max(1e-5, 8 * torch.finfo(x.dtype).eps))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """[X V] expm([[S, -V^T V], [I, S]]) [I 0]^T expm(-S), S = X^T V (Edelman, Arias, Smith 1998, eq. 2.42)."""
        with one_thread():
            p, s = x.shape[1], x.mT @ v
            eye = torch.eye(p, dtype=x.dtype, device=x.device)
            block = torch.cat([torch.cat([s, -v.mT @ v], 1), torch.cat([eye, s], 1)])
            y: Tensor = torch.cat([x, v], 1) @ torch.linalg.matrix_exp(block)[:, :p] @ torch.linalg.matrix_exp(-s)
            return y


@dataclass(frozen=True, slots=True)
class Landing(Space):
    """Matrices (n, p) near X^T X = I, approached and not enforced: products only, no factorisation.

    A move is Y = X + V, then Y <- Y + pull Y (I - Y^T Y), a step down |Y^T Y - I|^2 / 4 (Ablin and Peyre 2022;
    pull = 1/2 is a Newton-Schulz step to the nearest orthonormal matrix, which squares the distance). Of a long V the
    first part, of norm rho, is made. Moves that are short beside rho keep |X^T X - I| at about 3/4 |V|^4; long ones,
    one after the other, can bring it above 1/2, where no run starts. The metric is that of the ambient space; probes
    are undistorted while mu sqrt(n p) <= rho. A move of zero changes an X that is off the manifold.
    """

    pull: float = 0.5
    rho: float = 0.5
    flat: ClassVar[bool] = False
    unit: ClassVar[Extent] = "leaf"
    retracts: ClassVar[bool] = False
    curvature: ClassVar[str] = "between -1/2 and 1"
    complete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.25 <= self.pull <= 0.5:
            raise ValueError(f"pull must lie in [0.25, 0.5] for X to stay near X^T X = I, got {self.pull}")
        if not 0 < self.rho <= 0.5:
            raise ValueError(f"rho must lie in (0, 0.5] for X to stay near X^T X = I, got {self.rho}")

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return to_tangent_(z, x)

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        size = math.sqrt(total(v, v))
        x.add_(v, alpha=min(1.0, self.rho / size) if size > 0.0 else 1.0)
        with one_thread():
            return x.add_(x - x @ (x.mT @ x), alpha=self.pull)

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return (u * v).sum()

    def explain(self, x: Tensor) -> str | None:
        return off_stiefel(x, 0.5)


@dataclass(frozen=True, slots=True)
class Oblique(Space):
    """Matrices (n, p) whose columns have norm `radius`: p spheres. For rows use `Sphere`, which needs no whole leaf."""

    radius: float = 1.0
    flat: ClassVar[bool] = False
    unit: ClassVar[Extent] = "leaf"
    complete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.rows

    @property
    def rows(self) -> Sphere:
        return Sphere(self.radius)

    @property
    def curvature(self) -> str:
        return f"between 0 and {self.rows.curvature:g}"

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return z.copy_(self.rows.lift_(turned(z), turned(x), slots).mT)

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        return x.copy_(self.rows.move_(turned(x), turned(v)).mT)

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return (u * v).sum()

    def explain(self, x: Tensor) -> str | None:
        if x.ndim != 2:
            return f"it has shape {tuple(x.shape)}, but the oblique manifold consists of matrices"
        why = self.rows.explain(turned(x))
        return None if why is None else why.replace("row", "column").replace(" along the last axis", "")

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Where the geodesic from x with velocity v is after unit time."""
        return self.rows.exp(turned(x), turned(v)).mT

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest v with exp(x, v) = y."""
        return self.rows.log(turned(x), turned(y)).mT

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The length of the geodesic from x to y."""
        return length(self.rows.dist(turned(x), turned(y)))

    def transport(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """u, tangent at x, carried in parallel along the geodesic to y."""
        return self.rows.transport(turned(x), turned(y), turned(u)).mT


def turned(x: Tensor) -> Tensor:
    return x.mT.contiguous()


def to_tangent_(z: Tensor, x: Tensor) -> Tensor:
    """z - x sym(x^T z)."""
    with one_thread():
        s = x.mT @ z
        return z.sub_(x @ (s + s.mT), alpha=0.5)


def off_stiefel(x: Tensor, slack: float) -> str | None:
    if x.ndim != 2 or x.shape[0] < x.shape[1]:
        return f"it has shape {tuple(x.shape)}, but orthonormal columns need a matrix with at least as many rows"
    x = x.double()
    off = float((x.mT @ x - torch.eye(x.shape[1], dtype=x.dtype, device=x.device)).norm())
    if off <= slack:
        return None
    return f"|X^T X - I| = {off:g}, but at most {slack:g} is wanted; start from torch.linalg.qr(X).Q.contiguous()"
