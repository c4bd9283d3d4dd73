"""The gradient at an extrapolated point, and the trial of the last step that a backtracking search needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.vector import Slot, Vector
from zograd.estimators.base import Estimator
from zograd.estimators.coordinate import Coordinates
from zograd.estimators.wrappers import moved, stateless

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.stores import Store

X, CENTER, G = (Vector(((Slot(name), 1.0),)) for name in ("x", "center", "gradient"))
EXTRAPOLATION = Vector(((Slot("extrapolation"), 1.0),))

RESOLUTION = 1e-11
"""Differences of two values smaller than this share of them are rounding, and decide nothing."""
GROWTH = 2.0
"""By which the step grows after a trial that was good, and shrinks after one that was not."""
LARGEST = 1e100


class Trial(NamedTuple):
    """again = 1: the step before went too far, and is repeated from the same point with the rate of this step.
    again = -1: f failed at the extrapolated point, the estimate is that at x, and the momentum begins anew."""

    again: float


@dataclass(frozen=True, slots=True)
class Extrapolated(Estimator[Trial]):
    """The estimate of `inner` at y = x + e, e the slot "extrapolation" that a rule (`rules.FISTA`) keeps.

    Costs what `inner` costs. Memory: three slots, "center" = y, "previous" = x, "gradient" = the estimate.

    check (set by the controller that `lr="auto"` means here, `learning_rate.Backtracking`): each step first judges the
    one before, which moved from y to x at the rate lr. With D = f(x) - f(y) - <g, x - y> it was good if
    D <= |x - y|^2 / (2 lr), the descent lemma (Beck and Teboulle 2009, Eq. 2.8), up to the error of g: forward
    differences are off by mu / (2 lr) an element at most. If it was not, the step is made again from y at
        lr' = min(lr / 2, |x - y|^2 / (2 D)),
    without a new gradient; if it was, the next one starts at 2 lr (Scheinberg, Goldfarb and Bai 2014 let steps grow
    too; the factor 2 is ours). The two values cost 2 evaluations a trial, and share a batch. The first rate is the
    inverse of the curvature along g, by one more evaluation at distance sqrt(mu). Meter: `rate`, the rate to move by.

    Failed evaluations, where `inner` takes them. f(x) not finite: the step was not good, and is made again with lr / 2.
    f(y) not finite: the estimate is made again at x, at its full cost, and the momentum begins anew.

    whole: refuse to start where an `inner` of differences along coordinates has fewer of them than there are.

    For values that repeat: the test compares differences of second order, which noise of more than about 1e-10 of f
    drowns; then the rate falls and falls.
    """

    inner: Estimator[Any] = field(default=Coordinates(1000))
    check: bool = False
    whole: bool = False

    estimates_gradient: ClassVar[bool] = False

    @property
    def takes_failures(self) -> bool:
        return self.inner.takes_failures

    @property
    def n(self) -> int:
        return self.inner.n

    @property
    def evaluations(self) -> int:
        return self.inner.evaluations + 2 * self.check

    @property
    def fewest_evaluations(self) -> int:
        return 2 if self.check else self.inner.fewest_evaluations

    def in_dimensions(self, dim: int) -> Extrapolated:
        return replace(self, inner=self.inner.in_dimensions(dim))

    @property
    def aux(self) -> type[Trial]:
        return Trial

    @property
    def slots(self) -> Mapping[str, float]:
        return {"extrapolation": 0.0, "center": 0.0, "previous": 0.0, "gradient": 0.0}

    def misfit(self, method: Method[Any]) -> str | None:
        return stateless(self, self.inner)

    def prepare(self, store: Store) -> None:
        """Raise ValueError where the differences would leave coordinates out."""
        if self.whole and isinstance(self.inner, Coordinates) and self.inner.count < store.dim:
            raise ValueError(
                f"{type(self).__name__} takes differences along all coordinates, and there are {store.dim}, more than "
                f"{self.inner.count}: a step would cost {store.dim + 1} evaluations; pass count={store.dim} if that is "
                f"wanted, or use methods.zo_prox(prox, lr='auto')"
            )

    def __call__(self, ask: Ask) -> Routine[Trial]:
        judged = self.check and ask.moves > 0 and ask.lr > 0.0
        rate, losses = ask.lr, []
        if judged:
            f = yield [Query(), Query(CENTER - X)]
            good, rate = self._judge(ask, f[0], f[1])
            if not good:
                loss = f[0] if math.isfinite(f[0]) else f[1]
                return Estimate(G, loss, f, Trial(1.0), meters={"rate": rate})
            losses = list(f)
        e, there, again = (yield from moved(self.inner(ask), EXTRAPOLATION)), EXTRAPOLATION, 0.0
        losses += e.losses
        if not (math.isfinite(e.loss) or e.vector) and ask.moves > 0:
            e, there, again = (yield from self.inner(ask)), Vector(), -1.0
            losses += e.losses
        if not (math.isfinite(e.loss) or e.vector):
            return Estimate(Vector(), e.loss, losses, Trial(again))
        if self.check and not judged:
            length = ask.norm(e.vector)
            f = yield [Query(there - e.vector * (math.sqrt(ask.mu) / length if length else 0.0))]
            rate, losses = self._first(ask.mu, length, f[0] - e.loss), [*losses, *f]
        writes = {"center": X + there, "previous": X, "gradient": e.vector}
        meters = {**e.meters, "rate": rate} if self.check else e.meters
        return replace(
            e,
            vector=G,
            loss=losses[0] if judged and math.isfinite(losses[0]) else e.loss,
            losses=losses,
            aux=Trial(again),
            writes=writes,
            meters=meters,
        )

    @staticmethod
    def _judge(ask: Ask, at_x: float, at_y: float) -> tuple[bool, float]:
        """Whether the last step was good, and the rate of the next one or of its repetition."""
        if not math.isfinite(at_x):
            return False, ask.lr / GROWTH
        if not math.isfinite(at_y):
            return True, ask.lr
        move = X - CENTER
        square, slope = map(float, ask.gram([move, G])[0])
        D, allowed = at_x - at_y - slope, square / (2 * ask.lr)
        if max(abs(D), allowed) <= RESOLUTION * (abs(at_x) + abs(at_y)):
            return True, ask.lr
        error = ask.mu * math.sqrt(ask.dim * square) / (2 * ask.lr)
        if allowed + error < D:
            return False, min(ask.lr / GROWTH, square / (2 * D))
        return True, min(ask.lr * GROWTH, LARGEST)

    @staticmethod
    def _first(mu: float, length: float, rise: float) -> float:
        """1 / curvature along -g over the distance h = sqrt(mu); where that is not positive, a move of length h."""
        h = math.sqrt(mu)
        curvature = 2 * (rise + h * length) / (h * h)
        return 1.0 / curvature if curvature > 0 else h / length if length else 1.0
