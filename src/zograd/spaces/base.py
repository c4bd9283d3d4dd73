"""Spaces: what a step means at x. A direction, drawn in frame coordinates, is lifted to a tangent and retracted.

Momentum, Adam moments and Vectors live in frame coordinates, so that a space needs no transport of its own:
Adam on the positive orthant is Adam on log x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from zograd.core.sums import Sum, row_sums_

Unit: TypeAlias = Literal["element", "row", "leaf"]
"""What a geometry couples: nothing but an element with itself, the elements along the last axis, or a whole leaf."""


class Space(Protocol):
    """The geometry of leaves. All tensors of a call have the same shape and are in the accumulation dtype.

    Their shape says how much is seen at once: blocks of elements (`unit` "element"), whole rows along the last axis
    as (rows, columns) ("row"; a vector is one row), or a leaf in its own shape ("leaf").
    With z white noise in the frame, lift z is white in the metric: E[lift(z) lift(z)^T] is the inverse of the metric
    on the tangent space. Where closed forms exist, a space also has `exp(x, v)`, `log(x, y)`, `dist(x, y)` and
    `transport(x, y, u)` (along the shortest geodesic), which return new tensors; no optimizer needs them.
    A space may have a method `of(name)`, the space of the leaf of that name: see `Product`.
    """

    @property
    def flat(self) -> bool:
        """Whether lift_ and move_ are x + z, so that a store may add noise to weights in one pass."""

    @property
    def unit(self) -> Unit:
        """What has to be seen at once."""

    @property
    def curvature(self) -> float | str:
        """The sectional curvature, or in words what is known of it: the error of estimates grows with it (Thm 2.7)."""

    @property
    def complete(self) -> bool:
        """Whether geodesics go on for ever, so that none ends at an edge."""

    @property
    def slots(self) -> Mapping[str, float]:
        """d-sized state of the metric and its initial value."""

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        """z <- the tangent vector at x with frame coordinates z."""

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        """x <- Retr_x(v)."""

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        """<u, v>_x, the metric at x of two tangent vectors."""

    def explain(self, x: Tensor) -> str | None:
        """None when x lies in the space, otherwise why not."""


@dataclass(frozen=True, slots=True)
class Euclidean:
    """R^d: Retr_x(v) = x + v."""

    flat: ClassVar[bool] = True
    unit: ClassVar[Unit] = "element"
    curvature: ClassVar[float] = 0.0
    complete: ClassVar[bool] = True

    @property
    def slots(self) -> Mapping[str, float]:
        return {}

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

    It is the mean of c v over lifted noise v, c the slope along v. lift^T is the space's `colift_(w, x, slots)` where
    it has one, otherwise it is the derivative of <lift z, df> in z, by autograd: exact since lift is linear; then
    lift_ must consist of torch operations.
    """
    slots = slots or {}
    return space.lift_(colift(space, x, df, slots), x, slots)


def colift(space: Any, x: Tensor, w: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
    """lift^T w: the frame coordinates whose inner product with z is <w, lift z>."""
    if hasattr(space, "colift_"):
        return cast(Tensor, space.colift_(w.clone(), x, slots))
    with torch.enable_grad():
        z = torch.zeros_like(x, requires_grad=True)
        space.lift_(z.clone(), x.detach(), slots).backward(w)
    assert z.grad is not None
    return z.grad


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
