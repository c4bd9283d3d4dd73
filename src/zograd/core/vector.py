"""`Vector`, which flows between the parts: linear combinations of directions that are regenerated from seeds.

`Vector` = sum_j c_j e_j with basis vectors e_j that are *names* (a noise key, a slot of the store), never arrays.
Only a store turns a Vector into numbers, one block at a time, so a Vector of a model with a billion weights
holds a few scalars, a checkpoint is a list of Vectors, and workers exchange Vectors.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zograd.core.parts import declared
from zograd.noise import Kind, Term, combine

if TYPE_CHECKING:
    from zograd.core.query import Ask as Ask
    from zograd.core.query import Estimate as Estimate
    from zograd.core.query import Query as Query
    from zograd.core.query import Routine as Routine

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


class Basis(ABC):
    """A basis vector: a hashable name that can write any block of itself on request.

    A kind of basis vector is a frozen dataclass of numbers, strings, tuples and other basis vectors, derived from this
    class and registered with `@basis` so that tapes can store it.
    """

    __slots__ = ()

    @declared
    def reads(self) -> tuple[str, ...]:
        """The slots that it needs, "x" being the iterate."""
        return ()

    @declared
    def low_rank(self) -> bool:
        """Whether it is a product of thin factors on matrices, so that a probe along it costs no pass over weights.

        Then it has `factors(leaf, shape, device)`: U [r, rows] and V [r, columns], with U^T V this vector on a matrix;
        None on a vector. Where it reads slots, `factors(leaf, shape, device, slots)` with the whole slots of the leaf.
        """
        return False

    @declared
    def signs(self) -> bool:
        """Whether it is a product u v^T of signs on matrices, and signs of its own key on vectors (`laws.RankOne`).

        Then it has `key`, and `all_factors(matrices, device)` beside `factors`.
        """
        return False

    @abstractmethod
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
    """Class decorator: tapes and checkpoints may hold this kind of basis vector, under `name_of_basis(kind)`.

    Raises TypeError when another class has that name: a tape would be read as the wrong one. The same class may be
    defined again (in a notebook, by a reload of its module), and then replaces itself.
    """
    if not issubclass(kind, Basis):
        raise TypeError(f"a kind of basis vector is derived from zograd.Basis: class {kind.__name__}(zograd.Basis)")
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


@basis
@dataclass(frozen=True, slots=True)
class Noise(Basis):
    """A random direction with independent elements of mean 0 and variance 1, a function of its key alone."""

    kind: Kind
    key: int

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        combine(out, out, terms=(Term(self.kind, self.key, coef),), leaf=at.leaf, start=at.start)


@basis
@dataclass(frozen=True, slots=True)
class Slot(Basis):
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
        scalar = float(scalar)
        return Vector(tuple([(e, c * scalar) for e, c in self.terms]))

    __rmul__ = __mul__

    def __truediv__(self, scalar: float) -> Vector:
        scalar = float(scalar)
        return Vector(tuple([(e, c / scalar) for e, c in self.terms]))

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
        a = float(a)
        for e, c in v.terms:
            merged[e] = merged.get(e, 0.0) + a * c
    return Vector(tuple(merged.items()))


def copied(v: Vector) -> str | None:
    """The slot that v is a copy of; None where it is another vector."""
    ((e, c),) = v.terms if len(v.terms) == 1 else ((None, 0.0),)
    return e.name if isinstance(e, Slot) and c == 1.0 else None


def of_signs(e: Basis) -> bool:
    """Whether e is a product u v^T of signs on matrices, and signs of its own key on vectors (`laws.RankOne`)."""
    return e.signs


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


def __getattr__(name: str) -> Any:
    """Names that had their home here before `zograd.core.query`."""
    if name in ("Ask", "Estimate", "Query", "Routine"):
        return getattr(importlib.import_module("zograd.core.query"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
