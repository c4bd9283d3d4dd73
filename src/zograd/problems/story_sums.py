"""Sums in words with exact answers and four choices, for measuring what disturbs a reader of numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["TEMPLATES", "StorySum", "story_sums", "write"]

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry")
THINGS = ("apples", "books", "coins", "pencils", "shells", "stamps", "marbles", "cards")
CHOICES = 4
LEAST, MOST = 2, 9

Formula = Callable[[int, int, int], int]
TEMPLATES: tuple[tuple[str, Formula], ...] = (
    ("{A} has {a} {t}. {B} gives {A} {b} more. How many {t} does {A} have now?", lambda a, b, c: a + b),
    ("{A} finds {a} {t} on Monday and {b} on Tuesday. How many {t} does {A} find in all?", lambda a, b, c: a + b),
    ("A shelf has {a} {t}. {A} puts {b} more on it, and {B} puts {c} more. How many {t} are on the shelf?",
     lambda a, b, c: a + b + c),
    ("{A} has {ab} {t} and gives {b} of them to {B}. How many {t} are left?", lambda a, b, c: a),
    ("A box holds {abc} {t}. {A} takes {b} and {B} takes {c}. How many {t} are still in the box?", lambda a, b, c: a),
    ("{A} has {ab} {t}. {B} has {b} {t} fewer. How many {t} does {B} have?", lambda a, b, c: a),
    ("{A} has {a} {t}. {B} has {b} more than {A}. How many {t} do they have in all?", lambda a, b, c: 2 * a + b),
    ("{A} has {ab} {t}, loses {b} of them and then buys {c}. How many {t} does {A} have now?", lambda a, b, c: a + c),
    ("{A} has {a} boxes with {b} {t} in each. How many {t} does {A} have?", lambda a, b, c: a * b),
    ("{A} has {a} bags with {b} {t} in each, and {c} {t} more. How many {t} does {A} have?", lambda a, b, c: a * b + c),
    ("{A} buys {a} packs of {b} {t} and gives one pack to {B}. How many {t} does {A} keep?",
     lambda a, b, c: (a - 1) * b),
    ("{A} and {B} have {a} boxes each, with {b} {t} in every box. How many {t} are there?", lambda a, b, c: 2 * a * b),
    ("{A} shares {a_b} {t} equally among {b} friends. How many {t} does each friend get?", lambda a, b, c: a),
    ("{A} packs {a_b} {t} into bags of {b}. How many bags does {A} fill?", lambda a, b, c: a),
    ("{A} pays {a} euros for a book and {b} euros for a pen. How much does {A} pay?", lambda a, b, c: a + b),
    ("A pen costs {a} euros. {A} buys {b} pens and a book for {c} euros. How much does {A} pay?",
     lambda a, b, c: a * b + c),
    ("{A} has {ab} euros and buys a ticket for {b} euros. How many euros does {A} have left?", lambda a, b, c: a),
    ("{A} walks {a} kilometres a day for {b} days. How many kilometres does {A} walk?", lambda a, b, c: a * b),
    ("{A} is {a} years old. {B} is {b} years older. How old will {B} be in {c} years?", lambda a, b, c: a + b + c),
    ("{A} reads {a} pages in the morning and twice as many in the evening. How many pages does {A} read?",
     lambda a, b, c: 3 * a),
)  # fmt: skip
"""(text, answer from a, b and c). In a text ab is a + b, abc is a + b + c, and a_b is a times b."""


@dataclass(frozen=True)
class StorySum:
    """A story that ends in a question, its answer, and the choices, of which one is the answer."""

    text: str
    answer: int
    choices: tuple[int, ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers in the text, in order."""
        return tuple(map(int, re.findall(r"\d+", self.text)))


def story_sums(count: int, seed: int = 0) -> list[StorySum]:
    """`count` stories, the templates in turn, with numbers from 2 to 9.

    The wrong choices are drawn from what a wrong reading gives (a number of the story, the sum, the difference or the
    product of two) and from numbers within two of the answer.

        >>> story = story_sums(1)[0]
        >>> story.answer == sum(story.numbers), story.answer in story.choices
        (True, True)
    """
    rng, found = np.random.default_rng(seed), []
    for k in range(count):
        text, formula = TEMPLATES[k % len(TEMPLATES)]
        a, b, c = (int(v) for v in rng.integers(LEAST, MOST + 1, 3))
        name, other = (NAMES[int(i)] for i in rng.choice(len(NAMES), 2, replace=False))
        numbers = {"a": a, "b": b, "c": c, "ab": a + b, "abc": a + b + c, "a_b": a * b}
        story = text.format(A=name, B=other, t=THINGS[int(rng.integers(len(THINGS)))], **numbers)
        answer = formula(a, b, c)
        near = {a, b, a + b, abs(a - b), a * b, *(answer + step for step in (-2, -1, 1, 2))}
        wrong = rng.permutation(sorted(v for v in near if v > 0 and v != answer))[: CHOICES - 1]
        found.append(StorySum(story, answer, tuple(int(v) for v in rng.permutation([answer, *wrong]))))
    return found


def write(path: str | Path, stories: Sequence[StorySum], split: str = "test") -> None:
    """Stories as JSON lines with `question`, `choices`, `answer` and `split`.

    The file is a task: `zograd robustness --task FILE --kind numbers`, `zograd eval --task FILE`.
    """
    lines = [
        json.dumps({
            "question": s.text, "choices": [str(c) for c in s.choices], "answer": s.choices.index(s.answer),
            "split": split,
        })
        for s in stories
    ]  # fmt: skip
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
