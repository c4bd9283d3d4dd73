"""The stored tasks never change, and no text is in two splits. A user's file gives a task or one clear sentence."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zograd.hub import Example, TaskError, load_task, parse_label_words, tasks
from zograd.hub.split_rules import fingerprint, split_of

BUNDLED = [info.name for info in tasks() if info.bundled]

# SHA-256 of "label\ttext\n" over the split, and the number of examples of each label.
PINNED = {
    ("mr", "train"): ("4a8fc9f0dcb6d133e612d9007fdbb3d3", (4569, 4497)),
    ("mr", "validation"): ("4ac7291d9f6f204f22e5514cf971da5c", (252, 248)),
    ("mr", "test"): ("f3689aea17278f8b95ceb7f0e7598516", (504, 496)),
    ("trec", "train"): ("815f679db7805d59e951fe4149c97304", (76, 1038, 1129, 1101, 746, 775)),
    ("trec", "validation"): ("54276a65c7eb34348cde2052d0784076", (8, 107, 116, 113, 77, 79)),
    ("trec", "test"): ("1236b7e1a148b6dc2854498315142272", (9, 138, 94, 65, 81, 113)),
    ("sms", "train"): ("c046e21bdb70159d36f4f541df37296a", (3185, 443)),
    ("sms", "validation"): ("16ac1ce0188d90039c6817d1c7460278", (439, 61)),
    ("sms", "test"): ("6cc4b636c3d5a6adc97c2c9650e763b7", (878, 122)),
}


def test_a_message_of_sms_is_one_message() -> None:
    """The source holds eight texts with messages that a quote had swallowed; the longest message has 910 letters."""
    texts = [e.prompt for part in load_task("sms", prompt_template="{text}").splits.values() for e in part]
    assert len(texts) == 5128
    assert max(map(len, texts)) == 910
    assert any(text.startswith('"Happy valentines day"') for text in texts)


def digest(examples) -> str:
    return hashlib.sha256("".join(f"{e.label}\t{e.prompt}\n" for e in examples).encode()).hexdigest()[:32]


@pytest.mark.parametrize(("name", "split"), PINNED)
def test_stored_splits_never_change(name: str, split: str) -> None:
    examples = load_task(name, prompt_template="{text}", seed=7).splits[split]
    pinned, balance = PINNED[name, split]
    counts = Counter(e.label for e in examples)
    assert tuple(counts[label] for label in range(len(balance))) == balance
    assert sum(counts.values()) == sum(balance)
    assert digest(examples) == pinned


@pytest.mark.parametrize("name", BUNDLED)
def test_no_text_is_in_a_task_twice(name: str) -> None:
    task = load_task(name, prompt_template="{text}")
    seen = Counter(fingerprint(e.prompt) for examples in task.splits.values() for e in examples)
    assert max(seen.values()) == 1
    assert "" not in seen


@pytest.mark.parametrize("info", tasks(), ids=lambda info: info.name)
def test_every_task_is_complete(info) -> None:
    assert len(info.classes) == len(info.label_words) == len(set(info.label_words))
    assert info.source
    assert info.licence
    if info.bundled:
        task = load_task(info.name)
        assert {split: len(examples) for split, examples in task.splits.items()} == info.sizes
        assert (task.template, task.label_words, task.classes) == (info.template, info.label_words, info.classes)
        assert (task.kind, task.metric) == ("classification", "accuracy")
        assert all(e.prompt == e.prompt.rstrip(" ") for examples in task.splits.values() for e in examples)


def test_the_templates_of_the_papers() -> None:
    assert load_task("mr").splits["test"][0].prompt.endswith(" It was")
    assert load_task("mr").label_words == (" terrible", " great")
    first = load_task("trec").splits["test"][0]
    assert first == Example("Question: How far is it from Denver to Aspen ?\nAnswer type:", 5)


def test_label_words_and_template_of_a_named_task_can_be_replaced() -> None:
    task = load_task("mr", prompt_template="Review: {text}\nSentiment:", label_words=[" negative", " positive"])
    assert task.label_words == (" negative", " positive")
    assert task.splits["train"][0].prompt.startswith("Review: ")
    by_name = {"positive": " good", "negative": " bad"}
    assert load_task("mr", label_words=by_name).label_words == (" bad", " good")
    assert load_task("mr", label_words="1= good,0= bad").label_words == (" bad", " good")
    with pytest.raises(TaskError, match=r"mr has 2 labels \(negative, positive\), but 3 label words"):
        load_task("mr", label_words=[" a", " b", " c"])
    with pytest.raises(TaskError, match="mr has the labels negative, positive, but the label words are for 0, 2"):
        load_task("mr", label_words={"0": " a", "2": " b"})
    with pytest.raises(TaskError, match="'sentence', which the task mr does not have; its columns are text"):
        load_task("mr", prompt_template="{sentence}")


def test_fingerprint() -> None:
    assert fingerprint("Who 's  there ?") == fingerprint("who's there")
    assert fingerprint("a") != fingerprint("b")
    assert fingerprint(" : ) ") == ":)"
    assert fingerprint("STRASSE") == fingerprint("Straße")


def test_split_of_has_the_stated_proportions() -> None:
    counts = Counter(split_of([f"text {i}"], 0) for i in range(20_000))
    # Four standard errors of a proportion of 20,000: 0.0113 at 0.8, 0.0085 at 0.1.
    assert counts["train"] / 20_000 == pytest.approx(0.8, abs=0.0113)
    assert counts["validation"] / 20_000 == pytest.approx(0.1, abs=0.0085)
    assert any(split_of([f"text {i}"], 0) != split_of([f"text {i}"], 1) for i in range(100))
    assert split_of(["What ?"], 3) == split_of(["what"], 3)


# ------------------------------------------------------------------------------------------------ a user's own file

WORDS = {"neg": " bad", "pos": " good"}
ROWS = [{"text": f"Sentence number {i}.", "label": ("neg", "pos")[i % 2]} for i in range(200)]


def jsonl(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_jsonl_and_csv_give_the_same_task(tmp_path: Path) -> None:
    one = load_task(jsonl(tmp_path / "d.jsonl", ROWS), prompt_template="{text} It was", label_words=WORDS)
    (tmp_path / "d.csv").write_text("text,label\r\n" + "".join(f'"{r["text"]}",{r["label"]}\r\n' for r in ROWS))
    two = load_task(tmp_path / "d.csv", prompt_template="{text} It was", label_words=WORDS)
    assert one.splits == two.splits
    assert sum(len(examples) for examples in one.splits.values()) == 200
    assert all(one.splits.values())
    assert one.label_words == (" bad", " good")
    assert one.classes == ("neg", "pos")
    assert one.name == "d"
    numbers = {e.prompt: e.label for examples in one.splits.values() for e in examples}
    assert numbers["Sentence number 7. It was"] == 1


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    task = load_task(tmp_path / "d.parquet", prompt_template="{text} It was", label_words=WORDS)
    same = load_task(jsonl(tmp_path / "d.jsonl", ROWS), prompt_template="{text} It was", label_words=WORDS)
    assert task.splits == same.splits


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TaskError, match="pip install pyarrow"):
        load_task(tmp_path / "d.parquet", prompt_template="{text}", label_words=WORDS)


def test_a_split_column_is_obeyed(tmp_path: Path) -> None:
    names = ["train", "dev", "test", "valid", "Validation"]
    path = jsonl(tmp_path / "d.jsonl", [{**row, "split": names[i]} for i, row in enumerate(ROWS[:5])])
    task = load_task(path, prompt_template="{text}", label_words=WORDS)
    assert {split: len(examples) for split, examples in task.splits.items()} == {"train": 1, "validation": 3, "test": 1}


def test_duplicates_stay_together_and_added_rows_move_nothing(tmp_path: Path) -> None:
    def where(rows) -> dict[str, set[str]]:
        task = load_task(jsonl(tmp_path / "d.jsonl", rows), prompt_template="{text}", label_words=WORDS)
        found: dict[str, set[str]] = {}
        for split, examples in task.splits.items():
            for e in examples:
                found.setdefault(fingerprint(e.prompt), set()).add(split)
        return found

    noisy = [{**row, "text": "  " + row["text"].upper() + " !"} for row in ROWS]
    before, after = where(ROWS[:100]), where(noisy + ROWS)
    assert all(len(splits) == 1 for splits in after.values())
    assert all(after[key] == splits for key, splits in before.items())


def test_prompt_and_completion(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}:", "completion": f" {i}"} for i in range(50)]
    task = load_task(jsonl(tmp_path / "d.jsonl", rows))
    assert task.kind == "completion"
    assert task.label_words == ()
    everything = [e for examples in task.splits.values() for e in examples]
    assert sorted(everything, key=lambda e: int(e.completion)) == [Example(f"Say {i}:", -1, f" {i}") for i in range(50)]


def test_labels_may_be_numbers_or_booleans(tmp_path: Path) -> None:
    for labels, words in (
        ([0, 1], "0= a,1= b"),
        ([False, True], {"false": " a", "true": " b"}),
        ([0.0, 1.0], [" a", " b"]),
    ):
        path = jsonl(tmp_path / "d.jsonl", [{"text": f"{i}", "label": labels[i % 2]} for i in range(4)])
        task = load_task(path, prompt_template="Number {text} is", label_words=words)
        found = {e.prompt: e.label for examples in task.splits.values() for e in examples}
        assert found == {f"Number {i} is": i % 2 for i in range(4)}


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"sentence": "Fine.", "y": "pos"}])
    task = load_task(path, text_column="sentence", label_column="y", label_words=WORDS, prompt_template="{text} It was")
    assert [e for examples in task.splits.values() for e in examples] == [Example("Fine. It was", 1)]
    bare = load_task(path, text_column="sentence", label_column="y", label_words=WORDS)
    assert [e.prompt for examples in bare.splits.values() for e in examples] == ["Fine.\nLabel:"]


def test_braces_in_a_template_and_in_the_data(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"text": "{label} {0}", "label": "pos"}])
    task = load_task(path, prompt_template="{{x}} {text}", label_words=WORDS)
    assert [e.prompt for examples in task.splits.values() for e in examples] == ["{x} {label} {0}"]


def test_optional_columns_that_are_not_used_do_no_harm(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [*ROWS[:3], {**ROWS[3], "note": {"by": "me"}}])
    task = load_task(path, prompt_template="{text}", label_words=WORDS)
    assert sum(len(examples) for examples in task.splits.values()) == 4


def test_a_named_task_has_no_columns_to_name() -> None:
    with pytest.raises(TaskError, match="text_column: for files; the task mr has its own data, leave it out"):
        load_task("mr", text_column="sentence")


def test_parse_label_words() -> None:
    assert parse_label_words("0= terrible,1= great") == {"0": " terrible", "1": " great"}
    assert parse_label_words("neg=bad, pos=good") == {"neg": "bad", "pos": "good"}
    for wrong in ("0 terrible", "0=", "=x", "0= a,,1= b", "0= a,0= b", ""):
        with pytest.raises(TaskError, match="Label words"):
            parse_label_words(wrong)


GOOD = '{"text": "a", "label": "pos"}\n'
ERRORS = [
    ("d.jsonl", None, {}, r"d\.jsonl does not exist"),
    ("d.jsonl", "", {}, r"d\.jsonl holds no records"),
    ("d.csv", "text,label\n", {}, r"d\.csv holds no records"),
    ("d.jsonl", GOOD + "\n{oops\n", {}, r"d\.jsonl, line 3: not valid JSON .* one object per line"),
    ("d.jsonl", GOOD + "[1]\n", {}, r"d\.jsonl, line 2: expected an object .* found a list"),
    ("d.jsonl", GOOD + '{"text": "a"}\n', {}, r"d\.jsonl, line 2: the column 'label' holds nothing"),
    ("d.jsonl", GOOD + '{"text": null, "label": "pos"}\n', {}, r"line 2: the column 'text' holds nothing"),
    ("d.csv", "text,label\na,pos\na, \nc,neg\n", {}, r"d\.csv, line 3: the column 'label' is empty; fill the label in"),
    ("d.csv", "text,label\na,pos\na,\nc,neg\n", {"label_words": None}, r"line 3: the column 'label' is empty"),
    ("d.jsonl", GOOD + '{"text": ["a"], "label": "pos"}\n', {}, r"line 2: the column 'text' holds a list"),
    (
        "d.jsonl",
        GOOD + '{"text": "b", "label": "neutral"}\n',
        {},
        r"line 2: the label 'neutral' .* allowed are neg, pos",
    ),
    ("d.jsonl", GOOD, {"prompt_template": "{review} It was"}, r"'review', which .*d\.jsonl .* columns are text, label"),
    ("d.jsonl", GOOD, {"label_column": "y"}, r"no column 'y' for the label; its columns are text, label"),
    ("d.jsonl", GOOD, {"text_column": "y"}, r"no column 'y'; its columns are text, label"),
    ("d.jsonl", GOOD, {"label_words": None}, r"has 1 different labels in the column 'label', and 2 to 50 are taken"),
    (
        "d.jsonl",
        '{"label": "pos", "x": 1}',
        {"prompt_template": None},
        r"columns label, x, and 0 of them hold texts to predict label from: give a prompt template such as",
    ),
    ("d.jsonl", GOOD, {"prompt_template": "{text"}, r"template '\{text' is malformed"),
    ("d.jsonl", GOOD, {"prompt_template": "{text!r}"}, r"the field \{text!r\}; only plain column names"),
    ("d.jsonl", GOOD, {"prompt_template": "{text.x}"}, r"'text\.x', which"),
    ("d.jsonl", GOOD, {"prompt_template": "It was"}, r"names no column"),
    ("d.jsonl", '{"text": "a", "label": "pos", "split": "holdout"}\n', {}, r"line 1: the split 'holdout' is not known"),
    (
        "d.jsonl",
        GOOD + '{"text": "a", "label": "pos", "split": "test"}\n',
        {},
        r"line 1: the column 'split' holds nothing",
    ),
    ("d.jsonl", GOOD, {"label_words": {"pos": " a", "neg": " a"}}, r"the word ' a' stands for two labels"),
    ("d.jsonl", GOOD, {"label_words": [" a", " "]}, r"the word ' ' is empty"),
    ("d.csv", "text,label\na,pos\nb,c,pos\n", {}, r"d\.csv, line 3: 3 values for the 2 columns text, label"),
    ("d.csv", 'text,label\n"a\nb",pos\n"x"y,pos\n', {}, r"d\.csv, line 4: not valid CSV"),
    ("d.csv", "text,text\na,pos\n", {}, r"line 1: the column 'text' occurs twice"),
    ("d.jsonl", GOOD + '{"text": ' + "[" * 200_000 + "\n", {}, r"d\.jsonl, line 2: lists or objects are nested"),
    (
        "d.jsonl",
        GOOD + '{"x": ' + '{"a":' * 200_000 + "\n",
        {},
        r"d\.jsonl, line 2: lists or objects are nested",
    ),
    ("d.jsonl", GOOD + '{"text": "a\\ud800", "label": "pos"}\n', {}, r"line 2: the column 'text' holds half of a surr"),
    ("d.jsonl", GOOD + '{"text": "a", "label": "\\udfff"}\n', {}, r"line 2: the column 'label' holds half of a surrog"),
    ("d.jsonl", GOOD + '{"text": "a", "\\ud800": 1}\n', {}, r"line 2: the name of a column holds half of a surrogate"),
    (
        "d.jsonl",
        GOOD + '{"text": Infinity, "label": "pos"}\n',
        {},
        r"line 2: the column 'text' holds inf, expected text",
    ),
    ("d.jsonl", GOOD + '{"text": NaN, "label": "pos"}\n', {}, r"line 2: the column 'text' holds nothing"),
    (
        "d.jsonl",
        GOOD + '{"text": "a", "label": ' + "9" * 400 + "}\n",
        {},
        r"line 2: the label '9{400}' in column 'label' has no label word",
    ),
    ("d.jsonl", GOOD + '{"text": ' + "9" * 5000 + "}\n", {}, r"line 2: not valid JSON"),
    ("d.csv", b"text,label\ncaf\xe9,pos\n", {}, r"d\.csv is not UTF-8 text"),
]


@pytest.mark.parametrize(("name", "content", "changes", "message"), ERRORS, ids=range(len(ERRORS)))
def test_one_sentence_for_each_mistake(tmp_path: Path, name: str, content, changes, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = {"prompt_template": "{text} It was", "label_words": WORDS, **changes}
    with pytest.raises(TaskError, match=message) as caught:
        load_task(path, **arguments)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 10**4), st.binary(max_size=3)), min_size=1, max_size=6),
    st.sampled_from([".jsonl", ".csv"]),
)
def test_a_damaged_file_gives_examples_or_one_sentence(
    tmp_path: Path, changes: list[tuple[int, bytes]], suffix: str
) -> None:
    """Bytes of a valid file changed at random: a task, or a TaskError; its texts can be written as UTF-8."""
    lines = [f'{{"text": "caf\\u00e9 {i}", "label": "{"pos" if i % 2 else "neg"}", "x": [{i}]}}' for i in range(6)]
    if suffix == ".csv":
        lines = ["text,label", *(f'"caf\u00e9, {i}",{"pos" if i % 2 else "neg"}' for i in range(6))]
    data = "\n".join(lines).encode()
    for place, new in changes:
        at = place % len(data)
        data = data[:at] + new + data[at + 1 :]
    path = tmp_path / f"d{suffix}"
    path.write_bytes(data)
    try:
        task = load_task(path, prompt_template="{text} It was", label_words=WORDS)
    except TaskError as e:
        said = str(e)
    else:
        said = "".join(e.prompt for part in task.splits.values() for e in part)
        assert all(0 <= e.label < 2 for part in task.splits.values() for e in part)
    assert said.encode("utf-8")


@pytest.mark.parametrize("name", ["sst3", "data.doc", ""])
def test_an_unknown_task_lists_the_known_ones(name: str) -> None:
    with pytest.raises(TaskError, match=r"mr, trec, sms, boolq.*\.jsonl, .*\.csv, .*\.parquet"):
        load_task(name)


@pytest.mark.parametrize(
    ("rows", "classes", "words", "template"),
    [
        ([("good", "pos"), ("bad", "neg")], ("neg", "pos"), (" neg", " pos"), "{text}\nLabel:"),
        ([("a", 10), ("b", 9), ("c", 1.5)], ("1.5", "9", "10"), (" 1.5", " 9", " 10"), "{text}\nLabel:"),
        ([("a", True), ("b", False)], ("false", "true"), (" false", " true"), "{text}\nLabel:"),
    ],
)
def test_labels_are_their_own_words_where_none_are_given(
    tmp_path: Path, rows: Any, classes: Any, words: Any, template: str
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    task = load_task(file)
    assert (task.classes, task.label_words, task.template) == (classes, words, template)
    named = tmp_path / "other.jsonl"
    named.write_text("\n".join(json.dumps({"review": text, "label": label}) for text, label in rows))
    assert load_task(named).template == template.replace("text", "review")
    assert load_task(named, prompt_template="{review} So:").label_words == words
    assert load_task(named, text_column="review").template == "{text}\nLabel:"
    given = load_task(named, label_words={label: f" w{k}" for k, label in enumerate(classes)})
    assert (given.label_words[0], given.template) == (" w0", template.replace("text", "review"))


def test_a_column_of_many_values_is_not_taken_for_labels(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps({"text": "a", "label": str(k)}) for k in range(51)))
    with pytest.raises(TaskError, match=r"has 51 different labels in the column 'label'"):
        load_task(file)
