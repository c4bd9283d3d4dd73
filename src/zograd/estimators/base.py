"""The base of estimators: what one may declare, with defaults."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from zograd.core.parts import Part, declared
from zograd.core.query import Ask, Routine

A = TypeVar("A")

Feedback: TypeAlias = Literal["values", "order", "pairs"]
"""What an estimator reads of the losses of a yield: the numbers, their order, or the order in pairs (2j, 2j + 1)."""


class Estimator(Part, ABC, Generic[A]):
    """Yields the points where the loss is wanted, receives the losses, returns the estimate.

    An estimator of your own defines `__call__` and `evaluations`, and declares what else applies. A is the type of the
    scalars that it hands to the rule (`aux`); None where there are none.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Loss evaluations a step; the most, where steps differ."""

    @declared
    def fewest_evaluations(self) -> int:
        """Loss evaluations of a step, the fewest, where steps differ."""
        return self.evaluations

    def most_evaluations(self, terms: int) -> int:
        """The most that a step costs where f is a sum of so many terms (0: f is no sum), counted in terms.

        More may be asked for after a failed evaluation; drivers end a step that the budget does not allow.
        """
        return self.evaluations * max(terms, 1)

    def in_dimensions(self, dim: int) -> Estimator[A]:
        """The same estimator for so many weights, whose counts of evaluations are then exact."""
        return self

    @declared
    def n(self) -> int:
        """Directions that the estimate is a mean over."""
        return 1

    @declared
    def aux(self) -> type[A] | None:
        """The type of `Estimate.aux`, a tuple with `_make`, which rules ask for in `Rule.reads`."""
        return None

    @declared
    def shifts(self) -> bool:
        """Whether it asks the queries of `inner` at another point: what measures along them then goes inside."""
        return False

    @declared
    def estimates_gradient(self) -> bool:
        """Whether the estimate has the length of the gradient, which `lr="auto"` needs."""
        return True

    @declared
    def takes_failures(self) -> bool:
        """Whether it is told losses that are not finite, as they came, when at least one of the step so far is finite.

        Otherwise one such loss refuses the step.
        """
        return False

    @declared
    def mends_pairs(self) -> bool:
        """Whether it takes the slope to the other side itself where one point of a pair has failed."""
        return False

    @declared
    def directions(self) -> int:
        """Directions that it draws in a step, at most: a second estimator of the step begins behind them."""
        return self.n

    @declared
    def reaches(self) -> bool:
        """Whether some of its queries lie at a distance from x that does not shrink with mu."""
        return False

    @declared
    def several_radii(self) -> bool:
        """Whether its queries x + r v have other radii than mu."""
        return False

    @declared
    def one_sided(self) -> bool:
        """Whether it takes f(x + mu v) - f(x), of which curvature is a part that a smaller mu makes smaller."""
        return False

    @declared
    def replays(self) -> bool:
        """Whether the record of a step gives its move back: all of its numbers come from seeds and scalars."""
        return True

    @declared
    def watches(self) -> bool:
        """Whether some of its queries record what enters the layers of a model (`Query.inputs`)."""
        return False

    @declared
    def feedback(self) -> Feedback:
        """What it reads of the losses. Where that is an order, ranks may be told in their place."""
        return "values"

    @abstractmethod
    def __call__(self, ask: Ask, /) -> Routine[A]:
        """A generator: `f0, *f = yield [Query(), Query(v), ...]` evaluates there; it returns an `Estimate`."""


class Wrapper(Estimator[A]):
    """What an estimator around an `inner` one takes over from it."""

    __slots__ = ()
    inner: Estimator[A]

    def in_dimensions(self, dim: int) -> Estimator[A]:
        changed: Any = self
        return replace(changed, inner=self.inner.in_dimensions(dim))  # type: ignore[no-any-return]

    @property
    def n(self) -> int:
        return self.inner.n

    @property
    def directions(self) -> int:
        return self.inner.directions

    @property
    def estimates_gradient(self) -> bool:
        return self.inner.estimates_gradient

    @property
    def mends_pairs(self) -> bool:
        return self.inner.mends_pairs

    @property
    def reaches(self) -> bool:
        return self.inner.reaches

    @property
    def several_radii(self) -> bool:
        return self.inner.several_radii

    @property
    def one_sided(self) -> bool:
        return self.inner.one_sided

    @property
    def replays(self) -> bool:
        return self.inner.replays

    @property
    def aux(self) -> Any:
        return self.inner.aux
