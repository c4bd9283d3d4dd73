"""Labels of data, and the words that stand for them: how they are written, and which value means which class."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

from zograd.hub.errors import TaskError, UnknownTaskError
from zograd.hub.records import Record

__all__ = [
    "ClassWords",
    "LabelWords",
    "Labels",
    "check_words",
    "class_words",
    "labels_in",
    "labels_of",
    "parse_label_words",
]

ClassWords: TypeAlias = str | tuple[str, ...]
"""The word of a class, or several: then its probability is the sum of theirs."""

LabelWords: TypeAlias = Mapping[str, str | Sequence[str]] | Sequence[str | Sequence[str]]
"""Words as a user gives them: by label, or in the order of the labels 0, 1, ..."""

MOST_LABELS: Final = 50
"""Different labels of a file above which they are not taken for label words unasked."""


@dataclass(frozen=True)
class Labels:
    """The classes in order, and the words of each."""

    classes: tuple[str, ...]
    words: tuple[ClassWords, ...]

    @cached_property
    def _index(self) -> tuple[dict[str, int], dict[str, int]]:
        """Label -> class: as it is written, and in its canonical form."""
        exact = {label: k for k, label in enumerate(self.classes)}
        loose: dict[str, set[int]] = {}
        for k, label in enumerate(self.classes):
            loose.setdefault(_canonical(label), set()).add(k)
        found = {label: next(iter(ks)) for label, ks in loose.items() if len(ks) == 1}
        for one, other in _TRUTH.items():
            if len(self.classes) == 2 and other in loose and one not in loose and other in found:
                found[one] = found[other]
        return exact, found

    def of(self, record: Record, column: str) -> int:
        """The class of a record, whatever the case of a label, or the form of a number or a truth value.

        Raises:
            TaskError: the record has no label, or one without a word.
        """
        value = record.text(column).strip()
        exact, loose = self._index
        found = exact.get(value, loose.get(_canonical(value)))
        if found is None and not value:
            raise TaskError(f"{record.place}: the column {column!r} is empty; fill the label in, or remove the line.")
        if found is None:
            raise TaskError(
                f"{record.place}: the label {value!r} in column {column!r} has no label word; allowed are "
                f"{', '.join(self.classes)}. Correct the line or add a word for it."
            )
        return found


def _canonical(label: str) -> str:
    """A label without case, and a number in one form: "1.0" is "1"."""
    text = label.strip().casefold()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if math.isfinite(number) and number.is_integer() else repr(number)


def class_words(words: str | Sequence[str]) -> ClassWords:
    """One word as it is, several as a tuple."""
    if isinstance(words, str):
        return words
    return words[0] if len(words) == 1 else tuple(words)


def check_words(words: LabelWords | None) -> None:
    """Raise TaskError for an empty word, or one that is given twice."""
    given = [w for word in (words.values() if isinstance(words, Mapping) else words or ()) for w in _all_of(word)]
    for word in given:
        if not word.strip():
            raise TaskError(f"Label words: the word {word!r} is empty; give each label a word such as ' great'.")
        if given.count(word) > 1:
            raise TaskError(f"Label words: the word {word!r} stands for two labels; give each label its own.")


def _all_of(words: str | Sequence[str]) -> Sequence[str]:
    return [words] if isinstance(words, str) else words or [""]


def flat_words(words: Sequence[ClassWords]) -> tuple[list[str], list[int]]:
    """All words, and the number of the class of each."""
    pairs = [(word, k) for k, of_class in enumerate(words) for word in _all_of(of_class)]
    return [word for word, _ in pairs], [k for _, k in pairs]


def labels_of(words: LabelWords, names: Sequence[str] = ()) -> Labels:
    """The labels for which a user gave words. names: those of the numbers 0, 1, ... in the data, if it has some.

    Raises:
        TaskError: words for fewer than two labels, or a label by two of its names.
    """
    if len(words) < 2:
        raise TaskError(
            f"Label words: {list(words)!r} is one label alone, and every answer would be right; give words for at "
            f"least two, such as '0= terrible,1= great'."
        )
    if not isinstance(words, Mapping):
        classes = tuple(names) if len(names) == len(words) else tuple(map(str, range(len(words))))
        return Labels(classes, tuple(map(class_words, words)))
    numbers = {str(k): name for k, name in enumerate(names)}
    texts = (str(label).lower() if isinstance(label, bool) else str(label) for label in words)
    classes = tuple(label if label in names else numbers.get(label, label) for label in texts)
    if twice := next((c for c in classes if classes.count(c) > 1), None):
        raise TaskError(
            f"Label words: two of {', '.join(map(str, words))} are the label {twice!r}; give each label its words once."
        )
    return Labels(classes, tuple(map(class_words, words.values())))


def labels_in(records: Sequence[Record], column: str, where: str, names: Sequence[str] = ()) -> Labels:
    """Each label of the data with itself as its word, in the order of `names`, or sorted; numbers by their values.

    A label that is written in several ways (`_canonical`) is called as it is written first. An empty value is no label.
    """
    given = dict.fromkeys(record.text(column).strip() for record in records if not record.lacks(column))
    found = names or _in_order(_told_apart(given))
    if not 2 <= len(found) <= MOST_LABELS:
        raise TaskError(
            f"{where} has {len(found)} different labels in the column {column!r}, and 2 to {MOST_LABELS} are taken as "
            f"label words; name the right column with label_column, or give label words such as '0= terrible,1= great'."
        )
    seen: dict[str, str] = {}
    for label in found:
        if (other := seen.setdefault(_canonical(label), label)) != label:
            raise TaskError(
                f"{where} has the labels {other!r} and {label!r} in the column {column!r}; write one label in one way, "
                f"or give both label words."
            )
    return Labels(tuple(found), tuple(f" {_readable(label)}" for label in found))


def _told_apart(given: Iterable[str]) -> dict[str, str]:
    """Canonical form -> the first way in which the label is written; 1 is true and 0 is false where that leaves two."""
    first: dict[str, str] = {}
    for label in given:
        first.setdefault(_canonical(label), label)
    folded: dict[str, str] = {}
    for form, label in first.items():
        other = _TRUTH.get(form)
        folded.setdefault(other if other in folded else form, label)
    return folded if len(folded) == 2 else first


_TRUTH: Final = {"true": "1", "1": "true", "false": "0", "0": "false"}
"""Canonical forms that may be the same label."""


def _in_order(labels: Mapping[str, str]) -> list[str]:
    """The labels of canonical forms: false before true, numbers by their values, others by the alphabet."""
    if set(labels) in ({"false", "1"}, {"false", "true"}):
        return [labels[form] for form in sorted(labels, key=("false", "true", "1").index)]
    return sorted(labels.values(), key=_by_value)


def _readable(label: str) -> str:
    """A label as a text has it: the words of not_entailment, and anything else as it stands."""
    return label.replace("_", " ") if re.fullmatch(r"[^\W\d_]+(_[^\W\d_]+)+", label) else label


def _by_value(label: str) -> tuple[float, str]:
    try:
        return float(label), label
    except ValueError:
        return math.inf, label


_FORM = "write for example '0= terrible,1= great', several words of a label as '0= bad| terrible', or JSON"


def parse_label_words(text: str) -> dict[str, str | list[str]]:
    r"""`"0= terrible,1= great"` -> `{"0": " terrible", "1": " great"}`. Spaces before a word belong to it.

    Labels that are numbers or truth values come in the order of their values, others as they are written. A label may
    have several words, `"0= bad| terrible"`. A backslash takes the meaning from the comma, the bar, the
    equals sign or the backslash after it; `\n` is a new line. A text that begins with { is JSON.

    >>> parse_label_words(r"no= No\, never| nope,yes= Yes")
    {'no': [' No, never', ' nope'], 'yes': ' Yes'}

    Raises:
        TaskError: a part without `=`, or a label given twice.
    """
    if text.lstrip().startswith("{"):
        return _ordered(_from_json(text))
    words: dict[str, str | list[str]] = {}
    for part in _cut(text, ","):
        label, *rest = _cut(part, "=", 1)
        label = _plain(label).strip()
        found = [_plain(word) for word in _cut(rest[0], "|")] if rest else []
        if not label or not all(word.strip() for word in found) or not found:
            raise UnknownTaskError(f"Label words {text!r}: {part!r} is not of the form label=word; {_FORM}.")
        if label in words:
            first = class_words(words[label])
            raise TaskError(
                f"Label words {text!r}: the label {label!r} is given twice; give several words as "
                f"{f'{label}={first}|{found[0]}'!r}."
            )
        words[label] = found[0] if len(found) == 1 else found
    return _ordered(words)


def _ordered(words: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
    """The words by the values of their labels, so that 1 is the second of two classes however they were typed."""
    truth = {"false": 0.0, "true": 1.0}
    values = {label: truth.get(_canonical(label), _by_value(label)[0]) for label in words}
    known = all(map(math.isfinite, values.values()))
    return {label: words[label] for label in sorted(words, key=values.__getitem__)} if known else words


def _cut(text: str, mark: str, most: int = 0) -> list[str]:
    """The parts between marks that no backslash stands before; most: cut so often."""
    parts: list[str] = []
    start = k = 0
    while k < len(text):
        if text[k] == "\\":
            k += 1
        elif text[k] == mark and not (most and len(parts) == most):
            parts.append(text[start:k])
            start = k + 1
        k += 1
    return [*parts, text[start:]]


def _plain(text: str) -> str:
    """A text without the backslashes that take a meaning away."""
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text)


def _from_json(text: str) -> dict[str, str | list[str]]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UnknownTaskError(f"Label words {text!r} are not valid JSON ({error}); {_FORM}.") from None
    lists = [[w] if isinstance(w, str) else w for w in data.values()]
    good = all(isinstance(found, list) and found and all(isinstance(w, str) for w in found) for found in lists)
    if not data or not good:
        raise UnknownTaskError(f"Label words {text!r}: JSON maps each label to a word or to a list of words; {_FORM}.")
    return dict(data)
