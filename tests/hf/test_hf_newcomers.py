"""What a newcomer with a Trainer script met: wrong gradients, parameters left frozen, losses that rose in silence."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    default_data_collator,
)

from tests.hf.helpers import SIZES, Forward, arguments, rows
from zograd.errors import UsageError


def bert(seed: int = 0, **settings: Any) -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=3, **sizes, **settings))


def labelled(n: int = 48) -> list[dict[str, torch.Tensor]]:
    """Three classes, each with a token of its own at half of the places."""
    g = torch.Generator().manual_seed(1)
    found = []
    for i in range(n):
        ids = torch.randint(4, 64, (10,), generator=g)
        ids = torch.where(torch.rand(10, generator=g) < 0.5, torch.tensor(i % 3 + 1), ids)
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(i % 3)})
    return found


@pytest.mark.parametrize("method", ["residual", "backprop"])
def test_the_decoder_of_t5_takes_the_true_gradient(method: str, tmp_path: Path) -> None:
    """Its decoder has a config of its own, and kept keys and values: those of every block never moved."""
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "vocab_size": 64}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    g = torch.Generator().manual_seed(1)
    data = [
        {"input_ids": torch.randint(1, 64, (8,), generator=g), "labels": torch.randint(1, 64, (5,), generator=g)}
        for _ in range(16)
    ]
    before = copy.deepcopy(model)
    before(**default_data_collator(data)).loss.backward()
    once = {"max_steps": 1, "per_device_train_batch_size": 16, "learning_rate": 1e-4, "lr_scheduler_type": "constant"}
    Forward(model=model, args=arguments(tmp_path, **once), train_dataset=data, method=method).train()
    gradients = {name: p.grad for name, p in before.named_parameters()}
    old = dict(before.named_parameters())
    trained = {name for name, p in model.named_parameters() if not torch.equal(p, old[name])}
    assert sum(".k." in name or ".v." in name for name in trained) == 8  # self- and cross-attention of two blocks
    for name, p in model.named_parameters():
        if name in trained:  # Adam's first step is the sign of the gradient
            gradient = gradients[name]
            clear = gradient.abs() > 1e-3 * gradient.abs().max()
            assert torch.equal(torch.sign(p - old[name])[clear], -torch.sign(gradient)[clear]), name
    assert model.decoder.config.use_cache == before.decoder.config.use_cache


def test_what_was_trainable_is_trainable_afterwards(tmp_path: Path) -> None:
    """`backprop` left the embeddings, the last norm and the output matrix without requires_grad."""
    model = deep()
    Forward(model=model, args=arguments(tmp_path, max_steps=1), train_dataset=rows()).train()
    assert all(p.requires_grad for p in model.parameters())
    frozen = dict(model.named_parameters())["model.norm.weight"]
    frozen.requires_grad_(False)
    Forward(model=model, args=arguments(tmp_path, max_steps=1), train_dataset=rows(), method="backprop").train()
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.norm.weight"]


def deep() -> nn.Module:
    """More blocks than `residual` is exact for, so that `backprop` is chosen."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(SIZES | {"num_hidden_layers": 6})))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapters_on_bert_learn_by_the_exact_gradient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks do not add, so `zo_sgd` was taken, though the derivative of its blocks was there."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(bert(), peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    trainer = Forward(model=model, args=arguments(tmp_path, max_steps=60, logging_steps=20), train_dataset=labelled())
    trainer.train()
    assert "by backprop" in capsys.readouterr().err
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]


def test_a_loss_that_rises_is_said_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"the loss rose from .* smaller lr, such as lr=") as caught:
        Forward(
            model=bert(3), args=arguments(tmp_path, max_steps=40), train_dataset=labelled(), method="zo_sgd", lr=0.3
        ).train()
    assert sum("the loss rose" in str(w.message) for w in caught) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the loss rose")
        Forward(model=bert(3), args=arguments(tmp_path, max_steps=40), train_dataset=labelled()).train()


def test_an_error_leaves_the_mode_of_the_model(tmp_path: Path) -> None:
    model = bert().train()
    trainer = Forward(model=model, args=arguments(tmp_path), train_dataset=labelled(), method="zo_sgd")
    trainer.compute_loss = lambda *a, **k: torch.tensor([1.0, 2.0])
    with pytest.raises((TypeError, ValueError, RuntimeError, UsageError)):
        trainer.train()
    assert model.training
    assert model.bert.encoder.layer[0].training
