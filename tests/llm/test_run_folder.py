"""A run folder: one writer, files that belong together, and options that --resume may and may not change."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from click.testing import Result
from hypothesis import HealthCheck, given
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import zograd.files as files_module
import zograd.llm.train as train_module
from tests.cli.test_options import typed
from zograd.cli import app, explain
from zograd.core.run import Run
from zograd.core.tape import Tape, TapeWriter, writer_lock
from zograd.files import write_tensors
from zograd.llm import loading
from zograd.llm.build import resolve
from zograd.llm.loop import Loop, last_merge
from zograd.llm.restore import fixed_settings, replay, stored_settings
from zograd.llm.resume import check_data, metrics_before
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.locks import LockedError
from zograd.oracles import Batched
from zograd.runs.errors import RunError
from zograd.runs.rundir import CHANGEABLE, RunDirectory
from zograd.runs.state import read_state

COMMON: dict[str, Any] = {
    "task": "mr", "steps": 6, "batch_size": 4, "train_examples": 40, "eval_examples": 20, "lr": 1e-3, "mu": 1e-3,
    "dtype": "float32",
}  # fmt: skip
ADAM = {"method": "zo_adam", "save_every": 4}


def settings(model: Path, **more: Any) -> TrainSettings:
    return TrainSettings.model_validate({**COMMON, "model": str(model), **more})


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Runs of six steps and their summaries: without slots, with slots, and with slots and another seed."""
    folder = tmp_path_factory.mktemp("finished")
    kinds: dict[str, dict[str, Any]] = {"sgd": {}, "adam": ADAM, "other adam": {**ADAM, "seed": 1}}
    return {k: (folder / k, train(settings(tiny_model, **more), folder / k, quiet=True)) for k, more in kinds.items()}


