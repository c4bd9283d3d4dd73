"""Changes of an example that leave its answer: words swapped for near ones, sentences that do not matter, no question.

A perturbation is called with an example, a strength and a NumPy generator, and returns a new example, or None where it
does not apply. It changes the longest column of the prompt; the template, the label and the choices stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from zograd.hub.examples import Example

__all__ = ["NUMBERS", "PLAIN", "Sentences", "WithoutQuestion", "WordSwap", "content_words", "text_of", "with_text"]

STOP_WORDS = """
a about after all also am an and any are as at be been before but by can could did do does for from had has
have he her his how i if in into is it its just me more most my no nor not of on one only or other our out
over own she so some such than that the their them then there these they this those through to too under up
very was we were what when where which while who whom why will with would you your
"""
STOP = frozenset(STOP_WORDS.split())
"""Words that carry little of the meaning, and are not swapped."""

PLAIN = (
    "The weather was mild on that day.", "A neighbour painted the fence green.", "The train left from the old station.",
    "Somebody had opened a window in the hall.", "The garden behind the house was quiet.",
    "A dog slept in front of the bakery.", "The radio played a song from another country.",
    "The road along the river was closed.",
)  # fmt: skip
NUMBERS = (
    "The weather was mild, about 18 degrees.", "A neighbour painted 3 fences green.",
    "The train left at 9 from track 4.",
    "Somebody had opened 2 windows in the hall.", "The garden behind house 27 was quiet.",
    "A dog slept for 40 minutes in front of the bakery.", "The radio played 12 songs from another country.",
    "The road along the river was closed for 5 days.",
)  # fmt: skip
"""Sentences that answer nothing, without numbers and with them; written for this purpose."""


def text_of(example: Example) -> tuple[int, int]:
    """Where the longest column stands in the prompt; all of a prompt without columns."""
    spans = example.spans or ((0, len(example.prompt)),)
    return max(spans, key=lambda span: span[1] - span[0])


def with_text(example: Example, text: str) -> Example:
    """The example with another text in the place of its longest column.

    >>> with_text(Example("Fine film. It was", 1, spans=((0, 10),)), "Bad.").prompt
    'Bad. It was'
    """
    start, end = text_of(example)
    longer = len(text) - (end - start)
    spans = tuple(
        (a, b + longer) if (a, b) == (start, end) else (a + longer * (a >= end), b + longer * (b > end))
        for a, b in example.spans
    )
    return replace(example, prompt=example.prompt[:start] + text + example.prompt[end:], spans=spans)


def content_words(text: str) -> list[tuple[int, int]]:
    """(start, end) of the words that may be swapped: lower-case letters, at least three, and no stop words.

    Names (capitals) and numbers stay: another one would be another question.

    >>> [("How far is Denver from it ?")[a:b] for a, b in content_words("How far is Denver from it ?")]
    ['far']
    """
    found = (m.span() for m in re.finditer(r"(?<![\w'])[a-z]{3,}(?![\w'])", text))
    return [(a, b) for a, b in found if text[a:b] not in STOP]


@dataclass(frozen=True)
class WordSwap:
    """`strength` content words, drawn at random, each for one of its candidates. None: no word has a candidate.

    candidates: word -> other words. A search for the worst swap is `diagnostics.one_word`.
    """

    candidates: Callable[[str], Sequence[str]]

    def __call__(self, example: Example, strength: int, rng: np.random.Generator) -> Example | None:
        a, b = text_of(example)
        text = example.prompt[a:b]
        places = [(i, j) for i, j in content_words(text) if self.candidates(text[i:j])]
        if not places:
            return None
        for k in sorted(rng.permutation(len(places))[:strength], reverse=True):  # from the end: places stay
            i, j = places[k]
            near = self.candidates(text[i:j])
            text = text[:i] + near[int(rng.integers(len(near)))] + text[j:]
        return with_text(example, text)


@dataclass(frozen=True)
class Sentences:
    """`strength` sentences of a pool, drawn at random, in front of the text."""

    pool: Sequence[str] = PLAIN

    def __call__(self, example: Example, strength: int, rng: np.random.Generator) -> Example | None:
        a, b = text_of(example)
        drawn = [self.pool[int(k)] for k in rng.integers(len(self.pool), size=strength)]
        return with_text(example, " ".join([*drawn, example.prompt[a:b]]))


@dataclass(frozen=True)
class WithoutQuestion:
    """The text without its last sentence that ends in a question mark. None where it has none, or nothing else.

    What is right then is known from what was learned, and from nothing in the text.
    """

    def __call__(self, example: Example, strength: int, rng: np.random.Generator) -> Example | None:
        a, b = text_of(example)
        text = example.prompt[a:b]
        asked = [m for m in re.finditer(r"[^.?!]*\?", text) if m.group().strip(" ?")]
        rest = (text[: asked[-1].start()] + text[asked[-1].end() :]).strip() if asked else ""
        return with_text(example, rest) if rest else None
