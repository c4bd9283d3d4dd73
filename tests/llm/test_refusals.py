"""Sentences for models, parts and devices that cannot be used, and what is said of the trained blocks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from zograd.cli import app
from zograd.errors import UsageError
from zograd.llm import loading
from zograd.stores import Store

FEW = ("--task", "mr", "--train-examples", "8", "--eval-examples", "4", "--batch-size", "2", "--dtype", "float32")


def zograd(*words: object) -> Any:
    return CliRunner().invoke(app, [*map(str, words)])


def said(result: Any) -> str:
    """The last line on stderr."""
    return str(result.stderr.strip().splitlines()[-1])


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("gpu", "there is no device 'gpu'; use cpu, cuda"),
        pytest.param(
            "cuda",
            "cannot use the device cuda on this machine",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="here it can"),
        ),
    ],
)
def test_a_device_that_is_not_there_is_said_before_any_work(
    tiny_model: Path, tmp_path: Path, device: str, sentence: str
) -> None:
    result = zograd("train", "--model", tiny_model, *FEW, "--device", device, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert sentence in said(result)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match=sentence):
        loading.load(str(tiny_model), device=device)


def test_a_folder_that_is_no_model_says_what_it_is(tiny_model: Path, tmp_path: Path) -> None:
    prefix = ("--train", "prefix", "--method", "zo_sgd", "--steps", "1")
    assert zograd("train", "--model", tiny_model, *FEW, *prefix, "--out", tmp_path / "run").exit_code == 0
    assert zograd("replay", tmp_path / "run", "--out", tmp_path / "tokens").exit_code == 0
    (tmp_path / "other").mkdir()
    for name, sentence in {
        "run": "is a run, not a model: write its weights with `zograd replay",
        "tokens": r"holds virtual tokens .*\(PREFIX_TUNING\), not a model: load it in Python with peft",
        "other": "is a folder without a config.json, so it holds no model; it holds nothing",
    }.items():
        for command in (("eval", "--task", "mr"), ("plan", "--task", "mr")):
            result = zograd(*command, "--model", tmp_path / name)
            assert result.exit_code == 1
            assert re.search(sentence, said(result)), said(result)


def test_predict_on_a_run_that_does_not_exist_says_so() -> None:
    result = zograd("predict", "runs/nowhere", "a text")
    assert result.exit_code == 2
    assert "there is no run runs/nowhere here; check its path" in said(result)


def test_all_weights_of_a_quantized_model_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Without it, `full` trained the norms of a packed model and said nothing."""
    pytest.importorskip("torchao")
    words = ("--quantize", "int8-torchao", "--method", "zo_sgd", "--steps", "1", "--out", tmp_path / "run")
    result = zograd("train", "--model", tiny_model, *FEW, *words)
    assert result.exit_code == 1
    assert "--train full trains all weights, and the matrices of this model are packed integers" in said(result)
    model, _ = loading.load(str(tiny_model), quantize="int8-torchao", dtype="float32")
    with pytest.raises(TypeError, match=r"is of the class \w+ \(torchao[\w.]*\), as libraries keep quantized weights"):
        Store(loading.select(model, "*.q_proj.weight"))


def test_the_line_before_training_names_the_blocks_that_there_are(tiny_model: Path, tmp_path: Path) -> None:
    result = zograd("train", "--model", tiny_model, *FEW, "--layers", 9, "--steps", 1, "--out", tmp_path / "run")
    assert "training the weights of the last 4 blocks by backprop, 1 step of 2 examples" in result.stderr


def test_a_run_at_its_end_says_so(tiny_model: Path, tmp_path: Path) -> None:
    words = ("--method", "zo_sgd", "--steps", 2)
    assert zograd("train", "--model", tiny_model, *FEW, *words, "--out", tmp_path / "run").exit_code == 0
    result = zograd("train", "--out", tmp_path / "run", "--resume")
    assert "the run has taken its 2 steps already; a larger --steps continues it" in result.stderr
    refused = zograd("train", "--out", tmp_path / "run", "--resume", "--lr", 3)
    assert "cannot change lr = 3.0 (the run has none given)" in said(refused)
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["settings"]["lr"] is None


