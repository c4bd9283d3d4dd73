"""Whether a run lowered its function, and one sentence that says why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zograd.api.ending import End, Ending
from zograd.core.method import Method
from zograd.core.record import Record
from zograd.core.records import Records
from zograd.core.schedules import as_schedule
from zograd.estimators import Players, Saddle
from zograd.learning_rate import AutoRate, TrustRate
from zograd.methods.defaults import BLACK_BOX_LR
from zograd.methods.menu import MENU, describe

CLEAR = 3.0
"""Standard errors by which two noisy values have to differ."""

UNBOUNDED = 1e30
"""A function that falls below minus this has no minimum."""

ROUNDING = 1e-12
"""Relative rise or fall of f that is none."""

HARDLY = 1e-4
"""A drop below this share of f is next to nothing."""

FEW = 10
"""Steps below which it is not said that they were too short."""


@dataclass(frozen=True)
class Wording:
    """How a sentence names values and remedies.

    sign: -1 where f is maximized: values of f are told as the caller sees them. end: of the run, None inside of it.
    """

    sign: float = 1.0
    end: End | None = None

    def value(self, f: float) -> str:
        return f"{self.sign * f + 0.0:.6g}"

    @property
    def way(self) -> tuple[str, str, str, str]:
        """The verbs of going the right way and the wrong one."""
        return ("come down", "came down", "falling", "rose") if self.sign > 0 else ("rise", "rose", "rising", "fell")

    @property
    def better(self) -> str:
        return "lower" if self.sign > 0 else "higher"

    @property
    def best(self) -> str:
        return "lowest" if self.sign > 0 else "highest"

    @property
    def timed(self) -> bool:
        return self.end is not None and self.end.kind is Ending.TIME

    @property
    def limit(self) -> str:
        """What ended the run."""
        return "it" if self.timed else "the budget"

    @property
    def more(self) -> str:
        """The remedy where that came too early."""
        return "pass more seconds" if self.timed else "pass a larger budget"


PLAIN = Wording()


def failure(
    method: Method[Any] | None,
    tape: Records,
    at_start: Sequence[float],
    final: float,
    at_end: Sequence[float] = (),
    known: bool = False,
    *,
    moved: bool,
    words: Wording = PLAIN,
) -> End | None:
    """What `_failure` says, as an end."""
    pairs = _Pairs(at_start, at_end, known) if len(at_end) else None
    why = _failure(method, tape, at_start, final, pairs, moved=moved, words=words)
    return None if why is None else End(Ending.SHORT, why)


def _failure(
    method: Method[Any] | None, tape: Records, at_start: Sequence[float], final: float, pairs: _Pairs | None, *,
    moved: bool, words: Wording,
) -> str | None:  # fmt: skip
    """Why a run is no success, with the remedy; None where f came down.

    method: None for a strategy that is not of the menu; then nothing is said about mu and lr.

    at_start: f(x0), twice where it may be noisy; empty: the first step stands for it. final: f at the result.
    pairs: f at x0 and at the result in the same batches. moved: whether x has changed.

    Where the two values of f(x0) are equal, f repeats, and values are compared as they are; steps that all together
    lower f by less than 1 %, and by less than the values of one step differ, are called too short. Otherwise single
    values have to differ by three standard errors; where they do not, the mean losses of some first steps, at most a
    tenth, and of the last tenth have to. The noise is read off the two values and off the losses of single steps, whose
    points lie a radius mu apart.
    """
    if not math.isfinite(final):
        return f"f is {words.sign * final} at the result"
    if final < -UNBOUNDED:
        return unbounded(final, words)
    if method is None:
        return _without_method(at_start, final, pairs, moved=moved, words=words)
    taken = tape.taken()
    mu = as_schedule(method.mu)(0)
    if not taken:
        return (
            f"all {len(tape)} steps had a non-finite value; start where f is finite within mu={mu:.3g} of x0, or pass "
            f"a smaller mu"
        )
    f0 = at_start[0] if at_start else taken[0].loss
    if all(f == f0 for r in taken for f in r.losses):
        return (
            f"f did not change within mu={mu:.3g} of x in any of {len(taken)} steps; pass a larger mu, or scale x so "
            f"that f feels such a change"
        )
    if not moved:
        return f"x did not move: {_stuck(method, taken)}"
    finite = [f for f in at_start or [f0] if math.isfinite(f)]
    if not finite:
        return None
    f0 = float(np.mean(finite))
    values = f"from {words.value(f0)} at x0 to {words.value(final)} at the result"
    come, came, _, rose = words.way
    if pairs is not None and not pairs.single:
        down, up = pairs.change
        if not (down or up):
            return pairs.undecided(values, words)
    elif max(finite) > min(finite):
        down, up = _beyond_noise(taken, finite, final)
        if not (down or up):
            return f"f did not {come} by more than its noise, {values}; pass a larger mu than {mu:.3g}, or {_or(words)}"
    else:
        down, up = f0 - final > ROUNDING * abs(f0), final - f0 > ROUNDING * abs(f0)
        if down and f0 - final < 0.01 * max(abs(f0), abs(final)) and _too_short(taken, f0 - final):
            lr = taken[-1].rates[0].lr
            return f"f hardly {came}, {values}: steps are too short; {_longer(method, lr)}"
    if up and isinstance(method.estimator, (Players, Saddle)):
        name = type(method.estimator).__name__
        return f"f {rose}, {values}: {name} looks for an equilibrium, not a minimum; use AskTell"
    if up:
        return f"f {rose}, {values}: steps were too long; {_shorter(method, taken, f0)}"
    return None if down else f"f is as it was, {words.value(final)} at x0 and at the result; pass another mu or lr"


def _longer(method: Method[Any], lr: float) -> str:
    """The remedy for short steps. A method that was made without a rate has the menu's, for language models."""
    larger = f"pass a larger lr than {lr:.3g}"
    if method.name not in MENU or method.controller.peak != describe(method.name)["defaults"].get("lr"):
        return larger
    return f"{larger}, which {method.name} has for the weights of language models, or lr='auto'"


