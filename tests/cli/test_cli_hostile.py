"""What people type and keep in files: odd characters, long inputs, names of files that matter, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from test_options import trained as trained  # the settings that `zograd train` would train with
from typer.testing import CliRunner

from zograd.cli import app
from zograd.cli.output import emit
from zograd.hub import TaskError
from zograd.hub.sources import read
from zograd.llm.loop import Loop, interruptible
from zograd.llm.prompts import CHOICE, Form, lines_of, read_inputs
from zograd.llm.restore import replay
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import SettingsError, TrainSettings, parse
from zograd.llm.train import train
from zograd.llm.tuned import Tuned
from zograd.runs.folder import read_metrics

ODD = "it was good\u2028really\nvery bad\x0cfilm\n\nplain\u0085x\r\nold\rnew\n"
"""Five texts, with characters inside at which `str.splitlines` cuts."""

TEXTS = ["it was good\u2028really", "very bad\x0cfilm", "plain\u0085x", "old", "new"]

COMMON: dict[str, Any] = {
    "method": "zo_sgd", "steps": 2, "batch_size": 2, "train_examples": 8, "eval_examples": 8, "lr": 1e-3,
    "dtype": "float32", "threads": 1, "layers": 1,
}  # fmt: skip


def zograd(*arguments: object, stdin: str | bytes | None = None) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def answered(*arguments: object, stdin: str | bytes | None = None) -> dict[str, Any]:
    """What a command prints with --json."""
    code, out, err = zograd(*arguments, "--json", "--threads", 1, stdin=stdin)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def made(model: Path, folder: Path, **more: Any) -> Path:
    """A run with these settings."""
    train(parse({**COMMON, "task": "mr", "model": str(model), **more}), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tiny_model, tmp_path_factory.mktemp("hostile") / "run", max_length=32)


@pytest.fixture(scope="module")
def reviews(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a file whose text is in the column `review`, which stands beside it."""
    folder = tmp_path_factory.mktemp("reviews")
    rows = "".join(f"film {k} was very {'good' if k % 2 else 'bad'},{'good' if k % 2 else 'bad'}\n" for k in range(60))
    (folder / "col.csv").write_text("review,sentiment\n" + rows)
    columns = {"task": str(folder / "col.csv"), "text_column": "review", "label_column": "sentiment"}
    return made(tiny_model, folder / "run", **columns)


