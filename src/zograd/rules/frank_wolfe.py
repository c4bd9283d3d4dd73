"""Frank-Wolfe: the iterate stays a convex combination of points of the set, nothing is ever projected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zograd.core.query import Estimate
from zograd.core.vector import Slot, Vector
from zograd.rules.base import Rule
from zograd.sets import LinearMinimizer, Place
from zograd.sets.base import misplaced
from zograd.stores import Iterate

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.stores import Store


X, AVERAGE = (Vector(((Slot(name), 1.0),)) for name in ("x", "average"))


@dataclass(frozen=True, slots=True)
class FrankWolfe(Rule[Any]):
    """m <- (1 - rho_t) m + rho_t g, s = argmin_{s in set} <m, s>, x <- x + gamma_t (s - x), gamma_t = lr 2 / (t + 2).

    rho_t = rho (t + 1)^(-fade) with rho_0 = 1: the averaged estimate of stochastic Frank-Wolfe (Mokhtari et al. 2020),
    without which a single direction's noise picks a random vertex; fade = 0 and rho = 1 take the estimate as it is, for
    estimators whose variance vanishes. lr = 1 is the classical open-loop step, which `lr="auto"` takes: it needs no
    curvature. (The short step min(1, gap / (L |s - x|^2)) with a measured L needs a gap that is not noise.)
    Memory: one slot.
    Feasible at every iterate up to rounding; the start must lie in the set, and lr in [0, 1].

    Shows gap = <m, x - s>, at least f(x) - min f when m is the gradient and f convex: one more pass over the slot.
    """

    set: LinearMinimizer
    rho: float = 1.0
    fade: float = 2 / 3

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho is the share of the new estimate and must lie in (0, 1], got {self.rho}")
        if not self.fade >= 0:
            raise ValueError(f"fade is an exponent and must be >= 0, got {self.fade}")

    @property
    def slots(self) -> Mapping[str, float]:
        return {"average": 0.0}

    @property
    def meters(self) -> tuple[str, ...]:
        return ("gap",)

    automatic: ClassVar[float] = 1.0
    one_rate: ClassVar[bool] = True
    works_on_pieces: ClassVar[bool] = False

    @property
    def whole_leaf(self) -> bool:
        return self.set.whole_leaf

    def misplaced(self, store: Store) -> str | None:
        return misplaced(self.set, *(store.master(leaf).view(leaf.shape) for leaf in store.leaves))

    def misfit(self, method: Method[Any]) -> str | None:
        if not isinstance(self.set, LinearMinimizer):
            known = "L1Ball, L2Ball, LInfBall, NuclearBall, Simplex and Box have one"
            return (
                f"FrankWolfe needs a set with a linear minimiser, and {type(self.set).__name__} has none; {known}, or "
                f"use methods.zo_prox, which projects"
            )
        if method.weight_decay:
            return "FrankWolfe with weight decay would leave its set, which need not hold 0; use weight_decay=0"
        if not method.controller.measures and method.controller.peak > 1:
            peak = method.controller.peak
            return f"FrankWolfe goes lr 2 / (t + 2) of the way to a vertex, so lr is in [0, 1], got {peak:g}"
        if method.space.flat:
            return None
        name = type(method.space).__name__
        return f"FrankWolfe moves along straight lines, which {name} does not have; use Euclidean()"

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        t = state.get("t", 0)
        state["t"] = t + 1
        rho = 1.0 if t == 0 else self.rho * (t + 1) ** -self.fade
        found, start = None, 0
        for b in x.blocks(estimate.vector, whole_leaf=self.whole_leaf):
            m = b.slots["average"].mul_(1.0 - rho).add_(b.v[0], alpha=rho)
            found = self.set.scan(m, Place(start, b.leaf.matrix_shape), found)
            start += m.numel()
        state["gap"] = float(x.gram([AVERAGE, X])[0, 1]) - self.set.lowest(found)
        gamma, start = 2.0 / (t + 2.0), 0
        for b in x.blocks(X, Vector(), whole_leaf=self.whole_leaf):
            here, s = b.v
            self.set.vertex_(s, b.slots["average"], Place(start, b.leaf.matrix_shape), found)
            start += s.numel()
            b.step_(here.sub_(s).mul_(gamma))
