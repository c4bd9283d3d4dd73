"""The examples on which a run is trained and scored: they follow from its seed, for every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zograd import Tape, TapeWriter
from zograd.hub import Example, TaskError, load_task, select
from zograd.llm.data import digest, examples_of
from zograd.llm.evaluate import evaluate
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train

WORDS = {"0": " terrible", "1": " great"}
COMMON: dict[str, Any] = {
    "prompt_template": "{text} It was", "label_words": WORDS, "steps": 2, "batch_size": 4, "dtype": "float32",
    "lr": 1e-3, "mu": 1e-3, "threads": 1,
}  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(n: int, column: str = "text", **more: Any) -> list[dict[str, Any]]:
    return [{column: f"good film {i}", "label": i % 2, **more} for i in range(n)]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    """The examples that are scored from now on."""
    seen: list[Example] = []
    old = Scorer.evaluate

    def recorded(self: Any, examples: Any, **options: Any) -> Any:
        seen.extend(examples)
        return old(self, examples, **options)

    monkeypatch.setattr(Scorer, "evaluate", recorded)
    return seen


def settings(model: Path, task: str, **more: Any) -> TrainSettings:
    return TrainSettings.model_validate({**COMMON, "model": str(model), "task": task, **more})


def as_an_older_release_wrote(run: Path) -> None:
    """Remove the keys from run.json and from the header of the tape that older releases did not write."""
    meta = json.loads((run / "run.json").read_text())
    del meta["settings"]["draw"], meta["data"]["sha256"]
    (run / "run.json").write_text(json.dumps(meta))
    tape = Tape(run / "tape.zo")
    del tape.header["settings"]["draw"], tape.header["data"]
    (run / "tape.zo").unlink()
    with TapeWriter(run / "tape.zo", tape.header) as writer:
        for record in tape.records:
            writer.append(record)


@pytest.mark.parametrize("draw", ["random", "first", "old run"])
def test_eval_of_a_run_scores_the_test_split_of_its_seed(
    tiny_model: Path, tmp_path: Path, scored: list[Example], draw: str
) -> None:
    """Another seed gives another split, so its test examples would have been trained on."""
    path = write(tmp_path / "d.jsonl", rows(200))
    kind = "random" if draw == "random" else "first"
    s = settings(tiny_model, path, seed=3, train_examples=100, eval_examples=10, draw=kind)
    train(s, tmp_path / "run", quiet=True)
    if draw == "old run":
        as_an_older_release_wrote(tmp_path / "run")
    scored.clear()
    result = evaluate(None, None, tmp_path / "run")
    expected = load_task(path, prompt_template="{text} It was", label_words=WORDS, seed=3)
    assert scored == list(expected.splits["test"])
    assert (result["split"], result["trained_on"]) == ("test", 0)
    assert evaluate(None, None, tmp_path / "run", split="train")["trained_on"] == 100
    whole = evaluate(None, path, tmp_path / "run", split="all")
    assert (whole["examples"], whole["trained_on"]) == (200, 100)
    held_out = evaluate(None, None, tmp_path / "run", split="validation", examples=10)
    meta = json.loads((tmp_path / "run" / "run.json").read_text())
    assert held_out["loss"] == meta["result"]["eval_loss_after"]
    assert scored[-10:] == examples_of(s)[2]


def test_eval_of_a_run_reads_the_columns_of_the_run(tiny_model: Path, tmp_path: Path, scored: list[Example]) -> None:
    path = write(tmp_path / "d.jsonl", [{"review": f"good {i}", "title": "film", "y": i % 2} for i in range(100)])
    s = settings(tiny_model, path, seed=1, text_column="review", label_column="y")
    train(s, tmp_path / "run", quiet=True)
    scored.clear()
    assert evaluate(None, None, tmp_path / "run")["trained_on"] == 0
    test = list(scored)
    # Another prompt, with other columns: the same rows.
    result = evaluate(None, None, tmp_path / "run", prompt_template="{title} {text} It was")
    assert [e.prompt for e in scored[len(test) :]] == [f"film {e.prompt}" for e in test]
    assert result["trained_on"] == 0
    assert evaluate(None, None, tmp_path / "run", split="train", prompt_template="{title} {text}")["trained_on"] > 70
    with pytest.raises(SettingsError, match=r"--text-column title: .* its own text column"):
        evaluate(None, None, tmp_path / "run", text_column="title")
    with pytest.raises(SettingsError, match=r"--seed 2: .* its own seed, 1; leave it out"):
        evaluate(None, None, tmp_path / "run", seed=2)


def test_eval_of_a_run_says_when_its_data_has_changed(tiny_model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", rows(60))
    train(settings(tiny_model, path), tmp_path / "run", quiet=True)
    write(tmp_path / "d.jsonl", rows(60)[::-1])
    with pytest.warns(UserWarning, match=r"d\.jsonl is not what this run was trained on: it has changed since"):
        assert evaluate(None, None, tmp_path / "run")["trained_on"] is None


@pytest.mark.parametrize("with_run", [False, True])
def test_a_file_that_names_no_splits_is_scored_whole(tiny_model: Path, tmp_path: Path, with_run: bool) -> None:
    """A dev file given to eval is not cut to a tenth; asked for a split, it is cut as training cuts it."""
    dev = write(tmp_path / "dev.jsonl", rows(50, "review"))
    given: dict[str, Any] = {"text_column": "review"}
    run = None
    if with_run:
        train(settings(tiny_model, "mr", train_examples=8, eval_examples=4), tmp_path / "run", quiet=True)
        run = tmp_path / "run"
    else:
        given |= {"prompt_template": "{text} It was", "label_words": WORDS, "seed": 5}
    result = evaluate(str(tiny_model), dev, run, **given)
    assert (result["examples"], result["split"]) == (50, "all")
    if not with_run:
        parts = load_task(dev, **given).splits
        for name, part in parts.items():
            assert evaluate(str(tiny_model), dev, None, split=name, **given)["examples"] == len(part)


def test_a_copy_of_the_data_of_a_run_is_told_by_its_examples(tiny_model: Path, tmp_path: Path) -> None:
    """It is another file, so all of it is scored; how much of it was trained on is said."""
    path = write(tmp_path / "d.jsonl", rows(50))
    train(settings(tiny_model, path, train_examples=30), tmp_path / "run", quiet=True)
    copy = write(tmp_path / "copy.jsonl", rows(60))
    with pytest.warns(UserWarning, match=r"30 of the 60 examples of .*copy\.jsonl were trained on"):
        result = evaluate(None, copy, tmp_path / "run")
    assert (result["split"], result["trained_on"]) == ("all", 30)
    Path(path).unlink()
    with pytest.warns(UserWarning, match=r"trained on examples of .*copy\.jsonl is not known, since its own data"):
        assert evaluate(None, copy, tmp_path / "run")["trained_on"] is None


def test_a_file_with_splits_is_scored_by_them(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"prompt_template": "{text} It was", "label_words": WORDS}
    path = write(tmp_path / "d.jsonl", rows(30, split="train") + rows(7, split="dev"))
    with pytest.raises(TaskError, match=r"d\.jsonl has no test example, but 30 train, 7 validation: say which with"):
        evaluate(str(tiny_model), path, None, **given)
    assert evaluate(str(tiny_model), path, None, split="validation", **given)["examples"] == 7
    capsys.readouterr()
    assert evaluate(str(tiny_model), path, None, split="all", **given)["examples"] == 37
    assert "zograd: the column label is predicted from the prompt '{text} It was'" in capsys.readouterr().err
    with pytest.raises(SettingsError, match=r"--split dev: there are train, validation, test and all"):
        evaluate(str(tiny_model), path, None, split="dev", **given)


def test_a_split_without_examples_is_said_before_the_model_is_loaded(tmp_path: Path) -> None:
    """There is no model here at all."""
    path = write(tmp_path / "d.jsonl", rows(30, split="train"))
    with pytest.raises(TaskError, match=r"d\.jsonl has no test example, but 30 train: say which with --split"):
        evaluate(str(tmp_path / "no model"), path, None)
    with pytest.raises(TaskError, match=r"no test example, but 30 train: nothing can be held out; .* or --test-file"):
        train(settings(tmp_path / "no model", path, eval_split="test"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_records_with_one_prompt_say_why_nothing_is_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"prompt": "a joke:", "completion": f"one {i}"} for i in range(30)])
    with pytest.raises(TaskError, match=r"the 30 records have 1 different prompt, and records with the same one stay"):
        train(TrainSettings(model=str(tmp_path / "no model"), task=str(path)), tmp_path / "run", quiet=True)


# ---- files of their own for evaluation ------------------------------------------------------------------------------


def test_files_for_evaluation_are_not_split_and_nothing_else_is_held_out(tmp_path: Path) -> None:
    train_file = write(tmp_path / "train.jsonl", rows(100))
    dev = write(tmp_path / "dev.jsonl", [{"text": f"dev {i}", "label": 0} for i in range(7)])
    test = write(tmp_path / "test.jsonl", [{"text": f"test {i}", "label": 1} for i in range(5)])

    template: dict[str, Any] = {"prompt_template": "{text} It was"}

    def sizes(**given: Any) -> list[int]:
        return [len(part) for part in load_task(train_file, label_words=WORDS, **template, **given).splits.values()]

    alone = sizes()
    assert sum(alone) == 100
    assert min(alone) > 0
    assert sizes(eval_file=dev) == [100, 7, 0]
    assert sizes(eval_file=dev, test_file=test) == [100, 7, 5]
    assert sizes(test_file=test) == [alone[0] + alone[2], alone[1], 5]
    held = load_task(train_file, label_words=WORDS, eval_file=dev, **template)
    assert [e.prompt for e in held.splits["validation"]] == [f"dev {i} It was" for i in range(7)]
    assert not held.drawn


def test_a_run_with_a_file_for_evaluation_is_scored_on_it(
    tiny_model: Path, tmp_path: Path, scored: list[Example]
) -> None:
    path, dev = (
        write(tmp_path / "d.jsonl", rows(40)),
        write(tmp_path / "dev.jsonl", [*rows(6), {"text": "new", "label": 1}]),
    )
    s = settings(tiny_model, path, eval_file=dev)
    with pytest.warns(UserWarning, match=r"6 of the 7 validation examples are train examples too"):
        result = train(s, tmp_path / "run", quiet=True)
    assert result["eval_examples"] == 7
    scored.clear()
    found = evaluate(None, None, tmp_path / "run", split="validation")
    assert found["loss"] == result["eval_loss_after"]
    assert found["trained_on"] == 6
    assert [e.prompt for e in scored] == [e.prompt for e in examples_of(s)[2]]
    with pytest.raises(TaskError, match=r"no test example, but 40 train, 7 validation"):
        evaluate(None, None, tmp_path / "run")


def test_objects_are_scored_as_files_are(tiny_model: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"prompt_template": "{text} It was", "label_words": WORDS}
    of_file = evaluate(str(tiny_model), write(tmp_path / "d.jsonl", rows(12)), None, **given)
    of_list = evaluate(str(tiny_model), rows(12), None, **given)
    assert of_list == of_file | {"task": "list"}
    run = tmp_path / "run"
    train(settings(tiny_model, "mr", train_examples=8, eval_examples=4), run, quiet=True)
    assert evaluate(None, rows(12), run)["examples"] == 12


def test_files_that_do_not_go_together(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", rows(40))
    with pytest.raises(
        TaskError, match=r"dev\.jsonl has no column 'label'; its columns are text, y, and it needs those"
    ):
        load_task(path, eval_file=write(tmp_path / "dev.jsonl", [{"text": "a", "y": 0}]))
    with pytest.raises(TaskError, match=r"dev\.jsonl, line 1: the label 'x' .* has no label word; allowed are 0, 1"):
        load_task(path, label_words=WORDS, eval_file=write(tmp_path / "dev.jsonl", [{"text": "a", "label": "x"}]),
                  prompt_template="{text}")  # fmt: skip
    with pytest.raises(TaskError, match="eval_file: for files; the task mr has its own data, leave it out"):
        load_task("mr", eval_file=path)


def test_data_without_validation_holds_out_a_tenth_of_train(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [*rows(200, split="train"), {"text": "t", "label": 1, "split": "test"}])
    plain, held = (load_task(path, hold_out=out, prompt_template="{text}", label_words=WORDS) for out in (False, True))
    assert [len(part) for part in plain.splits.values()] == [200, 0, 1]
    sizes = [len(part) for part in held.splits.values()]
    assert 8 < sizes[1] < 34  # four standard errors around 20
    assert sizes == [200 - sizes[1], sizes[1], 1]
    s = TrainSettings(task=path, prompt_template="{text}", label_words=WORDS)
    assert len(examples_of(s)[2]) == sizes[1]


# ---- a file sorted by label ---------------------------------------------------------------------------------------


def sorted_file(path: Path) -> str:
    return write(path, [{"text": f"x {i}", "label": int(i >= 1500)} for i in range(3000)])


def test_examples_of_a_file_are_drawn_and_those_of_a_named_task_are_its_first(tmp_path: Path) -> None:
    task = load_task(sorted_file(tmp_path / "d.jsonl"), prompt_template="{text} It was", label_words=WORDS)
    one, two = (select(task, "train", 1000, seed=seed) for seed in (0, 1))
    share = sum(e.label for e in task.splits["train"]) / len(task.splits["train"])
    assert abs(sum(e.label for e in one) - 1000 * share) < 1
    # Four standard errors of a share of 1,000 out of 2,400: 4 sqrt(0.25 / 1000 (1 - 1000 / 2400)) = 0.048.
    free = select(task, "train", 1000, seed=0, draw="random")
    assert 1e-3 < abs(sum(e.label for e in free) / 1000 - share) < 0.048
    assert len(set(one)) == 1000
    assert one != two
    assert one == select(task, "train", 1000, seed=0)
    assert [e for e in task.splits["train"] if e in set(one)] == one
    assert select(task, "train", 1000, seed=0, draw="first") == list(task.splits["train"][:1000])
    assert select(task, "train", None, seed=0) == list(task.splits["train"])
    mr = load_task("mr")
    assert select(mr, "train", 1000, seed=7) == list(mr.splits["train"][:1000])


def test_training_on_a_file_says_what_it_drew(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s = settings(tiny_model, sorted_file(tmp_path / "d.jsonl"), train_examples=8, eval_examples=20)
    train(s, tmp_path / "run", quiet=True)
    examples = examples_of(s)[1]
    counts = [sum(e.label == k for e in examples) for k in (0, 1)]
    assert counts == [4, 4]
    said = capsys.readouterr().err
    assert min(counts) > 0
    assert f"8 of the 2,393 train examples are used, drawn by seed 0, {counts[0]} of label '0', {counts[1]} of" in said


def test_a_sample_of_an_unbalanced_file_has_each_class_by_its_share(tmp_path: Path) -> None:
    """3 % of one class: a draw from all together varies by 4 examples in 500, this one by none."""
    data = [{"text": f"x {i}", "label": int(i % 100 < 3)} for i in range(10_000)]
    task = load_task(write(tmp_path / "d.jsonl", data), prompt_template="{text}", label_words=WORDS)

    def rare(draw: str) -> list[int]:
        return [sum(e.label for e in select(task, "train", 500, seed=k, draw=draw)) for k in range(12)]

    share = sum(e.label for e in task.splits["train"]) / len(task.splits["train"])
    assert set(rare("stratified")) == {round(500 * share)}
    assert max(rare("random")) - min(rare("random")) > 4
    few = select(task, "train", 4, seed=0)
    assert [sum(e.label == k for e in few) for k in (0, 1)] == [3, 1]


def test_a_class_that_is_missing_is_announced(tiny_model: Path, tmp_path: Path) -> None:
    s = settings(tiny_model, sorted_file(tmp_path / "d.jsonl"), train_examples=8, eval_examples=200, draw="first")
    with pytest.warns(UserWarning, match=r"none of the 8 train examples has the label '1'; raise --train-examples"):
        train(s, tmp_path / "run", quiet=True)


def test_an_older_run_goes_on_with_the_first_examples(tiny_model: Path, tmp_path: Path) -> None:
    """Its run.json knows of no draw; the data stays, and so do the bits."""
    path = write(tmp_path / "d.jsonl", rows(100))
    s = settings(tiny_model, path, draw="first", train_examples=20, steps=4)
    whole = train(s, tmp_path / "whole", quiet=True)
    train(s.model_copy(update={"steps": 2}), tmp_path / "run", quiet=True)
    as_an_older_release_wrote(tmp_path / "run")
    again = settings(tiny_model, path, train_examples=20, steps=4)  # draw is left open, and "random" by default
    assert train(again, tmp_path / "run", resume=True, quiet=True)["sha256"] == whole["sha256"]


def test_the_digest_of_the_data_sees_prompts_labels_order_and_words(tmp_path: Path) -> None:
    a, b = Example("x", 0), Example("y", 1)
    task = load_task("mr")
    found = {
        digest(task, [a], [b]), digest(task, [b], [a]), digest(task, [a, b], []), digest(task, [Example("x", 1)], [b]),
        digest(task, [a], [Example("y", 1, "z")]), digest(load_task("mr", label_words=[" a", " b"]), [a], [b]),
    }  # fmt: skip
    assert len(found) == 6
    assert digest(load_task("mr"), [a], [b]) in found


def test_a_run_records_the_digest_of_its_data(tiny_model: Path, tmp_path: Path) -> None:
    s = settings(tiny_model, write(tmp_path / "d.jsonl", rows(40)))
    train(s, tmp_path / "run", quiet=True)
    meta = json.loads((tmp_path / "run" / "run.json").read_text())
    assert meta["data"]["sha256"] == digest(*examples_of(s))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"split": "test"}, r"data.jsonl has no test example, but 8 train, 4 validation"),
        ({"split": "dev"}, "--split dev: there are train, validation, test and all"),
        ({"dtype": "bfloat16"}, "--dtype cannot be chosen for a run: its base model is loaded as it was trained"),
        ({"quantized": True, "quantize": "nf4"}, "--quantized, --quantize cannot be chosen for a run"),
        ({"seed": 3}, "--seed 3: the data of a run is split by its own seed, 0"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_a_model_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], says: str
) -> None:
    import zograd.llm.evaluate as module

    rows = [{"text": f"good {k}", "label": k % 2, "split": "train" if k < 8 else "dev"} for k in range(12)]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    s = TrainSettings(model=str(tiny_model), task=str(file), method="zo_sgd", steps=1, batch_size=2, dtype="float32")
    train(s, tmp_path / "run", quiet=True)

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(module, "restore", load)
    monkeypatch.setattr(module.loading, "load", load)
    with pytest.raises((SettingsError, TaskError), match=says):
        evaluate(None, None, tmp_path / "run", **arguments)
