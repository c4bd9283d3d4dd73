"""Names that a pattern selects, in bounded time: patterns come from command lines and from files of others."""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Iterable

SECONDS = 5.0
"""The most that all names together may take."""


class PatternError(ValueError):
    """A pattern that does not parse, or takes too long; the message says which, and why."""


def matching(pattern: str, names: Iterable[str], *, seconds: float = SECONDS) -> set[str]:
    """The names that a pattern selects.

    A pattern of letters, dots, "*" and "?" is a shell pattern for whole names ("*.q_proj.weight"); anything else is a
    regular expression searched in the name ("(q|v)_proj"), see `searching`.
    """
    if re.fullmatch(r"[\w.?*]*[?*][\w.?*]*", pattern) and not pattern.startswith("."):
        return {name for name in names if fnmatch.fnmatchcase(name, pattern)}
    return searching(pattern, names, seconds=seconds)


def searching(pattern: str, names: Iterable[str], *, seconds: float = SECONDS) -> set[str]:
    """The names that a regular expression is found in. Raises PatternError when that takes longer than `seconds`.

    The package `regex` has the syntax of `re`, and gives up in time where `re` backtracks for ever.
    """
    import regex

    try:
        compiled = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as e:
        raise PatternError(f"{pattern[:80]!r} is no regular expression: {e}") from e
    until = time.monotonic() + seconds
    found = set()
    for name in names:
        try:
            if compiled.search(name, timeout=max(until - time.monotonic(), 1e-3)):
                found.add(name)
        except (TimeoutError, MemoryError) as e:
            raise PatternError(
                f"the regular expression {pattern[:80]!r} takes longer than {seconds:g} s on names like {name!r}: it "
                f"backtracks without end; write it without repetitions inside of repetitions"
            ) from e
    return found
