"""What `zograd train` does where no method is named."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from zograd.llm.build import prepare, resolve
from zograd.llm.recipe import chosen
from zograd.llm.restore import replay
from zograd.llm.resume import open_run
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.methods.defaults import Shape


@pytest.mark.parametrize(
    ("given", "expected", "why"),
    [
        ({}, {"method": "residual", "train": "full", "layers": 4, "steps": 100, "batch_size": 32}, "the last 4 blocks"),
        ({}, {"lr_schedule": "cosine", "warmup": 10}, "100 steps"),
        ({"seconds": 60}, {"warmup": 10}, "residual"),
        ({"budget": "medium"}, {"steps": 400, "warmup": 10}, "400 steps"),
        ({"steps": 30, "warmup": 5}, {"warmup": 5}, "30 steps"),
        ({"steps": 30}, {"warmup": 3}, "30 steps"),
        ({"lr_schedule": "table:0.5,1,0"}, {"warmup": 0}, "100 steps"),
        ({"quantized": True}, {"method": "residual", "train": "lora", "layers": 4}, "adapters of the last 4 blocks"),
        ({"offload": "disk"}, {"method": "residual", "train": "lora", "layers": 4}, "LoRA adapters"),
        ({"steps": 7, "lr_end": 0.5}, {"steps": 7, "lr_end": 0.5, "lr_schedule": "cosine"}, "7 steps of 32 examples"),
        ({"train": "lora"}, {"train": "lora", "layers": 4}, "LoRA adapters of the last 4"),
        ({"train": "mlp"}, {"method": "backprop", "layers": None, "warmup": 10}, "training 'mlp' by backprop"),
        ({"train": "lora", "layers": 9}, {"method_settings": {"recompute": True}}, "their exact gradient"),
        ({"train": "mlp", "layers": 3}, {"method": "residual", "method_settings": {}}, "the last 3 blocks by residual"),
        ({"layers": 1}, {"train": "full", "layers": 1}, "the weights of the last block by"),
        ({"mu": 1e-3}, {"method": "zo_sgd", "steps": 1000, "layers": None}, "zo_sgd, because a radius is given"),
        ({"set": {"n": 4}}, {"method": "zo_sgd"}, "one of its settings is given"),
        ({"lr": "auto"}, {"method": "zo_sgd"}, "is to be measured"),
        ({"shards": 2}, {"method": "zo_sgd"}, "cut into parts"),
        ({"method": "fzoo"}, {"method": "fzoo", "steps": 1000, "batch_size": 16, "warmup": 0}, ""),
        ({"method": "backprop"}, {"method": "backprop", "steps": 1000, "warmup": 10}, ""),
        ({"method": "residual", "steps": 50}, {"warmup": 5}, ""),
        ({"method": "residual", "warmup": 0}, {"warmup": 0}, ""),
        ({"method": "residual", "lr_schedule": "table:0.5,1,0"}, {"warmup": 0}, ""),
    ],
)  # fmt: skip
def test_what_is_not_given_is_chosen(given: dict[str, Any], expected: dict[str, Any], why: str) -> None:
    new, said = chosen(TrainSettings.model_validate(given))
    assert {name: getattr(new, name) for name in expected} == expected
    assert why in said
    assert bool(said) == bool(why)
    assert chosen(new) == (new, "")
    assert resolve(TrainSettings(dtype="float32"), 2).method == "residual"
    assert resolve(TrainSettings(dtype="float32", parallel="directions"), 2).method == "zo_sgd"


def test_a_file_and_nothing_else_is_learned(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The defaults on a task that a newcomer may have: the same two words decide."""
    lines: list[Any] = [{"text": f"it was {word} {k}", "label": label} for k in range(60) for word, label in (
        ("good", "yes"), ("bad", "no"))]  # fmt: skip
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    s = TrainSettings(model=str(tiny_model), task=str(file), dtype="float32", threads=1)
    done = train(s, tmp_path / "run", quiet=True)
    assert done["steps"] == 100
    assert done["metric_after"] > 0.95 > done["metric_before"] + 0.2
    said = capsys.readouterr().err
    assert "zograd: training the weights of the last 4 blocks by residual, 100 steps" in said
    assert r"the column label is predicted from the prompt '{text}\nLabel:', scored by ' no', ' yes'" in said
    again = train(s, tmp_path / "again", quiet=True)
    assert again["sha256"] == done["sha256"]
    resumed = train(TrainSettings(), tmp_path / "run", resume=True, quiet=True)
    assert resumed["sha256"] == done["sha256"]


