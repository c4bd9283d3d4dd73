"""PoLAR adapters: W + s X T Y^T with X and Y on Stiefel manifolds, trained, replayed, merged and written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zograd.llm import loading
from zograd.llm.build import set_up
from zograd.llm.loading.polar import Polar, as_lora, attach_polar, merge_polar, polar_layers, stable_rank, stable_ranks
from zograd.llm.pack import pack
from zograd.llm.restore import replay, restore
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.llm.tuned import Tuned


def settings(model: Path, **more: Any) -> TrainSettings:
    common = {
        "model": str(model), "task": "mr", "method": "zo_sgd", "train": "polar", "lora_r": 4, "dtype": "float32",
        "threads": 1, "batch_size": 8, "steps": 6, "train_examples": 40, "eval_examples": 10, "lr": 1e-2,
    }  # fmt: skip
    return TrainSettings.model_validate({**common, **more})


def off(x: Tensor) -> float:
    """|X^T X - I|."""
    x = x.detach().double()
    return float((x.mT @ x - torch.eye(x.shape[1], dtype=torch.float64)).norm())


@torch.no_grad()
def moved(model: nn.Module) -> nn.Module:
    """The model with T drawn, so that its adapters do something."""
    for k, (_, layer) in enumerate(polar_layers(model)):
        layer.polar_t.copy_(torch.randn(layer.polar_t.shape, generator=torch.Generator().manual_seed(k)))
    return model


def test_a_layer_is_its_weight_plus_the_product() -> None:
    from transformers.pytorch_utils import Conv1D

    generator = torch.Generator().manual_seed(0)
    for base in (nn.Linear(7, 5), Conv1D(5, 7)):
        layer = Polar(base.double(), 3, 2.0, torch.float64, generator)
        x = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
        assert torch.equal(layer(x), base(x)), "T = 0 at the start"
        assert max(off(layer.polar_x), off(layer.polar_y)) < 1e-10
        with torch.no_grad():
            layer.polar_t.copy_(torch.randn(3, 3, generator=generator))
        dense = layer(x)
        delta = layer.get_delta_weight()
        w = base.weight if isinstance(base, nn.Linear) else base.weight.mT
        turned = delta if isinstance(base, nn.Linear) else delta.mT
        torch.testing.assert_close(dense, x @ (w + turned).mT + base.bias, atol=1e-12, rtol=0)
        torch.testing.assert_close(turned, 2.0 * layer.polar_x @ layer.polar_t @ layer.polar_y.mT)


def test_merged_and_as_lora_are_the_same_model(tiny_model: Path) -> None:
    ids, spec = torch.arange(12)[None], loading.LoraSpec(r=3, alpha=6.0, layers=2)
    found = []
    for change in (lambda m: m, merge_polar, as_lora):
        model, _ = loading.load(str(tiny_model), dtype="float32")
        plain = model(ids).logits
        found.append(change(moved(attach_polar(model, spec, seed=1)))(ids).logits.detach())
    assert not torch.allclose(found[0], plain, atol=1e-3)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=0)


def test_the_factors_keep_orthonormal_columns(tiny_model: Path, tmp_path: Path) -> None:
    done = train(settings(tiny_model, lr=0.1, mu=1e-2, layers=2, steps=30), tmp_path / "run", quiet=True)
    r, width, value = 4, 32, 16
    assert done["trained"] == 2 * (2 * r * width + r * (width + value) + 2 * r * r)
    p, _ = restore(tmp_path / "run")
    layers = dict(polar_layers(p.model))
    assert len(layers) == 4
    start = dict(polar_layers(set_up(settings(tiny_model, layers=2), tmp_path).prepared.model))
    for name, layer in layers.items():
        assert max(off(layer.polar_x), off(layer.polar_y)) < 1e-5
        assert float((layer.polar_x - start[name].polar_x).norm()) > 1e-3, "X moves"
        ranks = stable_rank(layer.get_delta_weight())
        assert 1.0 <= ranks <= r
        assert stable_ranks(p.model)[name] == pytest.approx(ranks, rel=1e-4)
    assert done["stable_rank"] == pytest.approx(sum(stable_ranks(p.model).values()) / 4, rel=1e-6)


@pytest.mark.parametrize("method", ["zo_adam", "fzoo", "residual"])
def test_a_run_resumes_replays_and_answers(tiny_model: Path, tmp_path: Path, method: str) -> None:
    more = {"method": method, "lr": 1e-3, "baseline": False}
    whole = train(settings(tiny_model, steps=6, **more), tmp_path / "whole", quiet=True)
    run = tmp_path / "run"
    train(settings(tiny_model, steps=4, **more), run, quiet=True)
    assert train(settings(tiny_model, steps=6, **more), run, resume=True, quiet=True)["sha256"] == whole["sha256"]
    file = pack(run, tmp_path / "a.zopack")["path"]
    assert replay(file, None, tmp_path / "weights")["sha256"] == whole["sha256"]
    texts = ["a fine film", "dull"]
    answers = Tuned(run, task="mr").predict(texts)
    written = Tuned(tmp_path / "weights", task="mr", dtype="float32").predict(texts)
    for ours, theirs in zip(answers, written, strict=True):
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-5)


def test_points_together_are_points_alone(tiny_model: Path, tmp_path: Path) -> None:
    losses = [
        train(settings(tiny_model, steps=3, together=n, baseline=False), tmp_path / f"{n}", quiet=True)["loss_last"]
        for n in (1, 2)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_weights_on_the_disk_are_written_with_the_adapters(tiny_model: Path, tmp_path: Path) -> None:
    common = {"steps": 4, "lr": 0.1, "baseline": False}
    plain = train(settings(tiny_model, **common), tmp_path / "plain", quiet=True)
    away = train(settings(tiny_model, offload="disk", **common), tmp_path / "away", quiet=True)
    assert away["loss_last"] == pytest.approx(plain["loss_last"], abs=1e-5)
    models = []
    for name in ("plain", "away"):
        replay(tmp_path / name, None, tmp_path / f"{name}.out")
        models.append(loading.load(str(tmp_path / f"{name}.out"), dtype="float32")[0])
    ids = torch.arange(12)[None]
    torch.testing.assert_close(models[0](ids).logits, models[1](ids).logits, atol=1e-4, rtol=0)


def test_stable_rank_is_that_of_known_matrices() -> None:
    assert stable_rank(torch.eye(5)) == pytest.approx(5.0)
    assert stable_rank(torch.ones(4, 3)) == pytest.approx(1.0)
    assert stable_rank(torch.diag(torch.tensor([2.0, 1.0]))) == pytest.approx(1.25)


def test_stable_ranks_of_lora_are_those_of_its_products(tiny_model: Path) -> None:
    model, _ = loading.load(str(tiny_model), dtype="float32")
    wrapped: Any = loading.attach_lora(model, loading.LoraSpec(r=3, layers=1), seed=0)
    assert all(math.isnan(rank) for rank in stable_ranks(wrapped).values()), "B = 0"
    layers = {n: m for n, m in wrapped.named_modules() if hasattr(m, "lora_B")}
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    found = stable_ranks(wrapped)
    assert found.keys() == layers.keys()
    for name, layer in layers.items():
        assert found[name] == pytest.approx(stable_rank(layer.get_delta_weight("default").detach()), rel=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"weight_decay": 0.1}, "--weight-decay pulls towards 0"),
        ({"lora_r": 17}, "--lora-r 17: 17 orthonormal columns do not fit a layer of 32 inputs and 16 outputs; use at"),
        ({"lora_targets": ["nothing"]}, "may get an adapter is named 'nothing'; its linear layers are q_proj"),
        ({"lora_init": "activations"}, "--lora-init activations is for --train lora, and here is --train polar"),
        ({"balance": True}, "--balance is for --train lora, and here is --train polar"),
        ({"method": "salaad"}, "--train polar does not go with --method salaad: LowRankSparse adds matrices"),
        ({"method": "hizoo"}, "--train polar does not go with --method hizoo, which moves in a space of its own"),
        ({"protect": "x"}, "--train polar adds others"),
    ],
    ids=["decay", "rank", "names", "init", "balance", "method", "space", "protect"],
)  # fmt: skip
def test_what_cannot_be_is_said(tiny_model: Path, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises((SettingsError, loading.ModelError)) as found:
        set_up(settings(tiny_model, **more), tmp_path)
    assert message in str(found.value)


def test_a_refused_model_is_as_it_was(tiny_model: Path) -> None:
    model, _ = loading.load(str(tiny_model), dtype="float32")
    with pytest.raises(loading.ModelError, match="share one weight"):
        attach_polar(model, loading.LoraSpec(r=2, targets=("lm_head", "q_proj")), seed=0)
    assert not any(polar_layers(model))


@pytest.mark.slow
def test_the_bundled_model_learns(tmp_path: Path) -> None:
    s = settings(Path("smollm2-135m"), task="trec", method="residual", lora_r=8, steps=40, batch_size=32, layers=4)
    done = train(
        s.model_copy(update={"train_examples": 500, "eval_examples": 100, "lr": None, "lr_schedule": "cosine"}),
        tmp_path / "run",
        quiet=True,
    )
    assert done["metric_after"] > done["metric_before"] + 0.1  # two standard errors of 100 questions
    assert done["loss_last"] < done["loss_first"] - 0.2
    for _, layer in polar_layers(restore(tmp_path / "run")[0].model):
        assert max(off(layer.polar_x), off(layer.polar_y)) < 1e-5
