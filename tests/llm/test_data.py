"""The examples on which a run is trained and scored: they follow from its seed, for every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zograd import Tape, TapeWriter
from zograd.hub import Example, TaskError, load_task, select
from zograd.llm.build import digest, examples_of
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
    assert evaluate(None, copy, tmp_path / "run")["trained_on"] is None


def test_a_file_with_splits_is_scored_by_them(tiny_model: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"prompt_template": "{text} It was", "label_words": WORDS}
    path = write(tmp_path / "d.jsonl", rows(30, split="train") + rows(7, split="dev"))
    with pytest.raises(TaskError, match=r"--split test: .*d\.jsonl has no example there, but 30 train, 7 validation"):
        evaluate(str(tiny_model), path, None, **given)
    assert evaluate(str(tiny_model), path, None, split="validation", **given)["examples"] == 7
    assert evaluate(str(tiny_model), path, None, split="all", **given)["examples"] == 37
    with pytest.raises(SettingsError, match=r"--split dev: there are train, validation, test and all"):
        evaluate(str(tiny_model), path, None, split="dev", **given)


# ---- a file sorted by label ---------------------------------------------------------------------------------------


def sorted_file(path: Path) -> str:
    return write(path, [{"text": f"x {i}", "label": int(i >= 1500)} for i in range(3000)])


def test_examples_of_a_file_are_drawn_and_those_of_a_named_task_are_its_first(tmp_path: Path) -> None:
    task = load_task(sorted_file(tmp_path / "d.jsonl"), prompt_template="{text} It was", label_words=WORDS)
    one, two = (select(task, "train", 1000, seed=seed) for seed in (0, 1))
    # Four standard errors of a share of 1,000 out of 2,400: 4 sqrt(0.25 / 1000 (1 - 1000 / 2400)) = 0.048.
    assert abs(sum(e.label for e in one) / 1000 - 0.5) < 0.048
    assert len(set(one)) == 1000
    assert one != two
    assert one == select(task, "train", 1000, seed=0)
    assert [e for e in task.splits["train"] if e in set(one)] == one
    assert select(task, "train", 1000, seed=0, first=True) == list(task.splits["train"][:1000])
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
    said = capsys.readouterr().err
    assert min(counts) > 0
    assert f"8 of the 2,393 train examples are used, drawn by seed 0, {counts[0]} of label '0', {counts[1]} of" in said


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
