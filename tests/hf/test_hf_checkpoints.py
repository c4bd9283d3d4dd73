"""Checkpoints hold the tape, a resumed training ends with the same bits, and what does not fit changes nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import zograd as zo
from tests.hf.helpers import Forward, arguments, digest, llama, rows
from zograd.core.tape import Tape, TapeError
from zograd.runs.errors import RunError


def trainer_of(folder: Path, model: Any = None, *, method: Any = "fzoo", lr: Any = 1e-3, **settings: Any) -> Any:
    given = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    return Forward(
        model=llama() if model is None else model, args=arguments(folder, **(given | settings)), train_dataset=rows(),
        method=method, lr=lr,
    )  # fmt: skip


METHODS: dict[str, tuple[Any, Any]] = {
    "zo_sgd, measured": ("zo_sgd", "auto"),
    "fzoo": ("fzoo", 1e-3),
    "zo_adam": ("zo_adam", 1e-3),
    "momentum": ("mezo_momentum", 1e-3),
    "agzo": ("agzo", 1e-3),
    "residual": ("residual", 1e-3),
    "backprop": ("backprop", 1e-3),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, name: str) -> None:
    method, lr = METHODS[name]
    whole = trainer_of(tmp_path / "whole", method=method, lr=lr)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    rest = trainer_of(tmp_path / "part", llama(seed=5), method=method, lr=lr)  # the weights come from the checkpoint
    rest.train(resume_from_checkpoint=True)
    assert digest(rest.model) == digest(whole.model)
    assert rest._zo.run.evaluations == whole._zo.run.evaluations
    tapes = [folder / "checkpoint-8" / "tape.zo" for folder in (tmp_path / "whole", tmp_path / "part")]
    assert tapes[0].read_bytes() == tapes[1].read_bytes()


def test_sixteen_bit_weights_resume_with_their_low_halves(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole", llama().to(torch.bfloat16))
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "part" / "checkpoint-6")
    rest = trainer_of(tmp_path / "part", llama().to(torch.bfloat16))
    rest.train(resume_from_checkpoint=True)
    assert digest(rest.model) == digest(whole.model)


@pytest.mark.parametrize("name", ["zo_sgd, measured", "fzoo", "zo_adam"])
def test_the_tape_of_a_checkpoint_gives_its_weights(tmp_path: Path, name: str) -> None:
    method, lr = METHODS[name]
    trainer = trainer_of(tmp_path, method=method, lr=lr)
    trainer.train()
    tape = Tape(tmp_path / "checkpoint-8" / "tape.zo")
    assert tape.steps == 8
    base = llama()
    run = zo.Run(zo.Store(dict(base.named_parameters())), trainer._zo.method, seed=tape.header["seed"])
    run.replay(tape.records)
    assert run.store.digest() == trainer._zo.store.digest()
    assert tape.header["method"] == trainer._zo.method.name


def test_a_model_that_is_saved_has_its_tape(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", save_strategy="no")
    trainer.train()
    for _ in range(2):  # the second takes the place of the first
        trainer.save_model(str(tmp_path / "final"))
    assert Tape(tmp_path / "final" / "tape.zo").steps == 8
    assert {p.name for p in (tmp_path / "final").iterdir() if "tape" in p.name} == {"tape.zo"}


def test_the_tape_of_the_best_model_ends_where_its_weights_stand(tmp_path: Path) -> None:
    """The metric is such that the first weights are the best."""
    args = arguments(
        tmp_path, max_steps=6, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = Forward(
        model=llama(), args=args, train_dataset=rows(), eval_dataset=rows(8, seed=2), method="zo_sgd", lr=1e-2
    )
    trainer.train()
    best = trainer.state.best_global_step
    assert best < 6
    trainer.save_model(str(tmp_path / "final"))
    tape = Tape(tmp_path / "final" / "tape.zo")
    assert tape.steps == best
    run = zo.Run(zo.Store(dict(llama().named_parameters())), zo.methods.zo_sgd(lr=1e-2), seed=3)
    run.replay(tape.records)
    assert run.store.digest() == zo.Store(dict(trainer.model.named_parameters())).digest()
    trainer.train()
    assert [record.step for record in trainer._zo.records][:2] == [0, 1]  # a new run, from these weights


def test_training_goes_on_in_a_second_call(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, save_strategy="no")
    trainer.train()
    trainer.train()
    assert [record.step for record in trainer._zo.records] == list(range(16))


def refused(folder: Path, error: type[Exception], match: str, **settings: Any) -> None:
    model = llama(seed=5)
    before = digest(model)
    trainer = trainer_of(folder, model, **settings)
    with pytest.raises(error, match=match):
        trainer.train(resume_from_checkpoint=True)
    assert digest(model) == before
    assert all(p.requires_grad for p in model.parameters())


def test_a_checkpoint_of_another_training_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    trainer_of(tmp_path, max_steps=4).train()
    refused(tmp_path, RunError, "recorded with method = 'fzoo', and here it is 'zo_sgd'", method="zo_sgd")
    refused(tmp_path, RunError, "recorded with seed = 3, and here it is 4", seed=4)
    refused(tmp_path, RunError, "recorded with mu = ", method=zo.methods.fzoo(lr=1e-3, mu=0.5), lr=None)
    tape = tmp_path / "checkpoint-4" / "tape.zo"
    data = bytearray(tape.read_bytes())
    data[len(data) // 2] ^= 1
    tape.write_bytes(bytes(data))
    refused(tmp_path, TapeError, "tape.zo")
    tape.unlink()
    refused(tmp_path, RunError, "has no tape.zo: it is no checkpoint of a forward-only Trainer")


def test_a_checkpoint_without_the_state_of_the_method_is_refused(tmp_path: Path) -> None:
    trainer_of(tmp_path, save_only_model=True, max_steps=4).train()
    with pytest.raises(RunError, match=r"the state of a method after 0: its optimizer\.pt is missing"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)


def test_the_model_card_names_method_and_tape(tmp_path: Path) -> None:
    import hashlib

    trainer = trainer_of(tmp_path, max_steps=4)
    trainer.train()
    trainer.save_model()
    for _ in range(2):
        trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert card.count("## Forward-only training") == 1
    assert "by fzoo, lr 0.001 (as given)" in card
    assert f"SHA-256 `{hashlib.sha256((tmp_path / 'tape.zo').read_bytes()).hexdigest()}`" in card
    assert f"{trainer._zo.run.evaluations} evaluations of the loss" in card


SCRIPT = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from tests.hf.helpers import digest
    from tests.hf.test_hf_checkpoints import trainer_of
    from transformers import TrainerCallback
    import os, signal

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **rest):
            if {kill} and state.global_step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer = trainer_of(Path({folder!r}))
    trainer.add_callback(Kill())
    trainer.train(resume_from_checkpoint={resume})
    print(digest(trainer.model))
"""


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]

    def ended(folder: str, kill: bool, resume: bool) -> subprocess.CompletedProcess[str]:
        code = textwrap.dedent(SCRIPT).format(root=str(root), folder=str(tmp_path / folder), kill=kill, resume=resume)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)

    whole = ended("whole", kill=False, resume=False)
    assert ended("part", kill=True, resume=False).returncode == -signal.SIGKILL
    rest = ended("part", kill=False, resume=True)
    assert rest.stdout.split()[-1] == whole.stdout.split()[-1]