def test_the_rate_follows_the_width_and_the_number_of_trained_blocks(tiny_model: Path, tmp_path: Path) -> None:
    assert Shape(576, 1).lr == pytest.approx(2e-3, rel=0.01)
    assert Shape(576, 4).lr == pytest.approx(1e-3, rel=0.01)
    assert Shape(1152, 4).lr == pytest.approx(5e-4, rel=0.01)
    common: dict[str, Any] = {"model": str(tiny_model), "dtype": "float32", "method": "residual"}
    full = prepare(TrainSettings(**common, layers=1), tmp_path).run.method
    lora = prepare(TrainSettings(**common, layers=1, train="lora"), tmp_path).run.method
    own = prepare(TrainSettings(**common, layers=1, lr=0.5), tmp_path).run.method
    assert full.controller.peak == 0.036 == pytest.approx(Shape(32, 1).lr, rel=0.01)  # two digits, at every door
    assert lora.controller.peak == 0.18
    assert own.controller.peak == 0.5


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lora_r": 4}, "--lora-r does nothing here: it is for --train lora or polar, and here is --train full"),
        ({"lora_targets": ["x"], "train": "mlp"}, "--lora-targets does nothing here: it is for --train lora"),
        ({"lr_end": 0.1, "lr": 1e-3}, "--lr-end does nothing here: it is for a linear or cosine --lr-schedule"),
        ({"lora_r": 4, "train": "lora", "lr_schedule": "cosine", "lr_end": 0.1}, None),
        ({"lora_r": 8}, None),
    ],
)
def test_a_setting_that_does_nothing_is_said(tmp_path: Path, given: dict[str, Any], says: str | None) -> None:
    s = TrainSettings.model_validate({"method": "zo_sgd", "dtype": "float32", **given})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_run(s, tmp_path / "run", False, 1)
    assert [str(w.message).startswith(says) for w in caught if says] == ([True] if says else [])
    assert bool(caught) == (says is not None)


def test_adapters_outside_of_the_blocks_are_trained_by_values(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe gives way; a method that was named is an error."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = False
    LlamaForCausalLM(config).save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "untied")
    asked = {"model": str(tmp_path / "untied"), "task": "mr", "train_examples": 8, "eval_examples": 8, "steps": 2}
    asked["train"] = "lora"
    s = TrainSettings.model_validate({**asked, "lora_targets": ["q_proj", "lm_head"]})
    done = train(s, tmp_path / "run")
    assert "by zo_sgd with a measured rate" in (said := capsys.readouterr().err)
    assert "lm_head.lora_A.default.weight lies outside of the blocks" in said
    assert replay(tmp_path / "run", None, tmp_path / "weights")["sha256"] == done["sha256"]
    named = TrainSettings.model_validate({**asked, "lora_targets": ["q_proj", "lm_head"], "method": "residual"})
    with pytest.raises(SettingsError, match="trains tensors inside of the blocks"):
        train(named, tmp_path / "other", quiet=True)


def test_where_texts_are_learned_the_rate_is_lower_and_kept_with_the_run(tiny_model: Path, tmp_path: Path) -> None:
    file, run = tmp_path / "texts.jsonl", tmp_path / "run"
    pairs = [{"prompt": f"It was {k}", "completion": " very good" if k % 2 else " bad"} for k in range(24)]
    file.write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    common = {"model": str(tiny_model), "task": str(file), "dtype": "float32", "eval_examples": 4, "batch_size": 4}
    for more in ({}, {"layers": 2, "method": "backprop"}, {"train": "lora"}):
        s = TrainSettings.model_validate({**common, **more, "steps": 2, "train_examples": 8})
        shape = Shape(32, 2 if "layers" in more else 4, texts=True)
        done = train(s, run, quiet=True)
        kept = json.loads((run / "run.json").read_text(encoding="utf-8"))["settings"]["lr"]
        assert kept == pytest.approx(shape.lr * (5 if "train" in more else 1), rel=0.01)
        assert shape.lr == pytest.approx(0.3 * shape._replace(texts=False).lr)
        assert train(TrainSettings(), run, resume=True, quiet=True)["sha256"] == done["sha256"]
        shutil.rmtree(run)
    own = TrainSettings.model_validate({**common, "steps": 2, "train_examples": 8, "lr": 0.5})
    train(own, run, quiet=True)
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["settings"]["lr"] == 0.5
