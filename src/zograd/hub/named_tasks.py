"""The named tasks, bundled, fetched and registered: label words, templates, sources, licences and records."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, TypeAlias

from zograd.hub.fetching import fetch
from zograd.hub.labels import ClassWords

__all__ = ["NAMED_TASKS", "REGISTERED", "Rows", "TaskInfo", "rows_of", "tasks"]


@dataclass(frozen=True)
class TaskInfo:
    """A line of `tasks()`. `sizes` maps split -> number of examples. `bundled`: it needs no download."""

    name: str
    sizes: Mapping[str, int]
    classes: tuple[str, ...]
    label_words: tuple[ClassWords, ...]
    template: str
    source: str
    licence: str
    description: str
    bundled: bool = True


_TASKS = (
    TaskInfo(
        name="mr",
        sizes={"train": 9066, "validation": 500, "test": 1000},
        classes=("negative", "positive"),
        label_words=(" terrible", " great"),
        template="{text} It was",
        source="Pang & Lee 2005, rated by Hutto & Gilbert 2014",
        licence="CC BY 4.0 (texts), MIT (ratings)",
        description="sentiment of movie review snippets",
    ),
    TaskInfo(
        name="trec",
        sizes={"train": 4865, "validation": 500, "test": 500},
        classes=("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"),
        # The words of LM-BFF (Gao et al. 2021), as in MeZO's tables. SmolLM2-135M, 500 validation examples: about 31 %
        # zero-shot, 34 % calibrated. Of 405 sets of one-token words, (Expression, Explanation, Object, Person,
        # Place, Number) does best there: 41 and 50 %; pass it as label_words to start higher.
        label_words=(" Expression", " Description", " Entity", " Human", " Location", " Number"),
        template="Question: {text}\nAnswer type:",
        source="Li & Roth 2002",
        licence="not stated by the authors; free for research use",
        description="type of the answer that a question asks for",
    ),
    TaskInfo(
        name="sms",
        sizes={"train": 3628, "validation": 500, "test": 1000},
        classes=("ham", "spam"),
        label_words=(" No", " Yes"),
        template="Message: {text}\nIs this message spam? Answer:",
        source="Almeida, Gómez Hidalgo & Yamakami 2011",
        licence="free for all purposes, per its authors",
        description="spam among text messages (13 % spam)",
    ),
    TaskInfo(
        name="boolq",
        sizes={"train": 8918, "validation": 500, "test": 3270},
        classes=("no", "yes"),
        label_words=("No", "Yes"),
        template="{passage} {question}?\n",
        source="Clark et al. 2019",
        licence="CC BY-SA 3.0",
        description="yes/no questions about a passage",
        bundled=False,
    ),
)
NAMED_TASKS: Final = {info.name: info for info in _TASKS}
"""The tasks by name."""

Rows: TypeAlias = Callable[[], Iterable[Mapping[str, str]]]
"""A function that gives the records of a task, column -> text."""

REGISTERED: Final[dict[str, Rows]] = {}
"""The records of each task that a user registered (`register_task`)."""


def tasks() -> list[TaskInfo]:
    """The named tasks with sizes and licences. Cheap: reads no data and imports no heavy library."""
    return list(NAMED_TASKS.values())


def rows_of(name: str) -> Sequence[Mapping[str, str]]:
    """The records of a named task, column -> text; "boolq" is fetched first. Raises FetchError."""
    if name in REGISTERED:
        return list(REGISTERED[name]())
    if name == "boolq":
        packed = (fetch("boolq").path / "boolq.jsonl.gz").read_bytes()
        found: list[dict[str, str]] = [json.loads(x) for x in gzip.decompress(packed).decode("utf-8").splitlines()]
        return found
    packed = (files("zograd") / "data" / f"{name}.csv.gz").read_bytes()
    return list(csv.DictReader(io.StringIO(gzip.decompress(packed).decode("utf-8"), newline="")))