def _or(words: Wording) -> str:
    """The second remedy of a sentence."""
    return words.more.removeprefix("pass ")


def unbounded(final: float, words: Wording) -> str:
    """What is said of a function without a minimum."""
    fell, lower = ("fell", "lower") if words.sign > 0 else ("rose", "upper")
    return f"f {fell} to {words.sign * final:.3g}, as if it had no {lower} bound; pass bounds, or check its sign"


@dataclass(frozen=True)
class _Pairs:
    """Values at x0 and at the result in the same batches. known: whether these are all batches."""

    at_start: Sequence[float]
    at_end: Sequence[float]
    known: bool

    @property
    def single(self) -> bool:
        """Whether one batch of many was compared, which tells nothing of the others."""
        return len(self.at_start) == 1 and not self.known

    @property
    def change(self) -> tuple[bool, bool]:
        """(f came down, f rose): the mean difference is beyond three standard errors, or beyond rounding."""
        differences = np.subtract(self.at_end, self.at_start)
        finite = differences[np.isfinite(differences)]
        if not finite.size:
            return False, False
        error = ROUNDING * float(np.mean(np.abs(self.at_start)))
        if not self.known and finite.size > 1:
            error = max(error, CLEAR * float(np.std(finite, ddof=1)) / math.sqrt(finite.size))
        mean = float(np.mean(finite))
        return mean < -error, mean > error

    def undecided(self, values: str, words: Wording) -> str:
        """What is said where it did neither."""
        n = len(self.at_start)
        batches = f"all {n} batches" if self.known else f"{n} batches or seeds that both got"
        return f"f did not {words.way[0]} by more than its noise over {batches}, {values}; {words.more}"


def _without_method(
    at_start: Sequence[float], final: float, pairs: _Pairs | None, *, moved: bool, words: Wording
) -> str | None:
    """The verdict on a strategy whose steps have no directions: from the values at both ends."""
    finite = [f for f in at_start if math.isfinite(f)]
    come, _, _, rose = words.way
    if not finite or not moved:
        return None if moved else f"x did not move: no point with a {words.better} value was found"
    f0, noise = float(np.mean(finite)), float(np.std(finite, ddof=1)) if len(finite) > 1 else 0.0
    values = f"from {words.value(f0)} at x0 to {words.value(final)} at the result"
    if pairs is not None and not pairs.single:
        down, up = pairs.change
        return None if down else f"f {rose}, {values}" if up else pairs.undecided(values, words)
    if abs(final - f0) <= CLEAR * noise * math.sqrt(1 + 1 / len(finite)) or 0 < final - f0 <= ROUNDING * abs(f0):
        if noise:
            return f"f did not {come} by more than its noise, {values}; {words.more}"
        return f"f is as it was, {words.value(final)} at x0 and at the result"
    return f"f {rose}, {values}" if final > f0 else None


def unbegun(budget: int, words: Wording = PLAIN) -> End:
    """The end of a run that made no step."""
    limit = "it" if words.timed else f"the budget of {budget:,} evaluations"
    return End(Ending.EARLY, f"{limit} ended before the first step; {words.more}")


def too_few(steps: int, words: Wording = PLAIN) -> End:
    """The end of a run that has only begun."""
    count = "1 step, which is too few" if steps == 1 else f"{steps} steps, which are too few"
    return End(Ending.EARLY, f"{words.limit} ended after {count}; {words.more}")


