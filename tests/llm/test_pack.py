"""A run as one small file, and weights from several points of runs: steps left out, means, sums."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from zograd.cli import app
from zograd.core.tape import Tape, TapeError
from zograd.core.tape_columns import from_columns, to_columns
from zograd.llm.evaluate import evaluate
from zograd.llm.pack import pack
from zograd.llm.restore import replay
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.llm.tuned import Tuned
from zograd.runs.errors import RunError
from zograd.runs.packed import Packed

COMMON: dict[str, Any] = {
    "task": "mr", "steps": 5, "batch_size": 4, "train_examples": 12, "eval_examples": 8, "lr": 1e-2, "mu": 1e-2,
    "dtype": "float32", "threads": 1,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "sgd": {"method": "zo_sgd", "lr_schedule": "cosine"},
    "other seed": {"method": "zo_sgd", "seed": 1},
    "spread": {"method": "fzoo", "set": {"n": 2}, "lr": 1e-3},
    "bfloat16": {"method": "fzoo", "set": {"n": 4}, "dtype": "bfloat16", "lr": 1e-3},
    "shared keys": {"method": "lozo", "lr": 1e-3},
    "momentum": {"method": "mezo_momentum", "lr": 1e-3},
    "slots": {"method": "zo_adam", "lr": 1e-3},
    "writes": {"method": "zo_svrg", "lr": 1e-4},
    "lora": {"method": "zo_sgd", "train": "lora"},
    "lora again": {"method": "zo_sgd", "train": "lora", "task": "sms", "lr": 3e-2},
    "given matrices": {"method": "zo_sgd", "train": "lora", "lora_init": "activations"},
    "residual": {"method": "residual", "mu": None, "layers": 2},
    "split": {"method": "backprop", "mu": None, "layers": 2, "dtype": "bfloat16", "rounding": "split"},
    "nodes": {"method": "node_perturbation", "lr": 1e-3, "layers": 1, "dtype": "bfloat16"},
}
DIFFERENCE = {"residual", "split", "nodes"}


class Runs(dict[str, Path]):
    """Finished runs by kind, each trained when it is first asked for."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder

    def __missing__(self, kind: str) -> Path:
        s = {k: v for k, v in {**COMMON, **KINDS[kind], "model": str(self.model)}.items() if v is not None}
        train(TrainSettings.model_validate(s), self.folder / kind, quiet=True)
        self[kind] = self.folder / kind
        return self[kind]


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Runs(tiny_model, tmp_path_factory.mktemp("runs"))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def zograd(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stdout, done.stderr


# ---- the file --------------------------------------------------------------------------------------------------------


SLOW = {"lora again", "other seed", "spread", "momentum", "slots", "nodes"}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow if k in SLOW else ()) for k in KINDS])
def test_a_packed_run_gives_the_bits_of_the_folder(runs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    made = pack(runs[kind], tmp_path / "run.zopack")
    assert made["kind"] == ("difference" if kind in DIFFERENCE else "tape")
    assert made["bytes"] == (tmp_path / "run.zopack").stat().st_size
    shutil.copytree(runs[kind], tmp_path / "folder")
    found = replay(tmp_path / "run.zopack", None, tmp_path / "a")
    replay(tmp_path / "folder", None, tmp_path / "b")
    summary = json.loads((runs[kind] / "run.json").read_text())["result"]
    assert found["sha256"] == made["sha256"] == summary["sha256"]
    assert (found["steps"], found["evaluations"]) == (5, summary["evaluations"])
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    tape = Packed.open(tmp_path / "run.zopack").tape()
    assert tape.records == Tape(runs[kind] / "tape.zo").records


def test_another_process_rebuilds_the_weights_where_the_run_is_not(
    runs: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """The base model and nothing else: another copy of it, in another folder."""
    code, out, err = zograd("pack", runs["sgd"], "--out", tmp_path / "a.zopack", "--json")
    assert code == 0, err
    shutil.copytree(tiny_model, tmp_path / "elsewhere")
    code_of = "import sys; from zograd.cli import main; main()"
    command = ["replay", "a.zopack", "--model", "elsewhere", "--out", "weights", "--json", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code_of, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["sha256"] == json.loads(out)["sha256"]
    replay(runs["sgd"], None, tmp_path / "here")
    here, there = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("here", "weights"))
    assert here == there


@pytest.mark.parametrize("kind", ["sgd", "residual"])
def test_another_base_model_is_refused_by_its_first_tensor(
    runs: dict[str, Path], other_tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    pack(runs[kind], tmp_path / "a.zopack")
    with pytest.raises(RunError, match=r"is not the base model of this run: tensor 'model.embed_tokens.weight' has"):
        replay(tmp_path / "a.zopack", str(other_tiny_model), tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_digests_are_compared_whole(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only their first digits name tensors, but the digest of all of them has to fit."""
    import zograd.llm.restore as module

    pack(runs["sgd"], tmp_path / "a.zopack")
    real = module.identity

    def altered(*arguments: Any) -> list[dict[str, Any]]:
        found = real(*arguments)
        found[3]["sha256"] = found[3]["sha256"][:16] + "0" * 48
        return found

    monkeypatch.setattr(module, "identity", altered)
    with pytest.raises(RunError, match="a digest of its tensors differs behind its start"):
        replay(tmp_path / "a.zopack", None, tmp_path / "weights")


def test_a_packed_run_evaluates_and_answers(runs: dict[str, Path], tmp_path: Path) -> None:
    pack(runs["residual"], tmp_path / "a.zopack")
    both = [evaluate(None, None, run, split="test", examples=8) for run in (runs["residual"], tmp_path / "a.zopack")]
    assert both[0] == both[1]
    texts = ["a good film", "bad"]
    assert Tuned(tmp_path / "a.zopack").predict(texts) == Tuned(runs["residual"]).predict(texts)


def test_a_run_that_was_stopped_is_packed_with_what_it_has(
    runs: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """Its run.json knows no end, so the digest comes from a replay."""
    shutil.copytree(runs["sgd"], tmp_path / "run")
    meta = json.loads((tmp_path / "run" / "run.json").read_text())
    sha256 = meta.pop("result")["sha256"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(meta))
    assert pack(tmp_path / "run")["sha256"] == sha256
    assert (tmp_path / "run.zopack").exists()


def test_what_people_see(runs: dict[str, Path], tmp_path: Path) -> None:
    _, out, _ = zograd("pack", runs["sgd"], "--out", tmp_path / "a.zopack")
    assert "bytes (the tape of 5 steps of zo_sgd, without loss; base model" in out
    _, out, _ = zograd("pack", runs["residual"], "--out", tmp_path / "b.zopack")
    assert "(the exact difference of" in out
    assert "since the tape of residual does not give them back" in out


def rewritten(file: Path, **changes: Any) -> None:
    """The same pack with other entries, and right checksums."""
    data = file.read_bytes()[:-32]
    (size,) = struct.unpack("<Q", data[-8:])
    text = lzma.decompress(data[-8 - size : -8])
    (length,) = struct.unpack_from("<I", text)
    about = json.dumps(json.loads(text[4 : 4 + length]) | changes).encode()
    packed = lzma.compress(struct.pack("<I", len(about)) + about + text[4 + length :])
    body = data[: -8 - size] + packed + struct.pack("<Q", len(packed))
    file.write_bytes(body + hashlib.sha256(body).digest())


def test_damage_is_named_and_nothing_is_written(runs: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "a.zopack"
    pack(runs["residual"], file)
    whole = file.read_bytes()
    for name, data, says in [
        ("a bit", whole[:900] + bytes([whole[900] ^ 4]) + whole[901:], "is damaged"),
        ("the end", whole[:-1], "is damaged"),
        ("nearly all", whole[:20], "is damaged"),
        (
            "the version",
            whole[:6] + b"\x07\x00" + whole[8:],
            "is a packed run of version 7; this zograd reads version 1",
        ),
    ]:
        file.write_bytes(data)
        with pytest.raises(RunError, match=says):
            replay(file, None, tmp_path / name)
        assert not (tmp_path / name).exists()
    for changes in (
        {"sections": [["x.a", 1 << 40]]}, {"sections": None}, {"model": 3}, {"base": None}, {"result": {}},
        {"settings": 1}, {"trained": ["a"]}, {"model": [["a", [1], "float32", "00"]]},
    ):  # fmt: skip
        file.write_bytes(whole)
        rewritten(file, **changes)
        with pytest.raises(RunError):
            replay(file, None, tmp_path / "weights")
    file.write_bytes(whole)
    rewritten(file, result={"steps": 5, "sha256": "0"})
    with pytest.raises(RunError, match="the replayed weights have SHA-256"):
        replay(file, None, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("kind", ["sgd", "shared keys", "writes"])
def test_columns_give_the_tape_back_and_damage_raises(runs: dict[str, Path], kind: str) -> None:
    tape = Tape(runs[kind] / "tape.zo").bytes()
    columns = to_columns(tape)
    assert from_columns(columns) == tape
    assert columns[0] == 1
    if kind != "writes":  # five records of one length, whose keys are zero
        assert len(lzma.compress(columns)) < len(lzma.compress(tape)) - 5 * 7
    for cut in range(0, len(columns), 37):
        with pytest.raises(TapeError):
            from_columns(columns[:cut])
    with pytest.raises(TapeError):
        from_columns(b"\x02" + columns[1:])


def test_a_tape_without_a_seed_is_packed_as_it_stands(tmp_path: Path, runs: dict[str, Path]) -> None:
    from zograd.core.tape import TapeWriter

    with TapeWriter(tmp_path / "tape.zo", {"seed": "none"}) as writer:
        for record in Tape(runs["sgd"] / "tape.zo").records:
            writer.append(record)
    tape = (tmp_path / "tape.zo").read_bytes()
    assert to_columns(tape)[0] == 0
    assert from_columns(to_columns(tape)) == tape


def test_what_cannot_be_packed(runs: dict[str, Path], tmp_path: Path) -> None:
    pack(runs["residual"], tmp_path / "a.zopack")
    for arguments, says in [
        (("pack", tmp_path / "a.zopack"), "is packed already"),
        (("pack", runs["sgd"], "--out", tmp_path / "a.zopack"), "exists; choose another --out"),
        (("pack", runs["sgd"], "--out", tmp_path / "no" / "a.zopack"), "there is no folder"),
        (("pack", tmp_path), "holds no run"),
        (("replay", tmp_path / "a.zopack", "--to", 2, "--out", tmp_path / "w"), "is of step 5, not 2"),
        (("replay", tmp_path / "a.zopack", "--out", tmp_path / "a.zopack"), "is a file; choose a new folder"),
        (("train", "--out", tmp_path / "a.zopack", "--resume", "--task", "mr"), "a.zopack is a file"),
    ]:
        code, out, err = zograd(*arguments)
        assert (code, out) == (1, ""), err
        assert says in err.splitlines()[-1], err  # behind the line of the imports, if they were slow
    assert {p.name for p in tmp_path.iterdir()} == {"a.zopack"}


@pytest.mark.slow
@pytest.mark.model
def test_a_fine_tune_of_500_steps_is_20_kilobytes(tmp_path: Path) -> None:
    s = TrainSettings(
        model="smollm2-135m", task="mr", method="zo_sgd", train="mlp", layers=1, steps=500, batch_size=8, lr=1e-3,
        lr_schedule="cosine", train_examples=200, eval_examples=20,
    )  # fmt: skip
    train(s, tmp_path / "run", quiet=True)
    assert pack(tmp_path / "run", tmp_path / "a.zopack")["bytes"] < 20_000
    replay(tmp_path / "a.zopack", None, tmp_path / "weights")  # which compares with the digest of the run


# ---- weights from several points -------------------------------------------------------------------------------------


def at_steps(run: Path, folder: Path, steps: range) -> list[dict[str, Tensor]]:
    found = []
    for step in steps:
        replay(run, None, folder / f"step{step}", to=step)
        found.append(weights(folder / f"step{step}"))
    return found


@pytest.mark.parametrize("kind", ["sgd", "spread"])
def test_a_step_is_taken_out(runs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """The end less its move; taking the last ones out is stopping before them, bit by bit."""
    states = at_steps(runs[kind], tmp_path, range(6))
    result = replay(runs[kind], None, tmp_path / "without", undo=[2])
    assert result["undo"] == [2]
    for name, found in weights(tmp_path / "without").items():
        expected = states[5][name] - (states[2][name] - states[1][name])
        assert torch.allclose(found, expected, rtol=0, atol=3e-7), name
        assert not torch.equal(states[2][name], states[1][name])
    replay(runs[kind], None, tmp_path / "three", undo=[4, 5])
    assert all(torch.equal(t, states[3][name]) for name, t in weights(tmp_path / "three").items())
    assert json.loads((tmp_path / "three" / "zograd.json").read_text())["undo"] == [4, 5]


@pytest.mark.parametrize("kind", ["sgd", "momentum", "bfloat16"])
def test_the_mean_of_the_last_steps(runs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    states = at_steps(runs[kind], tmp_path, range(3, 6))
    code, out, err = zograd("replay", runs[kind], "--average", 3, "--out", tmp_path / "mean", "--json")
    assert code == 0, err
    assert json.loads(out)["average"] == 3
    for name, found in weights(tmp_path / "mean").items():
        expected = torch.stack([state[name].float() for state in states]).mean(0)
        assert torch.allclose(found.float(), expected, rtol=2**-8 if kind == "bfloat16" else 0, atol=1e-6), name
    assert not torch.equal(
        weights(tmp_path / "mean")["model.embed_tokens.weight"], states[2]["model.embed_tokens.weight"]
    )


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_runs_are_added(runs: dict[str, Path], tiny_model: Path, tmp_path: Path, how: str) -> None:
    """A folder and a packed run, of one base model."""
    pack(runs["residual"], tmp_path / "c.zopack")
    sources = [runs["sgd"], runs["other seed"]]
    ends = []
    for k, run in enumerate(sources):
        replay(run, None, tmp_path / str(k))
        ends.append(weights(tmp_path / str(k)))
    pack(runs["sgd"], tmp_path / "a.zopack")
    code, _, err = zograd("replay", tmp_path / "a.zopack", sources[1], "--merge", how, "--out", tmp_path / "merged")
    assert code == 0, err
    base = weights(tiny_model)
    for name, found in weights(tmp_path / "merged").items():
        changes = sum((end[name] - base[name] for end in ends), torch.zeros(()))
        assert torch.allclose(found, base[name] + changes * (1.0 if how == "sum" else 0.5), rtol=0, atol=3e-7), name
    note = json.loads((tmp_path / "merged" / "zograd.json").read_text())
    assert (note["merge"], len(note["run"])) == (how, 2)


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_of_lora_runs_the_products_are_added(runs: dict[str, Path], tiny_model: Path, tmp_path: Path, how: str) -> None:
    """And not the factors, whose product would have terms of both runs."""
    ends = []
    for kind in ("lora", "lora again"):
        replay(runs[kind], None, tmp_path / kind)
        ends.append(weights(tmp_path / kind))
    code, _, err = zograd("replay", runs["lora"], runs["lora again"], "--merge", how, "--out", tmp_path / "merged")
    assert code == 0, err
    base, moved = weights(tiny_model), 0
    for name, found in weights(tmp_path / "merged").items():
        changes = [end[name] - base[name] for end in ends]
        expected = base[name] + sum(changes, torch.zeros(())) * (1.0 if how == "sum" else 0.5)
        assert torch.allclose(found, expected, rtol=0, atol=3e-7), name
        moved += sum(bool(change.abs().max() > 1e-4) for change in changes)
    assert moved > 2


REFUSED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "no such step": (["sgd"], {"undo": [6]}, "--undo 6: there are the steps 1 to 5"),
    "step 0": (["sgd"], {"undo": [0]}, "--undo 0: there are the steps 1 to 5"),
    "after --to": (["sgd"], {"undo": [4], "to": 3}, "there are the steps 1 to 3"),
    "momentum": (["momentum"], {"undo": [2]}, "a step of mezo_momentum changes what later steps do"),
    "anchors": (["writes"], {"undo": [2]}, "a step of zo_svrg changes what later steps do"),
    "no tape": (["residual"], {"undo": [2]}, "so no step of it can be left out"),
    "mean without a tape": (["residual"], {"average": 2}, "so no step of it can be averaged"),
    "too many": (["sgd"], {"average": 6}, "--average 6: there are 5 steps"),
    "several runs": (["sgd", "other seed"], {}, "2 runs give one model with --merge sum or --merge mean"),
    "one run": (["sgd"], {"merge": "sum"}, "--merge takes several runs"),
    "merge and stop": (["sgd", "other seed"], {"merge": "sum", "to": 2}, "--merge takes several runs, each whole"),
    "other tensors": (["sgd", "residual"], {"merge": "mean"}, "the runs train different tensors"),
    "adapters": (["sgd", "lora"], {"merge": "mean"}, "trained .*, and .* trained lora: only runs that trained tensors"),
    "other dtype": (["sgd", "bfloat16"], {"merge": "mean"}, "is not the base model of this run: .* has dtype"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_are_not_defined_are_refused(runs: dict[str, Path], tmp_path: Path, case: str) -> None:
    names, arguments, says = REFUSED[case]
    with pytest.raises((SettingsError, RunError), match=says):
        replay([runs[name] for name in names], None, tmp_path / "weights", **arguments)
    assert not (tmp_path / "weights").exists()
