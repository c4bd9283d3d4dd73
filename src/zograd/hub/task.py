"""Labelled tasks as prompts: named tasks (bundled, fetched or registered), or a file of the user.

A task turns each record into a prompt with a template, and each class into a label word. A language model classifies by
comparing the probabilities of the label words after the prompt. Splits of named tasks are stored, not drawn, and no
text occurs in two of them (`zograd.hub.split_rules.fingerprint`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from zograd.hub.errors import TaskError, UnknownTaskError
from zograd.hub.examples import Example
from zograd.hub.formats import SUFFIXES
from zograd.hub.labels import ClassWords, LabelWords, check_words, class_words, parse_label_words
from zograd.hub.named_tasks import NAMED_TASKS, REGISTERED, Rows, TaskInfo, rows_of
from zograd.hub.records import Record, Table
from zograd.hub.shapes import Asked, Shape, check_used, shape_of
from zograd.hub.sources import KINDS, Source, is_source, read, source_name
from zograd.hub.split_rules import rank, split_of
from zograd.hub.suite import SUITE, Definition, split_name
from zograd.hub.template import Template

__all__ = ["SPLITS", "Task", "load_task", "register_task", "select"]

SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """A named set of examples.

    `kind` is "classification" (label words, `Example.label`), "choice" (`Example.choices`), "completion"
    (`Example.completion`, no label words) or "text" (a completion of nothing). `splits` has the keys train, validation
    and test; examples have a fixed order. `classes` names the classes, and `label_words` has the word of each, or a
    tuple of several. `own`: the task is a user's data or registered; `drawn`: its data names no splits. `split_by`: the
    columns whose hash splits it. `said`: how records are read. `reads`: "text", or of `Example.media`
    "images" or "speech".
    """

    name: str
    template: str
    label_words: tuple[ClassWords, ...]
    splits: Mapping[str, Sequence[Example]]
    source: str
    licence: str
    metric: str = "accuracy"
    kind: str = "classification"
    classes: tuple[str, ...] = ()
    description: str = ""
    own: bool = False
    drawn: bool = False
    split_by: tuple[str, ...] = ()
    said: str = ""
    reads: str = "text"


def register_task(
    *,
    classes: Sequence[str],
    label_words: Sequence[str | Sequence[str]],
    template: str,
    name: str | None = None,
    sizes: Mapping[str, int] | None = None,
    source: str = "the user's own",
    licence: str = "the user's own data",
    description: str = "",
) -> Callable[[Rows], Rows]:
    """Decorator: make a task of a function that gives its records, known by `name` (None: the function's own).

    A record maps column -> text. It has the columns of the template, `label` (the index of its class, as text) and
    `split` (train, validation or test). label_words: one for each class, or a list of several. sizes: split ->
    number of records, for `tasks()`, which reads none.

    Raises:
        TaskError: a name that is taken, fewer than two classes, or label words that do not fit them.
    """

    def register(rows: Rows) -> Rows:
        called = rows.__name__ if name is None else name
        if called in NAMED_TASKS:
            raise TaskError(f"There are two tasks named {called!r}; rename the one in {rows.__module__}.")
        if called.lower().endswith(SUFFIXES):
            raise TaskError(f"The task {called!r} has the name of a file; leave out its suffix.")
        info = TaskInfo(
            called,
            dict(sizes or {}),
            tuple(classes),
            tuple(map(class_words, label_words)),
            template,
            source,
            licence,
            description,
        )
        check_words(label_words)
        if len(classes) < 2:
            raise TaskError(
                f"The task {called!r} has the classes {list(classes)!r}; name at least two, or every answer is right."
            )
        _words_of(info, label_words)
        NAMED_TASKS[called], REGISTERED[called] = info, rows
        return rows

    return register


def load_task(
    source: Source,
    *,
    prompt_template: str | None = None,
    label_words: LabelWords | str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    completion_column: str | None = None,
    records: str = "auto",
    eval_file: Source = None,
    test_file: Source = None,
    hold_out: bool = False,
    seed: int = 0,
    split_by: Sequence[str] | None = None,
) -> Task:
    """The task of that name, or the one in a user's data.

    Data is a file (.jsonl, .json, .csv, .tsv, .parquet, .txt), a folder with files named train, validation and test, a
    folder that `save_to_disk` of `datasets` wrote, `hf:NAME` or `hf:NAME:CONFIG` on the Hugging Face hub, a
    `datasets.Dataset` or `DatasetDict`, a `pandas.DataFrame`, or a list of mappings. Files of a folder and parts of a
    dataset are its splits.

    Data of MeZO's task suite has the name of its task in front: `sst2:FOLDER`, `copa:FILE`, `squad:hf:NAME`; of an
    object, `records` has it. The task says how its records are read (`zograd.hub.suite`), and brings its template and
    label words.

    Images have a folder for each class, within folders named train, validation and test or without, or a column
    `image` with their paths beside the label, or are objects of Pillow in a dataset. Recordings have a column `audio`
    with their paths beside `text`, what is said, in a table or in the file metadata.csv of a folder.

    Otherwise its columns say what a record is (`zograd.hub.shapes`): a text and a label; `question`, `choices` and
    `answer`; `prompt` and `completion`; the conversation `messages`; `instruction`, `input` and `output`; or a `text`
    alone, for language modelling. Without label words, each label is its own word, and without a template the prompt is
    the text and "Label:".

    A column `split` says train, validation or test. Without it, a hash of the text splits the data 80/10/10:
    duplicates stay together, and added rows do not change the split of other rows.

    Args:
        source: a name of `tasks()`, or data.
        prompt_template: text with `{column}` fields; default the task's own; for data, see above.
        label_words: mapping from the label in the data to its word, in the order of the classes, or the words in the
            order of the labels 0, 1, ...; also a text, see `parse_label_words`. Words usually begin with a space. A
            list of words stands for one label together: their probabilities are added.
        text_column: for data, the column that the field `{text}` stands for; default "text".
        label_column: for data, the column of the label; default "label".
        completion_column: for data, the column that is learned as what follows the prompt; default "completion".
        records: for data, what a record is: classification, choice, completion, chat, instruction or text; or the name
            of a task of MeZO's suite.
        eval_file: data of the split validation. Then all of `source` that names no split is for training.
        test_file: data of the split test. Then `source` gives none to it.
        hold_out: where data names its splits, but no validation, a tenth of train becomes that, by the hash.
        seed: for data without splits, another seed gives another split. Stored splits never change.
        split_by: for such data, the columns that are hashed; default those of the prompt.

    Raises:
        TaskError: unknown name, or data that does not fit; the message names file, line and value.
        FetchError: `boolq` could not be fetched.
    """
    name = os.fspath(source) if isinstance(source, os.PathLike) else source
    words = parse_label_words(label_words) if isinstance(label_words, str) else label_words
    check_words(words)
    if isinstance(name, str) and name in NAMED_TASKS:
        of_data = {
            "text_column": text_column, "label_column": label_column, "completion_column": completion_column,
            "eval_file": eval_file, "test_file": test_file, "records": None if records == "auto" else records,
        }  # fmt: skip
        if given := [option for option, value in of_data.items() if value is not None]:
            raise TaskError(f"{', '.join(given)}: for files; the task {name} has its own data, leave it out.")
        return _named(NAMED_TASKS[name], prompt_template, words)
    if isinstance(name, str) and not is_source(name):
        if name in SUITE:
            raise UnknownTaskError(f"{name} needs data: write {name}:FILE or {name}:FOLDER ({SUITE[name].files}).")
        raise UnknownTaskError(f"There is no task named {name!r}: give one of {', '.join(NAMED_TASKS)}, {KINDS}.")
    asked = Asked(records, prompt_template, words, text_column, label_column, completion_column)
    extra = {part: s for part, s in (("validation", eval_file), ("test", test_file)) if s is not None}
    definition = split_name(name)[0] or SUITE.get(records)
    if definition is not None:
        asked, split_by = _of_definition(definition, asked), split_by or definition.split_by
    return _from_data(name, asked, extra, hold_out, seed, split_by, definition)


def _of_definition(d: Definition, asked: Asked) -> Asked:
    """How records of MeZO's suite are read. Raises TaskError for what its definition says already."""
    columns = {"text_column": asked.text_column, "label_column": asked.label_column}
    columns |= {"completion_column": asked.completion_column}
    columns["records"] = None if asked.records in ("auto", d.name, d.records) else asked.records
    if given := [option for option, value in columns.items() if value is not None]:
        raise TaskError(f"{', '.join(given)}: for plain data; {d.name} knows its columns, leave it out.")
    template = d.template if asked.prompt_template is None else asked.prompt_template
    return Asked(d.records, template, asked.label_words or d.label_words or None)


def select(task: Task, split: str, count: int | None, *, seed: int, draw: str = "stratified") -> list[Example]:
    """At most `count` examples of a split, or of all splits one after the other ("all"), in their order there.

    Of a named task, which is stored in random order, these are the first ones. Data may be sorted by label, so its
    examples are drawn by a hash of `seed` and their position, whatever the template: from each class its share of the
    split, to the next whole number, and at least one where `count` allows that.

    draw: "random" draws from all classes together; "first" takes the first ones of data too.
    """
    found = [e for name in SPLITS for e in task.splits.get(name, ())] if split == "all" else list(task.splits[split])
    if count is None or count >= len(found):
        return found
    if draw == "first" or not task.own:
        return found[:count]
    order = sorted(range(len(found)), key=lambda i: rank(f"draw {seed}", str(i)))
    if draw == "stratified":
        of_class: dict[int, list[int]] = {}
        for i in order:
            of_class.setdefault(0 if found[i].choices else found[i].label, []).append(i)
        seats = shares([len(of_class[label]) for label in sorted(of_class)], count)
        order = [i for label, n in zip(sorted(of_class), seats, strict=True) for i in of_class[label][:n]]
    return [found[i] for i in sorted(order[:count])]


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """`count` dealt in proportion to `sizes`, none of them exceeded; at least 1 to each, if that is possible.

    One after the other goes to the size that is furthest below its share.

    >>> shares([970, 29, 1], 100)
    [97, 2, 1]
    """
    total = sum(sizes)
    given = [int(count >= len(sizes))] * len(sizes)
    for _ in range(count - sum(given)):
        behind = [(count * n - got * total if got < n else -count * total) for n, got in zip(sizes, given, strict=True)]
        given[behind.index(max(behind))] += 1
    return given


def _named(info: TaskInfo, prompt_template: str | None, words: LabelWords | None) -> Task:
    text = info.template if prompt_template is None else prompt_template
    template = Template(text)
    own = info.name in REGISTERED
    columns = _own_columns(info) if own else ("passage", "question") if info.name == "boolq" else ("text",)
    template.check(columns, f"the task {info.name}")
    label_words = info.label_words if words is None else _words_of(info, words)
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for row in rows_of(info.name):
        prompt, spans = template.place(row)
        splits[row["split"]].append(Example(prompt, int(row["label"]), spans=spans))
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
        said=f"the class is predicted from the prompt {text!r}",
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


def _words_of(info: TaskInfo, words: LabelWords) -> tuple[ClassWords, ...]:
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
        return tuple(class_words(named[c.casefold()]) for c in info.classes)
    if len(words) != len(info.classes):
        raise TaskError(
            f"The task {info.name} has {len(info.classes)} labels ({', '.join(info.classes)}), but {len(words)} label "
            "words were given; give one for each, in this order."
        )
    return tuple(map(class_words, words))


def _from_data(
    source: Source, asked: Asked, extra: Mapping[str, Source], hold_out: bool, seed: int,
    split_by: Sequence[str] | None, definition: Definition | None,
) -> Task:  # fmt: skip
    tables = {part: read(s, asked.text_column, definition) for part, s in {"": source, **extra}.items()}
    names = {"": source_name(source)} | {part: source_name(s) for part, s in extra.items()}
    table, shape = tables[""], shape_of(tables[""], asked, names[""])
    for part in extra:
        there = tables[part].columns
        if missing := [column for column in shape.needs if column not in there]:
            raise TaskError(
                f"{names[part]} has no column {missing[0]!r}; its columns are {', '.join(there)}, and it needs those "
                f"of {names['']}: {shape.said}."
            )
        table += tables[part].of_part(part)
    if extra:
        shape = shape_of(table, asked, " and ".join(names.values()))  # labels of all of them
    columns = tuple(split_by or shape.columns)
    check_used(shape, asked, names[""])
    parts = _divided(tables, lambda r: split_of((shape.key(r, c) for c in columns), seed), hold_out)
    splits = {split: tuple(map(shape.example, _labelled(parts[split], shape, split))) for split in SPLITS}
    return Task(
        name=_name_of(source) if definition is None else definition.name,
        template=shape.template,
        label_words=shape.labels.words,
        splits=MappingProxyType(splits),
        source=names[""],
        licence="the user's own data",
        metric="accuracy" if shape.kind in ("classification", "choice") else "loss",
        kind=shape.kind,
        classes=shape.labels.classes,
        own=True,
        drawn=not extra and _names_no_splits(tables[""]),
        split_by=columns,
        said=shape.said,
        reads=shape.reads,
    )


def _divided(tables: Mapping[str, Table], drawn: Callable[[Record], str], hold_out: bool) -> dict[str, list[Record]]:
    """The records of each split: of the main table "", and of those that are a split as a whole.

    drawn: the split of a record that is in none, by its hash.

    What has a table of its own takes none of the main one; without a split of its own, that is then for training.
    """
    main = tables[""]
    parts = {split: list(tables[split].records) if split in tables else [] for split in SPLITS}
    for record in main.records:
        split = record.named_split
        if split is None:
            split = "train" if "validation" in tables else drawn(record)
            split = "train" if split in tables else split
        if split not in tables:
            parts[split].append(record)
    if hold_out and not parts["validation"] and not _names_no_splits(main):
        train, parts["train"] = parts["train"], []
        for record in train:
            held = drawn(record) == "validation"
            parts["validation" if held else "train"].append(record)
    return parts


def _names_no_splits(table: Table) -> bool:
    return all(record.named_split is None for record in table.records)


def _labelled(records: Sequence[Record], shape: Shape, split: str) -> Sequence[Record]:
    """The records of a split, or none if all lack a label: public test sets often have none."""
    if not records or not shape.label or "" in shape.labels.classes or not all(r.lacks(shape.label) for r in records):
        return records
    place = records[0].place.rpartition(", ")[0] or "the data"
    warnings.warn(f"{place}: none of the {len(records):,} {split} records has a label; they are left out", stacklevel=4)
    return ()


def _name_of(source: Source) -> str:
    """A short name: that of the file or folder without suffix."""
    if not isinstance(source, str):
        return type(source).__name__.lower()
    base = os.path.basename(os.path.normpath(source))
    return os.path.splitext(base)[0] if base.lower().endswith(SUFFIXES) else base