# ---- lines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uni.txt", "UNI.TXT"])
def test_the_lines_of_a_text_are_those_of_training(run: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(ODD.encode())
    assert [record.text("text") for record in read(str(file)).records] == TEXTS
    assert lines_of(ODD) == TEXTS
    assert read_inputs(file) == TEXTS
    found = answered("predict", run, "--file", file)["predictions"]
    assert [p["prompt"] for p in found] == [f"{text} It was" for text in TEXTS]
    assert answered("predict", run, stdin=ODD.encode())["predictions"] == found


def test_the_log_of_a_run_is_cut_at_ends_of_lines_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "note": "a\u2028b\u0085c"}\n{"step": 2}\r\n{"st', "utf-8")
    assert read_metrics(tmp_path) == ([{"step": 1, "note": "a\u2028b\u0085c"}, {"step": 2}], 1)


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_inputs_that_were_cut_are_counted(run: Path) -> None:
    long = "good " * 20_000
    code, out, err = zograd("predict", run, long, "bad", "very " * 500, "--json")
    assert code == 0
    assert json.loads(out)["truncated"] == 2
    assert "zograd: 2 of 3 examples have more than 32 tokens: their longest parts are cut (right)" in err
    assert "are cut" in zograd("predict", run, long)[2]
    code, out, err = zograd("predict", run, "bad", "--json")
    assert (json.loads(out)["truncated"], err) == (0, "")


def test_a_run_knows_the_column_of_its_text(reviews: Path, tmp_path: Path) -> None:
    data = reviews.parent / "col.csv"
    expected = answered("predict", reviews, "--file", data, "--text-column", "review")["predictions"]
    assert len(expected) == 60
    assert answered("predict", reviews, "--file", data)["predictions"] == expected
    rows = [{"review": record.values["review"]} for record in read(str(data)).records[:2]]
    assert [p.prompt for p in Tuned(reviews).predict(rows)] == [p["prompt"] for p in expected[:2]]
    written = answered("generate", reviews, "--file", data, "--max-new-tokens", 1)["predictions"]
    assert written[0]["prompt"] == expected[0]["prompt"]
    other = tmp_path / "other.jsonl"  # a file may call it text, as any
    other.write_text(json.dumps({"text": rows[0]["review"]}))
    assert answered("predict", reviews, "--file", other)["predictions"][0]["prompt"] == expected[0]["prompt"]
    both = tmp_path / "both.jsonl"  # as in training and in eval
    both.write_text(json.dumps({**rows[0], "text": "another column"}))
    assert answered("predict", reviews, "--file", both)["predictions"][0]["prompt"] == expected[0]["prompt"]
    assert answered("predict", reviews, "--file", both, "--text-column", "text")["predictions"][0]["prompt"].startswith(
        "another column"
    )


@pytest.mark.parametrize("column", ["choices", "endings"])
def test_what_is_to_be_written_for_multiple_choice_works(column: str) -> None:
    form = Form("{question}", records=CHOICE, choices=column)
    with pytest.raises(TaskError, match="input 1 is one text") as error:
        form.examples(["it was"])
    found = re.search(r"write (\{.*\}), or", str(error.value))
    assert found is not None
    assert set(json.loads(found[1])) == {"question", column}
    (example,) = form.examples([found[1]])
    assert len(example.choices) == 2


# ---- results ---------------------------------------------------------------------------------------------------------


def test_an_empty_answer_is_an_empty_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from zograd.llm.generation import Generated

    monkeypatch.setattr(Tuned, "generate", lambda self, inputs, **_: [Generated("the film", "", 3, "length")])
    code, out, _ = zograd("generate", run, "the film", "--max-new-tokens", 3)
    assert (code, out) == (0, "\n")
    emit({"a": 1, "long": 2}, as_json=False)
    assert capsys.readouterr().out == "a     1\nlong  2\n"


def test_a_run_whose_evaluation_is_not_finite_was_not_stopped(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    evaluate = Scorer.evaluate

    def broken(self: Scorer, *arguments: Any, **more: Any) -> Any:
        found = evaluate(self, *arguments, **more)
        return replace(found, value=float("nan"), loss=float("nan"), not_finite=found.examples)

    monkeypatch.setattr(Scorer, "evaluate", broken)
    code, out, err = zograd(*command(tiny_model, tmp_path / "nf"))
    assert code == 1
    assert "finite" in err
    assert "stopped" not in out
    assert out.startswith("the evaluation is not finite\n")


# ---- none ------------------------------------------------------------------------------------------------------------

LIMITS = ("train_examples", "eval_examples", "layers", "max_length", "seconds", "lr", "quantize", "lora_targets",
          "label_words", "truncate")  # fmt: skip


@pytest.mark.parametrize("suffix", ["yaml", "toml", "TOML"])
def test_none_in_a_config_takes_a_limit_away(tmp_path: Path, trained: list[TrainSettings], suffix: str) -> None:
    config = tmp_path / f"c.{suffix}"
    form = "{}: none\n" if suffix == "yaml" else '{} = "none"\n'
    config.write_text("".join(map(form.format, LIMITS)))
    code, _, err = zograd("train", "--config", config, "--out", tmp_path / "run")
    assert code == 0, err
    assert {name: getattr(trained[0], name) for name in LIMITS} == dict.fromkeys(LIMITS)
    typed = [word for name in LIMITS for word in (f"--{name.replace('_', '-')}", "none")]
    assert zograd("train", *typed, "--out", tmp_path / "run")[0] == 0
    assert trained[1] == trained[0]


def test_none_is_a_text_where_texts_are_taken_and_refused_elsewhere() -> None:
    assert parse({"text_column": "none", "metric": "none"}).text_column == "none"
    assert parse({"label_words": {"none": "none", "a": "b"}}).label_words == {"none": "none", "a": "b"}
    for key, value, says in [
        ("eval_examples", "many", "expected an integer, or none$"),
        ("eval_examples", 0, "expected a number of at least 1, or none$"),
        ("quantize", "int3", "hqq4, or none$"),
        ("steps", "none", "expected an integer$"),
        ("steps", -1, "expected a number of at least 0$"),
    ]:
        with pytest.raises(SettingsError, match=says):
            parse({key: value})


# ---- files that matter -----------------------------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("command", ["predict", "generate"])
@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("run/tape.zo", "is in the folder of the run"),
        ("run/new.jsonl", "is in the folder of the run"),
        ("link/new.jsonl", "is in the folder of the run"),
        ("col.csv", "exists and holds no predictions"),
        ("data.jsonl", "exists and holds no predictions"),
        ("binary", "exists and holds no predictions"),
    ],
)
def test_no_other_file_is_overwritten(reviews: Path, command: str, out: str, says: str) -> None:
    folder = reviews.parent
    (folder / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "binary").write_bytes(b"\xff\x00")
    if not (folder / "link").exists():
        (folder / "link").symlink_to(reviews, target_is_directory=True)
    before = digests(folder)
    code, printed, err = zograd(command, reviews, "it was", "--out", folder / out)
    assert (code, printed) == (2, "")
    assert says in err
    assert digests(folder) == before