@pytest.fixture
def copy(finished: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: shutil.copytree(finished[kind][0], tmp_path / "copy")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def zograd(*arguments: str | Path | int) -> Result:
    """The command, in this process, with its own way to show warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        return CliRunner().invoke(app, [str(a) for a in arguments])


# ---- one writer ------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_before_anything_is_read(tiny_model: Path, copy: Callable[[str], Path]) -> None:
    run = copy("sgd")
    with writer_lock(run / "tape.zo", "the run"):
        before = contents(run)
        with pytest.raises(LockedError, match=r"the run in .*copy is being written by this process itself, since"):
            train(settings(tiny_model, steps=9), run, resume=True, quiet=True)
        assert contents(run) == before
        replay(run, None, run.parent / "weights")  # readers need no lock
    assert train(settings(tiny_model, steps=9), run, resume=True, quiet=True)["steps"] == 9
    assert not (run / "tape.zo.lock").exists()


def test_two_new_runs_do_not_meet_in_one_folder(tiny_model: Path, tmp_path: Path) -> None:
    """Another job began in the folder while this one loaded its model, and has not begun its tape yet."""
    out = tmp_path / "run"
    out.mkdir()
    with writer_lock(out / "tape.zo", "the run"), pytest.raises(LockedError, match="is being written by"):
        train(settings(tiny_model), out, quiet=True)
    assert list(out.iterdir()) == []
    assert train(settings(tiny_model), out, quiet=True)["steps"] == 6


def test_whatever_ends_a_run_the_next_one_is_let_in(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("the loss raises")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", fails)
        for resume in (False, True, True):
            with pytest.raises(RuntimeError, match="the loss raises"):
                train(settings(tiny_model), tmp_path / "run", resume=resume, quiet=True)
    assert train(settings(tiny_model), tmp_path / "run", resume=True, quiet=True)["steps"] == 6


# ---- what does not belong together -----------------------------------------------------------------------------------


def flip_tensor(run: Path, _: Path) -> None:
    data = bytearray((run / "state.safetensors").read_bytes())
    data[-100] ^= 1
    (run / "state.safetensors").write_bytes(data)


def flip_scalars(run: Path, _: Path) -> None:
    data = (run / "state.safetensors").read_bytes()
    assert data.count(b'\\"moves\\": 6') == 1
    (run / "state.safetensors").write_bytes(data.replace(b'\\"moves\\": 6', b'\\"moves\\": 5'))


def tear(run: Path, _: Path) -> None:
    data = (run / "state.safetensors").read_bytes()
    (run / "state.safetensors").write_bytes(data[: len(data) // 2])


def empty(run: Path, _: Path) -> None:
    (run / "state.safetensors").write_bytes(b"")


def swap(run: Path, other: Path) -> None:
    shutil.copy(other / "state.safetensors", run)


def forget(run: Path, _: Path) -> None:
    """A state of a release that stored no checksums."""
    file = run / "state.safetensors"
    save_file(load_file(file), file, metadata={"run": json.dumps({"step": 6})})


def no_metadata(run: Path, _: Path) -> None:
    save_file(load_file(run / "state.safetensors"), run / "state.safetensors")


def shorten(run: Path, _: Path) -> None:
    """The tape without its last two records: the state is ahead of it, as after a power loss."""
    tape = Tape(run / "tape.zo")
    (run / "tape.zo").unlink()
    with TapeWriter(run / "tape.zo", tape.header) as writer:
        for record in tape.records[:4]:
            writer.append(record)


SPOILT: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "a flipped bit of a tensor": (flip_tensor, "digest"),
    "a flipped scalar": (flip_scalars, "digest"),
    "torn": (tear, "does not parse"),
    "empty": (empty, "does not parse"),
    "of another run": (swap, "belongs to another tape"),
    "of another release": (forget, "does not say to which tape it belongs"),
    "without metadata": (no_metadata, "does not say to which tape it belongs"),
    "ahead of the tape": (shorten, "the tape ends at step 4"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_state_that_does_not_fit_is_left_aside_with_a_sentence(
    tiny_model: Path, finished: dict[str, tuple[Path, dict[str, Any]]], copy: Callable[[str], Path], case: str
) -> None:
    """The tape has every step: the run ends at the same bits."""
    spoil, why = SPOILT[case]
    run = copy("adam")
    spoil(run, finished["other adam"][0])
    with pytest.warns(UserWarning, match=rf"state.safetensors is ignored \(.*{why}.*replayed from its tape"):
        again = train(settings(tiny_model, **ADAM), run, resume=True, quiet=True)
    assert again["sha256"] == finished["adam"][1]["sha256"]
    assert contents(run)["tape.zo"] == contents(finished["adam"][0])["tape.zo"]


def test_a_state_that_fits_saves_the_replay(
    tiny_model: Path, copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    again = Run._take_again

    def counted(self: Run[Any], record: Any) -> None:
        taken.append(record.step)
        again(self, record)

    monkeypatch.setattr(Run, "_take_again", counted)
    run = copy("adam")
    ended = train(settings(tiny_model, **ADAM), run, resume=True, quiet=True)
    assert taken == []
    assert replay(run, None, run.parent / "weights")["sha256"] == ended["sha256"]
    assert taken == list(range(6))


def edit(run: Path, **changes: Any) -> None:
    """Change settings in run.json."""
    meta = json.loads((run / "run.json").read_text())
    meta["settings"] |= changes
    (run / "run.json").write_text(json.dumps(meta))


EDITED: dict[str, dict[str, Any]] = {
    "seed": {"seed": 3},
    "lr": {"lr": 5.0},
    "batch_size": {"batch_size": 8},
    "task": {"task": "sms"},
    "train": {"train": "*.mlp.*"},
    "method": {"method": "fzoo"},
    "method ": {"method": "nonsense"},
    "set": {"set": {"n": 3}},
    "dtype": {"dtype": "bfloat16"},
    "threads": {"threads": 7},
    "shards": {"shards": 2},
    "mu": {"mu": 0.5},
    "rounding": {"rounding": "nearest"},
    "weight_decay": {"weight_decay": 0.1},
    "lr_schedule": {"lr_schedule": "cosine"},
    "train_examples": {"train_examples": 30},
    "together": {"together": 1},
}


@pytest.mark.parametrize("key", EDITED)
def test_run_json_is_compared_with_the_tape(tiny_model: Path, copy: Callable[[str], Path], key: str) -> None:
    run = copy("sgd")
    edit(run, **EDITED[key])
    before = contents(run)
    for go in (
        lambda: train(TrainSettings(model=str(tiny_model)), run, resume=True, quiet=True),
        lambda: replay(run, None, run.parent / "weights"),
    ):
        with pytest.raises(
            RunError, match=rf"run.json says {key.strip()} = .*, and its tape was recorded with {key.strip()} = "
        ):
            go()
    assert contents(run) == before
    assert not (run.parent / "weights").exists()


def test_what_else_run_json_says_of_the_bits_is_compared(copy: Callable[[str], Path]) -> None:
    run = copy("sgd")
    meta = json.loads((run / "run.json").read_text())
    other = [{**entry, "sha256": "0" * 64} for entry in meta["model"]]
    for key, changed in {"trained": {"trained": meta["trained"][:-1]}, "base": {"model": other}}.items():
        (run / "run.json").write_text(json.dumps(meta | changed))
        with pytest.raises(RunError, match=f"run.json says {key} = "):
            replay(run, None, run.parent / "weights")
    tape = Tape(run / "tape.zo")
    (run / "run.json").write_text(json.dumps(meta))
    (run / "tape.zo").unlink()
    TapeWriter(run / "tape.zo", {"seed": tape.header["seed"]}).close()
    with pytest.raises(RunError, match="has no settings in its header: it is not a tape of this run"):
        replay(run, None, run.parent / "weights")


def test_the_number_of_steps_is_compared_where_the_schedule_depends_on_it(
    tiny_model: Path, tmp_path: Path, copy: Callable[[str], Path]
) -> None:
    train(settings(tiny_model, lr_schedule="cosine"), tmp_path / "cosine", quiet=True)
    edit(tmp_path / "cosine", steps=60)
    with pytest.raises(RunError, match=r"run.json says steps = 60, and its tape was recorded with steps = 6"):
        replay(tmp_path / "cosine", None, tmp_path / "weights")
    run = copy("sgd")
    edit(run, steps=60)
    assert replay(run, None, tmp_path / "weights")["steps"] == 6


def test_runs_whose_tapes_know_nothing_of_base_and_data_go_on(
    tiny_model: Path, finished: dict[str, tuple[Path, dict[str, Any]]], copy: Callable[[str], Path]
) -> None:
    """As earlier releases wrote them."""
    run = copy("sgd")
    tape = Tape(run / "tape.zo")
    header = {key: value for key, value in tape.header.items() if key not in ("base", "data")}
    (run / "tape.zo").unlink()
    with TapeWriter(run / "tape.zo", header) as writer:
        for record in tape.records[:3]:
            writer.append(record)
    assert train(settings(tiny_model), run, resume=True, quiet=True)["sha256"] == finished["sgd"][1]["sha256"]


def test_data_that_changed_since_is_named(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = train_module.set_up

    def with_digest(sha256: str) -> None:
        def set_up(s: TrainSettings, folder: Path, **more: Any) -> Any:
            work = loaded(s, folder, **more)
            work.data["sha256"] = sha256
            return work

        monkeypatch.setattr(train_module, "set_up", set_up)

    with_digest("then")
    train(settings(tiny_model, steps=2), tmp_path / "run", quiet=True)
    assert Tape(tmp_path / "run" / "tape.zo").header["data"] == "then"
    with_digest("now")
    with pytest.raises(RunError, match=r"the examples of 'mr' are not those .* began with \(SHA-256 now, then then\)"):
        train(TrainSettings(steps=4), tmp_path / "run", resume=True, quiet=True)
    with_digest("then")
    assert train(TrainSettings(steps=4), tmp_path / "run", resume=True, quiet=True)["steps"] == 4
    check_data({"data": {"sha256": "a"}}, {"sha256": "a"})
    check_data({"data": {}}, {"sha256": "a"})
    check_data({}, {"sha256": "a"})
    check_data({"data": {"sha256": "a"}}, {})


def test_other_tensors_than_the_run_trained_are_not_moved(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a library names its parameters otherwise in another version."""
    run = copy("sgd")
    chosen = loading.select

    def fewer(model: Any, pattern: str, *, layers: int | None = None) -> dict[str, torch.Tensor]:
        return dict(list(chosen(model, pattern, layers=layers).items())[:-1])

    monkeypatch.setattr(loading, "select", fewer)
    for go in (
        lambda: train(TrainSettings(steps=9), run, resume=True, quiet=True),
        lambda: replay(run, None, run.parent / "weights"),
    ):
        with pytest.raises(RunError, match=r"the first that differs is 'model.norm.weight'"):
            go()


# ---- --resume with options -------------------------------------------------------------------------------------------


def test_resume_refuses_what_it_cannot_change_and_names_all_of_it(
    tiny_model: Path, copy: Callable[[str], Path]
) -> None:
    run = copy("sgd")
    before = contents(run)
    given = TrainSettings(lr=5.0, seed=3, method="fzoo", batch_size=32, steps=9)
    with pytest.raises(SettingsError) as error:
        train(given, run, resume=True, quiet=True)
    text = str(error.value)
    for part in ("lr = 5.0 (the run has 0.001)", "seed = 3 (", "method = fzoo (", "batch_size = 32 (", *CHANGEABLE):
        assert part in text
    assert contents(run) == before


def test_resume_applies_what_it_can_change_and_keeps_it(
    tiny_model: Path, copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy("sgd")
    train(TrainSettings(steps=10, eval_every=2, max_failures=3, lr=1e-3), run, resume=True, quiet=True)
    said = capsys.readouterr().err
    assert "continues from step 6, with steps = 10 in place of 6" in said
    assert "eval_every = 2 in place of 0" in said
    assert "max_failures = 3 in place of 10" in said
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 6, 8, 10]
    stored = json.loads((run / "run.json").read_text())["settings"]
    assert (stored["steps"], stored["eval_every"], stored["lr"]) == (10, 2, 1e-3)
    again = train(TrainSettings(), run, resume=True, quiet=True)  # nothing is given: nothing changes
    assert (again["steps"], again["steps_this_time"]) == (10, 0)


def test_what_a_run_has_written_out_may_be_left_open(tiny_model: Path, copy: Callable[[str], Path]) -> None:
    run = copy("sgd")
    given = TrainSettings(dtype="fp32", threads=None, shards=None, compile="auto", steps=7, set={})
    assert train(given, run, resume=True, quiet=True)["steps"] == 7
    with pytest.raises(SettingsError, match=r"dtype = bf16 \(the run has float32\)"):
        train(TrainSettings(dtype="bf16"), run, resume=True, quiet=True)


def test_a_run_whose_bits_depend_on_evaluations_keeps_them(tiny_model: Path, tmp_path: Path) -> None:
    """Moves along one product of signs wait for several steps, at most until the next evaluation."""
    s = settings(tiny_model, steps=12, eval_every=5, set={"law": "rankone"})
    whole = train(s, tmp_path / "whole", quiet=True)
    train(s.model_copy(update={"steps": 7}), tmp_path / "parts", quiet=True)
    with pytest.raises(SettingsError, match=r"eval_every = 3 \(the run has 5\)"):
        train(s.model_copy(update={"eval_every": 3}), tmp_path / "parts", resume=True, quiet=True)
    edit(tmp_path / "parts", eval_every=3)
    with pytest.raises(RunError, match="says eval_every = 3"):
        train(TrainSettings(), tmp_path / "parts", resume=True, quiet=True)
    edit(tmp_path / "parts", eval_every=5)
    assert train(s, tmp_path / "parts", resume=True, quiet=True)["sha256"] == whole["sha256"]
    records = Tape(tmp_path / "whole" / "tape.zo").records
    assert [r.loss for r in Tape(tmp_path / "parts" / "tape.zo").records] == [r.loss for r in records]
    assert [last_merge(s, step) for step in (4, 5, 7, 8, 9, 10, 11)] == [0, 5, 5, 8, 8, 10, 10]


def test_the_command_line_names_what_resume_refuses_and_takes(tiny_model: Path, copy: Callable[[str], Path]) -> None:
    run = copy("sgd")
    config = run.parent / "config.yaml"
    config.write_text("batch_size: 2\n")
    refused = zograd("train", "--out", run, "--resume", "--lr", "5", "--set", "n=4", "--config", config)
    assert refused.exit_code == 2
    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith("zograd: --resume continues a run with its own settings and cannot change ")
    for part in ("lr = 5.0", "set = {'n': 4}", "batch_size = 2 (the run has 4)"):
        assert part in last
    config.write_text("eval_every: 3\nbatch_size: 4\n")
    taken = zograd("train", "--out", run, "--resume", "--steps", 7, "--config", config, "--json")
    assert taken.exit_code == 0, taken.stderr
    assert json.loads(taken.stdout)["steps"] == 7
    assert "with steps = 7 in place of 6, eval_every = 3 in place of 0" in taken.stderr


@pytest.mark.parametrize("name", TrainSettings.model_fields)
def test_every_setting_is_applied_or_refused_and_none_is_dropped(
    copy: Callable[[str], Path], tiny_model: Path, name: str
) -> None:
    """Each option of the command, with a value that the run does not have."""
    run, option = copy("sgd"), typed(name)
    if name == "model":
        option = ["--model", str(shutil.copytree(tiny_model, run.parent / "elsewhere"))]
    elif name == "dtype":
        option = ["--dtype", "bf16"]
    before, key = contents(run), option[0].lstrip("-").removeprefix("no-").replace("-", "_")
    done = zograd("train", "--out", run, "--resume", *option, "--json")
    stored = json.loads((run / "run.json").read_text())["settings"]
    if name in CHANGEABLE:
        assert done.exit_code == 0, done.stderr
        assert str(stored[key]) == option[1]
        assert f"{key} = {option[1]} in place of" in done.stderr
        assert json.loads(done.stdout)["steps"] == stored["steps"]
    else:
        assert done.exit_code == 2, done.stderr
        assert f"cannot change {key} = " in done.stderr
        assert contents(run) == before


def test_fewer_steps_than_were_taken_are_refused(copy: Callable[[str], Path]) -> None:
    run = copy("sgd")
    before = contents(run)
    done = zograd("train", "--out", run, "--resume", "--steps", 3)
    assert done.exit_code == 2
    assert "--steps 3: the run has taken 6 already" in done.stderr
    assert contents(run) == before


def test_another_model_is_no_base_model_of_a_resumed_run(copy: Callable[[str], Path], other_tiny_model: Path) -> None:
    run = copy("sgd")
    before = contents(run)
    done = zograd("train", "--out", run, "--resume", "--model", other_tiny_model)
    assert done.exit_code == 1
    assert "is not the base model of this run: tensor 'model.embed_tokens.weight'" in done.stderr
    assert contents(run) == before


# ---- where a run cannot be -------------------------------------------------------------------------------------------


def test_a_place_that_cannot_hold_a_run_is_named_before_a_model_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    monkeypatch.setattr(train_module, "set_up", lambda *_, **__: pytest.fail("a model was loaded"))
    for out, says in [(file, "file is a file; choose another --out"), (file / "run", "and .* would be inside it")]:
        done = zograd("train", "--out", out, "--task", "mr", "--method", "zo_sgd")
        assert done.exit_code == 1
        assert re.search(says, done.stderr.strip().splitlines()[-1]), done.stderr
    done = zograd("train", "--out", file, "--resume")
    assert "is a file, and here belongs the folder of a run" in done.stderr
    monkeypatch.setattr(os, "access", lambda *_: False)
    done = zograd("train", "--out", tmp_path / "new", "--task", "mr", "--method", "zo_sgd")
    assert f"{tmp_path} cannot be written in; choose another --out" in done.stderr
    assert file.read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"file"}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_became_read_only_is_one_sentence(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = copy("sgd")
    before = contents(run)
    real = os.open

    def refused(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(".lock"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refused)
    done = zograd("train", "--out", run, "--resume", "--steps", 9)
    assert done.exit_code == 1
    assert "tape.zo.lock cannot be written or read (" in done.stderr.strip().splitlines()[-1]
    assert contents(run) == before


# ---- JSON that any reader takes --------------------------------------------------------------------------------------


def test_files_and_summaries_of_a_run_with_infinite_losses_are_strict_json(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strict(text: str) -> Any:
        return json.loads(text, parse_constant=lambda name: pytest.fail(name))

    monkeypatch.setattr(Scorer, "copy_losses", lambda self, examples, copies, most=64: torch.full((copies,), torch.inf))
    done = zograd(
        "train", "--model", tiny_model, "--out", tmp_path / "run", "--task", "mr", "--method", "zo_sgd", "--steps", 2,
        "--batch-size", 2, "--train-examples", 4, "--eval-examples", 4, "--dtype", "float32", "--json",
    )  # fmt: skip
    assert strict(done.stdout)["refused"] == 2
    strict((tmp_path / "run" / "run.json").read_text())
    lines = [strict(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines[1:3]] == [None, None]


@pytest.mark.parametrize("option", [["--lr", "inf"], ["--mu", "inf"], ["--lr", "nan"], ["--set", "lr=.inf"]])
def test_settings_are_finite(tiny_model: Path, tmp_path: Path, option: list[str]) -> None:
    """An infinite one would be null in run.json, which means the default."""
    done = zograd("train", "--model", tiny_model, "--out", tmp_path / "run", "--task", "mr", *option)
    assert done.exit_code == 2
    assert "finite number" in done.stderr
    assert not (tmp_path / "run").exists()


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_a_run_that_had_too_little_memory_resumes_to_the_same_bits(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 2 on two points do not fit into one forward. A process that starts later has room again."""
    s = settings(tiny_model, steps=8, method="fzoo", set={"n": 7}, together=8)
    forward, groups = Batched._forward, list[int]()
    steps = {"until": 10**9}

    def tight(self: Batched, store: Any, group: Any, key: int) -> list[float]:
        groups.append(len(group))
        if len(groups) > 2 and len(group) > 4 and steps["until"]:
            raise torch.OutOfMemoryError("no room")
        return forward(self, store, group, key)

    with monkeypatch.context() as patch:
        patch.setattr(Batched, "_forward", tight)
        with pytest.warns(UserWarning, match="8 points in one forward need too much memory: now 4"):
            whole = train(s, tmp_path / "whole", quiet=True)
    records = Tape(tmp_path / "whole" / "tape.zo").records
    assert [dict(r.meters).get("together") for r in records] == [None, None, 4.0, *[None] * 5]

    shutil.copytree(tmp_path / "whole", tmp_path / "parts")  # killed after step 5, of that run
    tape = Tape(tmp_path / "parts" / "tape.zo")
    (tmp_path / "parts" / "tape.zo").unlink()
    with TapeWriter(tmp_path / "parts" / "tape.zo", tape.header) as writer:
        for record in tape.records[:5]:
            writer.append(record)
    groups.clear()
    steps["until"] = 0
    monkeypatch.setattr(Batched, "_forward", tight)
    resumed = train(s, tmp_path / "parts", resume=True, quiet=True)
    assert groups == [4, 4] * 3
    assert resumed["sha256"] == whole["sha256"]
    assert (tmp_path / "parts" / "tape.zo").read_bytes() == (tmp_path / "whole" / "tape.zo").read_bytes()


def test_a_forward_of_one_point_that_does_not_fit_ends_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points of low rank use a forward of branches even if there is only one."""

    def none_fits(*_: Any) -> list[float]:
        raise torch.OutOfMemoryError("Tried to allocate 3 GiB")

    monkeypatch.setattr(Batched, "_forward", none_fits)
    with (
        pytest.warns(UserWarning, match="2 points in one forward need too much memory: now 1"),
        pytest.raises(torch.OutOfMemoryError) as error,
    ):
        train(settings(tiny_model, set={"law": "rankone"}), tmp_path / "run", quiet=True)
    assert explain(error.value).startswith("not enough memory (Tried to allocate 3 GiB)")


def test_a_run_that_gave_branches_up_keeps_to_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zograd.lens.parameters import Unbranchable

    s = settings(tiny_model, steps=4, method="fzoo", set={"n": 3}, together=4)

    def refuses(*_: Any) -> list[float]:
        raise Unbranchable("this model mixes examples")

    with monkeypatch.context() as patch:
        patch.setattr(Batched, "_forward", refuses)
        with pytest.warns(UserWarning, match="one at a time"):
            whole = train(s, tmp_path / "whole", quiet=True)
        with pytest.warns(UserWarning, match="one at a time"):
            train(s.model_copy(update={"steps": 2}), tmp_path / "parts", quiet=True)
    assert dict(Tape(tmp_path / "parts" / "tape.zo").records[0].meters)["together"] == 0.0
    assert train(s, tmp_path / "parts", resume=True, quiet=True)["sha256"] == whole["sha256"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("Tried to allocate 3 GiB"), "not enough memory (Tried to allocate 3 GiB)"),
        (MemoryError(), "not enough memory (MemoryError)"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "not enough memory ("),
        (OSError(28, "No space left on device", "r/tape.zo"), "the disk is full (r/tape.zo)"),
        (RuntimeError("[enforce fail] . No space left on device"), "the disk is full"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_lack_of_memory_and_of_disk_is_one_sentence(error: BaseException, said: str) -> None:
    assert explain(error).startswith(said)


def test_an_error_of_safetensors_is_one_sentence(tmp_path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(SafetensorError) as error, safe_open(tmp_path / "a.safetensors", "pt"):
        pass
    assert explain(error.value).startswith("a safetensors file could not be read or written")
    full = SafetensorError("I/O error: No space left on device (os error 28)")
    assert explain(full).startswith("the disk is full")


# ---- disks -----------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_while_the_state_is_saved(
    tiny_model: Path, tmp_path: Path, finished: dict[str, tuple[Path, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, no leftovers, and the run continues when there is room."""
    from safetensors import SafetensorError

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).with_name(".tmpAbCd12").write_bytes(b"x" * 100)
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match="No space left on device") as error:
            train(settings(tiny_model, **ADAM), tmp_path / "run", quiet=True)
    assert explain(error.value).startswith(f"the disk is full ({tmp_path / 'run' / 'state.safetensors'})")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"run.json", "tape.zo", "metrics.jsonl"}
    assert Tape(tmp_path / "run" / "tape.zo").steps == 4
    again = train(settings(tiny_model, **ADAM), tmp_path / "run", resume=True, quiet=True)
    assert again["sha256"] == finished["adam"][1]["sha256"]


def test_a_state_gets_its_name_when_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync, then the rename, then the name; a crash before the rename leaves the old state."""
    events: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (events.append("fsync"), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), rename(a, b)))
    target = tmp_path / "state.safetensors"
    write_tensors(target, {"x": torch.ones(3)}, {"run": "1"})
    assert events == ["fsync", "rename", "fsync"]
    before = target.read_bytes()

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(target, {"x": torch.zeros(3)}, {"run": "2"})
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_the_tape_is_forced_to_the_disk_with_every_save(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of methods without slots, which save nothing else; before the state, which must not be ahead of it."""
    events: list[str] = []
    sync, put = TapeWriter.sync, files_module.replace

    def synced(self: TapeWriter) -> None:
        events.append(f"tape {Tape(self.path).steps}")
        sync(self)

    def named(temporary: Path, path: Path) -> None:
        if path.suffix == ".safetensors":
            events.append(path.name)
        put(temporary, path)

    monkeypatch.setattr(TapeWriter, "sync", synced)
    monkeypatch.setattr(files_module, "replace", named)
    train(settings(tiny_model, save_every=4), tmp_path / "sgd", quiet=True)
    assert events == ["tape 4", "tape 6", "tape 6"]
    events.clear()
    train(settings(tiny_model, **ADAM), tmp_path / "adam", quiet=True)
    assert events == ["tape 4", "state.safetensors", "tape 6", "state.safetensors", "tape 6"]


@pytest.mark.parametrize("left", [None, b"", b"ZOTAPE", bytes(4096)], ids=["none", "empty", "part", "zeros"])
def test_a_folder_whose_run_came_to_no_header_starts_again(
    tiny_model: Path, finished: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, left: bytes | None
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished["sgd"][0] / "run.json", run)
    if left is not None:
        (run / "tape.zo").write_bytes(left)
        (run / "metrics.jsonl").write_text('{"step": 0, "evaluations": 0}\n')
    with pytest.raises(RunError, match="the run ended before its first step; start it again without --resume"):
        train(settings(tiny_model), run, resume=True, quiet=True)
    assert train(settings(tiny_model), run, quiet=True)["sha256"] == finished["sgd"][1]["sha256"]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == list(range(7))


@pytest.mark.parametrize("lost", [b"", None])
def test_a_run_that_has_lost_its_tape_is_not_overwritten(
    tiny_model: Path, copy: Callable[[str], Path], lost: bytes | None
) -> None:
    """It was more than begun: metrics.jsonl and the state tell of steps."""
    run = copy("adam")
    (run / "tape.zo").unlink()
    if lost is not None:
        (run / "tape.zo").write_bytes(lost)
    before = contents(run)
    with pytest.raises(RunError, match="already holds a run"):
        train(settings(tiny_model), run, quiet=True)
    with pytest.raises(RunError, match=r"tape.zo has lost steps .*; restore it from a copy, or start again"):
        train(TrainSettings(), run, resume=True, quiet=True)
    assert contents(run) == before


def test_the_next_start_removes_what_a_killed_save_has_left(tiny_model: Path, copy: Callable[[str], Path]) -> None:
    run = copy("sgd")
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours = [".run.json.tmp", "run.json.tmp", "metrics.jsonl.tmp", "state.tmp", ".tmpAb3dE9"]
    ours += [f"weights.{dead.pid}.safetensors.7.tmp"]
    ours += [f"weights.{dead.pid}.safetensors", f"weights.{os.getpid()}.safetensors"]
    theirs = ["notes.tmp", ".tmp", ".tmpfolder1", "weights.safetensors", "my.state.tmp", ".tmp-12345"]
    theirs += [f"weights.{sleeper.pid}.safetensors"]  # a replay under way reads without the lock
    try:
        for name in (*ours, *theirs):
            (run / name).write_bytes(b"x" * 1000)
        (run / ".saving").mkdir()
        (run / ".saving" / ".tmpXyZ123").write_bytes(b"x")
        train(settings(tiny_model, steps=7), run, resume=True, quiet=True)
    finally:
        sleeper.kill()
        sleeper.wait()
    assert {p.name for p in run.iterdir()} == {"run.json", "tape.zo", "metrics.jsonl", *theirs}


KILLED = """
import os, signal, sys, json
import torch
torch.set_num_threads(1)
import safetensors.torch
from pathlib import Path
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train

def dies(tensors, path, metadata):
    Path(path).with_name(".tmpAbCd12").write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)

safetensors.torch.save_file = dies
train(TrainSettings.model_validate(json.loads(sys.argv[1])), sys.argv[2], quiet=True)
"""


def test_a_kill_during_a_save_leaves_nothing_for_ever(
    tiny_model: Path, tmp_path: Path, finished: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    s = settings(tiny_model, **ADAM)
    killed = subprocess.run([sys.executable, "-c", KILLED, json.dumps(s.stored()), str(tmp_path / "run")])
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / ".state.safetensors.saving" / ".tmpAbCd12").exists()
    again = train(s, tmp_path / "run", resume=True, quiet=True)
    assert again["sha256"] == finished["adam"][1]["sha256"]
    files = {"run.json", "tape.zo", "metrics.jsonl", "state.safetensors"}
    assert {p.name for p in (tmp_path / "run").iterdir()} == files


# ---- replay ----------------------------------------------------------------------------------------------------------


def test_a_replay_that_ends_elsewhere_than_the_run_writes_nothing(copy: Callable[[str], Path], tmp_path: Path) -> None:
    run = copy("sgd")
    meta = json.loads((run / "run.json").read_text())
    meta["result"]["sha256"] = "0" * 64
    (run / "run.json").write_text(json.dumps(meta))
    with pytest.raises(RunError, match=r"but the run ended with 0000.*nothing was written"):
        replay(run, None, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()
    assert replay(run, None, tmp_path / "weights", to=5)["steps"] == 5


def test_salvage_replays_the_steps_before_the_damage(
    tiny_model: Path, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    run = copy("sgd")
    expected = replay(run, None, tmp_path / "w4", to=4)["sha256"]
    data = bytearray((run / "tape.zo").read_bytes())
    size = (len(data) - Tape(run / "tape.zo").end) or 94
    data[-2 * size + 30] ^= 1  # in the record before the last
    (run / "tape.zo").write_bytes(data)
    failed = zograd("replay", run, "--out", tmp_path / "failed")
    assert failed.exit_code == 1
    assert "`zograd replay --salvage`" in failed.stderr
    assert not (tmp_path / "failed").exists()
    done = zograd("replay", run, "--out", tmp_path / "salvaged", "--salvage", "--json", "--threads", 1)
    assert done.exit_code == 0, done.stderr
    assert re.search(rf"the 4 steps before it are kept \(\d+ of {len(data)} bytes\)", done.stderr)
    assert json.loads(done.stdout)["sha256"] == expected
    assert (run / "tape.zo").read_bytes() == data


# ---- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["in a step", "in an evaluation", "in the last evaluation"])
def test_a_signal_stops_without_an_evaluation(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """SIGTERM is answered with the end of the step, or of one forward of an evaluation: not with minutes of them."""
    s = settings(tiny_model, steps=5 if when == "in the last evaluation" else 100, eval_every=3)
    evaluated: list[int] = []
    evaluate, after, at = Scorer.evaluate, Loop._after, {"in a step": 2, "in an evaluation": 3}.get(when, 5)

    def counted(self: Scorer, examples: Any, **more: Any) -> Any:
        heed = more.pop("progress", None)

        def progress(n: int) -> None:
            if when != "in a step" and len(evaluated) == (1 if at == 3 else 2):
                os.kill(os.getpid(), signal.SIGTERM)
            heed(n)

        found = evaluate(self, examples, progress=None if heed is None else progress, **more)
        evaluated.append(len(examples))
        return found

    def signalled(self: Loop, record: Any, bar: Any, speed: float) -> bool:
        if when == "in a step" and record.step + 1 == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return after(self, record, bar, speed)

    monkeypatch.setattr(Scorer, "evaluate", counted)
    monkeypatch.setattr(Loop, "_after", signalled)
    summary = train(s, tmp_path / "run", quiet=True)
    assert summary["interrupted"]
    assert summary["steps"] == at == Tape(tmp_path / "run" / "tape.zo").steps
    assert summary["metric_after"] is None
    assert summary["eval_loss_after"] is None
    assert summary["metric"] == "accuracy"
    assert len(evaluated) == {2: 1, 3: 1, 5: 2}[at]  # before the first step, and at step 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(at + 1))
    assert "result" not in json.loads((tmp_path / "run" / "run.json").read_text())
    monkeypatch.undo()
    ended = train(TrainSettings(steps=6), tmp_path / "run", resume=True, quiet=True)
    whole = train(s.model_copy(update={"steps": 6}), tmp_path / "whole", quiet=True)
    assert ended["sha256"] == whole["sha256"]
    assert ended["metric_after"] == whole["metric_after"]


def test_a_stopped_command_says_how_to_evaluate(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zograd", "train", "--model", str(tiny_model), "--task", "mr", "--steps", "100000"]
    command += ["--batch-size", "2", "--dtype", "float32", "--threads", "1", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, "--train-examples", "8", "--eval-examples", "8"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / "run" / "tape.zo").exists() and (tmp_path / "run" / "tape.zo").stat().st_size > 3000:
            process.terminate()
            break
        time.sleep(0.01)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert f"not evaluated since it was stopped: zograd eval --run {tmp_path / 'run'}" in said
    assert "stopped early" in said


# ---- run.json that somebody else wrote -------------------------------------------------------------------------------


def without(meta: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in meta.items() if k != key}


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "empty": (lambda meta: b"", "does not parse"),
    "truncated": (lambda meta: json.dumps(meta).encode()[:200], "does not parse"),
    "bytes": (lambda meta: b"\xff\xfe\x00", "does not parse"),
    "nested": (lambda meta: b"[" * 100_000, "does not parse"),
    "a list": (lambda meta: [1], "has no settings and model"),
    "null": (lambda meta: None, "has no settings and model"),
    "no settings": (lambda meta: without(meta, "settings"), "has no settings and model"),
    "settings of another type": (lambda meta: meta | {"settings": [1]}, "has no settings and model"),
    "no model": (lambda meta: without(meta, "model"), "has no settings and model"),
    "a model that names nothing": (lambda meta: meta | {"model": [{}]}, "names no tensors"),
    "a model of numbers": (lambda meta: meta | {"model": [1]}, "names no tensors"),
    "a name that is a list": (
        lambda meta: meta | {"model": [{"name": [], "shape": [], "dtype": "", "sha256": ""}]}, "names a tensor"
    ),
    "data of another type": (lambda meta: meta | {"data": 5}, "'data' is int, not dict"),
    "a setting that there is not": (lambda meta: meta | {"settings": {"a": 1}}, "no setting 'a'"),
    "a setting of another type": (lambda meta: meta | {"settings": {"lr": []}}, "= []: expected"),
    "an empty object for settings": (lambda meta: meta | {"settings": {}}, "and its tape was recorded with"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_run_json_of_another_shape_is_refused_in_one_sentence(copy: Callable[[str], Path], case: str) -> None:
    make, said = MALFORMED[case]
    run = copy("sgd")
    made = make(json.loads((run / "run.json").read_text()))
    (run / "run.json").write_bytes(made if isinstance(made, bytes) else json.dumps(made).encode())
    before = contents(run)
    for go in (
        lambda: train(TrainSettings(), run, resume=True, quiet=True),
        lambda: replay(run, None, run.parent / "weights"),
    ):
        with pytest.raises(RunError, match=re.escape(said)) as error:
            go()
        assert "run.json" in str(error.value)
    assert contents(run) == before


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def spoilt(draw: st.DrawFn, value: Any) -> Any:
    """Something in plain data exchanged, or taken away."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 3)):
        keys = sorted(value) if isinstance(value, dict) else range(len(value))
        key = draw(st.sampled_from(keys))
        changed = value.copy()
        if draw(st.integers(0, 4)):
            changed[key] = spoilt(draw, value[key])
        else:
            del changed[key]
        return changed
    return draw(json_values)


@hypothesis.settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_run_json_is_read_or_refused(
    finished: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever stands in it, RunError is all that can be raised before a model is loaded."""
    run = finished["sgd"][0]
    meta = json.loads((run / "run.json").read_text())
    meta["model"] = meta["model"][:2]
    shutil.copytree(run, tmp_path / "copy", dirs_exist_ok=True)
    text = json.dumps(spoilt(data.draw, meta)).encode()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.binary(max_size=3)) + text[at + data.draw(st.integers(0, 3)) :]
    (tmp_path / "copy" / "run.json").write_bytes(text)
    with suppress(RunError):
        directory = RunDirectory.open(tmp_path / "copy")
        s = stored_settings(directory)
        check_data(directory.meta, {"sha256": "a"})
        metrics_before(directory.meta)
        directory.tape(fixed=fixed_settings(s))


def test_the_command_line_says_the_same(tiny_model: Path, copy: Callable[[str], Path]) -> None:
    run = copy("sgd")
    (run / "run.json").write_text('{"settings": {"lr"')
    for command in (
        ["train", "--resume", "--out", run],
        ["replay", run, "--out", run.parent / "w"],
        ["eval", "--run", run],
    ):
        failed = zograd(*command)
        assert failed.exit_code == 1
        last = failed.stderr.strip().splitlines()[-1]
        assert last.startswith(f"zograd: {run / 'run.json'} does not parse"), failed.stderr
        assert "restore it from a copy" in last


def test_missing_values_from_before_the_first_step_are_named(copy: Callable[[str], Path]) -> None:
    run = copy("sgd")
    meta = json.loads((run / "run.json").read_text())
    for bad in (
        {},
        {"metric": "accuracy"},
        meta["metrics_before"] | {"value": "high"},
        meta["metrics_before"] | {"more": 1},
    ):
        (run / "run.json").write_text(json.dumps(meta | {"metrics_before": bad}))
        with pytest.raises(RunError, match="no evaluation from before the first step"):
            train(TrainSettings(), run, resume=True, quiet=True)


def test_a_pattern_in_run_json_does_not_hang(tiny_model: Path, copy: Callable[[str], Path]) -> None:
    """With the tape rewritten to agree: the names are matched in bounded time."""
    run = copy("sgd")
    pattern = r"^((\w|\.)+)+!$"
    edit(run, train=pattern)
    tape = Tape(run / "tape.zo")
    header = {**tape.header, "settings": {**tape.header["settings"], "train": pattern}}
    (run / "tape.zo").unlink()
    TapeWriter(run / "tape.zo", header).close()
    with pytest.raises(ValueError, match=r"selects no parameter|takes longer than"):
        replay(run, None, run.parent / "weights")


def test_metrics_that_somebody_else_wrote_stop_no_run(tiny_model: Path, copy: Callable[[str], Path]) -> None:
    run = copy("sgd")
    with open(run / "metrics.jsonl", "a") as f:
        f.write('{"step": "x", "seconds": []}\n[1]\n' + "[" * 50_000 + '\n{"step": null, "seconds": "5"}\n')
    assert train(settings(tiny_model, steps=7), run, resume=True, quiet=True)["steps"] == 7


# ---- helpers of these tests ------------------------------------------------------------------------------------------


def test_the_state_of_a_finished_run_is_read_whole(finished: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    run = finished["adam"][0]
    state, tensors = read_state(run / "state.safetensors", RunDirectory.open(run).tape())
    assert state["step"] == 6
    assert {name.partition(".")[0] for name in tensors} == {"x", "slot"}
    assert resolve(TrainSettings(dtype="float32")).shards == 1
