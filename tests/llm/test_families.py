"""Every family of models through every door: values, gradients, training by the defaults, adapters, Trainer, plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import CAUSAL, family, saved
from tests.hf.helpers import Forward, arguments, losses
from zograd.core.query import Query
from zograd.core.vector import Noise, Vector
from zograd.distributed.executors import tensors_at
from zograd.llm import loading
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
from zograd.noise import Kind
from zograd.runs.plan import plan
from zograd.stores import Store

OTHERS = {
    "t5": "AutoModelForSeq2SeqLM",
    "bert": "AutoModelForMaskedLM",
    "albert": "AutoModelForMaskedLM",
    "vit": "AutoModelForImageClassification",
}
EVERY = [*CAUSAL, *OTHERS]
ADDS = [name for name in CAUSAL if name != "opt-post-norm"]


def inputs(name: str, rows: int = 4) -> dict[str, Tensor]:
    """A batch with labels, for any of the families."""
    drawn = torch.Generator().manual_seed(1)
    if name == "vit":
        images = torch.randn(rows, 3, 16, 16, generator=drawn)
        return {"pixel_values": images, "labels": torch.arange(rows) % 2}
    ids = torch.randint(3, 20, (rows, 10), generator=drawn)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def made(name: str, vocabulary: int = 64) -> Any:
    return family(name, vocabulary, OTHERS.get(name, "AutoModelForCausalLM"))


@pytest.mark.parametrize("name", EVERY)
def test_values_beside_the_weights_agree_with_autograd_and_leave_the_weights(name: str) -> None:
    """(f(x + mu v) - f(x - mu v)) / 2 mu is <grad f, v>, and no bit of a weight changes."""
    model, batch = made(name), inputs(name)
    model.config.use_cache = False
    named: dict[str, Tensor] = dict(model.named_parameters())
    expected = torch.autograd.grad(model(**batch).loss, list(named.values()), materialize_grads=True)
    model.requires_grad_(False)
    store, z, mu = Store(named), Vector(((Noise(Kind.SIGN, 7), 1.0),)), 1e-3
    before = store.digest()
    ahead = tensors_at(store, Query(z))
    slope = sum(
        float(((ahead[n] - named[n]).double() * g.double()).sum()) for n, g in zip(named, expected, strict=True)
    )
    values = []
    for side in (mu, -mu):
        with torch.no_grad(), store.at(z * side):
            values.append(float(model(**batch).loss.double()))
    assert (values[0] - values[1]) / (2 * mu) == pytest.approx(slope, rel=0.05, abs=0.02)
    assert store.digest() == before


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return loading.load(str(tiny_model), dtype="float32")[1]


def settings(model: Path, **more: Any) -> TrainSettings:
    given: dict[str, Any] = {"task": "mr", "train_examples": 8, "eval_examples": 8, "batch_size": 8, "dtype": "float32"}
    return TrainSettings(model=str(model), **{**given, "steps": 25, "threads": 1, "lr": 3e-3, **more})


def steps_of(run: Path) -> list[float]:
    """The loss of each step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


QUICK = [("opt-post-norm", "full"), ("gpt_neox", "lora")]


@pytest.mark.parametrize(("name", "part"), [
    pytest.param(name, part, marks=() if (name, part) in QUICK else pytest.mark.slow)
    for name in CAUSAL for part in ("full", "lora")])  # fmt: skip
def test_the_default_recipe_learns_and_says_why(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, part: str
) -> None:
    model = saved(tmp_path / "model", name, tokenizer)
    more: dict[str, Any] = {"train": "lora", "lr": 2e-2} if part == "lora" else {}
    done = train(settings(model, **more), tmp_path / "run", quiet=True)
    first, *_, last = steps_of(tmp_path / "run")
    assert last < 0.7 * first
    said = capsys.readouterr().err
    if name in ADDS:
        assert "by residual, 25 steps" in said
    else:
        assert "by backprop, their exact gradient, 25 steps of 8 examples, because block 0 of OPT" in said
    again = train(TrainSettings(), tmp_path / "run", resume=True, quiet=True)
    assert again["sha256"] == done["sha256"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:points are evaluated one at a time")
@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("part", ["full", "lora"])
def test_values_alone_move_every_family(tokenizer: Any, tmp_path: Path, name: str, part: str) -> None:
    model = saved(tmp_path / "model", name, tokenizer)
    s = settings(model, method="zo_sgd", train=part, lr="auto", steps=60, mu=1e-3, **{"set": {"n": 4}})
    done = train(s, tmp_path / "run", quiet=True)
    assert done["loss_last"] < done["loss_first"]


@pytest.mark.parametrize("name", ["gpt2", "phi3", "mamba", *(
    pytest.param(n, marks=pytest.mark.slow) for n in CAUSAL if n not in ("gpt2", "phi3", "mamba"))])  # fmt: skip
def test_adapters_go_where_the_architecture_has_linear_layers(name: str) -> None:
    wrapped = loading.attach_lora(made(name), loading.LoraSpec(r=2), 0)
    adapted = {n.split(".lora_A")[0].rpartition(".")[2] for n, _ in wrapped.named_parameters() if "lora_A" in n}
    expected = {"gpt2": {"c_attn"}, "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}, "mamba": {"in_proj"}}
    assert adapted
    assert adapted == expected.get(name, adapted)


def test_a_name_that_no_module_has_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        loading.ModelError, match=r"no module of GPT2LMHeadModel is named 'q_proj'.*c_attn, c_proj, c_fc"
    ):
        loading.attach_lora(made("gpt2"), loading.LoraSpec(targets=("q_proj",)), 0)


@pytest.mark.parametrize("name", ["bert", "t5", *(
    pytest.param(n, marks=pytest.mark.slow) for n in EVERY if n not in ("bert", "t5"))])  # fmt: skip
def test_a_trainer_overfits_a_batch(tmp_path: Path, name: str) -> None:
    model: nn.Module = made(name)
    batch = inputs(name)
    rows = [{key: value[k] for key, value in batch.items()} for k in range(4)]
    rate: dict[str, Any] = {"learning_rate": 1e-2} if name != "albert" else {}
    trainer = Forward(model=model, args=arguments(tmp_path, max_steps=24, **rate), train_dataset=rows)
    trainer.train()
    found = losses(trainer)
    assert found[-1] < (0.95 if name != "albert" else 1.0) * found[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSAL)
def test_a_plan_counts_the_parameters(tokenizer: Any, tmp_path: Path, name: str) -> None:
    model = saved(tmp_path / "model", name, tokenizer)
    expected = sum(p.numel() for p in made(name, len(tokenizer)).parameters())
    assert plan(str(model), batch_size=2, seq_len=16)["params"] == expected
