"""Trainers of TRL, forward only: their losses, data preparation, metrics and cards stay theirs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from tests.hf.helpers import SIZES, arguments, digest, llama, losses
from zograd.hf import forward_only

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of TRL, PEFT and transformers among themselves
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:trl"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:torch"),
]

WORDS = [
    "the",
    "film",
    "was",
    "good",
    "bad",
    "great",
    "awful",
    "plot",
    "very",
    "dull",
    "fine",
    "I",
    "liked",
    "it",
    "hated",
    "story",
    "acting",
    "and",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", model_max_length=32
    )


def sentences(n: int, start: int = 0) -> list[str]:
    return [f"the {WORDS[k % 5 + 1]} was {WORDS[(k * 7) % len(WORDS)]} and dull" for k in range(start, start + n)]


def texts() -> Any:
    return datasets.Dataset.from_dict({"text": sentences(16)})


def pairs() -> Any:
    return datasets.Dataset.from_dict(
        {"prompt": ["the film was"] * 8, "chosen": [" good"] * 8, "rejected": [" bad"] * 8}
    )


def judged() -> Any:
    return datasets.Dataset.from_dict(
        {"prompt": ["the film was"] * 8, "completion": [" good", " bad"] * 4, "label": [True, False] * 4}
    )


def preferred() -> Any:
    return datasets.Dataset.from_dict({"chosen": ["the film was good"] * 8, "rejected": ["the film was bad"] * 8})


def classifier() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1))


KINDS: dict[str, tuple[str, str, Any, Any]] = {
    "sft": ("SFTTrainer", "SFTConfig", llama, texts),
    "dpo": ("DPOTrainer", "DPOConfig", llama, pairs),
    "kto": ("KTOTrainer", "KTOConfig", llama, judged),
    "reward": ("RewardTrainer", "RewardConfig", classifier, preferred),
}


def trained(folder: Path, kind: str, tokenizer: Any, *, model: Any = None, **settings: Any) -> Any:
    name, config, make, data = KINDS[kind]
    own = {k: settings.pop(k) for k in ("method", "lr", "peft_config") if k in settings}
    if kind in ("dpo", "kto") and "peft_config" not in own:
        own["ref_model"] = make()
    given = {"bf16": False, "max_length": 24, "max_steps": 6, "lr_scheduler_type": "constant"}
    trainer = forward_only(getattr(trl, name))(
        model=make() if model is None else model,
        args=arguments(folder, getattr(trl, config), **(given | settings)),
        train_dataset=data(), processing_class=tokenizer, **own,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "lr"), [("fzoo", 1e-3), ("residual", 1e-3), (None, None)])
def test_a_trainer_of_trl_learns(tmp_path: Path, kind: str, method: Any, lr: Any, tokenizer: Any) -> None:
    trainer = trained(tmp_path, kind, tokenizer, method=method, lr=lr, max_steps=8)
    found = losses(trainer)
    assert len(found) == 4
    assert found[-1] < found[0] + (0.0 if method == "residual" else 0.02)
    assert trainer._zo.run.evaluations >= 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_counts_once(tmp_path: Path, kind: str, tokenizer: Any) -> None:
    """Tokens and metrics of TRL are those of one evaluation a step, whatever the number of evaluations."""
    few = trained(tmp_path, kind, tokenizer, method="residual", lr=0.0)
    many = trained(tmp_path, kind, tokenizer, method="fzoo", lr=0.0)
    for a, b in zip(few.state.log_history, many.state.log_history, strict=True):
        names = a.keys() & b.keys() - {"learning_rate", "evaluations", "mu"}
        assert {n: a[n] for n in names if "token" in n} == {n: b[n] for n in names if "token" in n}
        shown = [n for n in names if not re.search("runtime|second|loss|flos", n)]
        assert {n: a[n] for n in shown} == pytest.approx({n: b[n] for n in shown}, abs=0.02)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_adapters_of_a_peft_config(tmp_path: Path, kind: str, tokenizer: Any) -> None:
    """The reference of DPO is the model without its adapters: a forward without gradients through the same blocks."""
    from peft import LoraConfig

    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    for method in ("residual", "fzoo"):
        trainer = trained(tmp_path, kind, tokenizer, method=method, lr=1e-3, peft_config=config)
        assert all("lora" in leaf.name for leaf in trainer._zo.store.leaves)
        assert losses(trainer)[-1] < losses(trainer)[0] + 0.02


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, tokenizer: Any) -> None:
    settings = {"method": "fzoo", "lr": 1e-3, "save_strategy": "steps", "save_steps": 3}
    whole = trained(tmp_path, "sft", tokenizer, **settings)
    own = KINDS["sft"]
    rest = forward_only(trl.SFTTrainer)(
        model=llama(seed=4),
        args=arguments(
            tmp_path, getattr(trl, own[1]), bf16=False, max_length=24, lr_scheduler_type="constant",
            save_strategy="steps", save_steps=3,
        ),
        train_dataset=texts(), processing_class=tokenizer, method="fzoo", lr=1e-3,
    )  # fmt: skip
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert digest(rest.model) == digest(whole.model)
    assert "## Forward-only training" in (tmp_path / "README.md").read_text()


def test_a_trainer_that_generates_its_data_is_refused() -> None:
    with pytest.raises(TypeError, match="GRPOTrainer generates its training data"):
        forward_only(trl.GRPOTrainer)
