"""What flows between the parts: linear combinations of directions that are regenerated from seeds.

`Vector` = sum_j c_j e_j with basis vectors e_j that are *names* (a noise key, a slot of the store), never arrays.
Only a store turns a Vector into numbers, one block at a time, so a Vector of a model with a billion weights
holds a few scalars, a checkpoint is a list of Vectors, and workers exchange Vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zograd.noise import Kind, Term, combine, fold

A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)

Array: TypeAlias = npt.NDArray[np.float64]
Gram: TypeAlias = Callable[[Sequence["Vector"]], Array]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a block lies: elements `start` .. `start + len(block)` of leaf number `leaf`, a tensor of `shape`."""

    leaf: int
    start: int
    shape: tuple[int, ...] = ()

    @property
    def columns(self) -> int:
        """The leaf as a matrix: its first axis by the rest. A vector or scalar has one column."""
        return math.prod(self.shape[1:])


@runtime_checkable
class Basis(Hashable, Protocol):
    """A basis vector: a hashable name that can write any block of itself on request.

    `reads` names the slots that it needs, "x" being the iterate. A kind of basis vector is a frozen dataclass of
    numbers, strings, tuples and other basis vectors, registered with `@basis` so that tapes can store it.
    """

    @property
    def reads(self) -> tuple[str, ...]: ...

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        """out += coef * (this vector's elements at `at`); `slots` are the store's named tensors on the same block."""


B = TypeVar("B", bound=type)

BASES: dict[str, type] = {}
"""Every kind of basis vector by the name that tapes and checkpoints know it by."""


def name_of_basis(kind: type) -> str:
    """The name of a kind of basis vector: that of the class for those of zograd, with its module for all others."""
    own = kind.__module__.partition(".")[0] == "zograd"
    return kind.__name__ if own else f"{kind.__module__}.{kind.__qualname__}"


def basis(kind: B) -> B:
    """Class decorator: this kind of basis vector may stand on tapes and in checkpoints, as `name_of_basis` says.

    Raises TypeError when another class has that name: a tape would be read as the wrong one. The same class may be
    defined again (in a notebook, by a reload of its module), and then replaces itself.
    """
    name = name_of_basis(kind)
    known = BASES.get(name, kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise TypeError(
            f"there is a basis vector named {name!r} already, {known.__module__}.{known.__qualname__}. Tapes know "
            f"basis vectors by name, so give {kind.__module__}.{kind.__qualname__} another one"
        )
    BASES[name] = kind
    torch.serialization.add_safe_globals([kind])
    return kind


class Regenerated:
    """What basis vectors share that follow from their own fields and read no slot."""

    __slots__ = ()

    @property
    def reads(self) -> tuple[str, ...]:
        return ()


@basis
@dataclass(frozen=True, slots=True)
class Noise(Regenerated):
    """A random direction with independent elements of mean 0 and variance 1, a function of its key alone."""

    kind: Kind
    key: int

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        combine(out, out, terms=(Term(self.kind, self.key, coef),), leaf=at.leaf, start=at.start)


@basis
@dataclass(frozen=True, slots=True)
class Slot:
    """A named d-sized tensor of the store (an anchor, a momentum); `Slot("x")` is the iterate itself."""

    name: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.name,)

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        if self.name not in slots:
            raise KeyError(f"the vector names slot {self.name!r}, but this store has {sorted(slots)}")
        out.add_(slots[self.name], alpha=coef)


@dataclass(frozen=True, slots=True)
class Vector:
    """sum_j c_j e_j, closed under `+`, `-` and multiplication by a scalar; equal basis vectors merge."""

    terms: tuple[tuple[Basis, float], ...] = ()

    def __add__(self, other: Vector) -> Vector:
        return combination((1.0, 1.0), (self, other))

    def __sub__(self, other: Vector) -> Vector:
        return combination((1.0, -1.0), (self, other))

    def __mul__(self, scalar: float) -> Vector:
        return Vector(tuple((e, c * float(scalar)) for e, c in self.terms))

    __rmul__ = __mul__

    def __truediv__(self, scalar: float) -> Vector:
        return Vector(tuple((e, c / float(scalar)) for e, c in self.terms))

    def __neg__(self) -> Vector:
        return self * -1.0

    def __bool__(self) -> bool:
        return bool(self.terms)


# Checkpoints hold the Vectors that a rule remembers; this lets torch.load read them with its safe defaults.
torch.serialization.add_safe_globals([Kind, Vector])