def unfinished(
    method: Method[Any] | None, tape: Records, f0: float, final: float, noise: float, *, words: Wording = PLAIN
) -> End | None:
    """Why the end of the budget came too early: f was still falling. None where it was not.

    The last quarter of the evaluations brought more than a tenth of the whole drop, and more than the noise explains,
    which is also read off the differences of successive losses. A strategy that is not of the menu (method None) and
    ends within `FEW` iterations has only begun.
    """
    evaluations, values = tape.losses()
    total = f0 - final
    if not total > 0:
        return None
    if len(values) < FEW:
        return too_few(len(values), words) if method is None else None
    spent = np.cumsum(evaluations)
    if method is None and not noise:  # the best point is kept, and a restart begins high
        values = np.minimum.accumulate(values)
    late = values[spent >= 0.75 * spent[-1]]
    part = max(len(late) // 3, 1)
    early, end = float(np.mean(late[:part])), float(np.mean(late[-part:]))
    drop = (early - end) * 1.5  # from thirds of the quarter to its whole
    if noise > 0 and len(late) > FEW:
        noise = max(noise, 1.5 * float(np.std(np.diff(late))))
    if drop > 0.1 * total and drop > CLEAR * noise / math.sqrt(part):
        crawls = total < 0.01 * max(abs(f0), abs(final))  # at this rate it takes for ever
        remedy = words.more
        if method is not None and crawls and not isinstance(method.lr, AutoRate):  # a rate that nobody measured
            remedy = _longer(method, tape[-1].rates[0].lr)
        change = "drop" if words.sign > 0 else "rise"
        share = 100 * min(drop / total, 1)
        return End(
            Ending.EARLY,
            f"{words.limit} ended while f was {words.way[2]}: about {share:.0f} % of the {change}, "
            f"from {words.value(f0)} to {words.value(final)}, came in its last quarter; {remedy}",
        )
    return None


def _tenths(taken: Sequence[Record]) -> tuple[Sequence[Record], Sequence[Record]]:
    """The first and the last tenth of the steps."""
    part = max(len(taken) // 10, 1)
    return taken[:part], taken[-part:]


def _too_short(taken: Sequence[Record], drop: float) -> bool:
    """Whether all steps together lowered f by less than the values of one step differ, or by next to nothing, and the
    slope has not gone."""
    first, last = _tenths(taken)
    slopes = [float(np.mean([_range(r) / (r.mu or 1.0) for r in part])) for part in (first, last)]
    differ = float(np.mean([_range(r) for r in last]))
    return len(taken) >= FEW and drop < max(differ, HARDLY * abs(taken[0].loss)) and slopes[1] > slopes[0] / 4


def _range(record: Record) -> float:
    """The difference of the largest and the smallest finite loss of a step."""
    finite = [f for f in record.losses if math.isfinite(f)]
    return max(finite) - min(finite) if finite else 0.0


def _stuck(method: Method[Any], taken: Sequence[Record]) -> str:
    """Why steps left x where it was."""
    if method.controller.standstill and not any(r.rates[0].lr for r in taken):
        return method.controller.standstill + _trusted(method, "which needs none")
    if "penalty" not in method.rule.meters and any(c for r in taken for _, c in r.vector.terms):
        return "the steps are smaller than the spacing of its numbers; pass a larger lr, or x0 in float64"
    return "no step found a way down from x0; pass a smaller lr or mu, or start elsewhere if x0 is no minimum"


def _shorter(method: Method[Any], taken: Sequence[Record], f0: float) -> str:
    """The remedy for steps that were too long: a tenth of the rates up to where f rose, at most the default."""
    before = next((k for k, r in enumerate(taken) if not r.loss <= f0), len(taken))
    rates = [r.rates[0].lr for r in taken[: before + 1] if r.rates[0].lr > 0]
    if not rates:
        return "pass a smaller lr"
    lr = f"lr={min(0.1 * float(np.median(rates)), BLACK_BOX_LR):.1g}"
    shorter = f"pass a smaller lr, such as {lr}" if method.name == "custom" else f"try methods.{method.name}({lr})"
    return shorter + _trusted(method, "which takes such steps back")


def _trusted(method: Method[Any], why: str) -> str:
    """The end of a remedy for lr="auto": the rate that judges its steps, where the method takes it."""
    if type(method.controller) is not AutoRate or TrustRate().misfit(method) is not None:
        return ""
    return f", or lr=zograd.learning_rate.TrustRate(), {why}"


def _beyond_noise(taken: Sequence[Record], at_start: Sequence[float], final: float) -> tuple[bool, bool]:
    """(f came down, f rose), each only where the noise of the values leaves no doubt."""
    part = max(len(taken) // 10, 1)
    early, late = (_scatter(taken[:10]), _scatter(taken[-max(part, 10) :]))
    noise = max(min(early, late), abs(at_start[0] - at_start[-1]) / math.sqrt(2))  # of a value at x0
    rise = final - float(np.mean(at_start))
    if abs(rise) > CLEAR * math.hypot(noise / math.sqrt(len(at_start)), late):
        return rise < 0, rise > 0
    end = [r.loss for r in taken[-part:]]
    values = sum(len(r.losses) for r in taken) / len(taken)
    for n in (2**k for k in range(part.bit_length())):
        drop = float(np.mean([r.loss for r in taken[:n]]) - np.mean(end))
        if drop > CLEAR * math.hypot(noise / math.sqrt(n), late / math.sqrt(part)) / math.sqrt(values):
            return True, False
    return False, False


def _scatter(taken: Sequence[Record]) -> float:
    """Standard deviation of the losses within a step: that of the noise, and of the slope over a radius mu."""
    with np.errstate(over="ignore"):
        finite = [[f for f in r.losses if math.isfinite(f)] for r in taken]
        variances = [float(np.var(losses, ddof=1)) for losses in finite if len(losses) > 1]
    return math.sqrt(float(np.mean(variances))) if variances else 0.0
