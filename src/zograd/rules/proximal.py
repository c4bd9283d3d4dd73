"""Proximal descent: a gradient step, then the proximal map of a penalty or the projection onto a set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from zograd.core.query import Estimate
from zograd.core.sums import Sum
from zograd.core.vector import Slot, Vector
from zograd.rules.base import Rule
from zograd.sets import Penalty, Projection, Prox
from zograd.stores import Block, Iterate

if TYPE_CHECKING:
    from zograd.core.method import Method


X = Vector(((Slot("x"), 1.0),))
Passes: TypeAlias = Callable[[], Iterator[tuple[Block, Tensor]]]
"""Makes one pass over the blocks with the point that the map is applied to; called once or twice."""


class _Mapped(Rule[Any]):
    """What rules with a proximal map share: what the map must see, its value, and flat space."""

    __slots__ = ()
    prox: Prox | Projection

    @property
    def works_on_pieces(self) -> bool:
        return self.prox.unit == "element" and not isinstance(self.prox, Projection)

    @property
    def whole_leaf(self) -> bool:
        return self.prox.unit == "leaf"

    @property
    def meters(self) -> tuple[str, ...]:
        """r(x) before the move, where its value is cheap: with the loss of the step it is the objective."""
        return ("penalty",) if isinstance(self.prox, Penalty) else ()

    def misfit(self, method: Method[Any]) -> str | None:
        if method.space.flat:
            return None
        mine, space = type(self).__name__, type(method.space).__name__
        return f"{mine} moves along straight lines, which {space} does not have; use Euclidean()"

    def blocks(self, x: Iterate, *vectors: Vector) -> Iterator[Block]:
        """Blocks of what the map must see at once."""
        return x.blocks(*vectors, whole_leaf=self.whole_leaf, whole_row=self.prox.unit == "row")

    def seen(self, b: Block, y: Tensor) -> Tensor:
        """A block as the proximal map takes it: elements, or rows of the leaf's matrix."""
        return y.view(-1, b.leaf.matrix_shape[1]) if self.prox.unit in ("row", "leaf") else y

    def mapped(self, passes: Passes) -> Iterator[tuple[Block, Tensor]]:
        """The blocks of one pass with prox_{lr r} of their points."""
        prox = self.prox
        if isinstance(prox, Projection):
            found = None
            for b, y in passes():
                found = prox.measure(self.seen(b, y), found)
            for b, y in passes():
                yield b, prox.project_block_(self.seen(b, y), found).view(-1)
        elif prox.unit == "all":
            points, lr = [], 0.0
            for b, y in passes():
                points.append(y.double().clone())
                lr = b.lr
            home = points[0].device
            z = prox.prox_(torch.cat([point.to(home) for point in points]), lr)
            start = 0
            for b, y in passes():
                yield b, y.copy_(z[start : start + len(y)])
                start += len(y)
        else:
            for b, y in passes():
                yield b, prox.prox_(self.seen(b, y), b.lr).view(-1)

    def note(self, x: Iterate, state: dict[str, Any]) -> None:
        """state["penalty"] <- r(x), in one pass over the weights where r has a cheap value."""
        if isinstance(self.prox, Penalty):
            total = Sum()
            for b in self.blocks(x, X):
                self.prox.add_value(total, self.seen(b, b.v[0]))
            state["penalty"] = total.value


@dataclass(frozen=True, slots=True)
class Proximal(_Mapped):
    """x <- prox_{lr r}(x - lr g) = argmin_z |z - (x - lr g)|^2 / (2 lr) + r(z).

    prox: a penalty r or a set of `zograd.sets`. Values are written as they come out, so exact zeros are exact zeros in
    every dtype. Decoupled weight decay comes before the proximal map. Memory: no slots; sets and penalties of whole
    matrices, and projections that gather all elements, need the workspace that they state.

    `lr="auto"`: the edge of stability is that of the smooth part f alone. Let x* be a minimiser of f + r, so that
    x* = prox(x* - lr grad f(x*)). The map is non-expansive, |prox(a) - prox(b)| <= |a - b|, so that
        E|x' - x*|^2 <= E|x - x* - lr (g - grad f(x*))|^2:
    on a quadratic the error x - x* grows by no more than a step of descent on f, with the part of the noise that does
    not vanish at x* (there grad f(x*) is not 0) added. A rate at which descent on f contracts in mean square therefore
    keeps E|x - x*|^2 bounded here, and the bound that `AutoRate` keeps is used as it is, with no momentum. The added
    part is a noise floor in proportion to lr |grad f(x*)|^2 d / n; `AutoRate` lowers lr when f + r stands still on it.

    Shows `penalty` = r(x) before the move for L1 and GroupL2, at one pass over the weights.
    """

    prox: Prox | Projection
    momentum: ClassVar[float] = 0.0

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        self.note(x, state)
        for b, z in self.mapped(lambda: self._moved(x, estimate.vector)):
            b.put_(z)

    def _moved(self, x: Iterate, g: Vector) -> Iterator[tuple[Block, Tensor]]:
        """(1 - lr weight_decay) x - lr g, block by block."""
        for b in self.blocks(x, X, g):
            here, g_block = b.v
            lr, decay = x.rates[b.leaf.group]
            yield b, here.mul_(1.0 - lr * decay).sub_(g_block, alpha=lr)
