"""LoRA on the inputs of layers: A is their leading directions and fixed, and runs replay without forwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zograd.hub import Example
from zograd.llm import loading, lora_init
from zograd.llm.build import set_up
from zograd.llm.restore import replay, restore
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.runs.errors import RunError


def settings(model: Path, **more: Any) -> TrainSettings:
    common = {
        "model": str(model), "task": "mr", "method": "zo_sgd", "train": "lora", "lora_init": "activations",
        "lora_r": 4, "dtype": "float32", "threads": 1, "batch_size": 8, "steps": 6, "train_examples": 40,
        "eval_examples": 10, "lr": 1e-2,
    }  # fmt: skip
    return TrainSettings.model_validate({**common, **more})


def by_hand(model: nn.Module, scorer: Scorer, batches: list[list[Example]]) -> dict[str, torch.Tensor]:
    """All rows that enter each adapted layer, without the positions that hold no token."""
    rows: dict[str, list[torch.Tensor]] = {}
    hooks = [
        m.register_forward_pre_hook(lambda _, args, name=name: rows.setdefault(name, []).append(args[0].clone()))
        for name, m in lora_init.adapters(model).items()
    ]
    for batch in batches:
        for example in batch:  # one at a time: no padding
            scorer.losses([example])
    for h in hooks:
        h.remove()
    return {name: torch.cat([x.flatten(0, 1) for x in parts]) for name, parts in rows.items()}


def test_A_spans_the_leading_inputs_and_the_model_is_the_base_model(tiny_model: Path, tmp_path: Path) -> None:
    work = set_up(settings(tiny_model, lora_targets=["q_proj", "down_proj"]), tmp_path)
    model, scorer = work.prepared.model, work.scorer
    batches = [work.batches[k] for k in range(lora_init.BATCHES)]
    plain = Scorer(loading.load(str(tiny_model), dtype="float32")[0], work.prepared.tokenizer, scorer.task)
    for batch in batches:
        assert torch.equal(scorer.losses(batch), plain.losses(batch))
    found = by_hand(model, scorer, batches)
    assert len(found) == 8
    for name, x in found.items():
        a = lora_init.adapters(model)[name].weight
        torch.testing.assert_close(a @ a.T, torch.eye(4), atol=1e-5, rtol=0)
        kept, best = (x @ a.T).square().sum(), torch.linalg.svdvals(x)[:4].square().sum()
        assert 0.98 < float(kept / best) <= 1.00001  # sketches of r + 8 vectors were merged
    assert all(".lora_B." in name for name in work.prepared.trained)
    assert len(work.prepared.trained) == 8


def test_layers_and_quantities_are_those_of_the_adapters(tiny_model: Path, tmp_path: Path) -> None:
    done = train(settings(tiny_model, layers=1, steps=2), tmp_path / "run", quiet=True)
    assert done["trained"] == 4 * (32 + 16)  # B of q_proj and of v_proj, whose heads are shared


def test_gradients_from_blocks_train_B_alone(tiny_model: Path, tmp_path: Path) -> None:
    done = train(settings(tiny_model, method="residual", steps=12), tmp_path / "run", quiet=True)
    assert done["loss_last"] < done["loss_first"]
    assert done["trained"] == 4 * 4 * (32 + 16)


def test_a_run_resumes_and_replays_without_forwards(tiny_model: Path, tmp_path: Path) -> None:
    whole = train(settings(tiny_model, steps=8, method="zo_adam"), tmp_path / "whole", quiet=True)
    run = tmp_path / "run"
    train(settings(tiny_model, steps=5, method="zo_adam"), run, quiet=True)
    resumed = train(settings(tiny_model, steps=8, method="zo_adam"), run, resume=True, quiet=True)
    assert resumed["sha256"] == whole["sha256"]
    assert replay(run, None, tmp_path / "weights")["sha256"] == whole["sha256"]


def test_a_file_that_is_lost_or_changed_is_not_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings(tiny_model, steps=3), run, quiet=True)
    file = run / lora_init.FILE
    good = file.read_bytes()
    file.write_bytes(good[:-4] + b"\x00\x00\x00\x3f")
    with pytest.raises(RunError, match=r"is not the base model of this run: tensor .*lora_A"):
        restore(run)
    with pytest.raises(RunError, match=r"is not the base model of this run: tensor .*lora_A"):
        train(settings(tiny_model, steps=4), run, resume=True, quiet=True)
    file.write_bytes(good[:50])
    with pytest.raises(RunError, match=r"does not parse .*; delete it, and --resume computes it again"):
        restore(run)
    file.unlink()
    with pytest.raises(RunError, match=r"has no lora_init.safetensors, the matrices A of its adapters"):
        restore(run)
    whole = train(settings(tiny_model, steps=4), tmp_path / "whole", quiet=True)
    assert train(settings(tiny_model, steps=4), run, resume=True, quiet=True)["sha256"] == whole["sha256"]


def test_a_file_of_another_run_is_not_taken_over(tiny_model: Path, tmp_path: Path) -> None:
    """A run that died before its tape began may have left one."""
    whole = train(settings(tiny_model, steps=3), tmp_path / "whole", quiet=True)
    run = tmp_path / "run"
    run.mkdir()
    other = set_up(settings(tiny_model, seed=5), tmp_path / "other")
    lora_init.save(other.prepared.model, run)
    assert train(settings(tiny_model, steps=3), run, quiet=True)["sha256"] == whole["sha256"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_saved_adapters_load_in_peft(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    train(settings(tiny_model, steps=4, lr=0.1), tmp_path / "run", quiet=True)
    p, _ = restore(tmp_path / "run")
    p.model.save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.arange(10)[None]
    plain = base(ids).logits
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
    torch.testing.assert_close(theirs, p.model(ids).logits)
    assert not torch.allclose(theirs, plain, atol=1e-4)


def test_adapters_that_no_token_reaches_stay_random(tiny_model: Path, tmp_path: Path) -> None:
    work = set_up(settings(tiny_model, lora_init="default"), tmp_path)
    model, name = work.prepared.model, next(iter(lora_init.adapters(work.prepared.model)))
    other = nn.Linear(7, 4, bias=False)
    model.add_module("lora_A", nn.ModuleDict({"idle": other}))
    before, drawn = other.weight.clone(), lora_init.adapters(model)[name].weight.clone()
    with pytest.warns(UserWarning, match=r"no token reached 1 adapters, lora_A.idle among them: their A is random"):
        lora_init.from_activations(model, work.scorer, [work.batches[0]])
    assert torch.equal(other.weight, before)
    assert not torch.equal(lora_init.adapters(model)[name].weight, drawn)


def test_what_cannot_be_is_said(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--lora-init activations is for --train lora, and here is --train full"):
        set_up(settings(tiny_model, train="full"), tmp_path)
    with pytest.raises(SettingsError, match=r"inputs of .*q_proj span 32 directions, and --lora-r asks for 40"):
        set_up(settings(tiny_model, lora_r=40), tmp_path)
