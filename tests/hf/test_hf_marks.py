"""`requires_grad` around a training, and settings that changed between two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from tests.hf.helpers import Forward, arguments, llama, rows
from zograd.errors import UsageError
from zograd.runs.errors import RunError


def weight(model: Any, block: int) -> torch.Tensor:
    found: torch.Tensor = model.model.layers[block].mlp.up_proj.weight
    return found


@pytest.mark.parametrize("method", [None, "fzoo"])
def test_layers_frozen_between_two_trainings_stay(method: str | None, tmp_path: Path, capfd: Any) -> None:
    model = llama()
    trainer = Forward(model=model, args=arguments(tmp_path), train_dataset=rows(), method=method)
    trainer.train()
    model.model.layers[0].requires_grad_(False)
    frozen, free = weight(model, 0).clone(), weight(model, 2).clone()
    capfd.readouterr()
    trainer.train()
    assert torch.equal(weight(model, 0), frozen)
    assert not torch.equal(weight(model, 2), free)
    assert "zograd: training" in capfd.readouterr().err
    assert not weight(model, 0).requires_grad
    assert weight(model, 2).requires_grad


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft
def test_another_adapter_is_trained_in_the_second_training(tmp_path: Path) -> None:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    trainer = Forward(model=model, args=arguments(tmp_path), train_dataset=rows())
    trainer.train()
    model.add_adapter("b", LoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("b")
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(".b." in name for name in moved)


def test_a_second_training_of_the_same_tensors_goes_on(tmp_path: Path) -> None:
    trainer = Forward(model=llama(), args=arguments(tmp_path), train_dataset=rows(), method="fzoo")
    trainer.train()
    first = trainer._zo
    trainer.train()
    assert trainer._zo is first


class Sets(TrainerCallback):  # type: ignore[misc]
    """Sets `requires_grad` of the first block at some event."""

    def __init__(self, event: str, required: bool) -> None:
        setattr(self, event, self.sets)
        self.required = required

    def sets(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
        model.model.layers[0].requires_grad_(self.required)


def test_freezing_when_the_training_has_begun_is_refused(tmp_path: Path) -> None:
    model = llama()
    before = weight(model, 0).clone()
    trainer = Forward(
        model=model, args=arguments(tmp_path), train_dataset=rows(), callbacks=[Sets("on_train_begin", False)]
    )
    with pytest.raises(UsageError, match=r"requires_grad of model\.layers\.0\..* and 8 more was set after the method"):
        trainer.train()
    assert torch.equal(weight(model, 0), before)
    assert not weight(model, 0).requires_grad
    assert weight(model, 1).requires_grad


def test_releasing_during_a_training_is_named(tmp_path: Path) -> None:
    model = llama()
    model.model.layers[0].requires_grad_(False)
    before = weight(model, 0).clone()
    trainer = Forward(
        model=model, args=arguments(tmp_path), train_dataset=rows(), callbacks=[Sets("on_step_end", True)]
    )
    with pytest.warns(UserWarning, match="9 parameters got requires_grad during the training and stay as they are"):
        trainer.train()
    assert torch.equal(weight(model, 0), before)
    assert weight(model, 0).requires_grad


def saved(folder: Path, **settings: Any) -> Any:
    given = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant", "learning_rate": 1e-3}
    return Forward(model=llama(), args=arguments(folder, **(given | settings)), train_dataset=rows(), method="fzoo")


def test_the_rate_of_a_checkpoint_is_named_where_it_is_another_one(tmp_path: Path) -> None:
    saved(tmp_path, max_steps=3).train()
    trainer = saved(tmp_path, learning_rate=5e-4)
    with pytest.warns(UserWarning, match=r"that of .*checkpoint-3, 0\.001, as in every Trainer, and not 0\.0005"):
        trainer.train(resume_from_checkpoint=True)
    assert {record.rates[0].lr for record in trainer._zo.records} == {1e-3}
    trainer.create_model_card()
    assert "lr 0.001 (of the checkpoint)" in (tmp_path / "README.md").read_text()


def test_another_weight_decay_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    saved(tmp_path, max_steps=3).train()
    trainer = saved(tmp_path, weight_decay=0.1)
    before = weight(trainer.model, 0).clone()
    with pytest.raises(RunError, match=r"with weight_decay = 0\.0, and here it is 0\.1: resume with the settings"):
        trainer.train(resume_from_checkpoint=True)
    assert torch.equal(weight(trainer.model, 0), before)


def test_a_scheduler_that_gives_a_measured_rate_no_shape_is_named(tmp_path: Path) -> None:
    trainer = Forward(model=llama(), args=arguments(tmp_path), train_dataset=rows(), method="zo_sgd", lr="auto")
    trainer.lr_scheduler = torch.optim.lr_scheduler.StepLR(trainer.create_optimizer(), 2, 0.5)
    with pytest.raises(ValueError, match=r"the scheduler is StepLR, and a measured learning rate takes the shape of a"):
        trainer.train()
