"""Proximal descent: a gradient step, then the proximal map of a penalty or the projection onto a set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zograd.core.query import Estimate
from zograd.core.vector import Slot, Vector
from zograd.rules.base import Rule
from zograd.sets import Projection, Prox
from zograd.stores import Block, Iterate

if TYPE_CHECKING:
    from zograd.core.method import Method


X = Vector(((Slot("x"), 1.0),))


@dataclass(frozen=True, slots=True)
class Proximal(Rule[Any]):
    """x <- prox_{lr r}(x - lr g) = argmin_z |z - (x - lr g)|^2 / (2 lr) + r(z).

    prox: a penalty r or a set of `zograd.sets`. Values are written as they come out, so exact zeros are exact zeros in
    every dtype. Decoupled weight decay comes before the proximal map. Memory: no slots; sets and penalties of whole
    matrices, and projections that sort all elements, need the workspace that they state.
    """

    prox: Prox | Projection

    @property
    def works_on_pieces(self) -> bool:
        return self.prox.unit == "element" and not isinstance(self.prox, Projection)

    @property
    def whole_leaf(self) -> bool:
        return self.prox.unit == "leaf"

    def misfit(self, method: Method[Any]) -> str | None:
        if method.space.flat:
            return None
        name = type(method.space).__name__
        return f"Proximal moves along straight lines, which {name} does not have; use Euclidean()"

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        prox = self.prox
        if isinstance(prox, Projection):
            found = None
            for b, y in self._moved(x, estimate.vector):
                found = prox.measure(self._seen(b, y), found)
            for b, y in self._moved(x, estimate.vector):
                b.put_(prox.project_block_(self._seen(b, y), found).view(-1))
            return
        for b, y in self._moved(x, estimate.vector):
            b.put_(prox.prox_(self._seen(b, y), b.lr).view(-1))

    def _seen(self, b: Block, y: Tensor) -> Tensor:
        """A block as the proximal map takes it: elements, or rows of the leaf's matrix."""
        return y if self.prox.unit == "element" else y.view(-1, b.leaf.matrix_shape[1])

    def _moved(self, x: Iterate, g: Vector) -> Iterator[tuple[Block, Tensor]]:
        """(1 - lr weight_decay) x - lr g, block by block."""
        whole_row = self.prox.unit == "row"
        for b in x.blocks(X, g, whole_leaf=self.whole_leaf, whole_row=whole_row):
            here, g_block = b.v
            lr, decay = x.rates[b.leaf.group]
            yield b, here.mul_(1.0 - lr * decay).sub_(g_block, alpha=lr)
