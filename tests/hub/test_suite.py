"""MeZO's task suite: records in the standard formats of GLUE, SuperGLUE, SQuAD and DROP, written here by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zograd.hub import Example, Task, TaskError, load_task
from zograd.hub.suite import SUITE

PASSAGE = "Ann met Bob in Rome.\n@highlight\nRome was warm"
PARAGRAPH = {"text": "Tom ran home.", "questions": [{"question": "Who ran?", "answers": [
    {"text": "Tom", "label": 1}, {"text": "Ann", "label": 0}]}]}  # fmt: skip

LINES: dict[str, tuple[dict[str, Any], list[tuple[str, Any]]]] = {
    "rte": (
        {"premise": "It rained.", "hypothesis": "It was wet.", "label": "entailment", "idx": 0},
        [('It rained.\nDoes this mean that "It was wet." is true? Yes or No?\n', "Yes")],
    ),
    "cb": (
        {"premise": "It rained.", "hypothesis": "It was dry.", "label": "contradiction", "idx": 0},
        [('Suppose It rained. Can we infer that "It was dry."? Yes, No, or Maybe?\n', "No")],
    ),
    "boolq": (
        {"question": "is rain wet", "passage": "Rain is wet.", "label": True, "idx": 0},
        [("Rain is wet. is rain wet?\n", "Yes")],
    ),
    "wsc": (
        {
            "text": "Ann saw Sue while she ran.",
            "target": {"span1_index": 0, "span2_index": 4, "span1_text": "Ann", "span2_text": "she"}, "label": False,
        },
        [(
            'Ann saw Sue while she ran.\nIn the previous sentence, does the pronoun "she" refer to Ann? Yes or No?\n',
            "No",
        )],
    ),
    "wic": (
        {"word": "bank", "sentence1": "The bank shut.", "sentence2": "A river bank.", "label": False, "start1": 4},
        [(
            'Does the word "bank" have the same meaning in these two sentences? Yes, No?\nThe bank shut.\n'
            "A river bank.\n",
            "No",
        )],
    ),
    "multirc": (
        {"idx": 0, "version": 1.1, "passage": PARAGRAPH},
        [
            (
                f'Tom ran home.\nQuestion: Who ran?\nI found this answer "{who}". Is that correct? Yes or No?\n',
                "Yes" if who == "Tom" else "No",
            )
            for who in ("Tom", "Ann")
        ],
    ),
    "copa": (
        {
            "premise": "The grass is wet.", "choice1": "It rained.", "choice2": "I slept.", "question": "cause",
            "label": 0, "idx": 0,
        },
        [("The grass is wet because", ((" it rained.", True), (" I slept.", False)))],
    ),
    "record": (
        {
            "source": "x", "passage": {"text": PASSAGE, "entities": [
                {"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 15, "end": 18}, {"start": 32, "end": 35}]},
            "qas": [{"query": 'It was in "@placeholder" that they met', "answers": [
                {"start": 15, "end": 18, "text": "Rome"}], "idx": {}}],
        },
        [(
            "Ann met Bob in Rome.\n- Rome was warm\nIt was in",
            ((' "Ann" that they met', False), (' "Bob" that they met', False), (' "Rome" that they met', True)),
        )],
    ),
}  # fmt: skip
"""A line of a .jsonl of SuperGLUE each, with its prompts and answers."""

OF_DATASETS: dict[str, tuple[dict[str, Any], list[tuple[str, Any]]]] = {
    "rte": ({"sentence1": "It rained.", "sentence2": "It was wet.", "label": 0}, LINES["rte"][1]),
    "cb": (LINES["cb"][0] | {"label": 1}, LINES["cb"][1]),
    "boolq": (LINES["boolq"][0] | {"label": 1}, LINES["boolq"][1]),
    "wsc": (
        {"text": "Ann saw Sue while she ran.", "span1_text": "Ann", "span2_text": "she", "label": 0}, LINES["wsc"][1],
    ),
    "multirc": (
        {"paragraph": "Tom ran home.", "question": "Who ran?", "answer": "Ann", "label": 0}, LINES["multirc"][1][1:],
    ),
    "copa": (LINES["copa"][0] | {"label": "choice1"}, LINES["copa"][1]),
    "record": (
        {
            "passage": PASSAGE, "query": 'It was in "@placeholder" that they met', "entities": ["Ann", "Bob", "Rome"],
            "answers": ["Rome"],
        },
        LINES["record"][1],
    ),
}  # fmt: skip
"""The same as `datasets` holds it, with numbers for labels."""


def of(task: Task) -> list[Example]:
    return [e for part in task.splits.values() for e in part]


def found(task: Task) -> list[tuple[str, Any]]:
    """The prompt of each example, with its word, or with its choices and which are right."""
    if task.kind == "choice":
        return [(e.prompt, tuple(zip(e.choices, e.right, strict=True))) for e in of(task)]
    return [(e.prompt, task.label_words[e.label]) for e in of(task)]


def by_prompt(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return sorted(pairs)


@pytest.mark.parametrize("name", LINES)
def test_a_file_of_superglue(name: str, tmp_path: Path) -> None:
    line, expected = LINES[name]
    (tmp_path / "val.jsonl").write_text(json.dumps(line) + "\n")
    task = load_task(f"{name}:{tmp_path / 'val.jsonl'}")
    assert by_prompt(found(task)) == by_prompt(expected)
    assert (task.name, task.metric) == (name, "accuracy")


@pytest.mark.parametrize("name", OF_DATASETS)
def test_the_same_as_datasets_hold_it(name: str) -> None:
    line, expected = OF_DATASETS[name]
    assert by_prompt(found(load_task([line], records=name))) == by_prompt(expected)


def test_a_dataset_with_names_of_classes() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    data = datasets.Dataset.from_list([{"sentence": "dull ", "label": 0}, {"sentence": "fun", "label": 1}], features)
    task = load_task(data, records="sst2")
    assert sorted(found(task)) == [("dull It was", " terrible"), ("fun It was", " great")]


def test_a_folder_of_glue(tmp_path: Path) -> None:
    """Splits by the names of the files; a test set without labels is left out, with a warning."""
    (tmp_path / "train.tsv").write_text('sentence\tlabel\n"dull" and long \t0\nfun\t1\n')
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\ngood\t1\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tfine\n")
    with pytest.warns(UserWarning, match="none of the 1 test records has a label"):
        task = load_task(f"sst2:{tmp_path}")
    assert [(e.prompt, e.label) for e in task.splits["train"]] == [('"dull" and long It was', 0), ("fun It was", 1)]
    assert [e.prompt for e in task.splits["validation"]] == ["good It was"]
    assert (task.label_words, task.classes) == ((" terrible", " great"), ("negative", "positive"))
    other = load_task(f"sst2:{tmp_path / 'train.tsv'}", prompt_template="{text} So", label_words=[" bad", " good"])
    assert sorted(e.prompt for e in of(other)) == ['"dull" and long So', "fun So"]


def test_glue_rte(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n")
    assert found(load_task(f"rte:{tmp_path}")) == [('A.\nDoes this mean that "B." is true? Yes or No?\n', "No")]


SQUAD = {"version": "1.1", "data": [{"title": "Rain", "paragraphs": [{"context": "Rain is wet.", "qas": [
    {"id": "1", "question": "What is rain?", "answers": [
        {"text": "wet", "answer_start": 8}, {"text": "wet", "answer_start": 8}, {"text": "is wet", "answer_start": 5}]},
    {"id": "2", "question": "Why?", "answers": [], "is_impossible": True}]}]}]}  # fmt: skip

DROP = {
    "nfl_1": {"passage": "They won 3 games in May 1990.", "wiki_url": "x", "qa_pairs": [
        {"question": "How many?", "query_id": "a", "answer": {"number": "3", "spans": [], "date": {}},
         "validated_answers": [{"number": "", "spans": ["three", "games"], "date": {}}]},
        {"question": "When?", "query_id": "b", "answer": {
            "number": "", "spans": [], "date": {"day": "", "month": "May", "year": "1990"}}}]},
    "nfl_2": {"passage": "Nothing.", "qa_pairs": []},
}  # fmt: skip


def test_squad(tmp_path: Path) -> None:
    """The first answer is learned, the others are right as well; what has no answer is left out."""
    (tmp_path / "train-v1.1.json").write_text(json.dumps(SQUAD))
    (tmp_path / "dev-v1.1.json").write_text(json.dumps({"data": SQUAD["data"]}))
    task = load_task(f"squad:{tmp_path}")
    prompt = "Title: Rain\nContext: Rain is wet.\nQuestion: What is rain?\nAnswer:"
    for split in ("train", "validation"):
        assert [(e.prompt, e.completion, e.also) for e in task.splits[split]] == [(prompt, " wet", (" is wet",))]
    assert task.kind == "completion"
    row = {"id": "1", "title": "Rain", "context": "Rain is wet.", "question": "What is rain?"}
    answers = {"text": ["wet", "wet", "is wet"], "answer_start": [8, 8, 5]}
    assert of(load_task([row | {"answers": answers}], records="squad")) == list(task.splits["train"])


def test_drop(tmp_path: Path) -> None:
    (tmp_path / "drop_dataset_train.json").write_text(json.dumps(DROP))
    (tmp_path / "drop_dataset_dev.json").write_text(json.dumps(DROP))
    task = load_task(f"drop:{tmp_path}")
    front = "Passage: They won 3 games in May 1990.\nQuestion: "
    expected = [(f"{front}How many?\nAnswer:", " 3", (" three, games",)), (f"{front}When?\nAnswer:", " May 1990", ())]
    assert [(e.prompt, e.completion, e.also) for e in task.splits["train"]] == expected
    assert task.splits["validation"] == task.splits["train"]
    row = {"passage": "P.", "question": "Q?", "answers_spans": {"spans": ["a", "b", "a"], "types": []}}
    assert [e.completion for e in of(load_task([row], records="drop"))] == [" a, b"]


def test_questions_about_a_passage_stay_together() -> None:
    rows = [
        {"question": f"is it {k}", "passage": f"Passage {k // 5}.", "label": k % 2 == 0, "idx": k} for k in range(100)
    ]
    task = load_task(rows, records="boolq")
    passages = [{e.prompt.split(".")[0] for e in part} for part in task.splits.values()]
    assert sum(map(len, passages)) == 20
    assert all(passages)


def test_choices_of_a_file(tmp_path: Path) -> None:
    """Choices as a list, as JSON in a text, and as ARC has them; the answer by number, letter, text or list."""
    names = ["red", "blue", "3"]
    arc = {"text": names, "label": ["1", "2", "C"]}
    for choices, answer, right in (
        (names, 1, "blue"), (names, "B", "blue"), (names, "blue", "blue"), (json.dumps(names), "1", "blue"),
        (names, "3", "3"), (arc, "2", "blue"), (arc, "C", "3"), (json.dumps(arc), "C", "3"),
    ):  # fmt: skip
        (e,) = of(load_task([{"question": "Which?", "choices": choices, "answer": answer}]))
        assert (e.prompt, e.choices) == ("Which?\nAnswer:", (" red", " blue", " 3"))
        assert e.choices[e.label] == f" {right}", (choices, answer)
    (e,) = of(load_task([{"question": "Which?", "choices": names, "answer": ["3", "red"]}]))
    assert (e.right, e.label, e.also) == ((True, False, True), 2, (" red",))
    (e,) = of(load_task([{"ctx": "A ", "endings": ["b", "c"], "label": "1"}], records="choice",
                        completion_column="endings", prompt_template="{ctx}"))  # fmt: skip
    assert (e.prompt, e.choices, e.label) == ("A ", ("b", "c"), 1)
    (tmp_path / "a.csv").write_text('question,choices,answer\nWhich?,"[""red"", ""blue""]",blue\n')
    assert of(load_task(tmp_path / "a.csv"))[0].label == 1


def choice(**changed: Any) -> list[dict[str, Any]]:
    return [{"question": "Which?", "choices": ["a", "b"], "answer": 0} | changed]


BAD: list[tuple[Any, dict[str, Any], str]] = [
    ("copa", {}, "copa needs data: write copa:FILE or copa:FOLDER"),
    ("copa:", {}, "'copa:' says how records are read, not which: write copa:FILE"),
    ("copa:nowhere.jsonl", {}, "nowhere.jsonl does not exist"),
    ("copa:sst2:x.tsv", {}, "has two names of tasks"),
    ([{"premise": "A."}], {"records": "copa"}, "there is no column 'question'; it has premise"),
    ([LINES["copa"][0] | {"question": "why"}], {"records": "copa"}, "holds 'why', expected cause or effect"),
    ([LINES["copa"][0] | {"label": 2}], {"records": "copa"}, r"expected is one of choice1 \(0\), choice2 \(1\)"),
    ([LINES["rte"][0]], {"records": "rte", "label_column": "x"}, "label_column: for plain data; rte knows"),
    ([LINES["wsc"][0] | {"target": "Ann"}], {"records": "wsc"}, "expected an object in 'target', found a str"),
    ([{"passage": "P", "qa_pairs": []}], {"records": "drop"}, "holds no record with an answer"),
    ([{"nfl": 3}], {"records": "drop"}, "'nfl' is no passage of DROP"),
    (
        [{"passage": "P", "query": "no gap", "entities": ["P"], "answers": ["P"]}], {"records": "record"},
        "has no @placeholder",
    ),
    (choice(choices="a, b"), {}, "'choices' holds a str, expected the choices as a list"),
    (choice(choices=["a"]), {}, "expected at least two choices"),
    (choice(answer=2), {}, r"holds 2, which is none of the choices .*its letter \(A to B\), or its number from 0 to 1"),
    (choice(answer="c"), {}, "holds 'c', which is none of the choices"),
    (choice(answer=[]), {}, "is an empty list; name at least one right choice"),
    ([{"question": "a", "choices": ["a", "b"]}], {"records": "choice"}, "no column that says which choice is right"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "given", "why"), BAD)
def test_one_sentence_for_each_mistake(source: Any, given: dict[str, Any], why: str) -> None:
    with pytest.raises(TaskError, match=why):
        load_task(source, **given)


def test_the_suite_is_mezos() -> None:
    assert {*SUITE} == {*LINES, "sst2", "squad", "drop"}
