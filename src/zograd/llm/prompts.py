"""Prompts for a model that answers: the template and the words of a task, filled with texts, records or a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zograd.hub import Task, TaskError, load_task
from zograd.hub.formats import SUFFIXES
from zograd.hub.labels import ClassWords, LabelWords, class_words
from zograd.hub.records import Record
from zograd.hub.sources import read
from zograd.hub.template import Template


@dataclass(frozen=True)
class Form:
    """How a task asks: its template, and the word for each class (no classes: it is answered by a text).

    template: "" where a prompt is the text as it stands.
    """

    template: str = ""
    classes: tuple[str, ...] = ()
    label_words: tuple[ClassWords, ...] = ()

    @classmethod
    def of(cls, task: Task) -> Form:
        """The form of a task."""
        return cls(task.template, task.classes, task.label_words)

    @classmethod
    def read(cls, data: Any) -> Form | None:
        """The form in a run.json; None where there is none, as in runs of earlier releases."""
        if not isinstance(data, dict) or not isinstance(data.get("template"), str):
            return None
        classes, words = data.get("classes"), data.get("label_words")
        if not (isinstance(classes, list) and isinstance(words, list) and len(classes) == len(words)):
            return None
        return cls(data["template"], tuple(map(str, classes)), tuple(map(class_words, words)))

    def changed(self, template: str | None, words: LabelWords | None) -> Form:
        """This form with another template or other words. Raises TaskError for words that do not fit the classes."""
        text = self.template if template is None else template
        if not words:
            return Form(text, self.classes, self.label_words)
        numbered = {str(k): c for k, c in enumerate(self.classes)}
        pairs = words.items() if isinstance(words, Mapping) else ((str(k), word) for k, word in enumerate(words))
        given = {label if label in self.classes else numbered.get(label, label): word for label, word in pairs}
        if self.classes and set(given) != set(self.classes):
            raise TaskError(
                f"the labels are {', '.join(self.classes)}, and the label words are for {', '.join(given)}; give one "
                f"word for each label"
            )
        classes = self.classes or tuple(given)
        return Form(text, classes, tuple(class_words(given[c]) for c in classes))

    def prompts(self, inputs: Iterable[str | Mapping[str, Any] | Record]) -> list[str]:
        """The prompt of each input: a text (of a template with one column), or a record with the template's columns.

        Raises TaskError that names the first input that does not fit.
        """
        found = [*inputs]
        if not found:
            raise TaskError("there is nothing to answer: give a text, a file, or lines on standard input")
        return [self._prompt(value, f"input {number}") for number, value in enumerate(found, 1)]

    def _prompt(self, value: str | Mapping[str, Any] | Record, place: str) -> str:
        if isinstance(value, Record):
            record = value
        elif isinstance(value, Mapping):
            record = Record(dict(value), place)
        elif not self.template:
            return _text(value, place)
        else:
            record = self._record(_text(value, place), place)
        template = Template(self.template or ("{prompt}" if "prompt" in record.values else "{text}"))
        for column in template.columns:
            if column not in record.values:
                raise TaskError(
                    f"{record.place} has no column {column!r}, which the prompt template {template.text!r} names; it "
                    f"has {', '.join(record.values)}"
                    + ("; --text-column names the column of the text" if column == "text" else "")
                )
        return template.fill({column: record.text(column) for column in template.columns})

    def _record(self, text: str, place: str) -> Record:
        """A text as the record of the template's only column, or a record that was written as JSON."""
        columns = Template(self.template).columns
        if len(columns) == 1:
            return Record({columns[0]: text}, place)
        example = json.dumps({column: "..." for column in columns})
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise TaskError(
                f"{place} is one text, and the prompt template has the columns {', '.join(columns)}: write {example}, "
                f"or give a file with these columns"
            )
        return Record(values, place)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise TaskError(f"{place} is {type(value).__name__}, and expected is a text or a mapping of columns")
    if not value.strip():
        raise TaskError(f"{place} is empty; give a text")
    return value


def lines_of(text: str) -> list[str]:
    """The lines that hold something: each is an input."""
    return [line for line in text.splitlines() if line.strip()]


def read_inputs(file: str | Path, text_column: str | None = None) -> list[str | Record]:
    """The inputs in a file: each line of a .txt, or each record of a file that training reads.

    Raises TaskError for a file that does not parse.
    """
    path = Path(file)
    if path.suffix != ".txt":
        if path.suffix.lower() not in SUFFIXES:
            raise TaskError(f"{file} is not a file of {', '.join(SUFFIXES)}; save it as one of these")
        return list(read(str(file), text_column).records)
    try:
        return list(lines_of(path.read_text(encoding="utf-8-sig")))
    except OSError as e:
        raise TaskError(f"{file} cannot be read: {e.strerror}; check the path") from None
    except UnicodeDecodeError as e:
        raise TaskError(f"{file} is not UTF-8 text (byte {e.start}); save it as UTF-8") from None


def form_of_task(task: str | None, template: str | None, words: LabelWords | None, **columns: Any) -> Form:
    """The form that a task, a template and words say; without a task, the words alone say the classes."""
    if task is None:
        return Form(template or "").changed(None, words)
    return Form.of(load_task(task, prompt_template=template, label_words=words, **columns))
