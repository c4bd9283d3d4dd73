"""What an estimator asks and is told: `Query` and `Ask`, the `Estimate` that it returns, and its type, `Routine`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property
from typing import Generic, TypeAlias, TypeVar

import numpy as np

from zograd.core import keys
from zograd.core.keys import OfStep
from zograd.core.messages import message
from zograd.core.vector import Array, Gram, Vector
from zograd.noise import fold

A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)


@message(slots=True)
class Query:
    """The loss is wanted at Retr_x(at): x + at in a flat space. Queries of one yield share batch and randomness.

    rows: which terms of a finite sum f = (1/N) sum_i f_i are wanted, as their mean; None: the loss as it is, all of it.
    inputs: whether this evaluation is to record what enters the layers of a model (`Store.inputs`).
    """

    at: Vector = field(default_factory=Vector)
    rows: tuple[int, ...] | None = None
    inputs: bool = False


@message(slots=True)
class Estimate(Generic[A_co]):
    """What an estimator returns.

    vector: the gradient estimate. loss: the value to show for this step. losses: every value received.
    aux: scalars that a rule needs (typed: a rule that reads curvature does not accept an estimator that has none).
    writes: slots to assign before the move, in terms of the old slots (`vector` is read with the new ones).
    meters: numbers that the estimator measured, to be shown and to steer the learning rate (`zograd.learning_rate`).
    """

    vector: Vector
    loss: float
    losses: Sequence[float]
    aux: A_co
    writes: Mapping[str, Vector] = field(default_factory=dict)
    meters: Mapping[str, float] = field(default_factory=dict)


Routine: TypeAlias = Generator[Sequence[Query], Sequence[float], Estimate[A]]


@message()
class Ask:
    """All that an estimator may know: the step, the dimension, the radius mu, directions, inner products.

    scalars: the seed of scalar randomness, None for that of this step of the run; it is read as `seed`.
    moves: steps that were taken so far (refused ones not counted); 0 means that slots hold their initial values.
    lr: learning rate of this step, of the first group. terms: number N of terms of a finite sum, 0 when f is not one.
    shapes: of the leaves, in order. run: the key that all steps of the run share. repeats: how often f(x) is evaluated
    where it is measured beside the estimate. names: of the leaves, in order. within: the numbers of the leaves that
    directions are to lie on, None for all.
    """

    step: int
    dim: int
    mu: float
    draw: Callable[[int], Vector]
    gram: Gram
    scalars: int | None = None
    moves: int = 0
    lr: float = 0.0
    terms: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    run: int = 0
    repeats: int = 1
    names: tuple[str, ...] = ()
    within: tuple[int, ...] | None = None

    def after(self, n: int) -> Ask:
        """The same, with directions n, n + 1, ... in place of 0, 1, ...: for a second estimator in one step."""
        return replace(self, draw=lambda j: self.draw(n + j), scalars=fold(self.seed, n))

    @cached_property
    def seed(self) -> int:
        """The seed of the scalar randomness of this step; made when it is read, for few estimators do."""
        return keys.of_step(self.run, self.step, OfStep.SCALAR) if self.scalars is None else self.scalars

    @cached_property
    def rng(self) -> np.random.Generator:
        """Scalar randomness of this step (never d-sized)."""
        return np.random.Generator(np.random.Philox(self.seed))

    def norm(self, v: Vector) -> float:
        """Euclidean norm of v in frame coordinates; one pass over its noise."""
        return float(np.sqrt(self.gram([v])[0, 0]))

    def inner(self, a: Vector, vectors: Sequence[Vector]) -> Array:
        """<a, v> for each v; one pass over the noise of all of them."""
        row: Array = self.gram([a, *vectors])[0, 1:]
        return row
