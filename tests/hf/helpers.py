"""Tiny models and data for the tests of `zograd.hf`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from zograd.blockwise import Blockwise
from zograd.hf import forward_only
from zograd.stores.leaf import tensor_bytes

Forward = forward_only(transformers.Trainer)

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip


def llama(seed: int = 0, **settings: Any) -> nn.Module:
    """A Llama of 3 blocks and some 30,000 weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**SIZES, **settings))


def rows(n: int = 24, seed: int = 1, width: int = 10) -> list[dict[str, Tensor]]:
    """Sequences of the first 8 tokens, so that a model has something to learn; the first token is no target."""
    ids = torch.randint(1, 8, (n, width), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, 0] = -100
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": target}
        for row, target in zip(ids, labels, strict=True)
    ]


def arguments(folder: Path, kind: type[Any] = TrainingArguments, **settings: Any) -> Any:
    """Arguments of a short training on the CPU."""
    given = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 2, "save_strategy": "no", "seed": 3}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    return kind(output_dir=str(folder), **(given | quiet | settings))


def digest(model: nn.Module) -> str:
    """SHA-256 of all tensors of a model."""
    h = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        h.update(name.encode())
        h.update(tensor_bytes(tensor))
    return h.hexdigest()


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def first_gradients(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What the first step took as the gradient of each tensor."""
    found: dict[str, Tensor] = {}
    plain = Blockwise.gradient

    def gradient(self: Blockwise, leaf: Any) -> Tensor:
        value = plain(self, leaf)
        found.setdefault(leaf.name, value.clone())
        return value

    monkeypatch.setattr(Blockwise, "gradient", gradient)
    trainer.train()
    return found
