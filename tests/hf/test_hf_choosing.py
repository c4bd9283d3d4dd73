"""What is trained, by which method and at which rate, and the line that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    T5Config,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import zograd as zo
from tests.hf.helpers import SIZES, Forward, arguments, llama, losses, rows
from zograd.errors import UsageError
from zograd.hf.arguments import learning_rate, was_set
from zograd.hf.choosing import choose, far, trainable
from zograd.learning_rate import AutoRate
from zograd.methods.defaults import Shape


def small(config: Any, auto: Any = AutoModelForCausalLM) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return auto.from_config(config)


PLAIN = {k: v for k, v in SIZES.items() if k not in ("num_key_value_heads",)}
OPT = {
    "vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "word_embed_proj_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip
ADDS: dict[str, Any] = {
    "llama": lambda: llama(),
    "gpt2": lambda: small(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
    "neox": lambda: small(GPTNeoXConfig(**PLAIN)),
    "opt": lambda: small(OPTConfig(**OPT)),
    "bfloat16": lambda: llama().to(torch.bfloat16),
}
HEADS: dict[str, Any] = {
    "classes of text": lambda: LlamaForSequenceClassification(llama().config),
    "classes of images": lambda: ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=16,
            patch_size=8,
        )
    ),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_behind_the_blocks_is_trained_with_them(kind: str) -> None:
    model = HEADS[kind]()
    choice = choose(model, trainable(model), None, None, None)
    assert choice.method.name == "residual"
    assert any("score" in name or "classifier" in name for name in choice.parts.tail)
    assert all("embed" in name or "cls_token" in name for name in choice.parts.outside)


@pytest.mark.parametrize("kind", ADDS)
def test_language_models_whose_blocks_add_are_trained_by_residual_feedback(kind: str) -> None:
    model = ADDS[kind]()
    required = [p.requires_grad for p in model.parameters()]
    choice = choose(model, trainable(model), None, None, None)
    assert choice.method.name == "residual"
    assert len(choice.parts.outside) == len(list(model.parameters())) - len(choice.tensors) > 0
    assert all("norm" in name or "ln_f" in name for name in choice.parts.tail)
    assert choice.parts.tail
    assert [p.requires_grad for p in model.parameters()] == required
    assert "because its blocks add to the stream" in choice.line(model)


def test_in_a_deep_model_the_gradient_is_exact_and_states_are_computed_again(tmp_path: Path) -> None:
    """Residual feedback is biased below its exact blocks; embeddings have a gradient too."""
    deep = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": 6}))
    choice = choose(deep, trainable(deep), None, None, None)
    assert (choice.method.name, choice.method.estimator.recompute) == ("backprop", True)  # type: ignore[attr-defined]
    assert choice.tensors.keys() == dict(deep.named_parameters()).keys()
    assert "because it is the exact gradient of all blocks; most hidden states are computed again" in choice.line(deep)
    top = frozen_but(LlamaForCausalLM(deep.config), "layers.3")
    assert choose(top, trainable(top), None, None, None).method.name == "residual"
    args = arguments(tmp_path, max_steps=20, lr_scheduler_type="constant")
    trainer = Forward(model=deep, args=args, train_dataset=rows())
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


def frozen_but(model: nn.Module, part: str) -> nn.Module:
    for name, p in model.named_parameters():
        p.requires_grad_(part in name)
    return model


OTHERS: dict[str, tuple[Any, str]] = {
    "no blocks": (lambda: nn.Linear(2, 2), "the model has no list of blocks"),
    "blocks that run twice": (
        lambda: small(AlbertConfig(**PLAIN, embedding_size=16, max_position_embeddings=32), AutoModelForMaskedLM),
        "its blocks run 3 times in one forward",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_others_are_trained_by_values_with_a_measured_rate(kind: str) -> None:
    make, why = OTHERS[kind]
    model = make()
    choice = choose(model, trainable(model), None, None, None)
    assert choice.method.name == "zo_sgd"
    assert isinstance(choice.method.lr, AutoRate)
    assert why in choice.why
    assert len(choice.tensors) == len(trainable(model))


def test_blocks_that_do_not_add_get_their_exact_gradient_where_they_are_all_that_is_trained() -> None:
    model = frozen_but(small(OPTConfig(**OPT, do_layer_norm_before=False)), "layers")
    choice = choose(model, trainable(model), None, None, None)
    assert choice.method.name == "backprop"
    assert "block 0 of OPTForCausalLM" in choice.why
    assert "the derivative of its blocks is exact" in choice.why
    assert len(choice.tensors) == len(trainable(model))


POST_NORM: dict[str, Any] = {
    "opt": lambda: small(OPTConfig(**OPT, do_layer_norm_before=False)),
    "bert": lambda: BertForSequenceClassification(BertConfig(**PLAIN, max_position_embeddings=32)),
    "masked": lambda: small(BertConfig(**PLAIN, max_position_embeddings=32), AutoModelForMaskedLM),
}


@pytest.mark.parametrize("kind", POST_NORM)
def test_with_a_norm_behind_the_sum_the_last_block_and_the_head_get_their_exact_gradient(kind: str) -> None:
    model = POST_NORM[kind]()
    choice = choose(model, trainable(model), None, None, None)
    assert choice.method.name == "backprop"
    assert choice.parts.numbers == [len(choice.parts.blocks) - 1]
    assert "block 0 of" in choice.why
    assert "the derivative of its last block is exact" in choice.line(model)
    if kind != "opt":
        assert choice.parts.tail
    assert set(choice.tensors) == {*choice.parts.inside, *choice.parts.tail}


def test_of_an_encoder_and_a_decoder_the_blocks_of_the_decoder_are_trained() -> None:
    config = T5Config(
        vocab_size=64, d_model=32, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, pad_token_id=0
    )
    model = small(config, AutoModelForSeq2SeqLM)
    choice = choose(model, trainable(model), None, None, None)
    assert choice.method.name == "residual"
    assert all(name.startswith("decoder.") for name in choice.tensors)
    assert not any("relative_attention_bias" in name for name in choice.tensors)


@pytest.mark.parametrize(
    ("method", "lr", "of_arguments", "expected", "rate"),
    [
        ("zo_sgd", None, None, "auto", "measured"),
        ("zo_sgd", None, 1e-4, 1e-4, "learning_rate of TrainingArguments"),
        ("zo_sgd", 1e-5, 1e-4, 1e-5, "as given"),
        ("zo_adam", None, None, 1e-6, "the method's, since learning_rate was not set"),
        (
            "residual",
            None,
            None,
            0.0062,  # Shape(32, 3, texts=True).lr with two digits
            "for 3 blocks of width 32, since learning_rate was not set",
        ),
        ("residual", None, 1e-3, 1e-3, "learning_rate of TrainingArguments"),
        (zo.methods.fzoo(lr=1e-4), None, 1e-3, 1e-4, "the method's"),
        (zo.methods.fzoo(lr=1e-4), "auto", 1e-3, "auto", "as given"),
    ],
)
def test_where_the_learning_rate_comes_from(
    method: Any, lr: Any, of_arguments: float | None, expected: Any, rate: str
) -> None:
    model = llama()
    choice = choose(model, trainable(model), method, lr, of_arguments)
    controller = choice.method.controller
    if expected == "auto":
        assert controller.measures
    elif not (isinstance(method, str) and method == "zo_adam"):
        assert controller.rate({}, 0) == expected
    else:
        assert controller.rate({}, 0) == zo.methods.describe("zo_adam")["defaults"]["lr"]
    assert choice.rate == rate


def test_a_method_that_needs_a_setting_says_which() -> None:
    model = llama()
    needy = next(name for name in zo.methods.names() if zo.methods.describe(name)["required"])
    setting = zo.methods.describe(needy)["required"][0]
    with pytest.raises(UsageError, match=rf"no default for {setting}.*zograd\.methods\.{needy}\({setting}="):
        choose(model, trainable(model), needy, None, None)


def test_what_the_user_set(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path))
    assert learning_rate(args) is None
    assert not was_set(args, "max_grad_norm")
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=1e-3, max_grad_norm=0.5)
    assert learning_rate(args) == 1e-3
    assert was_set(args, "max_grad_norm")
    assert learning_rate(None) is None


def test_a_rate_for_adam_is_warned_of(tmp_path: Path) -> None:
    assert far(zo.methods.zo_sgd(lr=1e-5)) is None
    with pytest.warns(UserWarning, match="lr=0.001 is 1,000 times what zo_sgd takes .* rates for Adam are too large"):
        Forward(
            model=llama(), args=arguments(tmp_path, learning_rate=1e-3, max_steps=1), train_dataset=rows(),
            method="zo_sgd",
        ).train()  # fmt: skip


def test_a_rate_of_the_arguments_that_is_not_used_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"learning_rate=0\.001 of TrainingArguments is not used.*pass lr=0\.001"):
        Forward(
            model=llama(), args=arguments(tmp_path, learning_rate=1e-3, max_steps=1), train_dataset=rows(),
            method=zo.methods.fzoo(lr=1e-4),
        ).train()  # fmt: skip


@pytest.mark.parametrize(
    ("frozen", "method", "also"),
    [
        (["model.embed_tokens"], "backprop", "lm_head.weight"),
        (["model.embed_tokens", "model.layers.0"], "backprop", "lm_head.weight"),
        (["model.embed_tokens", "lm_head", "model.layers.0"], "residual", "model.norm.weight"),
        (["lm_head"], "backprop", "model.embed_tokens.weight"),
        (["lm_head", "model.layers", "model.norm"], "backprop", "model.embed_tokens.weight"),
    ],
)
def test_what_is_frozen_outside_of_the_blocks_does_not_cost_the_gradient_of_the_rest(
    frozen: list[str], method: str, also: str
) -> None:
    model = llama()
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith(tuple(frozen)))
    choice = choose(model, trainable(model), None, None, None)
    assert choice.method.name == method
    assert not choice.parts.outside
    assert also in choice.tensors


def test_a_head_alone_is_trained_by_its_gradient() -> None:
    model = LlamaForSequenceClassification(llama().config).requires_grad_(False)
    model.score.requires_grad_(True)
    choice = choose(model, trainable(model), None, None, None)
    assert (choice.method.name, list(choice.tensors)) == ("backprop", ["score.weight"])
    assert choice.method.controller.peak == pytest.approx(Shape(32, 1).lr, rel=0.05)


def test_low_blocks_take_the_exact_gradient() -> None:
    """`residual` is exact for the last four blocks, not for any four."""
    for first, method in ((0, "backprop"), (3, "backprop"), (4, "residual")):
        model = LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 8})).requires_grad_(False)
        model.model.layers[first].requires_grad_(True)
        assert choose(model, trainable(model), None, None, None).method.name == method
