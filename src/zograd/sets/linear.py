"""Sets of linear equations and inequalities: `Affine`, `Halfspace`, `Polyhedron`, with exact projections."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zograd.sets.base import Ball, Whole, one_thread
from zograd.sets.numbers import Given, Numbers

ROUNDING = 1e-9
"""Relative to the terms of a row: how far off a point may be and still count as inside."""


def _system(owner: object) -> None:
    """Read the fields A [m, d] and b [m] of a set, or raise ValueError."""
    name = type(owner).__name__
    A, b = (Numbers(getattr(owner, field), f"{field} of {name}") for field in ("A", "b"))
    if len(A.shape) != 2 or b.shape not in ((), (A.shape[0],)) or not A.shape[0]:
        raise ValueError(f"{name} needs A of shape (m, d) and b of shape (m,), got {A.shape} and {b.shape}")
    if not (bool(A.tensor.isfinite().all()) and bool(b.tensor.isfinite().all())):
        raise ValueError(f"{name} needs finite numbers in A and b; leave rows without a bound out")
    if b.shape == ():
        b = Numbers(b.tensor.expand(A.shape[0]))
    object.__setattr__(owner, "A", A)
    object.__setattr__(owner, "b", b)


def _numbers(owner: Affine | Polyhedron) -> tuple[Tensor, Tensor]:
    """The fields A and b as tensors."""
    assert isinstance(owner.A, Numbers)
    assert isinstance(owner.b, Numbers)
    return owner.A.tensor, owner.b.tensor


def _terms(A: Tensor, x: Tensor, b: Tensor) -> Tensor:
    """|A| |x| + |b|, by which a residual is measured."""
    return A.abs() @ x.abs() + b.abs()


def _vector(name: str, d: int, leaves: tuple[Tensor, ...]) -> tuple[Tensor, str | None]:
    x = torch.cat([leaf.detach().double().reshape(-1) for leaf in leaves])
    return x, None if x.numel() == d else f"it has {x.numel()} elements, but A of {name} has {d} columns"


def _fits(owner: object, d: int, y: Tensor) -> None:
    if y.numel() != d:
        raise ValueError(f"{type(owner).__name__} has {d} columns, and x has {y.numel()} elements; they must agree")


@dataclass(frozen=True, slots=True)
class Affine(Whole):
    """{x : A x = b}. P(y) = y - Q (Q^T y - c), Q an orthonormal basis of the rows of A and c the coordinates of b in
    it.

    A: [m, d], any rank; b: [m] or one number. Both are copied to float64. The singular value decomposition of A is
    computed once, when the set is made: O(m^2 d) time for m <= d, and m d numbers of memory; a projection costs 4 m d
    operations. Exact up to rounding. Raises ValueError where no x satisfies A x = b.

    >>> import torch, zograd as zo
    >>> zo.sets.Affine([[1.0, 1.0, 1.0]], [3.0]).project_(torch.zeros(3))
    tensor([1., 1., 1.])
    """

    A: Given
    b: Given
    _basis: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _system(self)
        A, b = _numbers(self)
        size = A.norm(dim=1)  # of each row, so that none counts for less because its numbers are small
        size = torch.where(size > 0, size, torch.ones_like(size))
        A, b = A / size[:, None], b / size
        with one_thread():
            u, s, vt = torch.linalg.svd(A, full_matrices=False)
            kept = s > s.max() * max(A.shape) * torch.finfo(A.dtype).eps
            u, s, vt = u[:, kept], s[kept], vt[kept]
            c = (u.mT @ b) / s
            found = vt.mT @ c
            off = (A @ found - b).abs()
        if bool((wrong := off > ROUNDING * _terms(A, found, b).clamp_min(1e-300)).any()):
            i = int(wrong.nonzero()[0])
            raise ValueError(
                f"no x satisfies A x = b: the best leaves {float(off[i] * size[i]):g} in row {i}; Affine needs "
                f"consistent equations, remove those that contradict others"
            )
        object.__setattr__(self, "_basis", (vt, c))

    def nearest(self, y: Tensor) -> Tensor:
        """The nearest point to y, [d] in float64."""
        vt, c = (part.to(y.device) for part in self._basis)
        _fits(self, vt.shape[1], y)
        y = y - vt.mT @ (vt @ y - c)
        return y - vt.mT @ (vt @ y - c)  # what rounding left of the first one

    def explain(self, *leaves: Tensor) -> str | None:
        A, b = _numbers(self)
        x, why = _vector("Affine", A.shape[1], leaves)
        if why is None:
            off = (A @ x.cpu() - b).abs()
            worst = int((off / _terms(A, x.cpu(), b).clamp_min(1e-300)).argmax())
            if float(off[worst]) > ROUNDING * float(_terms(A, x.cpu(), b)[worst]):
                return f"row {worst} of A x differs from b by {float(off[worst]):g}"
        return why

    def ball(self, dim: int) -> Ball:
        """Raises ValueError: A x is fixed, so probes in all directions leave."""
        raise ValueError("Affine has no interior: A x is fixed; use queries='relaxed'")


@dataclass(frozen=True, slots=True)
class Halfspace(Whole):
    """{x : <a, x> <= b}. P(y) = y - max(<a, y> - b, 0) a / |a|^2. a: [d], not 0; b: a number. Costs 2 d operations.

    >>> import torch, zograd as zo
    >>> zo.sets.Halfspace([1.0, 1.0], 1.0).project_(torch.tensor([2.0, 1.0]))
    tensor([1., 0.])
    """

    a: Given
    b: float

    def __post_init__(self) -> None:
        a = Numbers(self.a, "a of Halfspace")
        if not (float(a.flat().norm()) > 0 and bool(a.tensor.isfinite().all()) and math.isfinite(self.b)):
            raise ValueError(f"Halfspace needs a finite a that is not 0 and a finite b, got {a} and {self.b}")
        object.__setattr__(self, "a", a)
        object.__setattr__(self, "b", float(self.b))

    @property
    def _normal(self) -> Tensor:
        assert isinstance(self.a, Numbers)
        return self.a.flat()

    def nearest(self, y: Tensor) -> Tensor:
        """The nearest point to y, [d] in float64."""
        a = self._normal.to(y.device)
        _fits(self, a.numel(), y)
        return y - a * (max(float(a @ y) - self.b, 0.0) / float(a @ a))

    def explain(self, *leaves: Tensor) -> str | None:
        a = self._normal
        x, why = _vector("Halfspace", a.numel(), leaves)
        if why is None and float(a @ x.cpu()) - self.b > ROUNDING * (float(a.abs() @ x.cpu().abs()) + abs(self.b)):
            return f"<a, x> = {float(a @ x.cpu()):g}, but the half-space needs at most {self.b:g}"
        return why

    def ball(self, dim: int) -> Ball:
        """The one that touches the plane nearest to the origin. Its radius is the distance of the two, or 1 if that is
        less: a small ball at a far plane would be far from the points at which f is evaluated.
        """
        a = self._normal
        size = float(a.norm())
        radius = max(abs(self.b) / size, 1.0)
        return Ball(a * ((self.b / size - radius) / size), radius)


@dataclass(frozen=True, slots=True)
class Polyhedron(Whole):
    """{x : A x <= b}. The projection is a least-distance problem, solved exactly by an active-set method in its dual.

    With u = P(y) - y: min |u|^2 s.t. A u <= b - A y, by non-negative least squares on m multipliers (Lawson and Hanson
    1974, chapter 23). A: [m, d], b: [m] or one number, copied to float64; m up to some hundreds: one projection solves
    a few systems of the size of the active set, O(m d) each. Raises ValueError where A x <= b has no solution (when it
    is projected onto).

    >>> import torch, zograd as zo
    >>> zo.sets.Polyhedron([[1.0, 0.0], [0.0, 1.0]], [1.0, 2.0]).project_(torch.tensor([3.0, 5.0]))
    tensor([1., 2.])
    """

    A: Given
    b: Given

    def __post_init__(self) -> None:
        _system(self)

    def nearest(self, y: Tensor) -> Tensor:
        """The nearest point to y, [d] in float64."""
        A, b = (part.to(y.device) for part in _numbers(self))
        _fits(self, A.shape[1], y)
        norms = A.norm(dim=1)
        if bool(((norms == 0) & (b < 0)).any()):
            raise ValueError("A x <= b has no solution: a row of A is 0 and its b is negative")
        A, b = A[norms > 0] / norms[norms > 0, None], b[norms > 0] / norms[norms > 0]
        h = A @ y - b  # the distances from the planes, positive outside
        scale = float(h.max()) if len(h) else 0.0
        if scale <= 0.0:
            return y
        E = torch.cat([-A.mT, (h / scale)[None]])  # a least-distance problem in u / scale
        f = torch.zeros(len(E), dtype=y.dtype, device=y.device)
        f[-1] = 1.0
        r = E @ non_negative_least_squares(E, f) - f
        if float(r.norm()) < 1e-7:
            raise ValueError(
                "A x <= b has no solution: some positive combination of its rows says 0 <= a negative number"
            )
        return y - r[:-1] / r[-1] * scale

    def explain(self, *leaves: Tensor) -> str | None:
        A, b = _numbers(self)
        x, why = _vector("Polyhedron", A.shape[1], leaves)
        if why is None:
            over = A @ x.cpu() - b - ROUNDING * _terms(A, x.cpu(), b)
            if bool((over > 0).any()):
                i = int(over.argmax())
                return f"row {i} of A x is {float(A[i] @ x.cpu()):g}, but the polyhedron needs at most {float(b[i]):g}"
        return why


def non_negative_least_squares(E: Tensor, f: Tensor) -> Tensor:
    """argmin_{u >= 0} |E u - f|, by the active-set method of Lawson and Hanson (1974, algorithm 23.10)."""
    m = E.shape[1]
    u, active = torch.zeros(m, dtype=E.dtype, device=E.device), torch.zeros(m, dtype=torch.bool, device=E.device)
    tolerance = 10 * torch.finfo(E.dtype).eps * float(E.abs().sum(0).max()) * max(E.shape)
    for _ in range(10 * m + 10):
        slope = E.mT @ (f - E @ u)
        slope[active] = -math.inf
        i = int(slope.argmax())
        if float(slope[i]) <= tolerance:
            break
        active[i] = True
        while True:
            trial = torch.zeros_like(u)
            trial[active] = torch.linalg.lstsq(E[:, active], f[:, None], driver="gelsd").solution[:, 0]
            blocking = active & (trial <= 0)
            if not bool(blocking.any()):
                break
            share = u[blocking] / (u[blocking] - trial[blocking]).clamp_min(1e-300)
            first = blocking.nonzero()[share.argmin(), 0]
            u = u + float(share.min()) * (trial - u)
            u[first] = 0.0
            active &= u > 0
            u[~active] = 0.0
        u = trial
    return u
