"""`AutoRadius` (`mu="auto"`): the radius of the probes from a ladder at the start, and then from the noise of f."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from zograd.core.sums import mean
from zograd.estimators.base import Estimator
from zograd.learning_rate.controller import Controller, State
from zograd.learning_rate.levels import noise_sd, passes, repeats_wanted, sense_noise, with_levels

A = TypeVar("A")

EDGE = 24
"""Steps after a failed point in which probes are as long as steps."""

REMEMBERED = 2
"""Measurements over which the share of values that are the number f(x) is averaged."""

EQUAL = 0.25
"""The share above which f is a staircase at this radius."""

BLOCKED = 4
"""Steps in a row without a way down, after which probes are shortened."""

SHARE = 0.25
"""The share of one-sided slopes that may be curvature."""

EPS = sys.float_info.epsilon


@dataclass(frozen=True)
class AutoRadius(Controller):
    """The radius mu of the probes: a ladder from `start`, then what noise, rounding and the trust radius ask for.

    Ladder. Steps that move nothing, until one of them shows that mu fits:

        f repeats, and |f(x + mu v) - f(x - mu v)| <= 1e-9 |f(x)|       mu is too small: 4 mu (64 mu after 8 such steps)
        f repeats, and |f+ - 2 f + f-| > |f+ - f-|                      mu is as large as the scale of f: mu / 8
        f is noisy with deviation s, and the differences are below 8 s  4 mu, up to 1024 times the start
            unless second differences above 8 s bend f by an amount     mu stays, or comes down to a half: f need be no
            that depends on the direction                               parabola farther out, as a round bowl is
        all points of the step failed                                   mu / 8
        f repeats, and half of the values are the number f(x)           4 mu: f is a staircase, such as a rounded one

    At a radius that fits at once the ladder costs no step. Then, on measuring steps (`Levels`):

        noise of deviation s: mu -> sqrt(2.83 s / T), T ~ tr H, by a factor of 1/2 to 4, never below what the ladder
        gave (its half, where f bent by an amount that depends on the direction). This mu makes the bias of curvature,
        mu^2 T / 2, as large as the noise of a difference. It stands while within 0.75 to 1.35 of what is wanted. f(x)
        is evaluated twice on measuring steps.
        f repeats: 2 mu where more than a quarter of the values are the number f(x), the sign of a staircase (Moré and
        Wild 2011, "Estimating computational noise", take half), and never below again; mu / 2 where it exceeds the
        trust radius, or where no pair is finite and none has a finite point that lies lower, or where f(x + mu v) -
        f(x) is taken and mu T / 2, its part that is curvature, exceeds a quarter of the slopes; 8 mu where the second
        differences are lost in rounding and the trust radius allows it. f(x) is evaluated twice once in 32 steps.

    Failures that come and go, since a point that failed has a value when it is evaluated again, are no edge of where f
    is finite: their pairs are left out, and neither mu nor the trust radius follows them.

    s and T are means over the last 12 and 24 measurements, T never below twice its standard error. With a `TrustRate`
    the two share their measurements; with any other lr, mu follows alone.
    """

    start: float = 2.0**-10
    every: int = 4
    warm: int = 8

    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.start > 0 and math.isfinite(self.start)):
            raise ValueError(f"the radius starts from a number > 0, got {self.start}")

    def __float__(self) -> float:
        """The radius of the first step."""
        return self.start

    @property
    def peak(self) -> float:
        return self.start

    def wrap(self, estimator: Estimator[A]) -> Estimator[A]:
        return with_levels(estimator, self.every, self.warm)

    def repeats(self, state: State, step: int) -> int:
        return repeats_wanted(state, step)

    def initial(self) -> State:
        return {
            "radius": self.start,
            "least": 0.0,
            "climbed": 0,
            "fits": False,
            "edge": 0,
            "blocked": 0,
            "curved": [],
            "repeats": [],
            "equal": 0.0,
            "stairs": 0.0,
            "bend": math.inf,
        }

    def rate(self, state: State, step: int, q: int = 1, beta: float = 0.0, unit: float = 1.0) -> float:
        return float(state["radius"])

    def ready(self, state: State) -> bool:
        return bool(state["fits"])

    def moved(self, state: State, lr: float) -> None:
        """Nothing: what a step measured has set the radius."""
        return None

    def failed(self, state: State) -> None:
        if passes(state, "radius.failed"):
            return
        if state.get("length", 0.0) > 0 and state["again"] < 4:  # the step that led here is taken back first
            return
        state["radius"] = max(state["radius"] / (4 if state["fits"] else 8), self.start * 2.0**-60)

    def observe(self, state: State, loss: float, meters: Mapping[str, float]) -> None:
        sense_noise(state, meters)
        if "here" in meters:
            state["equal"] += (meters.get("equal", 0.0) - state["equal"]) / REMEMBERED
        state["radius.failed"] = 0
        chance = state.get("chance", False)
        state["edge"] = 0 if chance else EDGE if "failures" in meters else max(state["edge"] - 1, 0)
        if chance and "slope2" not in meters:
            return
        if "failures" in meters and "slope2" not in meters:
            state["blocked"] += 1
            state["radius"], state["curved"] = meters["mu"] / (2 if state["blocked"] % BLOCKED == 0 else 1), []
        elif state["edge"] and state["fits"] and state.get("trust"):
            state["blocked"], state["curved"] = 0, []
            state["radius"] = min(max(state["trust"], meters["mu"] / 2), 2 * meters["mu"])
        elif {"slope2", "curvature2"} <= meters.keys() and meters["mu"] == state["radius"]:  # both without overflow
            state["curved"] = [*state["curved"], (meters["trace"], meters["curvature2"])][-24:]
            if state["fits"]:
                self._follow(state, meters)
            else:
                self._climb(state, meters)

    def _climb(self, state: State, meters: Mapping[str, float]) -> None:
        mu, here, climbed = state["radius"], abs(meters["here"]), state["climbed"]
        first, second = 2 * mu * math.sqrt(meters["slope2"]), mu * mu * math.sqrt(meters["curvature2"])
        sd, bends = noise_sd(state), False
        if sd > 0:
            if climbed == 0 and "spread2" in meters:  # here the spread of the pairs is noise alone
                state["repeats"] = [*state["repeats"], *[2 * meters["spread2"]] * (int(meters.get("n", 1)) - 1)]
                sd = noise_sd(state)
            bends = second > 8 * sd and meters.get("spread2", 0.0) > 2 * sd * sd
            up, down = first < 8 * sd and climbed < 5 and not bends, False
        else:
            up = (max(first, second) <= 1e-9 * here or meters.get("equal", 0.0) >= 2 * EQUAL) and 0 <= climbed < 16
            down = -5 < climbed <= 0 and second > first and second > 1e-6 * here
        if not (up or down):
            state["fits"], state["least"] = True, mu / 2 if bends else mu
            return
        state["climbed"] = climbed + 1 if up else climbed - 1
        state["radius"] = mu * (4.0 if climbed < 8 else 64.0) if up else mu / 8
        state["curved"] = []

    def _follow(self, state: State, meters: Mapping[str, float]) -> None:
        mu, sd = state["radius"], noise_sd(state)
        trace, second = (mean(column) for column in zip(*state["curved"], strict=True))
        if sd > 0:
            error = math.sqrt(max(float(second - trace * trace), 0.0) / len(state["curved"]))
            curvature = max(float(trace), 2 * error)
            wanted = math.sqrt(2.83 * sd / curvature) if curvature > 0 else 4 * mu
            new = min(max(wanted, state["least"], mu / 2), 4 * mu)
        else:
            trust, here = state.get("trust", 0.0), abs(meters["here"])
            first, second = 2 * mu * math.sqrt(meters["slope2"]), mu * mu * math.sqrt(float(second))
            new = mu
            if first == second == 0.0 and here:
                new = 4 * mu
            elif state["equal"] > EQUAL:
                new = state["stairs"] = 2 * mu
                state["equal"] = 0.0
            elif meters.get("one_sided") and self._bends(state, meters, here):
                new = mu / 2
            elif trust and mu > trust and first > 1e-7 * here:
                new = max(mu / 2, min(state["stairs"], mu))
            elif second <= 64 * EPS * here and 8 * mu <= trust:
                new = 8 * mu
        if not 0.75 < new / mu < 1.35:
            state["radius"] = float(new)
            keep = state["curved"][-max(len(state["curved"]) // 2, 2) :]
            state["curved"] = keep if sd > 0 else []

    @staticmethod
    def _bends(state: State, meters: Mapping[str, float], here: float) -> bool:
        """Whether curvature is a large part of one-sided slopes, and a smaller radius helps: it would be seen there,
        and it is no larger than at the last radius, as that of a kink is."""
        mu = meters["mu"]
        trace, second = (mean(column) for column in zip(*state["curved"], strict=True))
        spread = math.sqrt(max(second - trace * trace, 0.0))
        seen = mu * mu * trace > 2**12 * EPS * here and trace > spread
        if not (seen and mu * trace / 2 > SHARE * math.sqrt(meters["slope2"])) or trace > 1.5 * state["bend"]:
            return False
        state["bend"] = float(trace)
        return True


def as_radius(value: Any) -> Any:
    """What a method is given as its mu: "auto" is an `AutoRadius`; numbers and schedules are left to `as_schedule`."""
    return AutoRadius() if isinstance(value, str) and value == "auto" else value
