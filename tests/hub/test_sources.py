"""Data as people have it: every kind of file, folders, datasets and lists give the same task, or one sentence."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zograd.hub import TaskError, load_task

ROWS = [{"text": f'Number {i}, "so" it is.', "label": ("neg", "pos")[i % 2]} for i in range(60)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ("text", "label")}
GIVEN: dict[str, Any] = {"prompt_template": "{text} It was", "label_words": {"neg": " bad", "pos": " good"}}


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def separated(mark: str) -> str:
    """With quotes, as spreadsheets write them."""
    quoted = ['"' + row["text"].replace('"', '""') + '"' + mark + row["label"] for row in ROWS]
    return "\n".join([f"text{mark}label", *quoted])


@pytest.fixture
def expected(tmp_path: Path) -> Any:
    file = tmp_path / "expected.jsonl"
    file.write_text(lines(ROWS))
    return load_task(file, **GIVEN).splits


FILES: dict[str, tuple[str, str]] = {
    "array": ("d.json", json.dumps(ROWS, indent=1)),
    "array on one line": ("d.json", json.dumps(ROWS)),
    "object of lists": ("d.json", json.dumps(COLUMNS)),
    "pandas": ("d.json", json.dumps({c: {str(i): v for i, v in enumerate(x)} for c, x in COLUMNS.items()})),
    "data": ("d.json", json.dumps({"data": ROWS})),
    "lines": ("d.json", lines(ROWS)),
    "tsv": ("d.tsv", separated("\t")),
    "tsv with quotes in the text": ("d.tsv", "\n".join(["text\tlabel", *(f"{r['text']}\t{r['label']}" for r in ROWS)])),
    "csv": ("D.CSV", separated(",")),
    "csv with semicolons": ("d.csv", separated(";")),
    "csv with tabs": ("d.csv", separated("\t")),
    "csv with bars": ("d.csv", separated("|")),
    "upper case": ("D.JSONL", lines(ROWS)),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(tmp_path: Path, expected: Any, kind: str) -> None:
    name, content = FILES[kind]
    (tmp_path / name).write_text(content)
    task = load_task(tmp_path / name, **GIVEN)
    assert task.splits == expected
    assert task.name.lower() == "d"
    assert task.drawn


def test_a_quote_at_the_beginning_of_a_value_swallows_no_lines(tmp_path: Path) -> None:
    """The lines between two such values have no quotes, so all of it would parse as one value."""
    texts = ['"Now, he said.', "Then.", "Later.", 'never "ever"', '"all of it"', 'or "', '"']
    (tmp_path / "d.tsv").write_text("label\ttext\n" + "".join(f"{'ab'[i % 2]}\t{t}\n" for i, t in enumerate(texts)))
    task = load_task(tmp_path / "d.tsv", prompt_template="{text}", label_words="a= x,b= y")
    found = {e.prompt for part in task.splits.values() for e in part}
    assert found == {*texts, "all of it"} - {'"all of it"'}


def test_a_quoted_value_may_hold_tabs_and_new_lines(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text('text\tlabel\n"one\ttwo\tthree\n ""3"""\ta\nfour\tb\n')
    task = load_task(tmp_path / "d.tsv", prompt_template="{text}", label_words="a= x,b= y")
    assert {e.prompt for part in task.splits.values() for e in part} == {'one\ttwo\tthree\n "3"', "four"}