def test_data_of_a_run_that_looks_like_predictions_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"it was {k}", "text": f"it was {k}", "ended": "stop", "label": k % 2} for k in range(40)]
    names = {"task": tmp_path / "a.jsonl", "eval_file": tmp_path / "b.jsonl"}
    names["task"].write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    names["eval_file"].write_text("".join(json.dumps(row) + "\n" for row in rows[20:]))
    more = {"records": "classification", **{name: str(file) for name, file in names.items()}}
    run = made(tiny_model, tmp_path / "run", **more)
    for name, file in names.items():
        before = file.read_bytes()
        code, _, err = zograd("predict", run, "it was", "--out", file)
        assert code == 2
        assert f"is the {name} of the run" in err
        assert file.read_bytes() == before


@pytest.mark.parametrize("command", ["predict", "generate"])
def test_predictions_are_overwritten(run: Path, tmp_path: Path, command: str) -> None:
    out = tmp_path / "out.jsonl"
    out.touch()
    for texts in (["good"], ["good", "bad"]):
        assert zograd(command, run, *texts, "--out", out)[0] == 0
        assert len(out.read_text().splitlines()) == len(texts)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "a device or a pipe" in zograd(command, run, "good", "--out", fifo)[2]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_weights_have_the_permissions_of_other_files(tiny_model: Path, tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        made(tiny_model, tmp_path / "run", method="residual", mu=None)
        replay(tmp_path / "run", None, tmp_path / "weights")
    finally:
        os.umask(old)
    for folder, name in (("run", "state.safetensors"), ("weights", "model.safetensors")):
        assert (tmp_path / folder / name).exists()
        modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / folder).iterdir() if file.is_file()}
        assert set(modes.values()) == {0o666 & ~mask}, modes


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


def command(model: Path, out: Path) -> list[object]:
    return ["train", "--model", model, "--task", "mr", "--out", out, "--steps", 4, "--train-examples", 8,
            "--eval-examples", 8, "--batch-size", 2, "--dtype", "float32", "--threads", 1, "--method", "zo_sgd",
            "--lr", "1e-3"]  # fmt: skip


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_ctrl_c_ends_a_run_in_order_with_130(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, expected: int
) -> None:
    remember = Loop.remember

    def signalled(self: Loop, batch: Any) -> None:
        os.kill(os.getpid(), number)
        remember(self, batch)

    monkeypatch.setattr(Loop, "remember", signalled)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    code, out, _ = zograd(*command(tiny_model, tmp_path / "run"), "--json")
    assert code == expected
    summary = json.loads(out)
    assert (summary["interrupted"], summary["stopped_by"], summary["steps"]) == (True, number.name, 1)
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.undo()
    assert zograd("train", "--resume", "--out", tmp_path / "run", "--threads", 1)[0] == 0


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_ctrl_c_ends_a_quickstart_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, expected: int
) -> None:
    def quickstart(out: Path, **_: Any) -> dict[str, Any]:
        with interruptible() as caught:
            os.kill(os.getpid(), number)
        numbers = ("seconds", "steps", "trained", "peak_bytes", "inference_peak_bytes", "examples")
        metrics = ("accuracy_before", "accuracy_calibrated", "accuracy_after")
        about = {"model": "m", "task": "t", "run": str(out), "stopped_by": signal.Signals(caught[0]).name}
        return {**dict.fromkeys(numbers, 1), **dict.fromkeys(metrics), **about}

    monkeypatch.setattr("zograd.llm.quickstart.quickstart", quickstart)
    assert zograd("quickstart", "--out", tmp_path / "run")[0] == expected
