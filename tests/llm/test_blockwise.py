"""Gradients from blocks: exact where they claim it, the definition elsewhere, and runs that go on to the same bits."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PhiConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.turns import in_turn
from zograd import Store, methods, minimize
from zograd.blockwise import Backprop, Blockwise, Ends, Residual, adds_to_its_input, record, starts
from zograd.core.tape import Tape
from zograd.core.vector import Slot, Vector
from zograd.llm import loading, loop
from zograd.llm.build import resolve, set_up
from zograd.llm.method import build_method
from zograd.llm.parts import Parts, parts_of
from zograd.llm.restore import replay
from zograd.llm.scoring.loss import token_losses
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.runs.errors import RunError
from zograd.runs.state import read_state

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 64}
KINDS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, attn_implementation="eager"),
    "gpt2": GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    "parallel": GPTNeoXConfig(**SIZES, intermediate_size=48, hidden_dropout=0.0, attention_dropout=0.0),
    "phi": PhiConfig(**SIZES, intermediate_size=48, resid_pdrop=0.0),
    "opt": OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0, max_position_embeddings=64),
}
FRONTS: dict[str, Any] = {
    "tied": LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=True),
    "bloom": BloomConfig(hidden_size=32, n_layer=3, n_head=4, vocab_size=64, hidden_dropout=0.0, attention_dropout=0.0),
    "gemma": GemmaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, head_dim=8),
}
POST = OPTConfig(
    **SIZES, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0, max_position_embeddings=64, do_layer_norm_before=False
)


def made(config: Any, first: int = 1) -> tuple[nn.Module, list[nn.Module], Store, Any]:
    """(model, blocks, a store of all tensors of the blocks from `first` on, a loss by two forwards)."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    blocks = list(loading.blocks(model))
    trained = {n: p for n, p in model.named_parameters() if any(p is q for b in blocks[first:] for q in b.parameters())}
    ids = torch.randint(0, 64, (6, 9))

    def loss() -> torch.Tensor:
        parts = [model(input_ids=part, use_cache=False).logits[:, -1] for part in (ids[:4], ids[4:])]
        return nn.functional.cross_entropy(torch.cat(parts), torch.arange(6))

    return model, blocks, Store(trained), loss


def gradients(source: Blockwise, store: Store, loss: Any) -> dict[str, torch.Tensor]:
    """What a pass over the store's blocks finds in the slot "gradient"."""
    _, calls = source.recorded(loss, lambda: nullcontext)
    source.begin(calls)
    store.source = source
    found: dict[str, list[torch.Tensor]] = {}
    for block in store.blocks(Vector(((Slot("gradient"), 1.0),))):
        found.setdefault(block.leaf.name, []).append(block.v[0].clone())
    source.end()
    return {name: torch.cat(parts) for name, parts in found.items()}