OBJECTS: dict[str, Callable[[], Any]] = {
    "list": lambda: ROWS, "Dataset": lambda: pytest.importorskip("datasets").Dataset.from_list(ROWS),
    "DataFrame": lambda: pytest.importorskip("pandas").DataFrame(ROWS),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_value_may_be_a_document(tmp_path: Path, suffix: str) -> None:
    long, mark = "word " * 40_000, {"csv": ",", "tsv": "\t"}[suffix]
    limit = csv.field_size_limit()
    (tmp_path / f"d.{suffix}").write_text(f"text{mark}label\n{long}{mark}a\nshort{mark}b\n")
    task = load_task(tmp_path / f"d.{suffix}", prompt_template="{text}", label_words="a= x,b= y")
    assert {e.prompt for part in task.splits.values() for e in part} == {long, "short"}
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("form", OBJECTS)
def test_objects(expected: Any, form: str) -> None:
    assert load_task(OBJECTS[form](), **GIVEN).splits == expected


@pytest.mark.parametrize("name", ["dev.doc", "mr"])
def test_a_file_for_evaluation_is_data(name: str) -> None:
    with pytest.raises(TaskError, match=f"'{name}' is no data: give a file ending in"):
        load_task(ROWS, eval_file=name, **GIVEN)


PARTS = {"train": ROWS[:40], "validation": ROWS[40:45], "test": ROWS[45:]}


def dataset_dict() -> Any:
    datasets = pytest.importorskip("datasets")
    parts = {"train": PARTS["train"], "validation_matched": PARTS["validation"], "test": PARTS["test"]}
    return datasets.DatasetDict({n: datasets.Dataset.from_list(p) for n, p in {**parts, "unsupervised": ROWS}.items()})


def folder(path: Path) -> Path:
    path.mkdir()
    for name, part in (("train.jsonl", "train"), ("dev.JSON", "validation"), ("test-00000-of-00001.jsonl", "test")):
        (path / name).write_text(lines(PARTS[part]))
    (path / "README.md").write_text("notes")
    return path


def nested(path: Path) -> Path:
    path.mkdir()
    folder(path / "data")
    return path


def saved(path: Path) -> Path:
    dataset_dict().save_to_disk(path)
    return path


SPLIT: dict[str, Callable[[Path], Any]] = {
    "folder": folder, "its folder data": nested, "save_to_disk": saved, "DatasetDict": lambda _: dataset_dict(),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPLIT)
def test_parts_are_the_splits(tmp_path: Path, kind: str) -> None:
    task = load_task(SPLIT[kind](tmp_path / "mine"), **GIVEN)
    found = {name: [e.prompt.removesuffix(" It was") for e in part] for name, part in task.splits.items()}
    assert found == {name: [row["text"] for row in rows] for name, rows in PARTS.items()}
    assert not task.drawn


def test_a_folder_with_train_alone_is_split_as_one_file(tmp_path: Path, expected: Any) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_text(lines(ROWS))
    task = load_task(tmp_path / "mine", **GIVEN)
    assert task.splits == expected
    assert task.drawn


def test_a_saved_dataset_without_parts(tmp_path: Path, expected: Any) -> None:
    pytest.importorskip("datasets").Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert load_task(tmp_path / "one", **GIVEN).splits == expected


def test_a_name_of_the_hub(monkeypatch: pytest.MonkeyPatch, expected: Any) -> None:
    datasets, asked = pytest.importorskip("datasets"), []

    def load_dataset(*given: Any) -> Any:
        asked.append(given)
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_task("hf:nyu-mll/glue:sst2", **GIVEN).splits == expected
    load_task("hf:stanfordnlp/imdb", **GIVEN)
    assert asked == [("nyu-mll/glue", "sst2"), ("stanfordnlp/imdb", None)]

    def fails(*given: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(TaskError, match=r"^hf:a/b could not be loaded by `datasets` \(Couldn't reach the Hub\); check"):
        load_task("hf:a/b")


def test_names_of_classes_come_with_a_dataset(tmp_path: Path) -> None:
    """Also with the parquet file that `datasets` writes."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))
    made = datasets.Dataset.from_list(ROWS, features=features)
    made.to_parquet(tmp_path / "d.parquet")
    assert made[0]["label"] == 0
    assert load_task(made, **GIVEN).splits == load_task(tmp_path / "d.parquet", **GIVEN).splits
    assert load_task(made, **GIVEN).splits == load_task(ROWS, **GIVEN).splits


WRONG = [
    ("d.json", "[1, 2]", r"d\.json, record 1: expected an object such as .* found a int"),
    ("d.json", "3", r"d\.json holds a int; write an array of objects, or an object of columns"),
    ("d.json", "", r"d\.json holds no records"),
    ("d.json", "[]", r"d\.json holds no records"),
    ("d.json", '{"text": ["a", "b"], "label": [1]}', r"'text' and 'label' have other rows \(2 and 1\)"),
    ("d.json", "[" * 100_000, r"d\.json: lists or objects are nested too deeply; write an array of objects"),
    ("d.json", '[{"text": ', r"d\.json: not valid JSON .* write an array of objects"),
    ("d.json", '{"text": "a", "label": "pos"}\n{oops\n', r"d\.json, line 2: not valid JSON .* one object per line"),
    (
        "d.tsv",
        "text\tlabel\na b pos\n",
        r"d\.tsv, line 2: 1 values for the 2 columns text, label; give each line one tab",
    ),
    ("d.xlsx", "x", r"no task named .*d\.xlsx.*ending in \.jsonl.*\.txt, a folder with such files, or hf:NAME"),
    ("d.parquet", "x", r"d\.parquet is not a parquet file"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG, ids=range(len(WRONG)))
def test_one_sentence_for_each_mistake(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TaskError, match=message) as caught:
        load_task(tmp_path / name, **GIVEN)
    assert "\n" not in str(caught.value)


def test_a_folder_without_such_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(TaskError, match=r"is a folder without a file such as train\.jsonl.* it holds notes\.txt"):
        load_task(tmp_path, **GIVEN)


def test_other_objects_are_refused() -> None:
    datasets = pytest.importorskip("datasets")
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    for source, message in (
        (stream, "streams its records; give a Dataset, such as"),
        (datasets.DatasetDict({"all": datasets.Dataset.from_list(ROWS)}), "has the parts all; name one train"),
        (datasets.Dataset.from_list([]), "holds no records"),
        ([], "holds no records"),
        (["a"], "record 1 is a str; give mappings from columns to values"),
        ("hf:", "names no dataset; write for example hf:stanfordnlp/imdb"),
        (3, r"^a int is no data: give a file ending in .*; in Python also an object of datasets or pandas, or a list"),
    ):
        with pytest.raises(TaskError, match=message):
            load_task(source, **GIVEN)


def test_without_the_package_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match=r"^Reading hf:a/b needs the package datasets: run `pip install datasets`, or"):
        load_task("hf:a/b")
    with pytest.raises(TaskError, match="needs the package datasets"):
        load_task(tmp_path)


def test_a_number_that_names_no_class(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))
    made = datasets.Dataset.from_list([{"text": "a", "label": 0}], features=features)
    made.to_parquet(tmp_path / "d.parquet")
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "d.parquet")
    parquet.write_table(table.set_column(1, table.schema.field(1), [[7]]), tmp_path / "d.parquet")
    with pytest.raises(TaskError, match=r"row 1: the column 'label' holds 7, and its classes are 0 to 1 \(neg, pos\)"):
        load_task(tmp_path / "d.parquet", **GIVEN)
