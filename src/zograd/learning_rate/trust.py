"""`TrustRate`: the learning rate from measured curvature and a trust radius, judged by the next step's own values.

A step at x_k evaluates the loss around x_k, and so it also tells whether the step that led there was a good one. No
evaluation is spent on the judgement alone. A step that made the loss worse is taken back.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from zograd.core.query import Estimate
from zograd.core.sums import mean
from zograd.core.vector import Slot, Vector
from zograd.estimators.base import Estimator
from zograd.learning_rate.auto import AutoRate
from zograd.learning_rate.controller import State
from zograd.learning_rate.levels import passes, repeats_wanted, sense_noise, with_levels
from zograd.stores import Rate

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.core.record import Record

A = TypeVar("A")

BEFORE = "trust.before"
"""The slot with the weights at the reference point, where a step cannot be taken back by its own vector."""

CERTAIN = 16
"""Steps taken back after one that found the level of the reference as it was, until that is looked at again."""

FADING = 0.99
"""What is left after a step of the variance between steps that was found by going back."""

FULLY = -1.0
"""In place of the share of the way that is kept: all of it is taken back."""

ROUNDOFF = 16 * sys.float_info.epsilon
"""Relative difference of two values that rounding alone may cause."""


@dataclass(frozen=True)
class TrustRate(AutoRate):
    """lr_t = min(safety * signal * eta_cap, R / |g|): below the edge of stability, and within a trust radius R.

    eta_cap and signal are those of `AutoRate`. Where curvature is not positive (linear, concave, kinks), R / |g| alone
    is the rate. |g|^2 is the mean squared slope of the step (`slope2`), so that R is the length of a move along the
    gradient, in units of x.

    Judgement. The reference is the level of the loss where the last step that stood began, and P = sum lr |g|^2 the
    decrease that was predicted since. Let w be the level now minus that of the reference, and s its standard error.

        w > `clear` s and w > `worse` P     back to the reference, but for a share of the way: theta = P / (2 (w + P)),
                                            the minimum of the parabola through both levels, within [0.1, 0.5];
                                            R <- theta R
        P > 2 s, and the step was of length R:   -w > P/2: R <- 4 R before the first step back, later `grow` R;
                                            -w < P/10: R <- 0.7 R
        otherwise                           the reference stays for up to `horizon` steps, then R <- 2 R

    s comes from the spread of the pairs, and from the scatter between steps, which minibatches cause that change from
    step to step: decreases of more than twice what was predicted, and the first of `CERTAIN` steps back, which goes all
    the way, and finds the level of the reference again where there is no scatter. Otherwise R is as before. Where it is
    known that each step has a batch of its own (`batches`), s comes from the changes of the level between the last
    steps instead: two levels that are equal are chance then.

    Taking back: in a flat space with SGD without weight decay the step moves by the last moves with the opposite sign,
    which costs no memory. Otherwise a slot of the size of the weights keeps x, and a step back restores it bit for bit.
    """

    every: int = 4
    warm: int = 8
    clear: float = 3.0
    worse: float = 0.0
    grow: float = 1.5
    horizon: int = 8
    batches: bool = False

    standstill: ClassVar[str] = (
        "lr='auto' found no slope at x0: f does not change there, or x0 is a minimum; pass a larger mu or budget, or "
        "start elsewhere"
    )

    def wrap(self, estimator: Estimator[A]) -> Estimator[A]:
        return with_levels(estimator, self.every, self.warm)

    def misfit(self, method: Method[Any]) -> str | None:
        if "penalty" in method.rule.meters:
            return (
                f"TrustRate judges steps by the loss alone, and {type(method.rule).__name__} lowers the loss plus a "
                f"penalty; use lr='auto'"
            )
        if method.rule.preconditions:
            return (
                f"TrustRate judges moves along the estimate, and {type(method.rule).__name__} makes another move; use "
                f"lr='auto', or give it a number"
            )
        return super().misfit(method)

    def slots(self, method: Method[Any]) -> Mapping[str, float]:
        return {} if _reversible(method) else {BEFORE: 0.0}

    def repeats(self, state: State, step: int) -> int:
        return repeats_wanted(state, step)

    def initial(self) -> State:
        return {
            **super().initial(),
            "repeats": [], "trust": 0.0, "slope2": 0.0, "level": None, "here": None, "mu": 0.0, "spread": [],
            "jumps": [], "predicted": 0.0, "length": 0.0, "steps": 0, "limited": False, "young": True, "back": 0.0,
            "again": 0, "certain": 0, "changes": [], "before": None, "tried": [], "scatter2": 0.0,
            "lr": 0.0, "probe": 0.0, "moves": Vector(),
        }  # fmt: skip

    # ---- what a step tells -------------------------------------------------------------------------------------------

    def observe(self, state: State, loss: float, meters: Mapping[str, float]) -> None:
        if "radius" not in state:
            sense_noise(state, meters)
        state["trust.failed"] = 0
        state["probe"] = meters.get("mu", 0.0)
        state["back"], state["slope2"] = 0.0, meters.get("slope2", 0.0)
        if not state.get("fits", True):  # the radius is still looked for
            return
        if "spread2" in meters:
            state["spread"] = [*state["spread"], meters["spread2"] / meters.get("n", 1)][-8:]
        if state["mu"] and meters.get("mu", state["mu"]) != state["mu"]:  # curvature was seen at another radius
            keep = max(len(state["seen"]) // 2, 2)
            state["seen"] = state["seen"][-keep:] if meters["mu"] <= 4 * state["mu"] else []
        state["back"] = self._judge(state, meters)
        if state["back"]:
            state["seen"] = state["seen"][-4:]
            return
        super().observe(state, loss, meters)
        if not state["trust"] and meters.get("mu"):
            state["trust"] = self._first_radius(state, meters["mu"])

    def failed(self, state: State) -> None:
        """No point of the step was finite, or x is not: half of the way that led there, and of the radius."""
        if passes(state, "trust.failed"):
            state["back"] = 0.0
            return
        state["back"] = 0.5 if state["length"] > 0 else 0.0
        state["young"], state["slope2"], state["again"] = False, 0.0, state["again"] + 1
        state["trust"] = 0.5 * min(state["trust"], state["length"] or state["trust"])

    def _first_radius(self, state: State, mu: float) -> float:
        """A step at the edge of one direction, where curvature is clearly positive; otherwise the radius of probes."""
        trace, spread2 = state["seen"][-1] if state["seen"] else (0.0, 0.0)
        if trace <= 0 or spread2 > 4 * trace * trace:
            return mu
        return max(mu, 2 * self.safety / (3 * trace) * math.sqrt(state["slope2"]))

    def _judge(self, state: State, meters: Mapping[str, float]) -> float:
        """The share of the way to keep when the step is to be taken back; 0 when it stands."""
        here = meters.get("here")
        level = meters.get("level", here)
        if level is None:
            return 0.0
        exact = not any(state["repeats"]) and here is not None and state["here"] is not None
        ref = state["here"] if exact else state["level"]
        predicted = state["predicted"]
        if ref is None or not meters.get("mu"):
            self._refer(state, meters)
            return 0.0
        now: float = here if exact and here is not None else level
        shift = 0.0 if exact or meters["mu"] == state["mu"] else self._shift(state, meters["mu"])
        worse = now - ref - shift
        within = 0.0 if exact else self._within(state, meters)
        jump = mean(state["jumps"]) if state["jumps"] else 0.0
        rounding = ROUNDOFF * abs(ref) + abs(shift) / 2
        among = self._among(state, now - shift) if self.batches else 0.0
        error = math.sqrt(max(within, jump, state["scatter2"], among)) + rounding
        state["scatter2"] *= FADING
        if state["tried"]:  # at the reference again: any difference is scatter
            first, trust = state["tried"]
            if abs(worse) > max(self.clear * math.sqrt(within) + rounding, first / 32):
                state["scatter2"] = max(state["scatter2"], (worse * worse + min(first * first, 4 * worse * worse)) / 2)
                state["trust"], state["certain"] = trust, 0
            else:
                state["certain"] = 0 if state["scatter2"] else CERTAIN
                state["scatter2"] /= 2
            state["tried"], state["again"] = [], 0
            self._refer(state, meters)
            return 0.0
        if worse > self.clear * error and worse > self.worse * predicted and state["again"] < 8 and state["length"] > 0:
            theta = min(max(predicted / (2 * (worse + predicted)), 0.1), 0.5)
            trust = state["trust"]
            state["trust"] = theta * min(state["trust"], state["length"])
            certain = state["certain"] and state["again"] <= 3
            if not (self.batches or certain):  # all the way, to see whether the level is what it was
                state["tried"], theta = [worse, trust], FULLY
            else:
                state["certain"] = max(state["certain"] - 1, 0)
            state["young"] = False
            state["again"] += 1
            return float(theta)
        state["again"] = 0
        surplus = min(worse + 2 * predicted, 0.0)
        state["jumps"] = [*state["jumps"], 2 * max(surplus * surplus - within / 2, 0.0)][-12:]
        if predicted > 2 * error:
            if state["limited"]:
                if -worse > predicted / 2:
                    state["trust"] *= 4.0 if state["young"] else self.grow
                elif -worse < predicted / 10:
                    state["trust"] *= 0.7
            self._refer(state, meters)
        elif state["steps"] >= self.horizon:
            if state["limited"]:
                state["trust"] *= 2.0
            self._refer(state, meters)
        return 0.0

    def _among(self, state: State, now: float) -> float:
        """The mean square of the changes of the level from one step to the next before this one, of batches."""
        changes, before = state["changes"], state["before"]
        if before is not None:
            state["changes"] = [*changes, (now - before) ** 2][-12:]
        state["before"] = now
        return mean(changes) if changes else math.inf

    def _within(self, state: State, meters: Mapping[str, float]) -> float:
        """The variance of a difference of two levels, from the spread of pairs within steps."""
        if state["spread"]:
            return 2 * mean(state["spread"])
        if not state["seen"]:
            return 0.0
        trace, second = (mean(column) for column in zip(*state["seen"], strict=True))
        mu2 = meters["mu"] * meters["mu"]
        return float(max(second - trace * trace, 0.0)) * mu2 * mu2 / 2

    def _shift(self, state: State, mu: float) -> float:
        """How much larger levels are at this radius than at that of the reference."""
        trace = mean([t for t, _ in state["seen"]]) if state["seen"] else 0.0
        return float((mu * mu - state["mu"] * state["mu"]) * trace / 2)

    def _refer(self, state: State, meters: Mapping[str, float]) -> None:
        """The level of this step is the reference from now on."""
        here = meters.get("here")
        state["level"], state["here"], state["mu"] = meters.get("level", here), here, meters.get("mu", 0.0)
        state["predicted"], state["length"], state["steps"], state["moves"] = 0.0, 0.0, 0, Vector()

    # ---- what a step does --------------------------------------------------------------------------------------------

    def rate(self, state: State, step: int, q: int = 1, beta: float = 0.0, unit: float = 1.0) -> float:
        slope = math.sqrt(state["slope2"])
        if not (slope > 0 and state["trust"] > 0):
            return 0.0
        edge = super().rate(state, step, q, beta)
        trust = min(state["trust"], state["probe"]) if state.get("edge") else state["trust"]
        bound = trust * (1 - beta) * self.shape(step) / slope
        return float(min(edge or bound, bound, self.limit)) * unit

    def revise(
        self, state: State, method: Method[Any], estimate: Estimate[A], rates: tuple[Rate, ...]
    ) -> tuple[Estimate[A], tuple[Rate, ...]]:
        back = state["back"]
        kept = 0.0 if back == FULLY else back
        if _reversible(method):
            if not back:
                return estimate, rates
            lr = state["lr"]
            vector = state["moves"] * (-(1 - kept) / lr)
            return replace(estimate, vector=vector), tuple(Rate(lr, rate.weight_decay) for rate in rates)
        if not back:
            if state["steps"] or not math.isfinite(estimate.loss):  # a step that failed moves nothing
                return estimate, rates
            return replace(estimate, writes={**estimate.writes, BEFORE: Vector(((Slot("x"), 1.0),))}), rates
        forgotten = {name: Vector() for name, initial in method.rule.slots.items() if initial == 0.0}
        writes = {**estimate.writes, **forgotten, "x": Vector(((Slot(BEFORE), 1.0),))}
        return replace(estimate, vector=Vector(), writes=writes), tuple(Rate(0.0, r.weight_decay) for r in rates)

    def moved(self, state: State, lr: float) -> None:
        if state["back"]:
            return
        super().moved(state, lr)
        slope = math.sqrt(state["slope2"])
        state["predicted"] += lr * state["slope2"]
        state["length"] += lr * slope
        state["limited"] = lr * slope >= 0.5 * state["trust"]
        state["steps"] += 1

    def taken(self, state: State, method: Method[Any], record: Record) -> None:
        back = state["back"]
        if back:
            kept = 0.0 if back == FULLY or any(name == "x" for name, _ in record.writes) else back
            state["moves"] = state["moves"] * kept
            state["predicted"] *= kept
            state["length"] *= kept
        elif record.rates[0].lr and _reversible(method):
            state["lr"] = record.rates[0].lr
            state["moves"] = state["moves"] + record.vector * state["lr"]


def _reversible(method: Method[Any]) -> bool:
    """Whether a step is undone by its own vector with the opposite sign."""
    return (
        method.space.flat
        and method.rule.linear
        and not method.weight_decay
        and not (method.law.slots or method.estimator.slots)
    )
