"""Losses of a Trainer that depend on a model on other ways than through the output of its last block."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

import zograd as zo
from tests.hf.helpers import SIZES, Forward, arguments, first_gradients, llama, rows

Extra = Callable[[nn.Module, Any], Tensor]

EXTRAS: dict[str, Extra] = {
    "a penalty of all weights": lambda model, out: sum(((p**2).sum() for p in model.parameters()), torch.zeros(())),
    "hidden states of two blocks": lambda model, out: (
        100 * out.hidden_states[1].pow(2).mean() + 50 * out.hidden_states[-2].abs().mean()
    ),
    "the states that enter the first block": lambda model, out: 100 * out.hidden_states[0].pow(2).mean(),
    "the last hidden states": lambda model, out: 100 * out.hidden_states[-1].pow(2).mean(),
}


def with_extra(extra: Extra) -> type[Any]:
    """A forward-only Trainer whose loss has another term."""

    class Own(transformers.Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
            loss = outputs.loss + extra(model, outputs)
            return (loss, outputs) if return_outputs else loss

    return zo.hf.forward_only(Own)  # type: ignore[no-any-return]


@pytest.mark.parametrize("what", EXTRAS)
@pytest.mark.parametrize("method", ["residual", "backprop", zo.methods.backprop(lr=1e-3, recompute=True)])
def test_the_gradient_is_that_of_the_whole_loss(
    method: Any, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama(attn_implementation="eager")
    true = copy.deepcopy(model).eval()
    batch = transformers.default_data_collator(rows(4))
    outputs = true(**batch, output_hidden_states=True)
    (outputs.loss + EXTRAS[what](true, outputs)).backward()
    trainer = with_extra(EXTRAS[what])(
        model=model, args=arguments(tmp_path, max_steps=1), train_dataset=rows(4), method=method
    )
    found = first_gradients(trainer, monkeypatch)
    assert len(found) >= 28
    for name, p in true.named_parameters():
        if name in found:
            assert torch.allclose(found[name], p.grad.reshape(-1), rtol=1e-4, atol=1e-5 * float(p.grad.abs().max()))


def test_residual_feedback_counts_the_states_of_later_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without exact blocks, block l learns from the sum of dL/dh over all states behind it."""
    extra = EXTRAS["hidden states of two blocks"]
    trainer = with_extra(extra)(
        model=llama(attn_implementation="eager"), args=arguments(tmp_path, max_steps=1), train_dataset=rows(4),
        method=zo.methods.residual(lr=1e-3, exact=0),
    )  # fmt: skip
    model = copy.deepcopy(trainer.model).eval()
    states: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        states.append(output.detach().requires_grad_())  # the next block, the head and the loss see this one
        return states[-1]

    for block in model.model.layers:
        block.register_forward_hook(keep)
    outputs = model(**transformers.default_data_collator(rows(4)), output_hidden_states=True)
    inputs = outputs.hidden_states[:3]  # what enters the blocks
    (outputs.loss + extra(model, outputs)).backward()
    signals = [state.grad if state.grad is not None else torch.zeros_like(state) for state in states]
    own = [signals[-1], signals[-1], signals[-1]]
    own[0] = own[0] + 100 * 2 * states[0] / states[0].numel() + 50 * states[1].sign() / states[1].numel()
    own[1] = own[1] + 50 * states[1].sign() / states[1].numel()
    found = first_gradients(trainer, monkeypatch)
    position = model.model.rotary_emb(inputs[0], torch.arange(10)[None])
    for number, block in enumerate(model.model.layers):
        block._forward_hooks.clear()
        weight = block.mlp.up_proj.weight
        hidden = inputs[number].detach()
        mask = torch.full((1, 1, 10, 10), float("-inf")).triu(1)
        after = block(hidden, attention_mask=mask, position_embeddings=position)
        want = torch.autograd.grad((after * own[number].detach()).sum(), weight)[0]
        got = found[f"model.layers.{number}.mlp.up_proj.weight"].view_as(want)
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_a_loss_of_attentions_is_refused(tmp_path: Path) -> None:
    """They are computed inside of a block, and the states behind it do not have their derivative."""
    model = llama(attn_implementation="eager")
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = with_extra(lambda model, out: out.attentions[0].pow(2).mean())(
        model=model, args=arguments(tmp_path), train_dataset=rows()
    )
    with pytest.raises(TypeError, match=r"what self_attn of block 0 computes \(attentions, .*'zo_sgd'"):
        trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_nothing_stays_marked_after_a_step(tmp_path: Path) -> None:
    model = llama()
    Forward(model=model, args=arguments(tmp_path, max_steps=1), train_dataset=rows()).train()
    assert not any(b.requires_grad for b in model.buffers())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("experts_add", [False, True])
def test_experts_whose_routers_add_to_the_loss_take_values_alone(experts_add: bool, tmp_path: Path) -> None:
    sizes = {**SIZES, "num_hidden_layers": 2, "num_local_experts": 4}
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**sizes, output_router_logits=experts_add))
    trainer = Forward(model=model, args=arguments(tmp_path), train_dataset=rows())
    choice = trainer._chosen()
    assert choice.method.name == ("zo_sgd" if experts_add else "residual")
    assert ("the logits of a router" in choice.why) == experts_add


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda out: (out.loss, out), r"return the loss alone, such as its first element"),
        (lambda out: None, r"got None; end the function with a return"),
        (lambda out: {"loss": out.loss}, r"return the loss in it"),
        (lambda out: out.logits.mean(-1), r"an array of shape .*reduce it with \.mean\(\)"),
    ],
    ids=["tuple", "None", "dict", "vector"],
)
@pytest.mark.parametrize("method", [None, "fzoo"])
def test_a_wrong_return_is_named_at_every_method(
    method: str | None, returned: Callable[[Any], Any], said: str, tmp_path: Path
) -> None:
    class Own(transformers.Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, **more: Any) -> Any:
            return returned(model(**inputs))

    trainer = zo.hf.forward_only(Own)(model=llama(), args=arguments(tmp_path), train_dataset=rows(), method=method)
    with pytest.raises(TypeError, match=said):
        trainer.train()


@pytest.mark.parametrize("method", [None, "fzoo"])
def test_the_outputs_of_a_model_are_their_loss(method: str | None, tmp_path: Path) -> None:
    class Own(transformers.Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, **more: Any) -> Any:
            return model(**inputs)

    trainer = zo.hf.forward_only(Own)(model=llama(), args=arguments(tmp_path), train_dataset=rows(), method=method)
    assert trainer.train().training_loss > 0