def by_autograd(store: Store, loss: Any) -> dict[str, torch.Tensor]:
    for tensor in store.tensors:
        tensor.requires_grad_(True)
    value = torch.autograd.grad(loss(), store.tensors, allow_unused=True)
    for tensor in store.tensors:
        tensor.requires_grad_(False)
    return {leaf.name: g.reshape(-1) for leaf, g in zip(store.leaves, value, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_backprop_is_the_gradient_of_autograd(kind: str) -> None:
    _, blocks, store, loss = made(KINDS[kind])
    before = store.digest()
    found, exact = gradients(Backprop(blocks, store.leaves), store, loss), by_autograd(store, loss)
    for name, g in exact.items():
        torch.testing.assert_close(found[name], g, rtol=1e-4, atol=1e-7)
    assert store.digest() == before
    assert not any(tensor.requires_grad for tensor in store.tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_residual_feedback_is_exact_for_the_last_block_and_its_definition_below(kind: str) -> None:
    _, blocks, store, loss = made(KINDS[kind])
    source = Residual(blocks, store.leaves)
    found, exact = gradients(source, store, loss), by_autograd(store, loss)
    inputs: dict[int, list[Any]] = {}
    for k, block in enumerate(blocks):  # by hand: <H, block(h)> with what a plain forward puts in
        block.register_forward_pre_hook(
            lambda _, args, kwargs, k=k: inputs.setdefault(k, []).append((args, kwargs)), with_kwargs=True
        )
    _, calls = record(loss, blocks, 1)
    plain = {k: list(v) for k, v in inputs.items()}
    for leaf in store.leaves:
        number = source.number[leaf.index]
        leaf.tensor.requires_grad_(True)
        total: Any = 0
        for (args, kwargs), call in zip(plain[number], calls, strict=True):
            out = blocks[number](*args, **kwargs)
            total = total + ((out[0] if isinstance(out, tuple) else out) * call.signal).sum()
        (g,) = torch.autograd.grad(total, leaf.tensor)
        leaf.tensor.requires_grad_(False)
        torch.testing.assert_close(found[leaf.name], g.reshape(-1), rtol=1e-4, atol=1e-6)
        if number == len(blocks) - 1:
            torch.testing.assert_close(found[leaf.name], exact[leaf.name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("split", [1, 2, 3, 4])
def test_the_last_blocks_are_exact_and_those_before_learn_from_what_is_in_front_of_them(kind: str, split: int) -> None:
    """With H = dL/dh_split by autograd, which the blocks before the exact ones take as if it were behind them."""
    _, blocks, store, loss = made(KINDS[kind])
    source = Residual(blocks, store.leaves, exact=len(blocks) - split)
    assert source.split == split
    found, exact = gradients(source, store, loss), by_autograd(store, loss)
    signals: list[torch.Tensor] = []

    def enters(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        signals.append(hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    if split < len(blocks):
        handle = blocks[split].register_forward_pre_hook(enters, with_kwargs=True)
        signals = list(torch.autograd.grad(loss(), signals))
        handle.remove()
    first = source.first
    _, calls = record(loss, blocks, first)
    for k, call in enumerate(calls):
        hidden, call.signal = call.inputs[first], signals[k] if split < len(blocks) else call.signal
        call.inputs = {}
        for number in range(first, split):
            call.inputs[number] = hidden
            hidden = call.run(blocks[number], number, hidden).detach()
    for leaf in store.leaves:
        number = source.number[leaf.index]
        expected = exact[leaf.name]
        if number < split:
            leaf.tensor.requires_grad_(True)
            outputs = [(call.run(blocks[number], number, call.inputs[number]), call.signal) for call in calls]
            total = sum(((out * signal).sum() for out, signal in outputs), torch.zeros(()))
            expected = torch.autograd.grad(total, leaf.tensor)[0].reshape(-1)
            leaf.tensor.requires_grad_(False)
        torch.testing.assert_close(found[leaf.name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_are_computed_again_give_the_same_bits(kind: str) -> None:
    _, blocks, store, loss = made(KINDS[kind])
    plain, again = Backprop(blocks, store.leaves), Backprop(blocks, store.leaves, recompute=True)
    expected, found = gradients(plain, store, loss), gradients(again, store, loss)
    assert all(torch.equal(found[name], g) for name, g in expected.items())
    assert len(again.kept) < len(plain.kept) == len(blocks) - plain.first


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 30, 80])
def test_no_more_states_are_in_memory_than_there_are_segments(count: int) -> None:
    """Visited from the last block on: those that wait, and those of the segment that is filled."""
    alive, most = set(starts(range(5, 5 + count))), 0
    bound = len(alive)
    assert bound * (bound - 1) // 2 < count <= bound * (bound + 1) // 2
    for number in range(4 + count, 4, -1):
        if number not in alive:
            alive |= set(range(max(alive), number + 1))
        most = max(most, len(alive))
        alive.remove(number)
    assert not alive
    assert most <= bound + 1
    assert methods.backprop(recompute=True).estimator.states(count) == min(count, bound + 1)  # type: ignore[attr-defined]


def test_as_many_exact_blocks_as_are_trained_give_the_bits_of_backprop() -> None:
    _, blocks, store, loss = made(KINDS["llama"])
    expected = gradients(Backprop(blocks, store.leaves), store, loss)
    found = gradients(Residual(blocks, store.leaves, exact=9), store, loss)
    assert all(torch.equal(found[name], g) for name, g in expected.items())
    for bad in (-1, 0.5):
        with pytest.raises(ValueError, match=f"exact is a number of blocks, at least 0, got {bad}"):
            methods.residual(exact=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Residual, Backprop])
def test_the_last_norm_and_a_head_get_their_exact_gradients(kind: type[Blockwise]) -> None:
    model, blocks, _, loss = made(KINDS["llama"])
    names = ("model.norm.weight", "lm_head.weight", "model.layers.3.mlp.up_proj.weight")
    store = Store({name: dict(model.named_parameters())[name] for name in names})
    exact = by_autograd(store, loss)
    source = kind(blocks, store.leaves, Ends(names))
    assert [source.first, source.stop, len(source.tail)] == [3, 5, 2]
    found = gradients(source, store, loss)
    assert found.keys() == exact.keys()
    for name, g in exact.items():
        torch.testing.assert_close(found[name], g, rtol=1e-4, atol=1e-7)
    alone = Store({"model.norm.weight": model.model.norm.weight})
    assert kind(blocks, alone.leaves, Ends(names)).first == 3
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", [*KINDS, "tied", "bloom", "gemma"])
def test_backprop_reaches_what_stands_in_front_of_the_blocks(kind: str) -> None:
    """All tensors of a model: embeddings of tokens and positions, their norms, and a matrix that is also the output."""
    model, blocks, _, loss = made({**KINDS, **FRONTS}[kind])
    named = dict(model.named_parameters())
    parts = parts_of(model, named, residual=False, front=True)
    assert isinstance(parts, Parts)
    assert not parts.outside
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len({*parts.front} & {*parts.tail}) == tied
    store = Store(named)
    found = gradients(Backprop(blocks, store.leaves, parts.ends), store, loss)
    exact = by_autograd(store, loss)
    assert found.keys() == exact.keys()
    for name, g in exact.items():
        torch.testing.assert_close(found[name], g, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    with pytest.raises(ValueError, match="Residual has no gradient in front of the blocks"):
        Residual(blocks, store.leaves, parts.ends)


def test_what_reaches_blocks_on_other_ways_is_not_called_the_front() -> None:
    """A decoder also reads the encoder, whose embedding is its own."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    parts = parts_of(model, dict(model.named_parameters()), residual=False, front=True)
    assert isinstance(parts, Parts)
    assert not parts.front
    assert "shared.weight" in parts.outside


def test_forwards_without_gradients_are_passed_over() -> None:
    """A reference model that shares the blocks, as adapters have it."""
    _, blocks, store, loss = made(KINDS["llama"])

    def with_reference() -> torch.Tensor:
        with torch.no_grad():
            reference = loss()
        return loss() - reference

    plain = gradients(Residual(blocks, store.leaves), store, loss)
    found = gradients(Residual(blocks, store.leaves), store, with_reference)
    assert all(torch.equal(found[name], g) for name, g in plain.items())
    assert len(record(with_reference, blocks, 1)[1]) == len(record(loss, blocks, 1)[1])


def test_a_loss_without_a_derivative_is_refused() -> None:
    _, blocks, _, loss = made(KINDS["llama"])
    for value in (lambda: loss().detach(), lambda: float(loss().detach()), lambda: torch.zeros(())):
        with pytest.raises(TypeError, match="no derivative in the hidden states behind the last block"):
            record(value, blocks, 1)


def test_a_block_that_norms_its_sum_is_found() -> None:
    for config, adds in ((KINDS["llama"], True), (KINDS["parallel"], True), (KINDS["gpt2"], True), (POST, False)):
        _, blocks, _, loss = made(config)
        _, calls = record(loss, blocks, 1, keep=(2, 3))
        assert all(adds_to_its_input(blocks[k], calls[0], k) is adds for k in (1, 2, 3))


def test_leaves_outside_of_the_blocks_and_passes_without_a_forward_are_refused() -> None:
    model, blocks, store, _ = made(KINDS["llama"])
    outside = Store({"norm": model.get_parameter("model.norm.weight")})
    with pytest.raises(ValueError, match="norm is in no block of the model"):
        Residual(blocks, outside.leaves)
    store.source = Residual(blocks, store.leaves)
    with pytest.raises(RuntimeError, match="no forward of this step was recorded"):
        next(store.blocks(Vector(((Slot("gradient"), 1.0),))))
    with pytest.raises(TypeError, match="'residual' takes gradients from the blocks of a language model"):
        minimize(lambda x: float(x @ x), np.ones(3), "residual")
    assert "residual" not in methods.names()
    assert {"residual", "backprop"} <= set(methods.names(blocks=True))


def test_a_gradient_that_overflowed_moves_nothing() -> None:
    _, blocks, store, loss = made(KINDS["llama"])
    source = Residual(blocks, store.leaves)
    _, calls = record(loss, blocks, 1)
    calls[0].signal = torch.full_like(calls[0].signal, torch.inf)  # type: ignore[arg-type]
    source.begin(calls)
    store.source = source
    with pytest.warns(UserWarning, match="is not finite, and this tensor rests in this step") as told:
        found = [block.v[0].abs().max() for block in store.blocks(Vector(((Slot("gradient"), 1.0),)))]
    assert max(found) == 0
    assert len(told) == 1


# ---- runs ------------------------------------------------------------------------------------------------------------


def settings(model: Path, **more: Any) -> TrainSettings:
    common = {
        "model": str(model), "task": "mr", "method": "residual", "dtype": "float32", "threads": 1, "batch_size": 8,
        "warmup": 0, "steps": 6, "train_examples": 40, "eval_examples": 10, "lr": 3e-3, "save_every": 4,
    }  # fmt: skip
    return TrainSettings.model_validate({**common, **more})


TRAINED: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"train": "lora"},
    "two blocks": {"layers": 2},
    "lora on 4 bits": {"train": "lora", "quantize": "hqq4"},
}


@pytest.mark.parametrize(("part", "method"), in_turn(list(TRAINED), ["residual", "backprop"], (str, str)))
def test_training_lowers_the_loss(tiny_model: Path, tmp_path: Path, method: str, part: str) -> None:
    done = train(settings(tiny_model, method=method, steps=30, **TRAINED[part]), tmp_path / "run", quiet=True)
    assert done["loss_last"] < done["loss_first"] - 0.02
    assert done["evaluations"] == done["steps"] == 30


def test_one_gradient_by_three_ways_ends_at_the_same_bits(tiny_model: Path, tmp_path: Path) -> None:
    """While the weights of each block move before the next one is visited."""
    ways: dict[str, dict[str, Any]] = {
        "kept": {"method": "backprop"},
        "computed again": {"method": "backprop", "set": {"recompute": True}},
        "exact": {"method": "residual", "set": {"exact": 4}},
    }
    ends = {
        name: train(settings(tiny_model, train="proj", **way), tmp_path / name, quiet=True)
        for name, way in ways.items()
    }
    assert len({end["sha256"] for end in ends.values()}) == 1
    assert {end["evaluations"] for end in ends.values()} == {6}


def test_backprop_trains_a_soft_prompt(tiny_model: Path, tmp_path: Path) -> None:
    part: dict[str, Any] = {"method": "backprop", "train": "prompt", "tokens": 5, "lr": 0.1}
    done = train(settings(tiny_model, **{"steps": 60} | part), tmp_path / "run", quiet=True)
    assert done["loss_last"] < done["loss_first"] - 0.02
    assert done["trained"] == 5 * 32
    for more, match in (
        (
            {"method": "residual"},
            "residual feedback knows no derivative at virtual tokens.* node_perturbation, --method b",
        ),
        (
            {"train": "prefix"},
            "which does not reach the keys and values of a prefix. Use --method node_perturbation, or",
        ),
    ):
        with pytest.raises(SettingsError, match=match):
            train(settings(tiny_model, **part | more), tmp_path / "other", quiet=True)


def test_a_run_goes_on_from_its_last_state_to_the_same_bits(tiny_model: Path, tmp_path: Path) -> None:
    """The tape is two steps ahead of the state, as after a kill: these are taken again."""
    whole = train(settings(tiny_model, steps=9), tmp_path / "whole", quiet=True)
    run = tmp_path / "run"
    train(settings(tiny_model, steps=4), run, quiet=True)
    state = (run / "state.safetensors").read_bytes()
    train(settings(tiny_model, steps=6), run, resume=True, quiet=True)
    (run / "state.safetensors").write_bytes(state)
    with pytest.raises(
        RunError, match=r"does not give the weights back, and the saved state of .* is of step 4, not 6"
    ):
        replay(run, None, tmp_path / "weights")
    assert replay(run, None, tmp_path / "weights-4", to=4)["steps"] == 4
    resumed = train(settings(tiny_model, steps=9), run, resume=True, quiet=True)
    assert resumed["sha256"] == whole["sha256"]
    assert list(Tape(run / "tape.zo").records) == list(Tape(tmp_path / "whole" / "tape.zo").records)
    assert replay(run, None, tmp_path / "weights")["sha256"] == whole["sha256"]
    (run / "state.safetensors").unlink()
    shutil.rmtree(tmp_path / "whole")
    again = train(settings(tiny_model, steps=9), run, resume=True, quiet=True)  # from the base model
    assert again["sha256"] == whole["sha256"]


@pytest.mark.parametrize("method", ["residual", "zo_adam"])
def test_moments_in_bfloat16_go_on_to_the_same_bits(tiny_model: Path, tmp_path: Path, method: str) -> None:
    def steps(n: int) -> TrainSettings:
        return settings(tiny_model, steps=n, method=method, layers=2, set={"moments": "bfloat16"}, save_every=2)

    whole, run = train(steps(6), tmp_path / "whole", quiet=True), tmp_path / "run"
    train(steps(3), run, quiet=True)
    with safe_open(run / "state.safetensors", "pt") as saved:
        kinds = {saved.get_tensor(name).dtype for name in saved.keys() if name.startswith("slot.")}  # noqa: SIM118
    assert kinds == {torch.bfloat16}
    assert train(steps(6), run, resume=True, quiet=True)["sha256"] == whole["sha256"]
    assert replay(run, None, tmp_path / "weights")["sha256"] == whole["sha256"]


@pytest.mark.parametrize(("seconds", "since"), [(0.0, 4), (1e9, 0)])
def test_a_run_whose_tape_gives_no_weights_back_loses_a_minute(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, since: int
) -> None:
    """A process dies in its fifth step. The default recipe has 100 steps, and the state was written every 500."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", seconds)
    monkeypatch.setattr(loop, "SAVE_SHARE", math.inf)
    given = settings(tiny_model, save_every=None)
    whole = train(given, tmp_path / "whole", quiet=True)
    step, taken = loop.Loop._step, list[int]()

    def dies(self: loop.Loop, batch: Any) -> Any:
        taken.append(self.p.run.step_number)
        if len(taken) == 5:
            raise KeyError("power")
        return step(self, batch)

    monkeypatch.setattr(loop.Loop, "_step", dies)
    with pytest.raises(KeyError, match="power"):
        train(given, tmp_path / "run", quiet=True)
    again = train(given, tmp_path / "run", resume=True, quiet=True)
    assert taken[5:] == list(range(since, 6))
    assert again["sha256"] == whole["sha256"]


def test_a_run_that_has_run_away_keeps_the_weights_of_its_last_step(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "RUNAWAY", 0.0)
    with pytest.raises(loop.DivergenceError, match="the loss has run away"):
        train(settings(tiny_model, max_failures=3, save_every=None), tmp_path / "run", quiet=True)
    tape = Tape(tmp_path / "run" / "tape.zo")
    state, _ = read_state(tmp_path / "run" / "state.safetensors", tape)
    assert state["step"] == tape.steps == 3


def test_adapters_take_a_larger_rate_and_processes_take_a_part_each(tiny_model: Path) -> None:
    assert build_method(settings(tiny_model, lr=None)).controller.peak == pytest.approx(2e-4)
    assert build_method(settings(tiny_model, lr=None, train="lora")).controller.peak == pytest.approx(1e-3)
    assert build_method(settings(tiny_model, method="zo_sgd", lr=None, train="lora")).controller.peak > 5e-5
    assert resolve(settings(tiny_model), world=2).shards == 2
    for more in ({"parallel": "directions"}, {"shards": 4}):
        with pytest.raises(SettingsError, match="deals one part of the batch to each of 2 processes, and here are"):
            resolve(settings(tiny_model, **more), world=2)


def test_what_does_not_go_together_is_said_before_training(tiny_model: Path, tmp_path: Path) -> None:
    for more, match in (
        ({"train": "embed"}, "trains tensors inside of the blocks, and --train embed names model.embed_tokens.weight"),
        ({"compile": True}, "--method residual does not go with --compile"),
        ({"quantize": "hqq4", "train": "scales"}, "the layers of other libraries have no derivative in theirs"),
    ):
        with pytest.raises(SettingsError, match=match):
            train(settings(tiny_model, **more), tmp_path / "run", quiet=True)


# ---- the derivative behind the last block ----------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [None, 3.0])
def test_token_losses_have_the_derivative_of_cross_entropy(cap: float | None) -> None:
    from transformers.models.gemma2 import Gemma2Config

    common = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
    config = GemmaConfig(**common) if cap is None else Gemma2Config(**common, final_logit_softcapping=cap)
    model, _, _, _ = made(config)
    torch.manual_seed(1)
    hidden = torch.randn(7, 32, requires_grad=True)
    targets = torch.tensor([3, 63, 0, -1, 17, 17, 5])
    weights = torch.randn(7)
    losses = token_losses(model, hidden, targets)
    (found,) = torch.autograd.grad((losses * weights).sum(), hidden)
    logits = model.lm_head(hidden)
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    plain = nn.functional.cross_entropy(logits, targets.clamp(min=-1), ignore_index=-1, reduction="none")
    (exact,) = torch.autograd.grad((plain * weights).sum(), hidden)
    torch.testing.assert_close(losses, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["completion", "words"])
def test_backprop_of_other_losses_is_the_gradient_of_autograd(tiny_model: Path, tmp_path: Path, task: str) -> None:
    """Completions, and label words of several tokens."""
    lines = [
        {"prompt": "It was good", "completion": " very great"}, {"prompt": "bad", "completion": " no maybe yes"},
        {"prompt": "good good", "completion": " terrible"},
    ] if task == "completion" else [
        {"text": "It was good", "label": "a"}, {"text": "bad", "label": "b"}, {"text": "good good", "label": "a"},
    ]  # fmt: skip
    file = tmp_path / "task.jsonl"
    first = "prompt" if task == "completion" else "text"
    held_out = [{**line, first: "very " + line[first], "split": "validation"} for line in lines[:2]]
    rows = [{**line, "split": "train"} for line in lines * 8]
    file.write_text("\n".join(map(json.dumps, [*rows, *held_out])))
    more: Any = {"prompt_template": "{text} It was", "label_words": {"a": " very great", "b": " terrible"}}
    more = {} if task == "completion" else more
    work = set_up(settings(tiny_model, method="backprop", task=str(file), eval_examples=2, **more), tmp_path / "run")
    store, source, batch = work.prepared.store, work.prepared.store.source, work.batches[0]
    assert isinstance(source, Backprop)
    found = gradients(source, store, lambda: work.scorer.loss(batch))
    some = [leaf for leaf in store.leaves if "embed" in leaf.name or "lm_head" in leaf.name or leaf.index % 5 == 0]
    assert any("embed" in leaf.name for leaf in some)
    for leaf in some:  # a central difference along a random direction
        v = torch.randn(leaf.tensor.shape, generator=torch.Generator().manual_seed(0))
        sides = []
        for side in (2e-3, -2e-3):
            with torch.no_grad():
                leaf.tensor.add_(v, alpha=side)
                sides.append(float(work.scorer.loss(batch)))
                leaf.tensor.add_(v, alpha=-side)
        slope = (sides[0] - sides[1]) / 4e-3
        assert float(found[leaf.name] @ v.reshape(-1)) == pytest.approx(slope, rel=0.05, abs=2e-4)
