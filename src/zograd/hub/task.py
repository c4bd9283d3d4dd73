"""Labelled tasks as prompts: named tasks (bundled, fetched or registered), or a file of the user.

A task turns each record into a prompt with a template, and each class into a label word. A language model classifies by
comparing the probabilities of the label words after the prompt. Splits of named tasks are stored, not drawn, and no
text occurs in two of them (`zograd.hub.split_rules.fingerprint`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from zograd.hub.errors import TaskError, UnknownTaskError
from zograd.hub.formats import SUFFIXES
from zograd.hub.named_tasks import NAMED_TASKS, REGISTERED, Rows, TaskInfo, rows_of
from zograd.hub.records import Record
from zograd.hub.sources import KINDS, Source, is_source, read, source_name
from zograd.hub.split_rules import rank
from zograd.hub.template import Template

__all__ = ["SPLITS", "Example", "Task", "load_task", "parse_label_words", "register_task", "select"]

SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Example:
    """`prompt` is the text after the template; `label` indexes the label words, or is -1 beside a `completion`."""

    prompt: str
    label: int
    completion: str = ""


@dataclass(frozen=True)
class Task:
    """A named set of examples.

    `kind` is `"classification"` (label words, `Example.label`) or `"completion"` (`Example.completion`, no label
    words). `splits` has the keys train, validation and test; examples have a fixed order. `classes` names the classes
    in the order of the label words. `own`: the task is a file of the user or
    registered; `drawn`: it is a file without a column `split`.
    """

    name: str
    template: str
    label_words: tuple[str, ...]
    splits: Mapping[str, Sequence[Example]]
    source: str
    licence: str
    metric: str = "accuracy"
    kind: str = "classification"
    classes: tuple[str, ...] = ()
    description: str = ""
    own: bool = False
    drawn: bool = False


def register_task(
    *,
    classes: Sequence[str],
    label_words: Sequence[str],
    template: str,
    name: str | None = None,
    sizes: Mapping[str, int] | None = None,
    source: str = "the user's own",
    licence: str = "the user's own data",
    description: str = "",
) -> Callable[[Rows], Rows]:
    """Decorator: make a task of a function that gives its records, known by `name` (None: the function's own).

    A record maps column -> text. It has the columns of the template, `label` (the index of its class, as text) and
    `split` (train, validation or test). label_words: one for each class. sizes: split -> number of records, for
    `tasks()`, which reads none.

    Raises:
        TaskError: a name that is taken, or label words that do not fit the classes.
    """

    def register(rows: Rows) -> Rows:
        called = rows.__name__ if name is None else name
        if called in NAMED_TASKS:
            raise TaskError(f"There are two tasks named {called!r}; rename the one in {rows.__module__}.")
        if called.lower().endswith(SUFFIXES):
            raise TaskError(f"The task {called!r} has the name of a file; leave out its suffix.")
        info = TaskInfo(
            called, dict(sizes or {}), tuple(classes), tuple(label_words), template, source, licence, description
        )
        _check_words(label_words)
        _words_of(info, label_words)
        NAMED_TASKS[called], REGISTERED[called] = info, rows
        return rows

    return register


def load_task(
    source: Source,
    *,
    prompt_template: str | None = None,
    label_words: Mapping[str, str] | Sequence[str] | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    split_by: Sequence[str] | None = None,
) -> Task:
    """The task of that name, or the one in a user's data.

    Data is a file (.jsonl, .json, .csv, .tsv, .parquet, .txt), a folder with files named train, validation and test, a
    folder that `save_to_disk` of `datasets` wrote, `hf:NAME` or `hf:NAME:CONFIG` on the Hugging Face hub, a
    `datasets.Dataset` or `DatasetDict`, or a list of mappings. Files of a folder and parts of a dataset are its splits.

    It needs either the columns `prompt` and `completion`, or a text and a label. Without label words, each label is
    its own word, and without a template the prompt is the text and "Label:". A column `split` says train, validation or
    test. Without it, a hash of the text splits the file 80/10/10: duplicates stay together, and added rows do not
    change the split of other rows.

    Args:
        source: a name of `tasks()`, or data.
        prompt_template: text with `{column}` fields; default the task's own; for a file, see above.
        label_words: mapping from the label in the data to its word, or the words in the order of the labels 0, 1, ...;
            also the text `"0= terrible,1= great"`. Words usually begin with a space.
        text_column: for a file, the column that the field `{text}` stands for; default "text".
        label_column: for a file, the column of the label; default "label".
        seed: for a file without a column `split`, another seed gives another split. Stored splits never change.
        split_by: for such a file, the columns whose text is hashed; default those that the template names.

    Raises:
        TaskError: unknown name, or a file that does not fit; the message names file, line and value.
        FetchError: `boolq` could not be fetched.
    """
    name = os.fspath(source) if isinstance(source, os.PathLike) else source
    words = parse_label_words(label_words) if isinstance(label_words, str) else label_words
    _check_words(words)
    if isinstance(name, str) and name in NAMED_TASKS:
        if text_column is not None or label_column is not None:
            raise TaskError(f"text_column and label_column are for files; the task {name} does without, drop them.")
        return _named(NAMED_TASKS[name], prompt_template, words)
    if not is_source(name):
        raise UnknownTaskError(f"There is no task named {name!r}: give one of {', '.join(NAMED_TASKS)}, {KINDS}.")
    return _from_data(name, prompt_template, words, text_column, label_column, seed, split_by)


def select(task: Task, split: str, count: int | None, *, seed: int, first: bool = False) -> list[Example]:
    """At most `count` examples of a split, or of all splits one after the other ("all"), in their order there.

    Of a named task, which is stored in random order, these are the first ones. A file may be sorted by label, so its
    examples are drawn by a hash of `seed` and their position, whatever the template. first: take the first ones of a
    file too.
    """
    found = [e for name in SPLITS for e in task.splits.get(name, ())] if split == "all" else list(task.splits[split])
    if count is None or count >= len(found):
        return found
    if first or not task.own:
        return found[:count]
    chosen = sorted(range(len(found)), key=lambda i: rank(f"draw {seed}", str(i)))[:count]
    return [found[i] for i in sorted(chosen)]


def parse_label_words(text: str) -> dict[str, str]:
    """`"0= terrible,1= great"` -> `{"0": " terrible", "1": " great"}`. Spaces before a word belong to it.

    Raises:
        TaskError: a part without `=`, or a label given twice.
    """
    words: dict[str, str] = {}
    for part in text.split(","):
        label, equals, word = part.partition("=")
        label = label.strip()
        if not equals or not label or not word.strip():
            raise UnknownTaskError(
                f"Label words {text!r}: {part!r} is not of the form label=word; write for example "
                "'0= terrible,1= great'."
            )
        if label in words:
            raise TaskError(f"Label words {text!r}: the label {label!r} is given twice; give each label one word.")
        words[label] = word
    return words


def _check_words(words: Mapping[str, str] | Sequence[str] | None) -> None:
    given = list(words.values() if isinstance(words, Mapping) else words or ())
    for word in given:
        if not word.strip():
            raise TaskError(f"Label words: the word {word!r} is empty; give each label a word such as ' great'.")
        if given.count(word) > 1:
            raise TaskError(f"Label words: the word {word!r} stands for two labels; give each label its own.")


def _named(info: TaskInfo, prompt_template: str | None, words: Mapping[str, str] | Sequence[str] | None) -> Task:
    text = info.template if prompt_template is None else prompt_template
    template = Template(text)
    own = info.name in REGISTERED
    columns = _own_columns(info) if own else ("passage", "question") if info.name == "boolq" else ("text",)
    template.check(columns, f"the task {info.name}")
    label_words = info.label_words if words is None else _words_of(info, words)
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for row in rows_of(info.name):
        splits[row["split"]].append(Example(template.fill(row), int(row["label"])))
    return Task(
        name=info.name,
        template=text,
        label_words=label_words,
        splits=MappingProxyType({split: tuple(examples) for split, examples in splits.items()}),
        source=info.source,
        licence=info.licence,
        classes=info.classes,
        description=info.description,
        own=own,
    )


def _own_columns(info: TaskInfo) -> tuple[str, ...]:
    """The columns of a registered task. Raises TaskError for its first record that does not fit."""
    rows = rows_of(info.name)
    if not rows:
        raise TaskError(f"The task {info.name} has no records.")
    labels = [str(i) for i in range(len(info.classes))]
    for number, row in enumerate(rows, 1):
        if row.keys() != rows[0].keys() or not all(isinstance(value, str) for value in row.values()):
            raise TaskError(f"The task {info.name}, record {number}: every record needs the same columns, all of text.")
        if row.get("label") not in labels or row.get("split") not in SPLITS:
            raise TaskError(
                f"The task {info.name}, record {number}: label is {row.get('label')!r} and split is "
                f"{row.get('split')!r}; expected a label of {', '.join(labels)} and a split of {', '.join(SPLITS)}."
            )
    return tuple(column for column in rows[0] if column not in ("label", "split"))


def _words_of(info: TaskInfo, words: Mapping[str, str] | Sequence[str]) -> tuple[str, ...]:
    """The user's label words for a named task: in order, or by class name or index."""
    if isinstance(words, Mapping):
        by_index = {str(i): word for i, word in enumerate(info.classes)}
        named = {by_index.get(str(label), str(label)).casefold(): word for label, word in words.items()}
        missing = [c for c in info.classes if c.casefold() not in named]
        if missing or len(named) != len(info.classes):
            raise TaskError(
                f"The task {info.name} has the labels {', '.join(info.classes)}, but the label words are for "
                f"{', '.join(map(str, words))}; give one word for each label."
            )
        return tuple(named[c.casefold()] for c in info.classes)
    if len(words) != len(info.classes):
        raise TaskError(
            f"The task {info.name} has {len(info.classes)} labels ({', '.join(info.classes)}), but {len(words)} label "
            "words were given; give one for each, in this order."
        )
    return tuple(words)


def _from_data(
    source: Source,
    prompt_template: str | None,
    words: Mapping[str, str] | Sequence[str] | None,
    text_column: str | None,
    label_column: str | None,
    seed: int,
    split_by: Sequence[str] | None,
) -> Task:
    table, path = read(source, text_column), source_name(source)
    records = table.records
    columns = list(records[0].values)
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    generation = prompt_template is None and text_column is None and {"prompt", "completion"} <= set(columns)
    if generation:
        template = Template("{prompt}")
        label_words: tuple[str, ...] = ()
        classes: tuple[str, ...] = ()
        for record in records:
            example = Example(record.text("prompt"), -1, record.text("completion"))
            splits[record.split(split_by or ("prompt",), seed)].append(example)
    else:
        label = "label" if label_column is None else label_column
        text = "text" if text_column is not None else None if words else _text_of(columns, label)
        if prompt_template is None and text is None:
            raise TaskError(
                f"{path} has the columns {', '.join(columns)}: give a prompt template such as "
                f"'{{{columns[0]}}} It was' and label words, or use the columns prompt and completion."
            )
        template = Template(f"{{{text}}}{'' if words else ASKS}" if prompt_template is None else prompt_template)
        template.check(columns, path)
        if label not in columns:
            raise TaskError(
                f"{path} has no column {label!r} for the label; its columns are {', '.join(columns)}. Name the right "
                "one with label_column."
            )
        index, classes, label_words = _label_index(words or _words_in(records, label, path))
        for record in records:
            filled = template.fill({column: record.text(column) for column in template.columns})
            example = Example(filled, _label_of(record, label, index))
            splits[record.split(split_by or template.columns, seed)].append(example)
    return Task(
        name=os.path.basename(os.path.normpath(path)).removesuffix(os.path.splitext(path)[1]),
        template=template.text,
        label_words=label_words,
        splits=MappingProxyType({split: tuple(examples) for split, examples in splits.items()}),
        source=path,
        licence="the user's own data",
        metric="loss" if generation else "accuracy",
        kind="completion" if generation else "classification",
        classes=classes,
        own=True,
        drawn="split" not in columns and all(record.part is None for record in records),
    )


ASKS: Final = "\nLabel:"
"""What follows the text in a prompt where neither template nor label words are given."""

MOST_LABELS: Final = 50
"""Different labels of a file above which they are not taken for label words unasked."""


def _text_of(columns: Sequence[str], label: str) -> str | None:
    """The column of the text where none is named: "text", or the only one beside label and split."""
    others = [c for c in columns if c not in (label, "split")]
    return "text" if "text" in others else others[0] if len(others) == 1 and label in columns else None


def _words_in(records: Sequence[Record], column: str, path: str) -> dict[str, str]:
    """Each label of a file with itself as its word, in their order; numbers in that of their values."""
    labels = {record.text(column).strip() for record in records}
    if not 2 <= len(labels) <= MOST_LABELS:
        raise TaskError(
            f"{path} has {len(labels)} different labels in the column {column!r}, and 2 to {MOST_LABELS} are taken as "
            f"label words; name the right column with label_column, or give label words such as '0= terrible,1= great'."
        )
    return {label: f" {label}" for label in sorted(labels, key=_by_value)}


def _by_value(label: str) -> tuple[float, str]:
    try:
        return float(label), label
    except ValueError:
        return math.inf, label


def _label_index(
    words: Mapping[str, str] | Sequence[str],
) -> tuple[dict[str, int], tuple[str, ...], tuple[str, ...]]:
    """(label as text -> index, names of the classes, label words)."""
    if isinstance(words, Mapping):
        classes = tuple(str(label).lower() if isinstance(label, bool) else str(label) for label in words)
        return {label: i for i, label in enumerate(classes)}, classes, tuple(words.values())
    classes = tuple(str(i) for i in range(len(words)))
    return {label: i for i, label in enumerate(classes)}, classes, tuple(words)


def _label_of(record: Record, column: str, index: Mapping[str, int]) -> int:
    value = record.text(column).strip()
    if value not in index:
        raise TaskError(
            f"{record.place}: the label {value!r} in column {column!r} has no label word; allowed are "
            f"{', '.join(index)}. Correct the line or add a word for it."
        )
    return index[value]
