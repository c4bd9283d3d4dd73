"""Why a run ended: a kind, which decides on `Result.status`, and the sentence that is made from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class Status(IntEnum):
    """`Result.status`."""

    SUCCESS = 0
    EARLY = 1
    """The budget or the time ended too early."""
    FAILED = 2
    STOPPED = 3
    """The callback, an interrupt or an exception ended the run."""


class Ending(Enum):
    """Kinds of ends. The value is the sentence where no other is given."""

    BUDGET = "budget used"
    TIME = "time used"
    TARGET = "target reached"
    START = "x0 reaches the target"
    CALLBACK = "stopped by the callback"
    INTERRUPT = "interrupted"
    ERROR = "f raised an exception"
    DATA = "no more batches"
    ITSELF = "the strategy ended"
    """It had nothing more to ask."""
    FAILURES = "too many failed evaluations in a row"
    UNSETTLED = "the search ended before it had settled"
    """It was still on its way somewhere else, or its numbers do not allow another step."""
    EARLY = "the budget ended too early"
    SHORT = "the run fell short"
    """Of what makes a success."""


STATUS = {
    Ending.TIME: Status.EARLY, Ending.EARLY: Status.EARLY, Ending.CALLBACK: Status.STOPPED,
    Ending.INTERRUPT: Status.STOPPED, Ending.ERROR: Status.STOPPED,
}  # fmt: skip
"""Of runs that are no success; all others have failed."""

REACHED = (Ending.TARGET, Ending.START)

NO_SUCCESS = (Ending.INTERRUPT, Ending.ERROR, Ending.FAILURES, Ending.UNSETTLED)
"""Whatever else is known of the run."""


@dataclass(frozen=True)
class End:
    """An end. text: its sentence; empty: that of its kind."""

    kind: Ending
    text: str = ""

    @property
    def message(self) -> str:
        return self.text or self.kind.value

    @property
    def used_up(self) -> bool:
        """Whether the budget or the time ended the run."""
        return self.kind in (Ending.BUDGET, Ending.TIME)


def concluded(end: End, why: End | None) -> tuple[str, Status]:
    """(message, status) of a run that ended so. why: what is missing for a success, None where nothing is."""
    if why is None:
        return end.message, Status.SUCCESS if end.kind not in NO_SUCCESS else STATUS.get(end.kind, Status.FAILED)
    message = why.message if end.kind is Ending.BUDGET else f"{end.message}; {why.message}"
    return message, STATUS.get(end.kind, STATUS.get(why.kind, Status.FAILED))
