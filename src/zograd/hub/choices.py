"""Records of multiple choice: a question, the choices of this record alone, and which of them is right."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from zograd.hub.errors import TaskError
from zograd.hub.examples import Example
from zograd.hub.records import Record
from zograd.hub.template import Template

__all__ = ["ANSWERS", "CHOICES", "choices_of", "example_of"]

CHOICES = "choices"
"""The column of the choices where none is named."""

ANSWERS = ("answer", "label", "answerKey")
"""Columns that say which choice is right, in the order in which they are looked for."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def choices_of(record: Record, column: str = CHOICES) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The choices of a record, and the name of each: its letter, or what ARC calls it.

    The column holds a list of texts, the JSON of one, or an object with the lists "text" and "label", as ARC has it.

    Raises:
        TaskError: it holds none of these, fewer than two choices, or an empty one.
    """
    value = record.values.get(column)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise TaskError(f"{record.place}: the column {column!r} is not valid JSON ({error}).") from None
    both: dict[str, Any] = value if isinstance(value, dict) else {"text": value}
    value, names = both.get("text"), both.get("label", LETTERS)
    if not isinstance(value, list):
        what = "nothing" if value is None else f"a {type(value).__name__}"
        raise TaskError(
            f'{record.place}: the column {column!r} holds {what}, expected the choices as a list such as ["yes", "no"].'
        )
    found = tuple(Record({column: choice}, record.place).text(column) for choice in value)
    if len(found) < 2 or not all(choice.strip() for choice in found):
        raise TaskError(
            f"{record.place}: the column {column!r} holds {json.dumps(found, ensure_ascii=False)}; expected at least "
            f"two choices, none of them empty."
        )
    return found, tuple(map(str, names))[: len(found)]


def example_of(record: Record, template: Template, column: str = CHOICES, answer: str | None = None) -> Example:
    """The example of a record: the prompt, and each choice as it goes on from there.

    A space is put between a prompt and a choice where neither has white space there. answer: the column that says which
    choice is right, or which ones (a list): by its text, by its name (A, B, ...), or by its number from 0; None: nobody
    knows, and the label is -1. A number in JSON is always a position, a text is a position where it is no choice.

    Raises:
        TaskError: the choices or the answer do not fit.
    """
    choices, names = choices_of(record, column)
    prompt, spans = template.place({c: record.text(c) for c in template.columns})
    behind = tuple(_joined(prompt, choice) for choice in choices)
    if answer is None:
        return Example(prompt, -1, spans=spans, choices=behind)
    value = record.values.get(answer)
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):  # otherwise it is a text that begins with a bracket
            value = json.loads(value)
    given = value if isinstance(value, list) else [value]
    right = [_place(v, choices, names, record, answer) for v in given]
    if not right:
        raise TaskError(f"{record.place}: the column {answer!r} is an empty list; name at least one right choice.")
    also = tuple(behind[k] for k in dict.fromkeys(right[1:]) if k != right[0])
    return Example(prompt, right[0], spans=spans, choices=behind, also=also)


def _joined(prompt: str, choice: str) -> str:
    return choice if not prompt or prompt[-1:].isspace() or choice[:1].isspace() else f" {choice}"


def _place(value: Any, choices: tuple[str, ...], names: tuple[str, ...], record: Record, column: str) -> int:
    """The position of the choice that a value names."""
    if isinstance(value, float) and value.is_integer():  # pandas has 1.0 in a column with a gap
        value = int(value)
    number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if number is None:
        text = Record({column: value}, record.place).text(column)
        for known in (choices, names):
            if text in known:
                return known.index(text)
        number = int(float(text)) if re.fullmatch(r"\s*\d{1,9}(\.0*)?\s*", text) else None
    if number is not None and 0 <= number < len(choices):
        return number
    raise TaskError(
        f"{record.place}: the column {column!r} holds {value!r}, which is none of the choices "
        f"{json.dumps(choices, ensure_ascii=False)}; write one of them, its letter ({names[0]} to {names[-1]}), or its "
        f"number from 0 to {len(choices) - 1}. To predict the column itself, say records=classification."
    )
