"""Cut a prompt that is too long: its longest columns or turns, and not what the template says around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from zograd.hub import Example

SIDES = ("left", "middle", "right")
"""Where a text loses something."""

GAP = " ... "
"""What stands for a middle that was cut out."""


def shortened(text: str, most: int, side: str) -> str:
    """A text of at most `most` characters, or of `most` and a gap, cut on one side between two words.

    >>> shortened("one two three four", 9, "left"), shortened("one two three four", 9, "right")
    ('four', 'one two')
    >>> shortened("one two three four", 9, "middle")
    'one ... four'
    """
    if len(text) <= most:
        return text
    if side == "left":
        return _last(text, most)
    if side == "right":
        return _first(text, most)
    first, last = _first(text, most - most // 2), _last(text, most // 2)
    return first + GAP + last if first or last else ""


def _first(text: str, most: int) -> str:
    kept = text[:most]
    whole = kept.rsplit(maxsplit=1)[0] if len(kept.split()) > 1 and not text[most].isspace() else kept
    return whole.rstrip()


def _last(text: str, most: int) -> str:
    kept = text[len(text) - most :]
    whole = kept.split(maxsplit=1)[1] if len(kept.split()) > 1 and not text[-most - 1].isspace() else kept
    return whole.lstrip()


def capped(example: Example, most: int, side: str) -> Example:
    """The example with at most `most` characters of each column in its prompt, or of each turn before the last."""
    prompt, end, spans = "", 0, []
    for start, stop in example.spans:
        prompt += example.prompt[end:start]
        value = shortened(example.prompt[start:stop], most, side)
        spans.append((len(prompt), len(prompt) + len(value)))
        prompt, end = prompt + value, stop
    prompt += example.prompt[end:]
    chat = tuple((role, shortened(text, most, side)) for role, text in example.chat[:-1]) + example.chat[-1:]
    return replace(example, prompt=prompt, spans=tuple(spans), chat=chat)


def fitting(example: Example, side: str, fits: Callable[[Example], bool]) -> Example | None:
    """The example with its longest columns cut as little as makes it fit; None if even one letter of each is too much.

    All columns have the same limit, so short ones stay whole. "As little" is within 2 % of the characters that stay.
    Cost: `fits` is asked some 10 times.
    """
    longest = max([stop - start for start, stop in example.spans] + [len(text) for _, text in example.chat[:-1]] + [0])
    if fits(example):
        return example
    found, low, high = capped(example, 1, side), 1, longest  # without a prompt, a completion is a text
    if not fits(found):
        return None
    while low < high - 1 - low // 50:
        middle = (low + high) // 2
        if fits(tried := capped(example, middle, side)):
            found, low = tried, middle
        else:
            high = middle
    return found


def cut(ids: tuple[int, ...], most: int, side: str, keep: int = 0) -> tuple[int, ...]:
    """Token ids without those that are too many on one side; the first `keep` always stay.

    >>> cut((1, 2, 3, 4, 5, 6), 4, "left", keep=1), cut((1, 2, 3, 4, 5, 6), 4, "middle")
    ((1, 4, 5, 6), (1, 2, 5, 6))
    """
    head, rest = ids[:keep], ids[keep:]
    room = max(most - keep, 0)
    if len(rest) <= room:
        return ids
    last = {"left": room, "middle": room // 2, "right": 0}[side]
    return head + rest[: room - last] + rest[len(rest) - last :]
