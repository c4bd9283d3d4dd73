"""Dual controllers: multipliers that follow the measured violation, and the Lagrangian that they make of a value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Kind: TypeAlias = Literal["at most", "equal"]
"""What is wanted of a constraint value c: "at most" c <= 0, "equal" c = 0."""

DECISIVE = 80
"""Halvings of the price interval in `allocate`: down to the spacing of float64."""


class Dual(Protocol):
    """A rule for the multipliers of constraints c(x); its state is a dict of plain numbers and lists (JSON).

    The state has at least "kinds" and "multipliers". `lagrangian` is what a method minimizes in place of f; it may be
    called for many points with one state. `observe` changes the state after a period.
    """

    def initial(self, kinds: Sequence[Kind]) -> dict[str, Any]:
        """The state before the first period: all multipliers zero."""

    def lagrangian(self, state: Mapping[str, Any], f: float, c: npt.ArrayLike) -> float:
        """L(x) from the value f(x) and the constraint values c(x), one for each kind."""

    def observe(self, state: dict[str, Any], c: npt.ArrayLike) -> None:
        """Update the state after a period, with the constraint values (or their means) that were measured in it."""


class _Multipliers:
    """What all rules share: checked sizes, and the sign of multipliers."""

    __slots__ = ()

    def initial(self, kinds: Sequence[Kind]) -> dict[str, Any]:
        for kind in kinds:
            if kind not in ("at most", "equal"):
                raise ValueError(f"a constraint of kind {kind!r}; pass 'at most' (c <= 0) or 'equal' (c = 0)")
        return {"kinds": list(kinds), "multipliers": [0.0] * len(kinds)}

    def lagrangian(self, state: Mapping[str, Any], f: float, c: npt.ArrayLike) -> float:
        """L = f + sum_i lam_i c_i."""
        return float(f) + float(np.dot(state["multipliers"], _values(state, c)))


@dataclass(frozen=True, slots=True)
class Ascent(_Multipliers):
    """lam <- [lam + s_t (c + kappa (c - c_last))]_+,  s_t = step / (1 + decay t);  L = f + lam c.

    Projected (sub)gradient ascent on the dual function q(lam) = min_x L(x, lam), of which c at the minimizer is a
    gradient (Arrow, Hurwicz and Uzawa 1958). [.]_+ is max(0, .) for "at most" and nothing for "equal". kappa > 0 adds
    a proportional part to the integral one and damps the oscillation of lam around its optimum. t counts periods; the
    first has no c_last, and c - c_last is 0.

        >>> rule = Ascent(step=0.5)
        >>> state = rule.initial(["at most", "equal"])
        >>> rule.observe(state, [-1.0, -1.0])
        >>> state["multipliers"], rule.lagrangian(state, 3.0, [1.0, 2.0])
        ([0.0, -0.5], 2.0)
    """

    step: float
    decay: float = 0.0
    kappa: float = 0.0

    def __post_init__(self) -> None:
        if not self.step > 0 or not self.decay >= 0 or not self.kappa >= 0:
            raise ValueError(
                f"Ascent(step={self.step}, decay={self.decay}, kappa={self.kappa}) needs step > 0, decay >= 0 and "
                f"kappa >= 0"
            )

    def initial(self, kinds: Sequence[Kind]) -> dict[str, Any]:
        """Zero multipliers, no last value, period 0."""
        return {**_Multipliers.initial(self, kinds), "last": None, "t": 0}

    def observe(self, state: dict[str, Any], c: npt.ArrayLike) -> None:
        """One step of ascent. ValueError for c that is not finite."""
        now = _finite(state, c)
        last = now if state["last"] is None else np.asarray(state["last"])
        rate = self.step / (1 + self.decay * state["t"])
        _move(state, rate * (now + self.kappa * (now - last)))
        state["last"], state["t"] = now.tolist(), state["t"] + 1


@dataclass(frozen=True, slots=True)
class Augmented(_Multipliers):
    """The augmented Lagrangian (Hestenes 1969, Powell 1969; inequalities by Rockafellar 1973).

        L = f + sum_i (max(0, lam_i + rho_i c_i)^2 - lam_i^2) / (2 rho_i)      "at most"
              + sum_i lam_i c_i + rho_i c_i^2 / 2                              "equal"
        lam <- [lam + rho c]_+                                                 after a period

    With v = |c| for "equal" and v = |max(c, -lam / rho)| for "at most", rho_i <- min(grow rho_i, most) for each row
    whose v is above `stall` times that of the period before (as in ALGENCAN, Birgin and Martinez 2014, Alg. 4.1).
    Where L is minimized exactly, the minimizer has grad f + lam_new grad c = 0.

        >>> rule = Augmented(rho=2.0)
        >>> state = rule.initial(["equal"])
        >>> rule.lagrangian(state, 1.0, [3.0])
        10.0
        >>> rule.observe(state, [3.0])
        >>> state["multipliers"], state["rho"]
        ([6.0], [2.0])
    """

    rho: float = 1.0
    grow: float = 2.0
    stall: float = 0.25
    most: float = 1e6

    def __post_init__(self) -> None:
        if not 0 < self.rho <= self.most or not self.grow >= 1 or not self.stall > 0:
            raise ValueError(
                f"Augmented(rho={self.rho}, grow={self.grow}, stall={self.stall}, most={self.most}) needs "
                f"0 < rho <= most, grow >= 1, stall > 0"
            )

    def initial(self, kinds: Sequence[Kind]) -> dict[str, Any]:
        """Zero multipliers, and rho for each row."""
        return {**_Multipliers.initial(self, kinds), "rho": [self.rho] * len(kinds), "last": None}

    def lagrangian(self, state: Mapping[str, Any], f: float, c: npt.ArrayLike) -> float:
        """L of the docstring of the class."""
        now, lam, rho = _values(state, c), np.asarray(state["multipliers"]), np.asarray(state["rho"])
        pushed = lam + rho * now
        pushed = np.where(_one_sided(state), np.maximum(0.0, pushed), pushed)
        return float(f) + float(np.sum((pushed * pushed - lam * lam) / (2 * rho)))

    def observe(self, state: dict[str, Any], c: npt.ArrayLike) -> None:
        """Multipliers of the first order, then rho where the violation has stalled. ValueError for c not finite."""
        now, lam, rho = _finite(state, c), np.asarray(state["multipliers"]), np.asarray(state["rho"])
        size = np.abs(np.where(_one_sided(state), np.maximum(now, -lam / rho), now))
        _move(state, rho * now)
        if state["last"] is not None:
            stalled = size > self.stall * np.asarray(state["last"])
            state["rho"] = np.where(stalled, np.minimum(self.grow * rho, self.most), rho).tolist()
        state["last"] = size.tolist()


@dataclass(frozen=True, slots=True)
class SignAscent(_Multipliers):
    """lam <- [lam + step sign(c)]_+;  L = f + lam c.

    Every multiplier moves by `step` whatever the size of its violation, so it ends in a band of width 2 `step`. This is
    the balancing of the load of experts without an auxiliary loss (Wang et al. 2024, arXiv 2408.15664).

        >>> rule = SignAscent(0.1)
        >>> state = rule.initial(["at most", "at most"])
        >>> rule.observe(state, [5.0, -5.0])
        >>> state["multipliers"]
        [0.1, 0.0]
    """

    step: float

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise ValueError(f"SignAscent(step={self.step}) needs step > 0")

    def observe(self, state: dict[str, Any], c: npt.ArrayLike) -> None:
        """One step of fixed length. ValueError for c that is not finite."""
        _move(state, self.step * np.sign(_finite(state, c)))


def _values(state: Mapping[str, Any], c: npt.ArrayLike) -> Array:
    """c as an array of the size of the state."""
    now = np.asarray(c, dtype=np.float64).reshape(-1)
    if now.size != len(state["kinds"]):
        raise ValueError(f"c has {now.size} values, but there are {len(state['kinds'])} constraints")
    return now


def _finite(state: Mapping[str, Any], c: npt.ArrayLike) -> Array:
    """The same for what multipliers move by: NaN would stay in them."""
    now = _values(state, c)
    if not np.all(np.isfinite(now)):
        raise ValueError(f"c = {now.tolist()} is not finite, and multipliers move by finite values only; leave it out")
    return now


def _one_sided(state: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    return np.array([kind == "at most" for kind in state["kinds"]], dtype=bool)


def _move(state: dict[str, Any], by: Array) -> None:
    """lam <- [lam + by]_+."""
    moved = np.asarray(state["multipliers"]) + by
    state["multipliers"] = np.where(_one_sided(state), np.maximum(0.0, moved), moved).tolist()


class Allocation(NamedTuple):
    """What `allocate` found. choice: the option of each item. price: lam. spent, gained: sums over the choices."""

    choice: npt.NDArray[np.intp]
    price: float
    spent: float
    gained: float


def allocate(gain: npt.ArrayLike, cost: npt.ArrayLike, budget: float) -> Allocation:
    """Choose one option for each item so that the costs sum to at most `budget`, by the price of a unit of cost.

        choice_i = argmax_b gain_ib - lam cost_ib,    lam >= 0 the least with sum_i cost_i,choice_i <= budget.

    gain: (items, options), larger is better. cost: (options,) or (items, options). lam is the multiplier of the
    budget, found by bisection: spending falls as the price rises. Among equal options the cheapest is taken. The gain
    is that of the best allocation with the same spending, and falls short of the linear program's by less than one
    item's (Everett 1963). O(items options) for each of 80 bisections. Raises ValueError where even the cheapest options
    cost more than the budget.

        >>> allocate([[0.0, 5.0], [0.0, 1.0], [0.0, 3.0]], [0.0, 1.0], budget=2)
        Allocation(choice=array([1, 0, 1]), price=1.0..., spent=2.0, gained=8.0)
    """
    gains = np.asarray(gain, dtype=np.float64)
    if gains.ndim != 2 or gains.size == 0:
        raise ValueError(f"gain has shape {gains.shape}; pass an array of (items, options)")
    costs = np.broadcast_to(np.asarray(cost, dtype=np.float64), gains.shape)
    if not (np.all(np.isfinite(gains)) and np.all(np.isfinite(costs))):
        raise ValueError("gain or cost holds NaN or infinite values; pass finite numbers")
    if math.isnan(budget):
        raise ValueError("budget is NaN; pass a number")
    order = np.argsort(costs, axis=1, kind="stable")  # the first of equals is the cheapest
    gains, costs = np.take_along_axis(gains, order, 1), np.take_along_axis(costs, order, 1)
    items = np.arange(len(gains))

    def at(price: float) -> tuple[npt.NDArray[np.intp], float]:
        if math.isinf(price):
            choice = np.argmax(np.where(costs == costs[:, :1], gains, -np.inf), axis=1)
        else:
            choice = np.argmax(gains - price * costs, axis=1)
        return choice, float(np.sum(costs[items, choice]))

    if at(math.inf)[1] > budget:
        raise ValueError(f"budget={budget:g}, but the cheapest options cost {at(math.inf)[1]:g}; pass at least that")
    low, high = 0.0, 0.0
    if at(0.0)[1] > budget:
        gaps = np.diff(costs, axis=1)
        high = 2 * float(np.ptp(gains)) / float(np.min(gaps[gaps > 0])) + 1.0
        for _ in range(DECISIVE):
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle)[1] > budget else (low, middle)
    choice, spent = at(high)
    chosen = np.take_along_axis(order, choice[:, None], 1)[:, 0]
    return Allocation(chosen, high, spent, float(np.sum(gains[items, choice])))