def test_a_schedule_over_the_steps_is_why_they_stay(tiny_model: Path, tmp_path: Path) -> None:
    """The default recipe has one, and the help said that --resume takes a new --steps."""
    words = ("--layers", 1, "--steps", 2)
    assert zograd("train", "--model", tiny_model, *FEW, *words, "--out", tmp_path / "run").exit_code == 0
    refused = zograd("train", "--out", tmp_path / "run", "--resume", "--steps", 4)
    assert "steps = 4 (the run has 2), over which its learning rate follows a cosine schedule: leave" in said(refused)


def test_adapters_and_weights_are_not_merged(tiny_model: Path, tmp_path: Path) -> None:
    """They "were trained from different base models"."""
    for train in ("lora", "mlp"):
        words = ("--method", "zo_sgd", "--train", train, "--layers", 1, "--steps", 1, "--out", tmp_path / train)
        assert zograd("train", "--model", tiny_model, *FEW, *words).exit_code == 0
    merged = zograd("replay", tmp_path / "lora", tmp_path / "mlp", "--merge", "sum", "--out", tmp_path / "out")
    assert "lora trained lora, and" in said(merged)
    assert "mlp trained mlp: only runs that trained tensors of one kind can be merged" in said(merged)


def test_no_examples_at_all_are_refused(tiny_model: Path) -> None:
    result = zograd("eval", "--model", tiny_model, "--task", "mr", "--examples", 0)
    assert (result.exit_code, said(result)) == (2, "zograd: --examples 0: at least 1 is needed")


def test_virtual_tokens_that_fill_the_model_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    words = ("--train", "prompt", "--tokens", 200, "--method", "zo_sgd", "--steps", 1, "--out", tmp_path / "run")
    result = zograd("train", "--model", tiny_model, *FEW, *words)
    assert result.exit_code == 1
    assert "200 virtual tokens leave no room for a text: the model takes 128 tokens in all" in said(result)


def test_a_metric_of_written_answers_is_not_offered_to_classes(tiny_model: Path) -> None:
    result = zograd("eval", "--model", tiny_model, "--task", "mr", "--metric", "exact-match")
    assert result.exit_code == 2
    assert said(result).endswith("compares answers that are written, and this task has classes; use loss")


def test_a_completion_that_the_tokenizer_joins_to_the_prompt_is_not_called_empty(
    tiny_model: Path, tmp_path: Path
) -> None:
    task = tmp_path / "d.jsonl"
    rows = [{"prompt": f"it was {i}", "completion": "terrible", "split": ("train", "test")[i % 2]} for i in range(8)]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = zograd("eval", "--model", tiny_model, "--task", task)
    assert result.exit_code == 1
    assert re.search(
        r"the completion 'terrible' has no token of its own behind .* with a space or a new line", said(result)
    )


def test_a_run_whose_data_is_not_found_says_where_it_looked(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"it was {i}", "label": ("good", "bad")[i % 2]} for i in range(40)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = ("--method", "zo_sgd", "--steps", 1, "--dtype", "float32", "--out", "run")
    assert zograd("train", "--model", tiny_model, "--task", "d.jsonl", *words).exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for command in (("eval", "--run", "../run"), ("train", "--resume", "--steps", 2, "--out", "../run")):
        result = zograd(*command)
        assert result.exit_code == 1
        assert "the run was trained on d.jsonl, which is not to be found from" in said(result)
    monkeypatch.chdir(tmp_path)
    assert zograd("train", "--resume", "--steps", 2, "--out", "run").exit_code == 0


@pytest.mark.parametrize(("model", "reads"), [("whisper-tiny.en", "speech"), ("efficientnet-lite0", "images")])
def test_a_model_that_reads_no_text_is_refused_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, reads: str
) -> None:
    monkeypatch.setenv("ZOGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    result = zograd("train", "--model", model, *FEW, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert f"{model} reads {reads}, and" in said(result)
    assert "Fetching" not in result.stderr
    assert not (tmp_path / "cache").exists()
