"""`message`: a dataclass of what the parts of a step tell each other, cheap to make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def message(*, slots: bool = False) -> Callable[[type[T]], type[T]]:
    """Class decorator: a dataclass with a hash, whose fields nobody assigns.

    Type checkers take it for a frozen one. At run time nothing watches: `frozen=True` doubles the time that an object
    takes to be made, and a step makes seven of these.
    """
    return dataclass(unsafe_hash=True, slots=slots)
