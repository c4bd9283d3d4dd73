"""The base of rules: what one may declare, with defaults."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from zograd.core.parts import Part, declared
from zograd.core.query import Estimate
from zograd.core.vector import Vector

if TYPE_CHECKING:
    from zograd.stores import Iterate, Store

A = TypeVar("A")


class Rule(Part, ABC, Generic[A]):
    """x <- Retr_x(-lr * direction(estimate)). The iterate multiplies by lr and applies weight decay.

    A rule of your own defines `apply`, and declares what else applies. `slots` are in frame coordinates; `state` holds
    scalars and Vectors, is owned by the run, and follows again when a tape is replayed. A is the type of the scalars
    that the rule reads (`Estimate.aux`).
    """

    __slots__ = ()

    @declared
    def reads(self) -> type[A] | None:
        """The type of scalars that an estimate must carry, `Estimator.aux`; None where any estimate will do."""
        return None

    @declared
    def remedy(self) -> str:
        """What to write where an estimator does not measure what is read."""
        return ""

    @declared
    def linear(self) -> bool:
        """Whether the move is -lr times the estimate of this step, and nothing else."""
        return False

    @declared
    def momentum(self) -> float | None:
        """The beta with which the edge of stability is computed (`lr="auto"`); None: the edge is not known."""
        return None

    @declared
    def preconditions(self) -> bool:
        """Whether moves are those of P^-1 g with a P that changes slowly, which `weigh` knows."""
        return False

    def weigh(self, v: Vector, moves: int) -> Vector:
        """P^(-1/2) v, with the P that stands in the slots after so many moves; v where nothing is preconditioned."""
        return v

    @declared
    def automatic(self) -> Literal["edge", "backtracking"] | float:
        """What `lr="auto"` means: below the edge of stability (`AutoRate`), a search (`Backtracking`), or a number."""
        return "edge"

    @declared
    def one_rate(self) -> bool:
        """Whether all groups of tensors need one learning rate, as where a step is a share of the way to a point."""
        return False

    @declared
    def meters(self) -> tuple[str, ...]:
        """Names of numbers in `state` that are shown with each step."""
        return ()

    @declared
    def whole_leaf(self) -> bool:
        """Whether blocks are whole leaves, so that the workspace is as large as the largest of them."""
        return False

    def units(self, aux: tuple[float, ...] | None) -> float:
        """What lr is worth: moving by lr along the direction is moving by lr / this along the estimate."""
        return 1.0

    def misplaced(self, store: Store) -> str | None:
        """Why no run can start at the weights of the store, "is not ...; start at ..."; None when one can."""
        return None

    @abstractmethod
    def apply(self, x: Iterate, estimate: Estimate[A], state: dict[str, Any]) -> None:
        """Move x, once: `x.step_(vector)`, or `for b in x.blocks(vector): ...; b.step_(direction)`."""
