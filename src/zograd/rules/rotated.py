"""Steepest descent of a matrix in a rotated basis: a map of elements, seen through an orthogonal matrix (ARO)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from zograd.core.query import Estimate
from zograd.core.vector import Slot, Vector
from zograd.rules.base import Rule
from zograd.rules.sgd import check_beta
from zograd.sets.base import one_thread
from zograd.stores import Iterate

Base: TypeAlias = Callable[[Tensor], Tensor]
"""f of ARO: from a matrix to one of its shape, in float64. Odd, and 0 at 0."""


@dataclass(frozen=True, slots=True)
class Signs:
    """f(X) = sign(X), elementwise: the steepest ascent in the largest element."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.sign()


@dataclass(frozen=True, slots=True)
class Sinkhorn:
    """f(X): rows, then columns, scaled to a mean square of 1, `passes` times. Rows and columns of zeros stay zeros.

    For an m x n matrix each row is divided by its norm over sqrt(n), each column by its norm over sqrt(m). ValueError
    for less than one pass.

    >>> x = Sinkhorn(3)(torch.tensor([[4.0, 1.0], [1.0, 4.0]]))
    >>> bool((x.square().mean(0) - 1.0).abs().max() < 1e-5)
    True
    """

    passes: int = 5

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"Sinkhorn needs at least one pass, got {self.passes}; for signs use base=Signs()")

    def __call__(self, x: Tensor) -> Tensor:
        for _ in range(self.passes):
            for axis in (1, 0):
                norm = torch.linalg.vector_norm(x, dim=axis, keepdim=True) / math.sqrt(x.shape[axis])
                x = x / torch.where(norm > 0.0, norm, 1.0)
        return x


@dataclass(frozen=True, slots=True)
class Rotated(Rule[Any]):
    """M <- b M + (1 - b) G, R <- QR(M f(R'^T M)^T), W <- W - lr R f(R^T M), R' the R of the last step, at first I.

    ARO (arXiv 2602.09006). QR(A) is the orthogonal factor of A = Q T with a positive diagonal of T. R rotates the
    shorter side of each leaf, as a matrix (first axis by the rest); where that is the columns, M is transposed. A
    vector is a matrix with one column: R = 1, and the step is f(M). The choice of the shorter side is ours.

    base: f, `Sinkhorn(5)` or `Signs()`, with elements of about 1, so that lr is in units of x. With the polar map
    f(U S V^T) = U V^T the step is the polar factor of M whatever R is.

    Memory: two slots of d elements, momentum and rotation (a rotation of k = min(m, n) rows takes the first k^2
    places). Cost: a QR factorisation of k x k and three products of matrices a leaf and step, in float64 on one thread.
    Rounding decides nothing (ours): elements of R^T M below eps^(2/3) of the largest count as 0, and where a diagonal
    element of T is that small, A leaves a direction open, which is taken from R' (the part of one of its columns that
    is orthogonal to the others). ValueError for a beta outside [0, 1).

    >>> import zograd as zo
    >>> x = zo.minimize(lambda x: float(((x - 1.0) ** 2).sum()), [[0.0, 0.0], [0.0, 0.0]],
    ...                 zo.methods.aro(lr=0.01, n=4), budget=4000, seed=0)
    >>> bool(abs(x.x - 1.0).max() < 0.1)
    True
    """

    beta: float = 0.95
    base: Base = Sinkhorn()

    whole_leaf: ClassVar[bool] = True
    works_on_pieces: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_beta("beta", self.beta)

    @property
    def slots(self) -> Mapping[str, float]:
        return {"momentum": 0.0, "rotation": 0.0}

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        first = not state.get("t", 0)
        state["t"] = state.get("t", 0) + 1
        m_new = self.beta * Vector(((Slot("momentum"), 1.0),)) + (1.0 - self.beta) * estimate.vector
        for b in x.blocks(m_new, whole_leaf=True):
            b.slots["momentum"].copy_(b.v[0])
            m = b.v[0].double().view(b.leaf.matrix_shape)
            wide = m.shape[0] <= m.shape[1]
            k = min(m.shape)
            held = b.slots["rotation"][: k * k]
            with one_thread():
                before = torch.eye(k, dtype=m.dtype, device=m.device) if first else held.double().view(k, k)
                r, step = rotated(m if wide else m.mT, before, self.base, torch.finfo(b.v[0].dtype).eps ** (2 / 3))
            held.copy_(r.reshape(-1))
            b.step_(b.v[0].copy_((step if wide else step.mT).reshape(-1)))


def rotated(m: Tensor, before: Tensor, base: Base, tiny: float) -> tuple[Tensor, Tensor]:
    """R = QR(M f(R'^T M)^T) and R f(R^T M), for M of at most as many rows as columns."""

    def seen(r: Tensor) -> Tensor:
        s = r.mT @ m
        return base(torch.where(s.abs() > tiny * s.abs().max(), s, 0.0))

    a = m @ seen(before).mT
    q, t = torch.linalg.qr(a)
    if float(t.diagonal().abs().min()) > tiny * float(t.diagonal().abs().max()):
        r = q * torch.where(t.diagonal() < 0.0, -1.0, 1.0).to(q.dtype)
    else:
        r = completed(a, before, tiny)
    return r, r @ seen(r)


def completed(a: Tensor, before: Tensor, tiny: float) -> Tensor:
    """Gram-Schmidt on the columns of A; a column that depends on those before it gives way to one of `before`."""
    k = len(a)
    r, least, waiting = torch.zeros_like(a), tiny * float(a.norm(dim=0).max()), []

    def rest(v: Tensor) -> Tensor:
        v = v - r @ (r.mT @ v)
        return v - r @ (r.mT @ v)

    for j in range(k):
        v = rest(a[:, j])
        if float(v.norm()) > least:
            r[:, j] = v / v.norm()
        else:
            waiting.append(j)
    for j in waiting:  # the squares of what is left of all columns of `before` add up to 1 or more
        candidates = (rest(before[:, (j + i) % k]) for i in range(k))
        v = next(v for v in candidates if float(v.norm()) ** 2 > 0.5 / k)
        r[:, j] = v / v.norm()
    return r
