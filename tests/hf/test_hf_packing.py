"""`zograd pack` of what a forward-only Trainer saved: a tape or a difference, from which `replay` gives the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import zograd as zo
from tests.hf.helpers import arguments, rows
from zograd.cli import app
from zograd.hf import forward_only
from zograd.hf.packing import pack_checkpoint
from zograd.llm.evaluate import evaluate
from zograd.llm.restore import replay
from zograd.llm.tuned import Tuned
from zograd.runs.errors import RunError


def saved(model: Path, folder: Path, *, method: Any, lr: Any = 1e-3, dtype: Any = torch.float32, **more: Any) -> Path:
    """The last checkpoint of a short training that began with `model`."""
    trainer = forward_only(transformers.Trainer)(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=dtype),
        args=arguments(folder, max_steps=4, save_strategy="steps", save_steps=2, **more),
        train_dataset=rows(), processing_class=AutoTokenizer.from_pretrained(model), method=method, lr=lr,
    )  # fmt: skip
    trainer.train()
    return folder / "checkpoint-4"


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "fzoo": ({"method": "fzoo"}, "tape"),
    "zo_adam": ({"method": "zo_adam"}, "tape"),
    "weight decay": ({"method": "fzoo", "weight_decay": 0.1}, "difference"),
    "settings of its own": ({"method": zo.methods.fzoo(lr=1e-3, n=3), "lr": None}, "difference"),
    "residual": ({"method": "residual"}, "difference"),
    "bfloat16": ({"method": "fzoo", "dtype": torch.bfloat16}, "tape"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_packed_checkpoint_gives_its_weights(tiny_model: Path, tmp_path: Path, name: str) -> None:
    given, kind = CASES[name]
    checkpoint = saved(tiny_model, tmp_path / "run", **given)
    done = pack_checkpoint(checkpoint, tmp_path / "a.zopack", str(tiny_model))
    assert (done["kind"], done["steps"], done["bytes"]) == (kind, 4, (tmp_path / "a.zopack").stat().st_size)
    if kind == "tape":
        assert done["bytes"] < 8000
    found = replay(tmp_path / "a.zopack", None, tmp_path / "weights")
    assert found["sha256"] == done["sha256"]
    mine, theirs = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
        for folder in (tmp_path / "weights", checkpoint)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_a_packed_checkpoint_knows_and_what_it_does_not(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = saved(tiny_model, tmp_path / "run", method=zo.methods.fzoo(lr=1e-3, n=3), lr=None)
    printed = CliRunner().invoke(app, ["pack", str(checkpoint), "--model", str(tiny_model), "--json"])
    done = json.loads(printed.stdout.splitlines()[-1])
    assert (done["path"], done["method"]) == (str(checkpoint.with_name("checkpoint-4.zopack")), "fzoo")
    tuned = Tuned(done["path"])
    own = Tuned(str(checkpoint))
    assert tuned.generate(["it was"], max_new_tokens=4)[0].text == own.generate(["it was"], max_new_tokens=4)[0].text
    assert evaluate(None, "mr", Path(done["path"]), examples=8)["steps"] == 4
    with pytest.raises(ValueError, match="There is no task named 'the data of checkpoint-4'"):
        evaluate(None, None, Path(done["path"]))
    with pytest.raises(RunError, match="holds a difference of weights, not their steps"):
        replay(done["path"], None, tmp_path / "other", undo=[1])
    with pytest.raises(RunError, match="the file holds the weights of its end alone"):
        replay(done["path"], None, tmp_path / "other", to=2)


def test_what_cannot_be_packed_is_refused(tiny_model: Path, other_tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = saved(tiny_model, tmp_path / "run", method="fzoo")
    with pytest.raises(RunError, match="give it with --model"):
        pack_checkpoint(checkpoint, tmp_path / "a", None)
    with pytest.raises(RunError, match=r"is not the model with which the training of .* began"):
        pack_checkpoint(checkpoint, tmp_path / "a", str(other_tiny_model))
    (checkpoint / "adapter_config.json").write_text("{}")
    with pytest.raises(RunError, match="holds adapters, which are small as they are"):
        pack_checkpoint(checkpoint, tmp_path / "a", str(tiny_model))
    (checkpoint / "adapter_config.json").unlink()
    next(checkpoint.glob("*.safetensors")).unlink()
    with pytest.raises(RunError, match="has no weights"):
        pack_checkpoint(checkpoint, tmp_path / "a", str(tiny_model))
    assert not (tmp_path / "a").exists()
