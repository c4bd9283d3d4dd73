"""A task of the user's own has a name like those of zograd; what does not fit in it is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from zograd.hub import TaskError, load_task, register_task, select, tasks
from zograd.hub.named_tasks import NAMED_TASKS, REGISTERED

ROWS = [
    {"question": f"q{k}", "hint": "h", "label": str(k // 5), "split": ("train", "validation", "test")[k % 3]}
    for k in range(10)
]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = dict(NAMED_TASKS), dict(REGISTERED)
    yield
    for registry, entries in zip((NAMED_TASKS, REGISTERED), before, strict=True):
        registry.clear()
        registry.update(entries)  # type: ignore[arg-type]


def register(rows: list[dict[str, Any]] = ROWS, **more: Any) -> None:
    about = {"classes": ("no", "yes"), "label_words": (" no", " yes"), "template": "{question} ({hint})"}
    register_task(name="own", **{**about, **more})(lambda: rows)


def test_a_registered_task_is_loaded_by_its_name() -> None:
    register(sizes={"train": 4}, description="questions")
    info = next(t for t in tasks() if t.name == "own")
    assert (info.sizes, info.description, info.classes) == ({"train": 4}, "questions", ("no", "yes"))
    task = load_task("own")
    assert [e.prompt for e in task.splits["train"]] == ["q0 (h)", "q3 (h)", "q6 (h)", "q9 (h)"]
    assert [e.label for e in task.splits["train"]] == [0, 0, 1, 1]
    assert (task.label_words, task.own, task.drawn) == ((" no", " yes"), True, False)
    assert load_task("own", label_words={"no": " n", "yes": " y"}).label_words == (" n", " y")
    assert task.said == "the class is predicted from the prompt '{question} ({hint})'"
    assert load_task("own", label_words=[[" n", " never"], " y"]).label_words == ((" n", " never"), " y")
    assert load_task("own", prompt_template="{question}?").splits["test"][0].prompt == "q2?"


def test_a_registered_task_may_have_several_words_a_class() -> None:
    register(label_words=([" no", " never"], " yes"))
    assert load_task("own").label_words == ((" no", " never"), " yes")


def test_its_examples_are_drawn_since_it_may_be_sorted() -> None:
    register([{"text": str(k), "label": str(int(k > 49)), "split": "train"} for k in range(100)], template="{text}")
    chosen = select(load_task("own"), "train", 20, seed=1)
    assert {e.label for e in chosen} == {0, 1}
    assert chosen != select(load_task("own"), "train", 20, seed=2)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "has no records"),
        ([{**ROWS[0], "label": "2"}], "record 1: label is '2' .* expected a label of 0, 1"),
        ([ROWS[0], {**ROWS[1], "split": "dev"}], "record 2: label is '0' and split is 'dev'"),
        ([ROWS[0], {**ROWS[1], "label": 1}], "record 2: every record needs the same columns, all of text"),
        ([{"text": "x", "label": "0", "split": "train"}], "column 'question', which the task own does not have"),
    ],
)
def test_a_record_that_does_not_fit_is_named(rows: list[dict[str, Any]], says: str) -> None:
    register(rows)
    with pytest.raises(TaskError, match=says):
        load_task("own")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"label_words": (" a",)}, "2 labels .* but 1 label words"),
        ({"label_words": (" a", " a")}, "stands for two labels"),
    ],
)
def test_label_words_that_do_not_fit_are_refused_at_once(more: dict[str, Any], says: str) -> None:
    with pytest.raises(TaskError, match=says):
        register(**more)
    assert "own" not in NAMED_TASKS


def test_a_name_that_is_taken_or_that_of_a_file_is_refused() -> None:
    with pytest.raises(TaskError, match="two tasks named 'trec'"):
        register_task(name="trec", classes=("a",), label_words=(" a",), template="{text}")(lambda: [])
    with pytest.raises(TaskError, match="has the name of a file"):
        register_task(name="my.csv", classes=("a",), label_words=(" a",), template="{text}")(lambda: [])
