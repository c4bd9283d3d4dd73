"""Domains given by inequalities, in metrics that blow up at their walls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from zograd.sets.base import one_thread
from zograd.spaces.base import Extent, Space, refuse_metric, total

Constraints: TypeAlias = Callable[[Tensor], Tensor]
"""x in the shape of the leaf -> a vector d(x) of K numbers, all > 0 inside."""
MetricName: TypeAlias = Literal["dikin", "conformal"]
HALVINGS = 100


@dataclass(frozen=True, slots=True)
class Domain(Space):
    """{x : d_k(x) > 0 for all k}, for one leaf of few elements.

    metric, with slacks relative to slopes (|grad d_k| / d_k is one over the distance to a flat wall):
    - "dikin": ridge I + sum_k grad d_k grad d_k^T / d_k^2. Only the directions towards a near wall are short.
      ridge = 0 makes it independent of the units of x, but needs walls in every direction.
    - "conformal": h I with h = 1 + sum_k |grad d_k|^2 / d_k^2 (Riemannian ZO, arXiv 2601.08039): one near wall
      shortens every direction.

    Both are complete. Of a long move the first part, of length rho < 1 in the metric, is made: with concave d_k (convex
    domains) a first-order retraction that stays inside; for other d_k the move is halved until it does. Probes are
    undistorted while mu sqrt(d) <= rho.

    constraints: torch operations, x -> d(x). jacobian: x -> (K, *x.shape); without it torch.func.jacrev is used.
    Costs of a lift: the Jacobian, and for "dikin" an eigendecomposition, d^3 operations and d^2 memory.
    """

    constraints: Constraints
    jacobian: Callable[[Tensor], Tensor] | None = None
    metric: MetricName = "dikin"
    rho: float = 0.5
    ridge: float = 1.0
    flat: ClassVar[bool] = False
    unit: ClassVar[Extent] = "leaf"
    curvature: ClassVar[str] = "not constant"
    complete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_metric(self, self.metric, ("dikin", "conformal"))
        if not 0 < self.rho < 1:
            raise ValueError(f"rho must lie in (0, 1), so that moves stay inside, got {self.rho}")
        if not self.ridge >= 0:
            raise ValueError(f"ridge must be >= 0, got {self.ridge}")

    def slopes(self, x: Tensor) -> Tensor:
        """grad d_k / d_k: K rows."""
        with torch.inference_mode(False), one_thread():
            x = x.detach().clone()
            jacobian = torch.func.jacrev(self.constraints)(x) if self.jacobian is None else self.jacobian(x)
            d = self.constraints(x).detach()
            return torch.as_tensor(jacobian, device=x.device).detach().to(x).reshape(len(d), -1) / d[:, None]

    def factor(self, x: Tensor) -> float:
        """sqrt(h) of the conformal metric."""
        slopes = self.slopes(x)
        return math.sqrt(1.0 + total(slopes, slopes))

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        if self.metric == "conformal":
            return z.div_(self.factor(x))
        slopes = self.slopes(x)
        with one_thread():
            eigenvalues, q = torch.linalg.eigh(slopes.mT @ slopes)
            scale = (eigenvalues.clamp_min_(0.0) + self.ridge).rsqrt_()  # A^-1/2 = Q diag(scale) Q^T
            if not bool(torch.isfinite(scale).all()):
                raise ValueError("the walls leave some direction free, so that ridge=0 gives no metric; use ridge=1.0")
            return z.copy_((q @ (scale * (q.mT @ z.flatten()))).view_as(z))

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        if not bool(v.any()):
            return x
        squares = total(v, v)
        if self.metric == "conformal":
            length = self.factor(x) * math.sqrt(squares)
        else:
            slopes = self.slopes(x)
            with one_thread():
                towards = slopes @ v.flatten()
            length = math.sqrt(self.ridge * squares + total(towards, towards))
        v.mul_(min(1.0, self.rho / length))
        for _ in range(HALVINGS):
            if self.explain(y := x + v) is None:
                return x.copy_(y)
            v.mul_(0.5)
        return x

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        if self.metric == "conformal":
            return (u * v).sum() * self.factor(x) ** 2
        slopes = self.slopes(x)
        return self.ridge * (u * v).sum() + (slopes @ u.flatten()) @ (slopes @ v.flatten())

    def explain(self, x: Tensor) -> str | None:
        d = self.constraints(x.detach())
        if d.ndim != 1:
            return f"the constraints gave a tensor of shape {tuple(d.shape)}, but should give a vector, one number each"
        if not len(bad := torch.nonzero(~(d > 0))):
            return None
        k = int(bad[0])
        return f"constraint {k} is {d[k].item():g}, but every one must be > 0"


@dataclass(frozen=True, slots=True)
class Polytope(Space):
    """{x : A x < b} in the metrics of `Domain`, for leaves with as many elements as A has columns.

    The rows of A need no norm; their scale drops out of both metrics.
    """

    A: Sequence[Sequence[float]] | Tensor | Any
    b: Sequence[float] | Tensor | Any
    metric: MetricName = "dikin"
    rho: float = 0.5
    ridge: float = 1.0
    flat: ClassVar[bool] = False
    unit: ClassVar[Extent] = "leaf"
    curvature: ClassVar[str] = "not constant"
    complete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        A, b = (torch.as_tensor(given, dtype=torch.float64, device="cpu") for given in (self.A, self.b))
        if A.ndim != 2 or b.shape != A.shape[:1]:
            shapes = f"{tuple(A.shape)} and {tuple(b.shape)}"
            raise ValueError(f"A x < b needs A of shape (K, d) and b of shape (K,), got {shapes}")
        object.__setattr__(self, "A", tuple(map(tuple, A.tolist())))
        object.__setattr__(self, "b", tuple(b.tolist()))
        _ = self.domain

    @property
    def domain(self) -> Domain:
        return Domain(self.slack, self.jacobian, self.metric, self.rho, self.ridge)

    def slack(self, x: Tensor) -> Tensor:
        """b - A x."""
        with one_thread():
            return table(self.b, x) - table(self.A, x) @ x.flatten()

    def jacobian(self, x: Tensor) -> Tensor:
        return -table(self.A, x)

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return self.domain.lift_(z, x, slots)

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        return self.domain.move_(x, v)

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return self.domain.inner(x, u, v, slots)

    def explain(self, x: Tensor) -> str | None:
        if x.numel() != len(self.A[0]):
            return f"it has {x.numel()} elements, but A has {len(self.A[0])} columns"
        return self.domain.explain(x)


def table(numbers: object, x: Tensor) -> Tensor:
    """Numbers as a tensor like x, whatever device and dtype are torch's defaults."""
    return torch.as_tensor(numbers, dtype=torch.float64, device="cpu").to(x)