def combination(coefficients: Iterable[float], vectors: Iterable[Vector]) -> Vector:
    """sum_k a_k v_k as one Vector, terms in order of first appearance."""
    merged: dict[Basis, float] = {}
    for a, v in zip(coefficients, vectors, strict=True):
        for e, c in v.terms:
            merged[e] = merged.get(e, 0.0) + float(a) * c
    return Vector(tuple(merged.items()))


@dataclass(frozen=True, slots=True)
class Query:
    """The loss is wanted at Retr_x(at): x + at in a flat space. Queries of one yield share batch and randomness.

    rows: which terms of a finite sum f = (1/N) sum_i f_i are wanted, as their mean; None: the loss as it is, all of it.
    """

    at: Vector = field(default_factory=Vector)
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Estimate(Generic[A_co]):
    """What an estimator returns.

    vector: the gradient estimate. loss: the value to show for this step. losses: every value received.
    aux: scalars that a rule needs (typed: a rule that reads curvature does not accept an estimator that has none).
    writes: slots to assign before the move, in terms of the old slots (`vector` is read with the new ones).
    meters: numbers measured on the way, to be shown and to steer the learning rate (`zograd.learning_rate`).
    """

    vector: Vector
    loss: float
    losses: Sequence[float]
    aux: A_co
    writes: Mapping[str, Vector] = field(default_factory=dict)
    meters: Mapping[str, float] = field(default_factory=dict)


Routine: TypeAlias = Generator[Sequence[Query], Sequence[float], Estimate[A]]


@dataclass(frozen=True)
class Ask:
    """All that an estimator may know: the step, the dimension, the radius mu, directions, inner products.

    moves: steps that were taken so far (refused ones not counted); 0 means that slots hold their initial values.
    lr: learning rate of this step, of the first group. terms: number N of terms of a finite sum, 0 when f is not one.
    shapes: of the leaves, in order. run: the key that all steps of the run share.
    """

    step: int
    dim: int
    mu: float
    draw: Callable[[int], Vector]
    gram: Gram
    seed: int
    moves: int = 0
    lr: float = 0.0
    terms: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    run: int = 0

    def after(self, n: int) -> Ask:
        """The same, with directions n, n + 1, ... in place of 0, 1, ...: for a second estimator in one step."""
        return replace(self, draw=lambda j: self.draw(n + j), seed=fold(self.seed, n))

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


class Estimator(Protocol[A_co]):
    """Yields the points where the loss is wanted, receives the losses, returns the estimate.

    Where they apply: `aux`, the type of its scalars; `slots`; `fewest_evaluations` and `most_evaluations(terms)`, where
    steps differ; `estimates_gradient = False`, where the estimate has not the length of the gradient.
    """

    @property
    def evaluations(self) -> int:
        """Loss evaluations a call costs."""

    def __call__(self, ask: Ask, /) -> Generator[Sequence[Query], Sequence[float], Estimate[A_co]]: ...


def of_signs(e: Basis) -> bool:
    """Whether e is a product u v^T of signs on matrices, and signs of its own key on vectors (`laws.RankOne`)."""
    return bool(getattr(e, "signs", False))


def noise_terms(
    v: Vector, scale: float = 1.0, *, on_vector: bool = False
) -> tuple[list[Term], list[tuple[Basis, float]]]:
    """The terms of scale * v that the noise kernel sums in one pass, and the others. on_vector: on one column."""
    noise, others = [], []
    for e, c in v.terms:
        if isinstance(e, Noise):
            noise.append(Term(e.kind, e.key, c * scale))
        elif on_vector and of_signs(e):
            noise.append(Term(Kind.SIGN, e.key, c * scale))  # type: ignore[attr-defined]
        else:
            others.append((e, c * scale))
    return noise, others


def fill_(out: Tensor, v: Vector, at: Address, slots: Mapping[str, Tensor]) -> Tensor:
    """out <- the elements of v at `at`, in the accumulation order of its terms (noise first)."""
    noise, others = noise_terms(v, on_vector=at.columns == 1)
    if noise:
        combine(out, None, terms=noise, leaf=at.leaf, start=at.start)
    else:
        out.zero_()
    for e, c in others:
        e.add_(out, c, at, slots)
    return out


HALF = (torch.bfloat16, torch.float16)
"""The 16-bit weight dtypes."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; every other weight dtype is computed with in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
