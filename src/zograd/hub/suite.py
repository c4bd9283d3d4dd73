"""MeZO's task suite: how records of GLUE, SuperGLUE, SQuAD and DROP become prompts with answers.

The templates and label words follow those of MeZO for OPT (Malladi et al. 2023, arXiv 2305.17333, appendix E). They
were written from memory and not compared with its table, so numbers need not be comparable with the paper's. A
`Definition` turns a record, as the public files or `datasets` hold it, into records with the columns of its template.
From there they are read as any data of the user (`zograd.hub.shapes`). No data is part of zograd: `sst2:FOLDER` reads
files that the user has, `sst2:hf:NAME` a dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from zograd.hub.errors import TaskError
from zograd.hub.records import Record

__all__ = ["SUITE", "Definition", "split_name"]


@dataclass(frozen=True)
class Definition:
    """A task of the suite.

    records: what its plain records are (`zograd.hub.shapes`). plain: the plain records of one record of the data, each
    with the columns of the template and the answer. split_by: the columns by whose hash data without splits is divided,
    so that questions about one passage stay together. files: what is read, for people.
    """

    name: str
    records: str
    template: str
    plain: Callable[[Record], Iterable[dict[str, Any]]]
    files: str
    description: str
    label_words: Mapping[str, str] = field(default_factory=dict)
    split_by: tuple[str, ...] = ()

    def read(self, records: Sequence[Record]) -> list[Record]:
        """The plain records of data. Raises TaskError for the first record that does not fit, by its place."""
        found = []
        for record in records:
            beside = {"split": record.values["split"]} if "split" in record.values else {}
            found += [Record({**beside, **values}, record.place, record.part) for values in self.plain(record)]
        return found


def split_name(source: Any) -> tuple[Definition | None, Any]:
    """The definition that a source names in front of a colon, and the source without it; None where it names none.

    >>> split_name("copa:data/COPA")[1], split_name("hf:nyu-mll/glue:sst2")[1]
    ('data/COPA', 'hf:nyu-mll/glue:sst2')
    """
    name, colon, rest = source.partition(":") if isinstance(source, str) else ("", "", "")
    if not colon or name not in SUITE:
        return None, source
    if not rest:
        d = SUITE[name]
        raise TaskError(f"{source!r} says how records are read, not which: write {name}:FILE or FOLDER ({d.files}).")
    return SUITE[name], rest


# ---- values of a record ----------------------------------------------------------------------------------------------


def _first(record: Record, *columns: str) -> str:
    """The text in the first of these columns that the record has."""
    column = next((c for c in columns if c in record.values), None)
    if column is None:
        raise TaskError(
            f"{record.place}: there is no column {' or '.join(map(repr, columns))}; it has "
            f"{', '.join(record.values) or 'none'}. Check that the file is what the name before the colon says."
        )
    return record.text(column)


def _label(record: Record, labels: Mapping[str, Sequence[str]], column: str = "label") -> str | None:
    """The label in the form of the suite, however the data writes it; None where it has none, as public test sets."""
    value = record.values.get(column)
    if value is None or str(value).strip() in ("-1", ""):
        return None
    text = record.text(column).strip()
    found = next((label for label, forms in labels.items() if text.casefold() in (label.casefold(), *forms)), None)
    if found is None:
        forms = ", ".join(f"{label} ({', '.join(forms)})" for label, forms in labels.items())
        raise TaskError(f"{record.place}: the column {column!r} holds {text!r}, and expected is one of {forms}.")
    return found


TRUTH: Final = {"false": ("0",), "true": ("1",)}
"""Labels that are truth values, with the numbers that `datasets` gives them."""

YES: Final = {"false": "No", "true": "Yes"}


def _inner(record: Record, column: str, kind: type) -> Any:
    """A list or an object in a column. Raises TaskError for anything else."""
    value = record.values.get(column)
    if not isinstance(value, kind):
        what = "an object" if kind is dict else "a list"
        there = "no column" if column not in record.values else f"a {type(value).__name__}"
        raise TaskError(f"{record.place}: expected {what} in {column!r}, found {there}; it has "
                        f"{', '.join(record.values)}.")  # fmt: skip
    return value


def _items(record: Record, column: str) -> list[Record]:
    """The objects of a list in a column, as records that know their place."""
    found = []
    for number, item in enumerate(_inner(record, column, list), start=1):
        if not isinstance(item, dict):
            raise TaskError(f"{record.place}: {column} {number} is a {type(item).__name__}, expected an object.")
        found.append(Record(item, f"{record.place}, {column} {number}"))
    return found


# ---- classification --------------------------------------------------------------------------------------------------


def _sst2(r: Record) -> Iterable[dict[str, Any]]:
    yield {"text": _first(r, "sentence", "text").strip(), "label": _label(r, {"negative": ("0",), "positive": ("1",)})}


def _rte(r: Record) -> Iterable[dict[str, Any]]:
    labels = {"entailment": ("0",), "not_entailment": ("1",)}
    premise, hypothesis = _first(r, "premise", "sentence1"), _first(r, "hypothesis", "sentence2")
    yield {"premise": premise, "hypothesis": hypothesis, "label": _label(r, labels)}


def _cb(r: Record) -> Iterable[dict[str, Any]]:
    labels = {"entailment": ("0",), "contradiction": ("1",), "neutral": ("2",)}
    yield {"premise": _first(r, "premise"), "hypothesis": _first(r, "hypothesis"), "label": _label(r, labels)}


def _boolq(r: Record) -> Iterable[dict[str, Any]]:
    question = _first(r, "question").strip().removesuffix("?")
    column = "label" if "label" in r.values else "answer"
    yield {"passage": _first(r, "passage"), "question": question, "label": _label(r, TRUTH, column)}


def _wsc(r: Record) -> Iterable[dict[str, Any]]:
    spans = Record(_inner(r, "target", dict), f"{r.place}, target") if "target" in r.values else r
    texts = {"span1": _first(spans, "span1_text"), "span2": _first(spans, "span2_text")}
    yield {"text": _first(r, "text"), **texts, "label": _label(r, TRUTH)}


def _wic(r: Record) -> Iterable[dict[str, Any]]:
    texts = {c: _first(r, c) for c in ("word", "sentence1", "sentence2")}
    yield {**texts, "label": _label(r, TRUTH)}


def _multirc(r: Record) -> Iterable[dict[str, Any]]:
    """Each answer of a question is an example, with true or false as its label."""
    if "passage" not in r.values:  # of datasets, where this has been done
        yield {**{c: _first(r, c) for c in ("paragraph", "question", "answer")}, "label": _label(r, TRUTH)}
        return
    passage = Record(_inner(r, "passage", dict), f"{r.place}, passage")
    for question in _items(passage, "questions"):
        for answer in _items(question, "answers"):
            yield {
                "paragraph": _first(passage, "text"),
                "question": _first(question, "question"),
                "answer": _first(answer, "text"),
                "label": _label(answer, TRUTH),
            }


# ---- multiple choice -------------------------------------------------------------------------------------------------


COPA: Final = {"cause": "because", "effect": "so"}


def _copa(r: Record) -> Iterable[dict[str, Any]]:
    """The premise without its full stop, so or because, and two alternatives that go on in lower case."""
    link = _first(r, "question").strip()
    if link not in COPA:
        raise TaskError(f"{r.place}: the column 'question' holds {link!r}, expected cause or effect.")
    choices = [_continued(_first(r, c)) for c in ("choice1", "choice2")]
    place = _label(r, {"choice1": ("0",), "choice2": ("1",)})
    answer = None if place is None else int(place == "choice2")
    premise = _first(r, "premise").strip().removesuffix(".")
    yield {"premise": f"{premise} {COPA[link]}", "choices": choices, "answer": answer}


def _continued(sentence: str) -> str:
    """A sentence as it goes on after another word: I stays, any other first letter is written small."""
    text = sentence.strip()
    return text if text[:2] in ("I ", "I'") else text[:1].lower() + text[1:]


PLACEHOLDER: Final = "@placeholder"


def _record(r: Record) -> Iterable[dict[str, Any]]:
    """Each entity of the passage in the place that the query leaves open; the query goes on behind it."""
    if "qas" in r.values:
        passage = Record(_inner(r, "passage", dict), f"{r.place}, passage")
        text = _first(passage, "text")
        entities = [text[_at(e, "start") : _at(e, "end") + 1] for e in _items(passage, "entities")]
        for qa in _items(r, "qas"):
            answers = [_first(a, "text") for a in _items(qa, "answers")] if "answers" in qa.values else []
            yield _cloze(qa, text, _first(qa, "query"), entities, answers)
        return
    entities, answers = _texts(r, "entities"), _texts(r, "answers") if r.values.get("answers") is not None else []
    yield _cloze(r, _first(r, "passage"), _first(r, "query"), entities, answers)


def _at(entity: Record, column: str) -> int:
    value = entity.values.get(column)
    if not isinstance(value, int):
        raise TaskError(f"{entity.place}: {column!r} is {value!r}, expected the position of a character.")
    return value


def _cloze(r: Record, passage: str, query: str, entities: Sequence[str], answers: Sequence[str]) -> dict[str, Any]:
    before, found, after = query.partition(PLACEHOLDER)
    if not found:
        raise TaskError(f"{r.place}: the query {query[:40]!r} has no {PLACEHOLDER}; check the file.")
    cut = max((k for k, c in enumerate(before) if c.isspace()), default=-1) + 1
    word = before[cut:]  # an opening quote belongs to the tokens of what stands in it
    return {
        "passage": passage.replace("\n@highlight\n", "\n- "),
        "query": before[:cut].rstrip(),
        "choices": [f"{word}{name}{after}" for name in dict.fromkeys((*entities, *answers))],
        "answer": [f"{word}{name}{after}" for name in dict.fromkeys(answers)] or None,
    }


def _texts(r: Record, column: str) -> list[str]:
    return [Record({column: value}, r.place).text(column) for value in _inner(r, column, list)]


# ---- answers that are written ----------------------------------------------------------------------------------------


def _squad(r: Record) -> Iterable[dict[str, Any]]:
    """The answers of all people; the first is learned. SQuAD 2: a question without an answer is left out."""
    if "data" in r.values:
        for article in _items(r, "data"):
            yield from _squad(article)
        return
    if "paragraphs" in r.values:
        for paragraph in _items(r, "paragraphs"):
            for qa in _items(paragraph, "qas"):
                answers = [_first(a, "text") for a in _items(qa, "answers")] if "answers" in qa.values else []
                yield from _asked(_first(r, "title"), _first(paragraph, "context"), _first(qa, "question"), answers)
        return
    answers = _texts(Record(_inner(r, "answers", dict), f"{r.place}, answers"), "text")
    yield from _asked(_first(r, "title"), _first(r, "context"), _first(r, "question"), answers)


def _asked(title: str, context: str, question: str, answers: Sequence[str]) -> Iterable[dict[str, Any]]:
    if answers:
        values = {"title": title, "context": context, "question": question.strip()}
        yield {**values, **_written(answers)}


def _written(answers: Sequence[str]) -> dict[str, Any]:
    first, *others = [f" {a.strip()}" for a in dict.fromkeys(answers)]
    return {"completion": first, "also": others}


def _drop(r: Record) -> Iterable[dict[str, Any]]:
    """The answer is a number, a date, or spans of the passage with commas between them."""
    if "answers_spans" in r.values:  # of datasets
        spans = Record(_inner(r, "answers_spans", dict), f"{r.place}, answers_spans")
        answer = ", ".join(dict.fromkeys(_texts(spans, "spans")))
        if answer:
            yield {"passage": _first(r, "passage"), "question": _first(r, "question"), **_written([answer])}
        return
    if "qa_pairs" not in r.values:  # the whole file: passages by their names
        for name, passage in r.values.items():
            if not isinstance(passage, dict) or "qa_pairs" not in passage:
                raise TaskError(
                    f"{r.place}: {name!r} is no passage of DROP; expected an object with passage, qa_pairs."
                )
            yield from _drop(Record(passage, f"{r.place}, {name}"))
        return
    for qa in _items(r, "qa_pairs"):
        given = [_inner(qa, "answer", dict)] if "answer" in qa.values else []
        given += [a for a in qa.values.get("validated_answers") or () if isinstance(a, dict)]
        if answers := [text for a in given if (text := _of_drop(a))]:
            yield {"passage": _first(r, "passage"), "question": _first(qa, "question"), **_written(answers)}


def _of_drop(answer: Mapping[str, Any]) -> str:
    """The text of an answer: its number, its spans, or its date; "" where it has none of them."""
    if number := str(answer.get("number") or "").strip():
        return number
    if spans := [str(s) for s in answer.get("spans") or ()]:
        return ", ".join(spans)
    date = answer.get("date") or {}
    return " ".join(part for key in ("day", "month", "year") if (part := str(date.get(key) or "").strip()))


_TASKS = (
    Definition(
        "sst2", "classification", "{text} It was", _sst2, "GLUE: train.tsv, dev.tsv", "sentiment of a sentence",
        {"negative": " terrible", "positive": " great"},
    ),
    Definition(
        "rte", "classification", '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n', _rte,
        "SuperGLUE: train.jsonl, val.jsonl, or GLUE: train.tsv, dev.tsv", "whether a sentence follows",
        {"entailment": "Yes", "not_entailment": "No"},
    ),
    Definition(
        "cb", "classification", 'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n', _cb,
        "SuperGLUE: train.jsonl, val.jsonl", "whether a sentence follows, or is contradicted",
        {"entailment": "Yes", "contradiction": "No", "neutral": "Maybe"},
    ),
    Definition(
        "boolq", "classification", "{passage} {question}?\n", _boolq, "SuperGLUE: train.jsonl, val.jsonl",
        "yes/no questions about a passage", YES, ("passage",),
    ),
    Definition(
        "wsc", "classification",
        '{text}\nIn the previous sentence, does the pronoun "{span2}" refer to {span1}? Yes or No?\n', _wsc,
        "SuperGLUE: train.jsonl, val.jsonl", "whom a pronoun means", YES, ("text",),
    ),
    Definition(
        "wic", "classification",
        'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n',
        _wic, "SuperGLUE: train.jsonl, val.jsonl", "whether a word means the same twice", YES,
    ),
    Definition(
        "multirc", "classification",
        '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n', _multirc,
        "SuperGLUE: train.jsonl, val.jsonl", "whether an answer about a paragraph is right", YES, ("paragraph",),
    ),
    Definition(
        "copa", "choice", "{premise}", _copa, "SuperGLUE: train.jsonl, val.jsonl", "which of two is the cause or effect"
    ),
    Definition(
        "record", "choice", "{passage}\n{query}", _record, "SuperGLUE: train.jsonl, val.jsonl",
        "which entity fills a gap", {}, ("passage",),
    ),
    Definition(
        "squad", "completion", "Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:", _squad,
        "train-v1.1.json, dev-v1.1.json", "a span of a context as the answer", {}, ("context",),
    ),
    Definition(
        "drop", "completion", "Passage: {passage}\nQuestion: {question}\nAnswer:", _drop,
        "drop_dataset_train.json, drop_dataset_dev.json", "reasoning over a passage", {}, ("passage",),
    ),
)  # fmt: skip

SUITE: Final = {d.name: d for d in _TASKS}
"""The definitions by name: sst2, rte, cb, boolq, wsc, wic, multirc, copa, record, squad, drop."""
