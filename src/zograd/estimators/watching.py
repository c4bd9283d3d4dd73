"""An estimate whose evaluation at x also records what enters the layers of a model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.estimators.base import Estimator, Wrapper
from zograd.estimators.differences import Forward, OneSided

if TYPE_CHECKING:
    from zograd.stores import Store


@dataclass(frozen=True, slots=True)
class Watching(Wrapper[Any]):
    """The estimate of `inner`; every `refresh` steps the evaluation of f(x) records the inputs of trained layers.

    `Query.inputs` marks it, and the directions of that step already lie in the new span (`laws.OnLayerInputs`).
    inner.evaluations, where `inner` evaluates f(x) (`Forward`, `OneSided`); otherwise one more in the steps that
    record. A tape does not replay such steps: the span is no function of a seed. A run goes on from its saved state.

    ValueError for refresh < 1; TypeError from a run on a function whose layers nobody sees.

    >>> import zograd as zo
    >>> zo.methods.agzo(refresh=10).estimator
    Watching(inner=Forward(n=1), refresh=10)
    """

    inner: Estimator[Any] = field(default=Forward(1))
    refresh: int = 1

    watches: ClassVar[bool] = True
    replays: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.refresh < 1:
            raise ValueError(f"refresh is a number of steps and must be at least 1, got {self.refresh}")

    @property
    def fewest_evaluations(self) -> int:
        return self.inner.fewest_evaluations

    @property
    def evaluations(self) -> int:
        return self.inner.evaluations + (not isinstance(self.inner, Forward | OneSided))

    def prepare(self, store: Store) -> None:
        if store.inputs is None:
            raise TypeError(
                "'agzo' looks at what enters the linear layers of a language model, and here is a function without "
                "layers; use zograd train, or a method that needs values alone, such as 'lozo'"
            )

    def __call__(self, ask: Ask) -> Routine[Any]:
        routine = self.inner(ask)
        queries, added = next(routine), False
        if ask.step % self.refresh == 0:
            added = queries[0] != Query()
            queries = [Query(inputs=True), *queries[0 if added else 1 :]]
        while True:
            losses = yield queries
            try:
                queries = routine.send(losses[added:])
            except StopIteration as stop:
                estimate: Estimate[Any] = stop.value
                return replace(estimate, losses=[*losses[:added], *estimate.losses]) if added else estimate
            added = False
