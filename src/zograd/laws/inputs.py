"""Directions in the span of what enters a layer: W [out, in] gets R A^T, A a basis of the layer's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from zograd.core.slots import PerColumn
from zograd.core.vector import Address, Basis, Vector, basis
from zograd.laws.base import Draw, Law
from zograd.laws.factors import add_product_, factor, is_matrix, noise_factor, normals, part, product
from zograd.laws.lowrank import add_plain_, check_most, check_rank

if TYPE_CHECKING:
    from zograd.core.method import Method

INPUTS = "inputs"
"""The slot with the basis of a layer's inputs, [rank, in]: rows of length 1, or 0 where nothing is known."""


def token_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """The rows [positions, width] that enter a layer, where the mask [rows, width] of a batch says that a token stands.

    Some models (OPT) flatten rows and positions before a layer. None, or a mask of another size: all rows.
    """
    if mask is not None and mask.numel() == x.shape[:-1].numel():
        return x[mask.reshape(x.shape[:-1]).to(x.device)]
    return x.reshape(-1, x.shape[-1])


@basis
@dataclass(frozen=True, slots=True)
class OnInputs(Basis):
    """R A^T: R [out, rank] Gaussian of key `key`, A^T [rank, in] the slot "inputs". Plain noise where that is 0."""

    key: int
    rank: int
    low_rank: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = (INPUTS,)

    def __post_init__(self) -> None:
        check_most(self.rank)

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        if not (is_matrix(at.shape) and bool(slots[INPUTS].any())):
            return add_plain_(out, coef, self.key, at)
        a = factor(slots[INPUTS].double(), 1.0)

        def multiply(rows: slice, columns: slice) -> Tensor:
            r = normals(self.key, self.rank, at.leaf, rows.start, rows.stop - rows.start, out.device)
            return product(noise_factor(r), part(a, columns))

        add_product_(out, coef, at, multiply)

    def factors(
        self, leaf: int, shape: tuple[int, ...], device: torch.device, slots: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """R^T [rank, out] and A^T [rank, in] in float64; None where the direction is plain noise."""
        if not (is_matrix(shape) and bool(slots[INPUTS].any())):
            return None
        return normals(self.key, self.rank, leaf, 0, shape[0], device), slots[INPUTS].double()


@dataclass(frozen=True, slots=True)
class OnLayerInputs(Law):
    """v = R A^T on the weight W [out, in] of a linear layer, R [out, rank] Gaussian, A [in, rank] orthonormal.

    A spans the leading directions of what entered the layer in a forward of this run, in which `Watching` recorded it:
    AGZO (arXiv 2601.17261). The gradient of W is a sum of d x^T over inputs x, so A^T keeps the part of it that the
    leading inputs carry: E[D_v v] = G A A^T, with variance (rank out + 1) |G A|^2 of the matrix alone in place of
    (out in + 1) |G|^2. There is no factor for the rank: a probe changes the outputs of a layer as much as Gaussian
    noise on W does for inputs in the span. Vectors, embeddings and whatever is no weight of a layer get plain noise.

    Memory: `rank` numbers a column. Needs `Watching` as the estimator and a run of `zograd train`: TypeError else.

    >>> import zograd as zo
    >>> zo.methods.agzo().law
    OnLayerInputs(rank=4)
    """

    rank: int = 4
    fixed_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_most(self.rank)

    @property
    def slots(self) -> Mapping[str, float]:
        return {INPUTS: PerColumn(0.0, self.rank)}

    def misfit(self, method: Method[Any]) -> str | None:
        if method.estimator.watches:
            return None
        return (
            f"OnLayerInputs reads what enters the layers, which Watching records, but the estimator is "
            f"{type(method.estimator).__name__}. Use methods.agzo()."
        )

    def __call__(self, draw: Draw) -> Vector:
        return Vector(((OnInputs(draw.key, self.rank), 1.0),))
