"""Prompt templates: text with `{column}` fields, where `{{` and `}}` are braces."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping

from zograd.hub.errors import TaskError

__all__ = ["Template"]


class Template:
    """A parsed template. Only plain fields are allowed, so data is never interpreted as a format instruction.

    >>> Template("{text} It was").fill({"text": "Fine."})
    'Fine. It was'
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise TaskError(
                f"The prompt template {text!r} is malformed ({error}); write {{column}} for a field and {{{{ or }}}} "
                "for a brace."
            ) from None
        for _, field, spec, conversion in self._parts:
            if field is not None and (not field or spec or conversion):
                raise TaskError(
                    f"The prompt template {text!r} has the field {{{field}{'!' + conversion if conversion else ''}"
                    f"{':' + spec if spec else ''}}}; only plain column names such as {{text}} are allowed."
                )
        self.columns = tuple(dict.fromkeys(field for _, field, _, _ in self._parts if field is not None))
        """The columns that the template names, each once, in order."""
        if not self.columns:
            raise TaskError(f"The prompt template {text!r} names no column; write for example '{{text}} It was'.")

    def check(self, columns: Iterable[str], where: str) -> None:
        """Raise `TaskError` unless every field is in `columns`, those of `where`."""
        there = list(columns)
        for column in self.columns:
            if column not in there:
                raise TaskError(
                    f"The prompt template names the column {column!r}, which {where} does not have; its columns are "
                    f"{', '.join(there)}."
                )

    def fill(self, row: Mapping[str, str]) -> str:
        """The prompt of one row."""
        return self.place(row)[0]

    def place(self, row: Mapping[str, str]) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The prompt of one row, and where the values of its fields stand in it: (start, end) each."""
        text, spans = "", []
        for literal, field, _, _ in self._parts:
            text += literal
            if field is not None:
                spans.append((len(text), len(text) + len(row[field])))
                text += row[field]
        return text, tuple(spans)
