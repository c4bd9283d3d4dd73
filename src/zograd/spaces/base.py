"""Spaces: what a step means at x. A direction, drawn in frame coordinates, is lifted to a tangent and retracted.

Momentum, Adam moments and Vectors live in frame coordinates, so that a space needs no transport of its own:
Adam on the positive orthant is Adam on log x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias

from torch import Tensor

Unit: TypeAlias = Literal["element", "row", "leaf"]
"""What a geometry couples: nothing but an element with itself, the elements along the last axis, or a whole leaf."""


class Space(Protocol):
    """The geometry of leaves. All tensors of a call have the same shape and are in the accumulation dtype.

    Their shape says how much is seen at once: blocks of elements (`unit` "element"), whole rows along the last axis
    as (rows, columns) ("row"; a vector is one row), or a leaf in its own shape ("leaf").
    A space may have a method `of(name)`, the space of the leaf of that name: see `Product`.
    """

    @property
    def flat(self) -> bool:
        """Whether lift_ and move_ are x + z, so that a store may add noise to weights in one pass."""

    @property
    def unit(self) -> Unit:
        """What has to be seen at once."""

    @property
    def slots(self) -> Mapping[str, float]:
        """d-sized state of the metric and its initial value."""

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        """z <- the tangent vector at x with frame coordinates z."""

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        """x <- Retr_x(v)."""

    def explain(self, x: Tensor) -> str | None:
        """None when x lies in the space, otherwise why not."""


@dataclass(frozen=True, slots=True)
class Euclidean:
    """R^d: Retr_x(v) = x + v."""

    flat: ClassVar[bool] = True
    unit: ClassVar[Unit] = "element"

    @property
    def slots(self) -> Mapping[str, float]:
        return {}

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return z

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        return x.add_(v)

    def explain(self, x: Tensor) -> str | None:
        return None
