"""A strategy at work inside of another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from zograd.api.ending import End, Ending
from zograd.api.strategies.base import Points, Routine, Strategy, Trace, Values
from zograd.core.record import Record


def nested(
    strategy: Strategy,
    inner: Trace,
    outer: Trace,
    *,
    asked: Callable[[Points], Points] = lambda request: request,
    told: Callable[[Points, Values], Values] = lambda request, values: values,
    over: Callable[[], End | None] = lambda: None,
    reserve: int = 0,
) -> Routine:
    """The strategy on `inner`, whose steps are steps of `outer`.

    asked: its request as it goes out. told: the values as it is told them, from its request and the answers.
    over: what ends it before it ends itself, asked after each answer. reserve: evaluations that `outer` keeps; where a
    request does not fit into the rest, the end is `Ending.BUDGET`.
    """

    def on_step(record: Record) -> None:
        outer.lr, outer.mu, outer.method, outer.control = inner.lr, inner.mu, inner.method, inner.control
        outer.step(replace(record, step=outer.steps))

    inner.on_step = on_step
    routine = strategy(inner)
    try:
        request = next(routine)
        while request.cost(outer.problem.terms) <= outer.left - reserve:
            answers = told(request, (yield asked(request)))
            inner.left = outer.left - reserve
            request = routine.send(answers)
            if (end := over()) is not None:
                return end
        return End(Ending.BUDGET)
    except StopIteration as stop:
        found: End = stop.value
        return found
    finally:
        routine.close()
