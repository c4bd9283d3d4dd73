"""Anchored steps: each iterate is pulled back to the start, less and less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zograd.core.query import Estimate
from zograd.core.vector import Slot, Vector
from zograd.rules.base import Rule
from zograd.stores import Iterate

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.stores import Store

START, X = (Vector(((Slot(name), 1.0),)) for name in ("start", "x"))


@dataclass(frozen=True, slots=True)
class Halpern(Rule[Any]):
    """x <- b_k x_0 + (1 - b_k) (x - lr g), b_k = weight / (k + offset), k = 0, 1, ... the number of moves before.

    For a cocoercive field F = E g (the gradient of a convex function with Lipschitz constant L, or a resolvent), exact
    estimates and lr <= 1/L, the residual of the last iterate falls as |F(x_k)| <= 2 |x_0 - x*| / (lr (k + 1)), with
    weight 1 and offset 2 (Halpern 1967; Lieder 2021; Diakonikolas 2020). Noise of deviation s leaves a residual that
    does not fall, so estimates whose variance vanishes are wanted: `Coordinates(d)`, or `Page` on a finite sum, for
    which Cai, Alacaoglu and Diakonikolas (2023, arXiv 2310.02987) take weight 2 and offset 4. On a bilinear game F is
    monotone and not cocoercive, and this step diverges there; take its resolvent.

    Decoupled weight decay acts on x before the step. Memory: one slot, x_0. ValueError for b_0 outside of (0, 1).

    >>> import zograd as zo
    >>> dict(zo.rules.Halpern().slots)
    {'start': 0.0}
    """

    weight: float = 1.0
    offset: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < self.offset:
            raise ValueError(
                f"the first pull weight / offset must lie in (0, 1), got weight={self.weight}, offset={self.offset}; "
                f"published are (1, 2) and (2, 4)"
            )

    @property
    def slots(self) -> Mapping[str, float]:
        return {"start": 0.0}

    def misfit(self, method: Method[Any]) -> str | None:
        if method.space.flat:
            return None
        return f"Halpern averages points, which {type(method.space).__name__} does not allow; use Euclidean()"

    def prepare(self, store: Store) -> None:
        store.assign({"start": X})

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        k = state.get("k", 0)
        state["k"] = k + 1
        pull = self.weight / (k + self.offset)
        for b in x.blocks(X, estimate.vector):
            here, g = b.v
            lr, decay = x.rates[b.leaf.group]
            b.put_(here.mul_(1.0 - lr * decay).sub_(g, alpha=lr).lerp_(b.slots["start"], pull))
