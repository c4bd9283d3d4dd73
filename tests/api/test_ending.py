"""Kinds of ends: the status and the message come from them, and never from the wording."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import zograd as zo
from zograd.api.ending import End, Ending, Status, concluded
from zograd.api.strategies.base import Points, Problem, Routine, Trace, points
from zograd.api.strategies.nested import nested
from zograd.api.variables import Variables

SHORT = End(Ending.SHORT, "f rose; pass a smaller lr")


def sphere(x: Any) -> float:
    return float(np.sum((x - 1) ** 2))


@pytest.mark.parametrize(("end", "why", "message", "status"), [
    (End(Ending.BUDGET), None, "budget used", Status.SUCCESS),
    (End(Ending.BUDGET), SHORT, "f rose; pass a smaller lr", Status.FAILED),
    (End(Ending.BUDGET), End(Ending.EARLY, "too few"), "too few", Status.EARLY),
    (End(Ending.TIME), SHORT, "time used; f rose; pass a smaller lr", Status.EARLY),
    (End(Ending.CALLBACK), None, "stopped by the callback", Status.SUCCESS),
    (End(Ending.CALLBACK), SHORT, "stopped by the callback; f rose; pass a smaller lr", Status.STOPPED),
    (End(Ending.INTERRUPT), None, "interrupted", Status.STOPPED),
    (End(Ending.ERROR, "f raised E"), None, "f raised E", Status.STOPPED),
    (End(Ending.FAILURES, "20 steps"), None, "20 steps", Status.FAILED),
    (End(Ending.ITSELF, "a local minimum"), None, "a local minimum", Status.SUCCESS),
])  # fmt: skip
def test_message_and_status(end: End, why: End | None, message: str, status: Status) -> None:
    assert concluded(end, why) == (message, status)


def test_words_of_an_exception_decide_nothing() -> None:
    """It was "in a row" in a message that made a run one that gave up, and the first words that made its status."""
    calls: list[int] = []

    def f(x: Any) -> float:
        calls.append(1)
        if len(calls) > 50:
            raise ValueError("three failures in a row")
        return sphere(x)

    result = zo.minimize(f, np.zeros(3), "zo_sgd", budget=500)
    assert (result.status, result.success) == (Status.STOPPED, False)
    stopped = zo.minimize(sphere, np.zeros(3), "zo_sgd", budget=500, callback=lambda r: r.nit == 20)
    assert (stopped.status, stopped.message) == (Status.SUCCESS, "stopped by the callback")
    timed = zo.minimize(lambda x: 1.0 + sphere(x) * 0, np.zeros(3), "zo_sgd", budget=500, seconds=0.0)
    assert timed.status == Status.EARLY
    assert timed.message.startswith("time used; ")


class Twice:
    """Two requests of two points, each with a step, then an end of its own."""

    name = "twice"

    def __call__(self, trace: Trace) -> Routine:
        trace.began(self.name)
        for k in range(2):
            trace.counted((yield points([np.full(2, float(k))] * 2)))
        return End(Ending.ITSELF, "both done")


def run(left: int, **given: Any) -> tuple[End, list[list[float]], list[int]]:
    outer = Trace(Problem(Variables(np.zeros(2))), left, lambda: np.zeros(2))
    inner = Trace(outer.problem, left, lambda: np.zeros(2))
    seen: list[int] = []
    outer.steps, outer.on_step = 7, lambda record: seen.append(record.step)
    routine, asked, values = nested(Twice(), inner, outer, **given), [], None
    try:
        while True:
            request = routine.send(values)  # type: ignore[arg-type]
            asked.append([float(x[0]) for x in request])
            outer.left -= len(request)
            values = [1.0] * len(request)
    except StopIteration as stop:
        return stop.value, asked, seen


def test_a_strategy_inside_of_another_one() -> None:
    end, asked, seen = run(10)
    assert (end.message, asked, seen) == ("both done", [[0.0, 0.0], [1.0, 1.0]], [7, 8])
    end, asked, seen = run(4, reserve=1)
    assert (end, asked, seen) == (End(Ending.BUDGET), [[0.0, 0.0]], [7])
    told: list[float] = []
    end, asked, _ = run(
        10,
        asked=lambda request: Points(lambda i: request.make(i) + 5, len(request)),
        told=lambda request, values: told.extend(values) or [math.nan] * len(values),
        over=lambda: SHORT if len(told) == 2 else None,
    )
    assert (end, asked) == (SHORT, [[5.0, 5.0]])
