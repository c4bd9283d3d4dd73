"""The protocol of rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from zograd.core.vector import Estimate
from zograd.stores import Iterate

A_contra = TypeVar("A_contra", contravariant=True)


class Rule(Protocol[A_contra]):
    """x <- Retr_x(-lr * direction(estimate)). The iterate multiplies by lr and applies weight decay.

    `slots` names the d-sized state (frame coordinates) and its initial value; `state` holds scalars and Vectors, owned
    by the run, recomputed when a tape is replayed. Optional properties: `meters` names entries of `state` to show with
    each step; `whole_leaf` says that blocks are whole leaves; `reads`, `remedy` and `misfit` refuse combinations.
    """

    @property
    def slots(self) -> Mapping[str, float]: ...

    def apply(self, x: Iterate, estimate: Estimate[A_contra], state: dict[str, Any]) -> None: ...
