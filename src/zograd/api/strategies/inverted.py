"""A library's solver that calls f, turned into a generator that yields what it wants to know."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Any, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")
R = TypeVar("R")


class _Ended(BaseException):
    """The generator was closed: the solver must leave."""


def inverted(solve: Callable[[Callable[[Q], A]], R]) -> Generator[Q, A, R]:
    """`solve(ask)` runs in a thread; each `ask(question)` in it is yielded here and returns what is sent.

    Only one of the two runs at a time. The generator returns what `solve` returns, and raises what it raises. Closing
    it ends the thread.
    """
    questions: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    answers: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def ask(question: Q) -> A:
        questions.put(("asks", question))
        more, answer = answers.get()
        if not more:
            raise _Ended
        return answer  # type: ignore[no-any-return]

    def work() -> None:
        try:
            questions.put(("returns", solve(ask)))
        except _Ended:
            pass
        except BaseException as error:
            questions.put(("raises", error))

    thread = threading.Thread(target=work, name="zograd-solver", daemon=True)
    thread.start()
    waits = False
    try:
        while True:
            kind, what = questions.get()
            if kind == "returns":
                return what  # type: ignore[no-any-return]
            if kind == "raises":
                raise what
            waits = True
            answer = yield what
            waits = False
            answers.put((True, answer))
    finally:
        if waits:
            answers.put((False, None))
        thread.join()
