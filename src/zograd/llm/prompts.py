"""Prompts for a model that answers: the template and the words of a task, filled with texts, records or a file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zograd.hub import Example, Task, TaskError, load_task
from zograd.hub.choices import CHOICES, example_of
from zograd.hub.formats import SUFFIXES
from zograd.hub.labels import ClassWords, LabelWords, class_words
from zograd.hub.media import SUFFIXES_OF_MEDIA, Media, Picture, Recording, media_of, with_media
from zograd.hub.records import Record, Table, plain_values
from zograd.hub.shapes import TURNS, Asked, shape_of
from zograd.hub.sources import read
from zograd.hub.template import Template

CHAT, INSTRUCTION, CHOICE, IMAGES, SPEECH = "chat", "instruction", "choice", "images", "speech"


@dataclass(frozen=True)
class Form:
    """How a task asks: its template, and the word or words for each class (no classes: it is answered by a text).

    template: "" where a prompt is the text as it stands. records: "chat" or "instruction" where an input is the turn of
    a user, which the tokenizer's chat template writes; "choice" where an input brings its choices, in the column
    `choices`; "images" and "speech" where it is an image or a recording, or the path of one; otherwise "".
    """

    template: str = ""
    classes: tuple[str, ...] = ()
    label_words: tuple[ClassWords, ...] = ()
    records: str = ""
    choices: str = CHOICES

    @classmethod
    def of(cls, task: Task, choices: str | None = None) -> Form:
        """The form of a task. choices: the column of the choices, where it was named."""
        first = next((e for examples in task.splits.values() for e in examples), None)
        records = "" if first is None or not first.chat else INSTRUCTION if INSTRUCTION in task.split_by else CHAT
        records = CHOICE if task.kind == CHOICE else records if task.reads == "text" else task.reads
        template = "" if task.kind == "text" else task.template  # a text goes on from what is given
        return cls(template, task.classes, task.label_words, records, choices or CHOICES)

    @classmethod
    def read(cls, data: Any) -> Form | None:
        """The form in a run.json; None where there is none, as in runs of earlier releases."""
        if not isinstance(data, dict) or not isinstance(data.get("template"), str):
            return None
        classes, words = data.get("classes"), data.get("label_words")
        if not (isinstance(classes, list) and isinstance(words, list) and len(classes) == len(words)):
            return None
        several = tuple(tuple(map(str, w)) if isinstance(w, list) else str(w) for w in words)
        records, choices = (str(data.get(name) or "") for name in ("records", "choices"))
        return cls(data["template"], tuple(map(str, classes)), several, records, choices or CHOICES)

    def changed(self, template: str | None, words: LabelWords | None) -> Form:
        """This form with another template or other words. Raises TaskError for words that do not fit the classes."""
        text = self.template if template is None else template
        if not words:
            return replace(self, template=text, records=self.records if template is None else "")
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

    def examples(self, inputs: Iterable[str | Mapping[str, Any] | Record]) -> list[Example]:
        """The prompt of each input: a text (of a template with one column), or a record with the template's columns.

        A record with the turns of a conversation is one, whatever the template. Raises TaskError that names the first
        input that does not fit.
        """
        found = [*inputs]
        if not found:
            raise TaskError("there is nothing to answer: give a text, a file, or lines on standard input")
        return [self._example(value, f"input {number}") for number, value in enumerate(found, 1)]

    def _example(self, value: str | Mapping[str, Any] | Record, place: str) -> Example:
        record = Record(plain_values(value), place) if isinstance(value, Mapping) else value
        if self.records in (IMAGES, SPEECH):
            return self._of_media(record, place)
        turns = None
        if isinstance(record, Record) and not self.classes:
            turns = next((c for c in (*TURNS, "prompt") if isinstance(record.values.get(c), list)), None)
        if turns is not None or self.records == CHAT:
            return _asked(record, turns, place)
        if self.records == INSTRUCTION:
            values = record.values if isinstance(record, Record) else {INSTRUCTION: _text(record, place)}
            return _shaped({**values, "output": ""}, INSTRUCTION, getattr(record, "place", place))
        if self.records == CHOICE:
            known = record if isinstance(record, Record) else self._json(record, place, (*self.columns, self.choices))
            Template(self.template).check(known.values, known.place)
            return example_of(known, Template(self.template), self.choices)
        text, spans = self._prompt(record, place)
        return Example(text, 0 if self.classes else -1, spans=spans)

    def _of_media(self, value: Any, place: str) -> Example:
        """An image or a recording: a path from the current folder, an object in memory, or a record with either."""
        kind = Picture if self.records == IMAGES else Recording
        if isinstance(value, Record):
            known, place = with_media(Table([value]), Path.cwd()).records[0].values, value.place
            value = next((v for v in known.values() if isinstance(v, kind)), None)
        media: Media = media_of(value, Path.cwd(), place)
        if not isinstance(media, kind):
            raise TaskError(f"{media.name} is no {'image' if kind is Picture else 'recording'}, which is read here")
        return Example(media.name, 0 if self.classes else -1, media=media)

    def _prompt(self, value: str | Record, place: str) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The prompt, and where the columns stand in it."""
        if isinstance(value, Record):
            record = value
        elif not self.template:
            return (text := _text(value, place)), ((0, len(text)),)
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
        return template.place({column: record.text(column) for column in template.columns})

    def _record(self, text: str, place: str) -> Record:
        """A text as the record of the template's only column, or a record that was written as JSON."""
        columns = self.columns
        return Record({columns[0]: text}, place) if len(columns) == 1 else self._json(text, place, columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template names."""
        return Template(self.template).columns

    def _json(self, text: str, place: str, columns: Sequence[str]) -> Record:
        """A record that was written as JSON."""
        of_choice = self.choices if self.records == CHOICE else None
        example = json.dumps({column: ["...", "..."] if column == of_choice else "..." for column in columns})
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise TaskError(
                f"{place} is one text, and an input has the columns {', '.join(columns)}: write {example}, or give a "
                f"file with these columns"
            )
        return Record(values, place)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise TaskError(f"{place} is {type(value).__name__}, and expected is a text or a mapping of columns")
    if not value.strip():
        raise TaskError(f"{place} is empty; give a text")
    return value


def lines_of(text: str) -> list[str]:
    """The lines that hold something: each is an input. They end where those of a file end that training reads.

    Other characters at which `str.splitlines` cuts (form feed, U+0085, U+2028) are a part of their line.
    """
    lines = [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]
    return [line for line in lines if line.strip()]


def _asked(value: str | Record, column: str | None, place: str) -> Example:
    """A conversation whose next turn is asked for: of a text, the only one before it. A last answer is left out."""
    if not isinstance(value, Record):
        turns: list[Any] = [{"role": "user", "content": _text(value, place)}]
    elif column is None:
        raise TaskError(f"{value.place} has no column with the turns of a conversation, such as {TURNS[0]!r}")
    else:
        place, turns = value.place, list(value.values[column])
        answers = turns and isinstance(turns[-1], dict) and turns[-1].get("role", turns[-1].get("from")) == "assistant"
        turns = turns[:-1] if answers else turns
    return _shaped({TURNS[0]: [*turns, {"role": "assistant", "content": ""}]}, CHAT, place)


def _shaped(values: dict[str, Any], records: str, place: str) -> Example:
    """The example that training would make of a record of this shape."""
    record = Record(values, place)
    return shape_of(Table([record]), Asked(records=records), place).example(record)


def read_inputs(
    file: str | Path, text_column: str | None = None, text_column_of_run: str | None = None
) -> list[str | Record]:
    """The inputs in a file: each line of a .txt, or each record of data that training reads.

    text_column: the column that {text} stands for. text_column_of_run: the same, where the file has that column and
    `text_column` is None.

    Raises TaskError for data that does not parse.
    """
    path = Path(file)
    if path.suffix.lower() in SUFFIXES_OF_MEDIA:
        return [str(path)]
    if path.suffix.lower() != ".txt":
        if path.suffix.lower() not in SUFFIXES:
            raise TaskError(f"{file} is not a file of {', '.join(SUFFIXES)}; save it as one of these")
        table = read(str(file), text_column)
        if text_column is None and text_column_of_run in table.columns:
            table = read(str(file), text_column_of_run)
        return list(table.records)
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
