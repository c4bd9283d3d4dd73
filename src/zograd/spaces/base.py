"""Spaces: what a step means at x. A direction, drawn in frame coordinates, is lifted to a tangent and retracted.

Momentum, Adam moments and Vectors live in frame coordinates, so that a space needs no transport of its own:
Adam on the positive orthant is Adam on log x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from zograd.core.parts import Part, declared
from zograd.core.sums import Sum, row_sums_

Extent: TypeAlias = Literal["element", "row", "leaf"]
"""What a geometry couples: nothing but an element with itself, the elements along the last axis, or a whole leaf."""


class Space(Part, ABC):
    """The geometry of leaves. All tensors of a call have the same shape and are in the accumulation dtype.

    Their shape says how much is seen at once: blocks of elements (`unit` "element"), whole rows along the last axis
    as (rows, columns) ("row"; a vector is one row), or a leaf in its own shape ("leaf").
    With z white noise in the frame, lift z is white in the metric: E[lift(z) lift(z)^T] is the inverse of the metric
    on the tangent space.

    A space of your own defines `lift_`, `move_`, `inner` and `explain`, and declares what else applies; `slots` are the
    state of its metric. `check_space` measures whether the laws hold. No optimizer needs `exp`, `log`, `dist` and
    `transport` (along the shortest geodesic), which return new tensors, where closed forms exist.
    """

    __slots__ = ()

    @declared
    def flat(self) -> bool:
        """Whether lift_ and move_ are x + z, so that a store may add noise to weights in one pass."""
        return False

    @declared
    def adds(self) -> bool:
        """Whether move_ is x + v and lift_ does not look at x, so that a store may lift first and then add the x."""
        return self.flat

    @declared
    def ambient(self) -> bool:
        """Whether move_ takes any v, tangent or not, and gives a point of the space, a smooth function of v."""
        return self.flat

    @declared
    def retracts(self) -> bool:
        """Whether a move of zero leaves x where it is."""
        return True

    @declared
    def unit(self) -> Extent:
        """What has to be seen at once."""
        return "leaf"

    @declared
    def curvature(self) -> float | str:
        """The sectional curvature, or in words what is known of it: the error of estimates grows with it (Thm 2.7)."""
        return "not stated"

    @declared
    def complete(self) -> bool:
        """Whether geodesics go on for ever, so that none ends at an edge."""
        return False

    def of(self, name: str) -> Space:
        """The space of the leaf of that name: see `Product`."""
        return self

    @abstractmethod
    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        """z <- the tangent vector at x with frame coordinates z."""

    def colift_(self, w: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        """w <- lift^T w, the frame coordinates whose inner product with z is <w, lift z>.

        By default the derivative of <lift z, w> in z, by autograd: exact, since lift is linear; then `lift_` must
        consist of torch operations.
        """
        with torch.enable_grad():
            z = torch.zeros_like(x, requires_grad=True)
            self.lift_(z.clone(), x.detach(), slots).backward(w)  # type: ignore[no-untyped-call]
        assert z.grad is not None
        return w.copy_(z.grad)

    @abstractmethod
    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        """x <- Retr_x(v)."""

    @abstractmethod
    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        """<u, v>_x, the metric at x of two tangent vectors."""

    @abstractmethod
    def explain(self, x: Tensor) -> str | None:
        """None when x lies in the space, otherwise why not."""

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Where the geodesic from x with velocity v is after unit time. NotImplementedError without a closed form."""
        raise self._no_closed_form("exp")

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest v with exp(x, v) = y. NotImplementedError without a closed form."""
        raise self._no_closed_form("log")

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The length of the shortest geodesic from x to y. NotImplementedError without a closed form."""
        raise self._no_closed_form("dist")

    def transport(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """u, tangent at x, carried in parallel to y. NotImplementedError without a closed form."""
        raise self._no_closed_form("transport")

    def _no_closed_form(self, what: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} has no closed form of {what}")


@dataclass(frozen=True, slots=True)
class Euclidean(Space):
    """R^d: Retr_x(v) = x + v."""

    flat: ClassVar[bool] = True
    unit: ClassVar[Extent] = "element"
    curvature: ClassVar[float] = 0.0
    complete: ClassVar[bool] = True

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return z

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        return x.add_(v)

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return (u * v).sum()

    def explain(self, x: Tensor) -> str | None:
        return None


def riemannian_gradient(space: Space, x: Tensor, df: Tensor, slots: Mapping[str, Tensor] | None = None) -> Tensor:
    """lift(lift^T df), the gradient of f in the metric of the space at x, from its partial derivatives df.

    It is the mean of c v over lifted noise v, c the slope along v. lift^T is the space's `colift_`.
    """
    slots = slots or {}
    return space.lift_(space.colift_(df.clone(), x, slots), x, slots)


def row_sum(rows: Tensor) -> Tensor:
    """Sums along the last axis, which stays with length 1; bits that depend on the row alone."""
    return row_sums_(rows.clone().view(-1, rows.shape[-1])).view(*rows.shape[:-1], 1)


def total(a: Tensor, b: Tensor) -> float:
    """sum_i a_i b_i, the same bits for any number of threads."""
    out = Sum()
    out.add(a.reshape(-1), b.reshape(-1))
    return out.value


def length(v: Tensor) -> Tensor:
    """The Euclidean norm of all elements."""
    size: Tensor = torch.linalg.vector_norm(v)
    return size


def shorten_(v: Tensor, size: Tensor, radius: float) -> Tensor:
    """v <- v min(1, radius / size): still a retraction, since small v stay as they are."""
    return v.mul_((radius / size).clamp_(max=1.0).nan_to_num_(nan=0.0))


def refuse_metric(space: object, metric: str, known: Mapping[str, Any] | tuple[str, ...], hint: str = "") -> None:
    if metric not in known:
        names = ", ".join(repr(name) for name in known)
        raise ValueError(f"{type(space).__name__} has the metrics {names}, got {metric!r}{hint}")
