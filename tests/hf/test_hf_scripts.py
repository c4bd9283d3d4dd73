"""First-order scripts become forward-only by two lines: they learn, resume, and report what `zograd eval` does."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.families import saved, with_marks
from zograd.llm.evaluate import evaluate

datasets = pytest.importorskip("datasets")

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).with_name("scripts")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:trl"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:torch"),
]


@dataclass(frozen=True)
class Script:
    """A script: the trainer that it calls, its model, its data, the rate, and how `zograd eval` reads the same data."""

    trainer: str
    family: str
    auto: str
    suffix: str
    lr: str
    asked: dict[str, Any]


SHAPES = {
    "classify": Script(
        "Trainer", "bert", "AutoModelForSequenceClassification", ".csv", "4e-3", {"prompt_template": "{text}"}
    ),
    "language": Script("Trainer", "llama", "AutoModelForCausalLM", ".txt", "2e-2", {}),
    "sft": Script("SFTTrainer", "llama", "AutoModelForCausalLM", ".jsonl", "1e-2", {}),
}


def lines(name: str, count: int, seed: int) -> str:
    """Data of one kind: a word decides the label, or what comes next."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        good, subject = rng.randrange(2), rng.choice(["the movie", "a film", "it", "the plot"])
        word = "good" if good else "bad"
        if name == "classify":
            found.append(f"{subject} was very {word},{good}")
        elif name == "language":
            found.append(f"{subject} was very {word} and very {word}")
        else:
            found.append(json.dumps({"prompt": f"{subject} was {word} :", "completion": f" very {word}"}))
    return "\n".join((["text,label"] if name == "classify" else []) + found) + "\n"


def changed(name: str) -> str:
    """The script with one new line and one changed line."""
    before = (SCRIPTS / f"{name}.py").read_text()
    trainer = SHAPES[name].trainer
    after = before.replace(f"    trainer = {trainer}(\n", f"    trainer = forward_only({trainer})(\n")
    after = after.replace("\nimport datasets\n", "\nimport datasets\nfrom zograd.hf import forward_only\n", 1)
    old, new = before.splitlines(), after.splitlines()
    assert len(new) == len(old) + 1
    assert len([line for line in new if line not in old]) == 2
    return after


@dataclass(frozen=True)
class Place:
    """A changed script with its model and data in a folder."""

    name: str
    folder: Path

    def arguments(self, out: str, *more: str) -> list[str]:
        suffix = SHAPES[self.name].suffix
        return [
            "--model_name_or_path", str(self.folder / "model"), "--train_file", str(self.folder / f"train{suffix}"),
            "--validation_file", str(self.folder / f"dev{suffix}"), "--cache_dir", str(self.folder / "cache"),
            "--output_dir", str(self.folder / out), "--max_steps", "60", "--per_device_train_batch_size", "8",
            "--per_device_eval_batch_size", "1", "--learning_rate", SHAPES[self.name].lr, "--save_steps", "30",
            "--logging_steps", "3", "--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true",
            *(["--bf16", "false"] if self.name == "sft" else []), *more,
        ]  # fmt: skip

    def run(self, monkeypatch: pytest.MonkeyPatch, capsys: Any, out: str, *more: str) -> dict[str, Any]:
        """What the script prints at its end."""
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["script.py", *self.arguments(out, *more)])
        runpy.run_path(str(self.folder / "script.py"), run_name="__main__")
        last = next(x for x in reversed(capsys.readouterr().out.splitlines()) if x.startswith('{"eval'))
        return dict(json.loads(last))

    def weights(self, out: str) -> str:
        return hashlib.sha256((self.folder / out / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(params=[*SHAPES])
def place(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path) -> Place:
    from transformers import AutoTokenizer

    name, shape = request.param, SHAPES[request.param]
    if name == "sft":
        pytest.importorskip("trl")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"eos_token": "<eos>"})
    tokenizer.model_max_length = 128
    saved(tmp_path / "model", shape.family, with_marks(tokenizer) if name == "classify" else tokenizer, shape.auto)
    for part, count, seed in (("train", 48, 0), ("dev", 12, 1)):
        (tmp_path / f"{part}{shape.suffix}").write_text(lines(name, count, seed))
    (tmp_path / "script.py").write_text(changed(name))
    return Place(name, tmp_path)


def test_a_script_learns_resumes_and_reports_what_zograd_does(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shape = SHAPES[place.name]
    dev = str(place.folder / f"dev{shape.suffix}")
    before = evaluate(str(place.folder / "model"), dev, None, split="all", dtype="float32", **shape.asked)
    found = place.run(monkeypatch, capsys, "whole")
    after = evaluate(str(place.folder / "whole"), dev, None, split="all", dtype="float32", **shape.asked)
    assert found["eval_loss"] == pytest.approx(after["loss"], rel=1e-4)
    assert found["eval_loss"] < 0.9 * before["loss"]
    if place.name == "classify":
        assert found["eval_accuracy"] == after["value"] == 1.0
    shutil.copytree(place.folder / "whole" / "checkpoint-30", place.folder / "part" / "checkpoint-30")
    again = place.run(monkeypatch, capsys, "part", "--resume", "true")
    assert place.weights("part") == place.weights("whole")
    assert again["eval_loss"] == found["eval_loss"]


KILLING = """
import os, signal, transformers
class Kill(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        if state.global_step == 40:
            os.kill(os.getpid(), signal.SIGKILL)
transformers.trainer.DEFAULT_CALLBACKS.append(Kill)
"""


@pytest.mark.slow
def test_a_killed_script_resumes_to_the_same_bits(place: Place) -> None:
    def ended(out: str, *more: str, kill: bool = False) -> int:
        code = (KILLING if kill else "") + f"import runpy; runpy.run_path({str(place.folder / 'script.py')!r}, " \
            "run_name='__main__')"  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, *place.arguments(out, *more)]
        return subprocess.run(command, capture_output=True, env=environment, timeout=600).returncode

    assert ended("whole") == 0
    assert ended("part", kill=True) == -signal.SIGKILL
    assert {p.name for p in (place.folder / "part").iterdir() if re.match("checkpoint", p.name)} == {"checkpoint-30"}
    assert ended("part", "--resume", "true") == 0
    assert place.weights("part") == place.weights("whole")
