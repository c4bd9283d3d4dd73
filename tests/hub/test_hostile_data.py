"""Data as it is found: nothing of it is dropped, overwritten or read in another way than it says, without a word."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zograd.hub import Example, Task, TaskError, load_task, parse_label_words, register_task
from zograd.hub.formats import read_file
from zograd.hub.named_tasks import NAMED_TASKS
from zograd.hub.records import plain


def every(task: Task) -> list[Example]:
    return [e for part in task.splits.values() for e in part]


def only(record: dict[str, Any], **given: Any) -> Example:
    (example,) = every(load_task([record], **given))
    return example


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8", newline="")
    return path


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# ---- which shape -----------------------------------------------------------------------------------------------------

CHOICES = ["yes it is", "no", "maybe so"]
QUIZ: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "label_column": ({"question": "q", "choices": CHOICES, "correct": 2}, {"label_column": "correct"}),
    "label_column that needs no name": ({"question": "q", "choices": CHOICES, "answer": 2}, {"label_column": "answer"}),
    "completion_column": ({"question": "q", "options": CHOICES, "answer": "C"}, {"completion_column": "options"}),
    "both": (
        {"question": "q", "options": CHOICES, "key": 2}, {"label_column": "key", "completion_column": "options"},
    ),
    "as JSON in a text": (
        {"question": "q", "options": json.dumps(CHOICES), "answer": "2"}, {"completion_column": "options"},
    ),
    "as ARC has them": (
        {"question": "q", "choices": {"text": CHOICES, "label": ["1", "2", "3"]}, "key": "3"}, {"label_column": "key"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", QUIZ)
def test_choices_are_read_whatever_their_columns_are_called(name: str) -> None:
    """They became a classification over 0, 1 and 2, or a completion, without a choice in sight."""
    record, columns = QUIZ[name]
    example = only(record, **columns)
    assert example.choices == tuple(f" {choice}" for choice in CHOICES)
    assert example.label == 2


def test_another_label_beside_choices_can_be_asked_for() -> None:
    rows = [{"question": f"q {i}", "choices": CHOICES, "answer": 0, "about": ("art", "law")[i % 2]} for i in range(4)]
    with pytest.raises(TaskError, match=r"'art', which is none of the choices.* itself, say records=classification"):
        load_task(rows, label_column="about")
    task = load_task(rows, label_column="about", records="classification")
    assert (task.kind, task.classes, task.template) == ("classification", ("art", "law"), "{question}\nLabel:")


def test_a_named_completion_stays_one_beside_labels_and_choices() -> None:
    assert load_task([{"prompt": "p", "reply": "[1]", "label": "x"}], completion_column="reply").kind == "completion"
    record = {"prompt": "p", "choices": ["a", "b"], "answer": "a"}
    assert load_task([record], completion_column="answer").kind == "completion"
    turns = {"prompt": [{"role": "user", "content": "a"}], "reply": [{"role": "assistant", "content": "b"}], "label": 1}
    assert load_task([turns], completion_column="reply").kind == "completion"


@pytest.mark.parametrize("given", [{"label_column": "label"}, {"label_words": "0= a,1= b"}])
def test_a_label_and_a_completion_are_not_learned_at_once(given: dict[str, Any]) -> None:
    with pytest.raises(
        TaskError, match=r"to predict labels, and completion_column=completion to learn an answer.*leave"
    ):
        load_task([{"prompt": "p", "completion": "c", "label": 1}], completion_column="completion", **given)


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
UNUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"text": "a"}, {"records": "text", "prompt_template": "Review: {text}"}, "prompt_template"),
    ({"text": "a"}, {"records": "text", "label_words": "0= a,1= b"}, "label_words"),
    ({"messages": TURNS}, {"records": "chat", "prompt_template": "{messages}"}, "prompt_template"),
    ({"messages": TURNS}, {"records": "chat", "completion_column": "messages"}, "completion_column"),
    ({"instruction": "a", "output": "b"}, {"records": "instruction", "prompt_template": "{output}"}, "prompt_template"),
    (
        {"instruction": "a", "output": "b", "t": "c"}, {"records": "instruction", "text_column": "t"}, "text_column",
    ),
    ({"prompt": "p", "completion": "c"}, {"records": "completion", "label_words": "0= a,1= b"}, "label_words"),
    ({"prompt": "p", "completion": "c", "x": "t"}, {"records": "completion", "text_column": "x"}, "text_column"),
    ({"prompt": "p", "completion": "c", "x": "t"}, {"records": "completion", "label_column": "x"}, "label_column"),
    ({"question": "q", "choices": ["a", "b"], "answer": 1}, {"label_words": "0= a,1= b"}, "label_words"),
    (
        {"text": "a", "label": 1, "x": "t"},
        {"records": "classification", "label_words": "0= a,1= b", "completion_column": "x"},
        "completion_column",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("record", "given", "option"), UNUSED, ids=range(len(UNUSED)))
def test_what_has_no_part_is_refused(record: dict[str, Any], given: dict[str, Any], option: str) -> None:
    with pytest.raises(TaskError, match=rf"^{option}: of no use for the list, where .*\. Leave it out, or say with"):
        load_task([record], **given)


def test_a_named_text_has_a_part_in_a_template() -> None:
    record = {"ask": "q", "completion": "c"}
    assert only(record, prompt_template="Q: {text}", text_column="ask", records="completion").prompt == "Q: q"


# ---- columns ---------------------------------------------------------------------------------------------------------


def test_a_named_text_overwrites_no_column() -> None:
    """The label was replaced by the text, and the column text by the named one."""
    rows = [{"body": f"body {i}", "text": ("pos", "neg")[i % 2]} for i in range(4)]
    task = load_task(rows, text_column="body", label_column="text")
    assert (task.classes, task.template) == (("neg", "pos"), "{body}\nLabel:")
    assert {(e.prompt, e.label) for e in every(task)} == {(f"body {i}\nLabel:", 1 - i % 2) for i in range(4)}
    both = {"title": "t", "text": "a text"}
    assert only(both, text_column="title", records="text").completion == "t"
    given: dict[str, Any] = {"label_words": "0= a,1= b", "text_column": "body"}
    labelled = {"body": "b", "text": "t", "label": 1}
    with pytest.raises(TaskError, match=r"has a column 'text' beside 'body', which text_column names.*write \{body\}"):
        load_task([labelled], prompt_template="{body} // {text}", **given)
    assert only(labelled, prompt_template="{body} //", **given).prompt == "b //"
    # One file has such a column and the other has not.
    assert [e.prompt for e in every(load_task([{"body": "a", "label": 0}], eval_file=[labelled], **given))] == [
        "a\nLabel:", "b\nLabel:",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_numbers_beside_a_text_are_no_text(tmp_path: Path, form: str) -> None:
    """A row number of a CSV came into the prompt, and put the same text into two splits."""
    rows = [{"row": i, "seen": bool(i % 3), "review": f"review {i % 40}", "label": "ab"[i % 2]} for i in range(200)]
    text = lines(rows) if form == "jsonl" else "row,seen,review,label\n"
    text += "" if form == "jsonl" else "".join(f"{','.join(map(str, row.values()))}\n" for row in rows)
    task = load_task(write(tmp_path / f"d.{form}", text))
    assert task.template == "{review}\nLabel:"
    assert len({e.prompt for e in every(task)}) == sum(len({e.prompt for e in s}) for s in task.splits.values()) == 40


def test_numbers_that_are_the_only_text_are_read(tmp_path: Path) -> None:
    file = write(tmp_path / "d.csv", "digits,label\n12,even\n7,odd\n")
    assert load_task(file).template == "{digits}\nLabel:"
    file = write(tmp_path / "d.csv", "text,note,label\n12,so,even\n7,no,odd\n")
    assert load_task(file).template == "{text}\nLabel:"
    file = write(tmp_path / "d.csv", "height,weight,label\n12,1e3,even\n7,.5,odd\n")
    with pytest.raises(TaskError, match="0 of them hold texts to predict label from: give a prompt template such as"):
        load_task(file)


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "Unnamed: 0.1", "__index_level_0__"])
def test_the_index_of_pandas_stands_beside_the_data(tmp_path: Path, index: str) -> None:
    file = write(tmp_path / "d.csv", f"{index},text\n" + "".join(f"{i},a text {i}\n" for i in range(4)))
    assert load_task(file).kind == "text"
    file = write(
        tmp_path / "d.csv",
        f"{index},premise,hypothesis,label\n" + "".join(f"r{i},p {i},h,{'ab'[i % 2]}\n" for i in range(4)),
    )
    assert load_task(file).template == "Premise: {premise}\nHypothesis: {hypothesis}\nLabel:"
    with pytest.raises(TaskError, match=r"prompt template such as '\{premise\}'"):
        load_task(file, completion_column="hypothesis")


def test_blank_columns_of_a_spreadsheet(tmp_path: Path) -> None:
    assert load_task(write(tmp_path / "d.csv", "text,label,,\na,x,,\nb,y,,\n")).template == "{text}\nLabel:"


# ---- labels ----------------------------------------------------------------------------------------------------------

SPELT: list[tuple[list[Any], tuple[str, ...]]] = [
    (["True", "False", "true", "false"], ("False", "True")),
    (["True", "False", True, False, 1, "0", 1.0], ("False", "True")),
    ([1, "False", True, 0], ("False", "1")),
    (["1", "0", "1.0", "0.0"], ("0", "1")),
    (["Yes", "no", "yes", "No"], ("Yes", "no")),
    ([1, "true", 2, 3], ("1", "2", "3", "true")),
    (["B", "a", "b"], ("B", "a")),
]


@pytest.mark.parametrize(("values", "classes"), SPELT, ids=range(len(SPELT)))
def test_a_label_may_be_written_in_several_ways(values: list[Any], classes: tuple[str, ...]) -> None:
    rows = [{"text": str(i), "label": value} for i, value in enumerate(values)]
    task = load_task(rows, prompt_template="{text}")
    assert task.classes == classes
    half = (len(rows) + 1) // 2
    apart = load_task(rows[:half], eval_file=rows[half:], prompt_template="{text}")
    assert {e.prompt: e.label for e in every(apart)} == {e.prompt: e.label for e in every(task)}


def test_a_csv_goes_with_truth_values_of_json(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", "text,label\na,True\nb,False\n")
    held = write(tmp_path / "b.jsonl", lines([{"text": "c", "label": False}, {"text": "d", "label": True}]))
    task = load_task(train, eval_file=held)
    assert task.label_words == (" False", " True")
    assert [e.label for e in task.splits["validation"]] == [0, 1]


@pytest.mark.parametrize("words", ["1= great", {"1": " great"}, [" great"]])
def test_one_label_alone_is_refused(words: Any) -> None:
    """Its accuracy was 1.0 before the first step."""
    with pytest.raises(TaskError, match="is one label alone, and every answer would be right; give words for at least"):
        load_task([{"text": "a", "label": "1"}, {"text": "b", "label": "1"}], label_words=words)


def test_a_registered_task_has_two_classes() -> None:
    with pytest.raises(TaskError, match=r"task 'alone' has the classes \['a'\]; name at least two"):
        register_task(name="alone", classes=("a",), label_words=(" a",), template="{text}")(lambda: [])
    assert "alone" not in NAMED_TASKS


def test_a_label_by_its_number_and_its_name_is_refused() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))
    made = datasets.Dataset.from_list([{"text": "a", "label": 0}], features=features)
    with pytest.raises(TaskError, match="two of 0, neg are the label 'neg'"):
        load_task(made, label_words={"0": " a", "neg": " b"})


def test_words_come_in_the_order_of_their_labels() -> None:
    """F1 is of the second of two classes, which was the one whose word was typed last."""
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    assert load_task(rows, label_words="1= great,0= terrible").label_words == (" terrible", " great")
    assert load_task(rows, label_words='{"1": " great", "0": " terrible"}').classes == ("0", "1")
    assert list(parse_label_words("true= yes,False= no")) == ["False", "true"]
    assert list(parse_label_words("10= a,9= b,1.5= c")) == ["1.5", "9", "10"]
    assert list(parse_label_words("pos= good,neg= bad")) == ["pos", "neg"]
    # What a run has stored is no text, and keeps its order.
    assert load_task(rows, label_words={"1": " great", "0": " terrible"}).classes == ("1", "0")


# ---- values in memory ------------------------------------------------------------------------------------------------


def test_plain_values() -> None:
    pandas = pytest.importorskip("pandas")
    given = {"a": np.int64(1), 2: [np.float32(0.5), np.nan, (np.bool_(True), pandas.NA)], "c": {"d": np.array(["x"])}}
    assert plain(given) == {"a": 1, "2": [0.5, None, [True, None]], "c": {"d": ["x"]}}
    assert plain([pandas.NaT, np.datetime64("NaT"), float("inf"), np.str_("s")]) == [None, None, float("inf"), "s"]
    assert type(plain(np.bool_(True))) is bool
    sound = {"array": np.zeros(2), "sampling_rate": 8}
    assert plain(sound) is sound


@pytest.mark.parametrize("kind", ["int8", "int64", "float32", "bool"])
def test_labels_of_numpy(kind: str) -> None:
    labels = np.array([0, 1] * 4, dtype=kind)
    rows = [{"text": np.str_(f"a {i}"), "label": label} for i, label in enumerate(labels)]
    expected = load_task([{"text": f"a {i}", "label": label} for i, label in enumerate(labels.tolist())])
    assert load_task(rows) == expected


def test_arrays_in_cells() -> None:
    turns = np.array(TURNS, dtype=object)
    assert only({"messages": turns}) == only({"messages": TURNS})
    quiz = {"question": "q", "choices": np.array(["a", "b"]), "answer": np.int64(1)}
    assert only(quiz).choices == (" a", " b")


def test_what_a_frame_lacks_is_nothing() -> None:
    pandas = pytest.importorskip("pandas")
    parts = ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    labels = [0.0, 1.0, 1.0, 0.0, np.nan, np.nan]
    frame = pandas.DataFrame({"text": list("abcdef"), "label": labels, "split": parts})
    with pytest.warns(UserWarning, match="^the data: none of the 2 test records has a label; they are left out"):
        task = load_task(frame)
    assert (task.classes, len(task.splits["test"])) == (("0", "1"), 0)
    asked = pandas.DataFrame({"instruction": ["a", "b"], "input": [None, "x"], "output": ["c", "d"]})
    assert "### Input" not in next(e.prompt for e in every(load_task(asked)) if "\na\n" in e.prompt)
    first = pandas.DataFrame({"head": [None, "h"], "body": ["b", "c"], "label": ["x", "y"]})
    with pytest.raises(TaskError, match="record 1: the column 'head' holds nothing"):
        load_task(first)
    quiz = pandas.DataFrame({"question": ["q", "r"], "choices": [["1", "2"], ["1", "2"]], "answer": [1, None]})
    assert only(quiz.to_dict("records")[0]).label == 1


OBJECTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "series": (lambda pd: pd.Series(["a"]), r"a Series of pandas is one column .* such as series\.to_frame\('text'\)"),
    "twice": (lambda pd: pd.DataFrame([["a", "b"]], columns=["text", "text"]), "has the column 'text' twice"),
    "numbers": (lambda pd: pd.DataFrame([["a", "b"]]), "has no column 'label' for the label; its columns are 0, 1"),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_of_pandas_that_are_no_data(name: str) -> None:
    made, message = OBJECTS[name]
    with pytest.raises(TaskError, match=message):
        load_task(made(pytest.importorskip("pandas")))


def test_a_dataset_in_the_format_of_numpy() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))
    made = datasets.Dataset.from_list([{"text": str(i), "label": i % 2} for i in range(4)], features=features)
    assert load_task(made.with_format("numpy")) == load_task(made)


# ---- splits ----------------------------------------------------------------------------------------------------------

ALIKE: dict[str, list[dict[str, Any]]] = {
    "answers to one question": [
        {"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {j}"}]}
        for i in range(60) for j in range(3)
    ],
    "turns as JSON and as objects": [
        {"messages": json.dumps(turns) if j else turns}
        for i in range(60) for turns in [[{"role": "user", "content": f"q {i}"}, TURNS[1]]] for j in range(2)
    ],
    "no input": [
        {"instruction": f"question {i}", "input": given, "output": f"answer {given}"}
        for i in range(60) for given in (None, "")
    ],
    "accents": [
        {"text": unicodedata.normalize(form, f"le café numéro {i}"), "label": "ab"[i % 2]}
        for i in range(60) for form in ("NFC", "NFD")
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_the_same_prompt_is_in_one_split(name: str) -> None:
    found: dict[str, set[str]] = {}
    for split, examples in load_task(ALIKE[name]).splits.items():
        for e in examples:
            found.setdefault(unicodedata.normalize("NFC", e.prompt), set()).add(split)
    assert len(found) == 60
    assert all(len(splits) == 1 for splits in found.values())
    assert len(set.union(*found.values())) == 3


# ---- files -----------------------------------------------------------------------------------------------------------


def test_spaces_before_quotes(tmp_path: Path) -> None:
    """The quotes became a part of the label, and a comma between them a column."""
    text = 'text, label, "note"\n"a, "" b", "pos", "x, y"\n unquoted,neg,  of "it\n1, "so" it is, 5\n'
    records = read_file(str(write(tmp_path / "d.csv", text))).records
    assert [list(record.values.values()) for record in records] == [
        ['a, " b', "pos", "x, y"], [" unquoted", "neg", '  of "it'], ["1", ' "so" it is', " 5"],
    ]  # fmt: skip
    assert list(records[0].values) == ["text", "label", "note"]


def test_a_value_of_several_lines_beside_spaces_before_quotes(tmp_path: Path) -> None:
    text = 'text, label\n"a\n, ""b"" c", "pos"\nd, neg\n'
    records = read_file(str(write(tmp_path / "d.csv", text))).records
    assert [record.values["text"] for record in records] == ['a\n, "b" c', "d"]
    assert [record.values["label"] for record in records] == ["pos", " neg"]
    assert records[1].place.endswith("line 4")


@pytest.mark.parametrize("more", [{}, {"tools": [{"name": "f"}]}])
def test_one_conversation_is_one_record(tmp_path: Path, more: dict[str, Any]) -> None:
    file = write(tmp_path / "d.json", json.dumps({"messages": TURNS, **more}))
    (example,) = every(load_task(file))
    assert example.chat == (("user", "a"), ("assistant", "b"))


def test_further_answers() -> None:
    """null was the right answer "None", and a list in a CSV none at all."""
    found = {
        value: only({"prompt": "p", "completion": "c", "also": json.loads(value)}).also
        for value in ("null", "[null]", '[4.0, null, "x", ""]', '"[\\"four\\", \\"IV\\"]"', '"four"', '"[four"', '""')
    }
    assert list(found.values()) == [(), (), ("4", "x"), ("four", "IV"), ("four",), ("[four",), ()]
    with pytest.raises(TaskError, match="record 1: the column 'also' holds a dict"):
        only({"prompt": "p", "completion": "c", "also": [{"text": "x"}]})


@pytest.mark.parametrize("answer", [1, 1.0, "B", [1.0]])
def test_a_whole_number_is_a_position(answer: Any) -> None:
    assert only({"question": "q", "choices": ["1", "2"], "answer": answer}).label == 1


def test_a_whole_number_in_a_text_is_a_position_where_it_is_no_choice() -> None:
    assert only({"question": "q", "choices": ["a", "b"], "answer": "1.0"}).label == 1
    assert only({"question": "q", "choices": ["1.0", "1"], "answer": "1.0"}).label == 0
    with pytest.raises(TaskError, match=r"holds 0\.5, which is none of the choices"):
        only({"question": "q", "choices": ["a", "b"], "answer": 0.5})
