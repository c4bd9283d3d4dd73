"""An estimate that is computed block by block of a model, while the weights move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.vector import Slot, Vector
from zograd.estimators.base import Estimator

if TYPE_CHECKING:
    from zograd.stores import Store


@dataclass(frozen=True, slots=True)
class FromBlocks(Estimator[None]):
    """g = the slot "gradient", which the store's source fills for one leaf after the other (`zograd.blockwise`).

    kind: "residual" or "backprop", the source that a run is to be given. 1 evaluation a step, and what the source
    costs. A rule has to pass over the weights once, as those do that act on elements; another one asks for the same
    gradient twice. A tape does not replay such steps: the numbers are not functions of a seed. An error within a step
    may leave some blocks moved and others not; a run goes on from its saved state.

    TypeError from a run whose store has no source.

    >>> import zograd as zo
    >>> zo.methods.residual(lr=1e-3).estimator
    FromBlocks(kind='residual')
    """

    kind: Literal["residual", "backprop"]

    evaluations: ClassVar[int] = 1
    replays: ClassVar[bool] = False

    def prepare(self, store: Store) -> None:
        if store.source is None:
            raise TypeError(
                f"{self.kind!r} takes gradients from the blocks of a language model, and here is a function of "
                f"numbers; use zograd train, or a method that needs values alone, such as 'zo_sgd'"
            )

    def __call__(self, ask: Ask) -> Routine[None]:
        (loss,) = yield [Query()]
        return Estimate(Vector(((Slot("gradient"), 1.0),)), loss, [loss], None)
