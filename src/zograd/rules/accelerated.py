"""Accelerated proximal descent: FISTA with adaptive restart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from zograd.core.query import Estimate
from zograd.core.sums import Sum
from zograd.core.vector import Slot, Vector
from zograd.estimators.extrapolated import Extrapolated, Trial
from zograd.rules.proximal import X, _Mapped
from zograd.sets import Projection, Prox
from zograd.stores import Block, Iterate

if TYPE_CHECKING:
    from zograd.core.method import Method

CENTER = Vector(((Slot("center"), 1.0),))


@dataclass(frozen=True, slots=True)
class FISTA(_Mapped):
    """z = prox_{lr r}(y - lr g(y)), t' = (1 + sqrt(1 + 4 t^2)) / 2, y <- z + (t - 1) / t' (z - x), x <- z, t <- t'.

    t starts at 1, and returns to 1 (y = z, no momentum) when <y - z, z - x> > 0: the gradient restart of O'Donoghue
    and Candes (2015, Eq. 13). The estimate must be that of `estimators.Extrapolated`, which evaluates at y.

    A step whose estimate says again = 1 is repeated from the same y, x and t with the rate of this step, by which a
    backtracking search (`lr="auto"`) is a few steps on the tape and replays exactly. With again = -1, y = x and t = 1.

    prox: a penalty r or a set of `zograd.sets`; values are written as they come out, so zeros are exact zeros. Points y
    at which f is evaluated may leave a set. With `inside`, y is projected onto it as well, for which we know no
    theorem; the restart ends what that spoils. Memory: four slots (y - x, y, the x before, g). On a convex f with
    lr <= 1/L and exact gradients f + r falls as 2 |x_0 - x*|^2 / (lr (t + 1)^2) between restarts (Beck and Teboulle
    2009, Theorem 4.4). Decoupled weight decay is applied to y.
    """

    prox: Prox | Projection
    inside: bool = False
    automatic: ClassVar[Literal["backtracking"]] = "backtracking"

    @property
    def reads(self) -> type[Trial]:
        return Trial

    @property
    def remedy(self) -> str:
        return "Use Extrapolated(Coordinates(d)), or methods.fd_fista(prox)."

    @property
    def slots(self) -> Mapping[str, float]:
        return {"extrapolation": 0.0}

    def misfit(self, method: Method[Any]) -> str | None:
        if not isinstance(method.estimator, Extrapolated):
            return f"FISTA takes its estimate at y = x + momentum. {self.remedy}"
        return super(FISTA, self).misfit(method)

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        self.note(x, state)
        t = {1.0: state.get("t", 1.0), 0.0: state.get("next", 1.0), -1.0: 1.0}[estimate.aux.again]
        turn = Sum()
        for b, z in self.mapped(lambda: self._moved(x, estimate.vector)):
            move = z - b.slots["previous"]
            turn.add(b.slots["center"] - z, move)
            b.slots["extrapolation"].copy_(move)
            b.put_(z)
        after = (1.0 + math.sqrt(1.0 + 4.0 * t * t)) / 2.0
        restart = turn.value > 0.0
        factor = 0.0 if restart else (t - 1.0) / after
        if self.inside and factor > 0.0:
            for b, y in self.mapped(lambda: self._extrapolated(x, factor)):
                b.slots["extrapolation"].copy_(y.sub_(b.v[0]))
        else:
            for b in x.blocks():
                b.slots["extrapolation"].mul_(factor)
        state["t"], state["next"] = t, 1.0 if restart else after

    def _moved(self, x: Iterate, g: Vector) -> Iterator[tuple[Block, Tensor]]:
        """(1 - lr weight_decay) y - lr g, block by block."""
        for b in self.blocks(x, CENTER, g):
            y, g_block = b.v
            lr, decay = x.rates[b.leaf.group]
            yield b, y.mul_(1.0 - lr * decay).sub_(g_block, alpha=lr)

    def _extrapolated(self, x: Iterate, factor: float) -> Iterator[tuple[Block, Tensor]]:
        """x + factor e, block by block, with x where the move of this step has come to."""
        for b in self.blocks(x, X):
            yield b, b.v[0] + factor * b.slots["extrapolation"]
