"""The bundled 4-bit model, kept packed, on real tasks: accuracy, memory, and the saved file. Minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zograd.llm import loading
from zograd.llm.restore import replay, restore
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
from zograd.quantized import gguf_file

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_few_threads")]


def settings(**more) -> TrainSettings:
    given = {"quantized": True, "train": "scales:mlp", "layers": 1, "batch_size": 64, "steps": 800, "dtype": "float32"}
    given |= {"lr_schedule": "linear", "eval_split": "test", "threads": 1}
    return TrainSettings(**{**given, **more})


@pytest.mark.parametrize(("method", "lr"), [("hozo", 1e-2), ("qzo", 1e-5)])
@pytest.mark.parametrize(("task", "above_zero_shot", "above_calibrated"), [("mr", 0.15, 0.0), ("trec", 0.0, 0.05)])
def test_scales_learn_a_task_in_the_memory_of_inference(
    method: str, lr: float, task: str, above_zero_shot: float, above_calibrated: float, tmp_path: Path
) -> None:
    result = train(settings(task=task, method=method, lr=lr), tmp_path / "run", quiet=True)
    assert result["metric_after"] >= result["metric_before"] + above_zero_shot
    assert result["metric_after"] > result["metric_calibrated"] + above_calibrated
    assert result["peak_bytes"] <= 1.05 * result["inference_peak_bytes"]
    if method == "hozo":
        assert result["infeasible"] == 0.0


def test_the_trained_file_is_the_same_model_in_another_reader(tmp_path: Path) -> None:
    """Integers bit-identical, weights and masters below 0.45 of bfloat16, logits of transformers' reader to 1e-3."""
    from transformers import AutoModelForCausalLM

    p_run = tmp_path / "run"
    train(settings(task="trec", method="hozo", lr=1e-2, steps=40, train="scales", layers=None, batch_size=2), p_run)
    replay(p_run, None, tmp_path / "out")
    trained, _ = restore(p_run)
    base, tokenizer = loading.load("smollm2-135m", dtype="float32", quantized=True)
    before = dict(gguf_file.packed_layers(base))
    assert all(torch.equal(layer.blocks, before[name].blocks) for name, layer in gguf_file.packed_layers(trained.model))
    sizes = gguf_file.resident_bytes(trained.model)
    assert sizes["blocks"] + sizes["masters"] + sizes["others"] < 0.45 * sizes["bfloat16"]

    (file,) = (tmp_path / "out").glob("*.gguf")
    other = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    reread, _ = loading.load(str(file), dtype="float32", quantized=True)
    ids = tokenizer(
        "The capital of France is Paris, and the capital of Germany is Berlin.", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        run, ours, theirs, first = (model(ids).logits for model in (trained.model, reread, other, base))
    assert float((theirs - first).abs().max()) > 0.1
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3)
    torch.testing.assert_close(theirs, run, rtol=0, atol=1e-3)
