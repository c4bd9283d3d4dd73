"""Adapters of PEFT: what PEFT leaves trainable is trained, and the model under it stays."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import default_data_collator

from tests.hf.helpers import Forward, arguments, digest, first_gradients, llama, losses, rows
from zograd.methods.defaults import FULL, Shape, language_model
from zograd.runs.errors import RunError

pytestmark = [  # of peft
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]

KINDS: dict[str, Any] = {
    "lora": lambda: LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1),
    "ia3": lambda: IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def adapted(kind: str, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(llama(), KINDS[kind]())


def trained(folder: Path, model: Any, resume: bool = False, **settings: Any) -> Any:
    own = {"method": settings.pop("method", None), "lr": settings.pop("lr", None)}
    given = {"max_steps": 10, "lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 5}
    trainer = Forward(model=model, args=arguments(folder, **(given | settings)), train_dataset=rows(), **own)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [None, "fzoo"])
def test_what_peft_trains_is_trained_and_nothing_else(
    tmp_path: Path, kind: str, method: str | None, capfd: Any
) -> None:
    model = adapted(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    trainer = trained(tmp_path, model, method=method, lr=None if method is None else 1e-3)
    line = capfd.readouterr().err
    assert {leaf.name for leaf in trainer._zo.store.leaves} == wanted
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert {name.replace(".default", "") for name in moved} <= {name.replace(".default", "") for name in wanted}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == wanted
    if method is None:
        by = {"prompt": "backprop", "prefix": "zo_sgd"}.get(kind, "residual")
        assert f"by {by}, " in line
        assert ("what is trained lies outside of the blocks" in line) == (kind == "prefix")
    found = losses(trainer)
    assert found[-1] < found[0] + 0.05


def test_virtual_tokens_take_their_gradient_through_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = adapted("prompt").eval()
    true(**default_data_collator(rows(4))).loss.backward()
    trainer = Forward(model=adapted("prompt"), args=arguments(tmp_path, max_steps=1), train_dataset=rows(4))
    ((name, found),) = first_gradients(trainer, monkeypatch).items()
    want = dict(true.named_parameters())[name].grad.reshape(-1)
    assert torch.allclose(found, want, rtol=1e-4, atol=1e-6)


def test_adapters_load_as_those_of_a_trainer(tmp_path: Path) -> None:
    trainer = trained(tmp_path, adapted("lora"))
    trainer.save_model(str(tmp_path / "final"))
    assert {"adapter_model.safetensors", "adapter_config.json", "tape.zo"} <= {
        p.name for p in (tmp_path / "final").iterdir()
    }
    assert digest(PeftModel.from_pretrained(llama(), tmp_path / "final")) == digest(trainer.model)


@pytest.mark.parametrize("method", [None, "fzoo"])
def test_a_resumed_training_of_adapters_ends_with_the_same_bits(tmp_path: Path, method: str | None) -> None:
    lr = None if method is None else 1e-3
    whole = trained(tmp_path / "whole", adapted("lora"), method=method, lr=lr)
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", tmp_path / "part" / "checkpoint-5")
    rest = trained(tmp_path / "part", adapted("lora", seed=9), resume=True, method=method, lr=lr)
    assert digest(rest.model) == digest(whole.model)


def test_adapters_of_another_base_model_are_refused(tmp_path: Path) -> None:
    trained(tmp_path, adapted("lora"), max_steps=5)
    other = get_peft_model(llama(seed=7), KINDS["lora"]())
    before = digest(other)
    with pytest.raises(RunError, match="belongs to another base model"):
        trained(tmp_path, other, resume=True)
    assert digest(other) == before


def test_the_learning_rate_for_adapters_is_theirs(tmp_path: Path) -> None:
    trainer = trained(tmp_path, adapted("lora"), method="residual")
    whole = language_model("residual", FULL, Shape(32, 3, texts=True))["lr"]
    assert trainer._zo.records[0].rates[0].lr == pytest.approx(5 * whole)
