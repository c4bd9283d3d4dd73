"""Labels and their words: how they are written, which value of the data means which class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zograd.hub import TaskError, load_task, parse_label_words


def labels(values: list[Any], words: Any = None, **given: Any) -> dict[str, str]:
    """Value -> class, of a task whose labels are these."""
    rows = [{"text": f"{i}", "label": value} for i, value in enumerate(values)]
    task = load_task(rows, prompt_template="{text}", label_words=words, **given)
    found = {int(e.prompt): task.classes[e.label] for part in task.splits.values() for e in part}
    return {repr(values[i]): found[i] for i in range(len(values))}


def test_words_as_they_are_typed() -> None:
    assert parse_label_words(r"0= no\, never,1= a\=b\|c\\") == {"0": " no, never", "1": r" a=b|c" + "\\"}
    assert parse_label_words(r"a\=b= x,c=\n y") == {"a=b": " x", "c": "\n y"}
    assert parse_label_words("0= bad| awful,1= good") == {"0": [" bad", " awful"], "1": " good"}
    assert parse_label_words('{"a,b": " x", "c": [" y", " z"]}') == {"a,b": " x", "c": [" y", " z"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0= a|,1= b", r"'0= a\|' is not of the form label=word; write for example .* or JSON"),
        ("0= a,0= b", r"the label '0' is given twice; give several words as '0= a\| b'"),
        ('{"a": 1}', "JSON maps each label to a word or to a list of words"),
        ('{"a": []}', "JSON maps each label to a word or to a list of words"),
        ("{}", "JSON maps each label"),
        ('{"a": " x"', "are not valid JSON"),
    ],
)
def test_words_that_do_not_parse(text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        parse_label_words(text)


def test_a_word_stands_for_one_class() -> None:
    for words in ({"0": [" a", " b"], "1": [" b", " c"]}, {"0": [" a", " a"], "1": " b"}):
        with pytest.raises(TaskError, match="stands for two labels"):
            load_task("mr", label_words=words)
    with pytest.raises(TaskError, match="the word '' is empty"):
        load_task("mr", label_words={"0": [], "1": " b"})
    assert load_task("mr", label_words=[[" bad", " awful"], " good"]).label_words == ((" bad", " awful"), " good")


def test_case_numbers_and_truth_values() -> None:
    assert labels(["True", "FALSE", "false", True], "true= yes,false= no") == {
        "'True'": "true", "'FALSE'": "false", "'false'": "false", "True": "true",
    }  # fmt: skip
    assert labels([True, False, "1.0", 0], "0= no,1= yes") == {"True": "1", "False": "0", "'1.0'": "1", "0": "0"}
    assert labels([1, 0], "true= yes,false= no") == {"1": "true", "0": "false"}
    assert labels(["1.0", 2, "03"], "1= a,2= b,3= c") == {"'1.0'": "1", "2": "2", "'03'": "3"}
    assert labels([True, False], [" no", " yes"]) == {"True": "1", "False": "0"}
    # Labels that differ in case alone are two, if both have words.
    assert labels(["a", "A"], "a= x,A= y") == {"'a'": "a", "'A'": "A"}
    for value, words in (("b", "a= x,c= y"), (True, "a= x,b= y"), (2, "0= x,1= y"), ("aa", "a= x,A= y")):
        with pytest.raises(TaskError, match=f"the label '{str(value).lower()}' in column 'label' has no label word"):
            labels([value], words)


def test_words_from_labels() -> None:
    rows = [
        {"text": "a", "label": "not_entailment"},
        {"text": "b", "label": "LABEL_1"},
        {"text": "c", "label": "Sci/Tech"},
    ]
    assert load_task(rows).label_words == (" LABEL_1", " Sci/Tech", " not entailment")
    assert load_task([{"text": "a", "label": label} for label in ("yes", "Yes", "no")]).classes == ("no", "yes")


def test_names_of_a_dataset_are_the_classes() -> None:
    datasets = pytest.importorskip("datasets")
    names = ["World", "Sports", "not_news"]
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=names))
    made = datasets.Dataset.from_list([{"text": f"{i}", "label": i % 3} for i in range(9)], features=features)
    task = load_task(made)
    assert (task.classes, task.label_words) == (tuple(names), (" World", " Sports", " not news"))
    assert {e.prompt[0]: e.label for part in task.splits.values() for e in part} == {str(i): i % 3 for i in range(9)}
    by_number = load_task(made, prompt_template="{text}", label_words="0= a,1= b,2= c")
    assert (by_number.classes, by_number.label_words) == (tuple(names), (" a", " b", " c"))
    in_order = load_task(made, prompt_template="{text}", label_words=[" a", " b", " c"])
    assert in_order.splits == by_number.splits


def test_a_part_without_labels_is_left_out(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    parts = {
        name: datasets.Dataset.from_list(
            [{"text": f"{name} {i}", "label": label} for i, label in enumerate(of)], features
        )
        for name, of in (("train", [0, 1]), ("validation", [1, 0]), ("test", [-1, -1]))
    }
    with pytest.warns(
        UserWarning, match="the DatasetDict, test: none of the 2 test records has a label; they are left out"
    ):
        task = load_task(datasets.DatasetDict(parts))
    assert [len(part) for part in task.splits.values()] == [2, 2, 0]
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps({"text": "a", "label": label}) + "\n" for label in ("x", None, "y")))
    with pytest.raises(TaskError, match="line 2: the column 'label' holds nothing"):
        load_task(file)


def test_a_split_of_a_csv_without_labels_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\nc,x\n", encoding="utf-8")
    (tmp_path / "test.csv").write_text("text,label\nd,\ne,\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="none of the 2 test records has a label; they are left out"):
        task = load_task(tmp_path)
    assert task.classes == ("x", "y")
    assert not task.splits["test"]
