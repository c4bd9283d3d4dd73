"""`zograd compress`: pruned and factorised models, on the disk and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from zograd import compress as parts
from zograd.cli import app
from zograd.hub import load_task, select
from zograd.laws import Scores, TopScores
from zograd.llm import loading
from zograd.llm.compressing import FACTORS, MASKS, compress
from zograd.llm.scoring.kinds import scorer_of
from zograd.llm.settings import SettingsError
from zograd.llm.stages import Stages
from zograd.runs.errors import RunError

FEW = {"calibration": 16, "examples": 20, "dtype": "float32"}


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    model, _ = loading.load(str(folder), dtype="float32")
    return {name: layer.weight.detach() for name, layer in parts.linear_layers(model, "layers").items()}


@pytest.mark.parametrize("scores", ["magnitude", "wanda", "task-aware"])
def test_a_pruned_model_has_its_zeros_and_loads_in_transformers(tiny_model: Path, tmp_path: Path, scores: Any) -> None:
    text = tmp_path / "any.jsonl"
    text.write_text("".join(json.dumps({"text": e.prompt}) + "\n" for e in load_task("mr").splits["test"][:100]))
    done = compress(str(tiny_model), "mr", tmp_path / "out", scores=scores, sparsity=0.5, general=str(text), **FEW)
    before, after, masks = weights(tiny_model), weights(tmp_path / "out"), load_file(tmp_path / "out" / MASKS)
    assert done["layers"] == len(before) == 4 * 7
    assert done["numbers_after"] * 2 == done["numbers_before"] == sum(w.numel() for w in before.values())
    for name, w in after.items():
        mask = masks[f"{name}.weight"]
        assert (mask.sum(1) == w.shape[1] // 2).all()
        assert torch.equal(w, before[name] * mask)
    assert Scores.load(tmp_path / "out" / MASKS) is not None
    assert TopScores(1.0, Scores(masks)).density == 1.0


def test_the_norms_of_a_model_are_those_of_its_tokens_alone(tiny_model: Path) -> None:
    """Packed and padded forwards give the norms of single forwards without padding."""
    from zograd.llm.compressing import batches, layers_of, norms_of

    task = load_task("mr")
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    layers, scorer = layers_of(model, "down_proj"), scorer_of(model, tokenizer, task)
    seen = batches(task, 12, 0)
    found = norms_of(scorer, layers, seen, Stages(quiet=True))
    squares = {name: torch.zeros(64, dtype=torch.float64) for name in layers}

    def noted(name: str) -> Any:
        def note(_: Any, args: tuple[torch.Tensor]) -> None:
            squares[name] += args[0].double().square().sum((0, 1))

        return note

    hooks = [m.register_forward_pre_hook(noted(n)) for n, m in layers.items()]
    with torch.no_grad():
        for example in [e for batch in seen for e in batch]:
            for sequence in scorer.encode(example):
                model(torch.tensor([sequence.ids]))
    for h in hooks:
        h.remove()
    for name in layers:
        torch.testing.assert_close(found[name], squares[name].sqrt(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factors", ["svd", "fwsvd"])
def test_factors_and_their_products_are_the_same_model(tiny_model: Path, tmp_path: Path, factors: Any) -> None:
    done = compress(str(tiny_model), "mr", tmp_path / "out", factors=factors, keep=0.5, modules="mlp", **FEW)
    assert done["numbers_after"] <= 0.5 * done["numbers_before"]
    before, after = weights(tiny_model), weights(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before if "mlp" not in name)
    thin, _ = loading.load(str(tiny_model), dtype="float32")
    parts.load_factors(thin, tmp_path / "out" / FACTORS)
    dense, tokenizer = loading.load(str(tmp_path / "out"), dtype="float32")
    ids = torch.tensor([[5, 7, 11, 13]])
    with torch.no_grad():
        torch.testing.assert_close(thin(ids).logits, dense(ids).logits, rtol=1e-4, atol=1e-5)
    examples = select(load_task("mr"), "test", 20, seed=0)
    metrics = scorer_of(dense, tokenizer, load_task("mr")).evaluate(examples)
    assert metrics.loss == pytest.approx(done["loss_after"], rel=1e-4)
    assert done["loss_after"] != done["loss_before"]


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"scores": "wanda", "factors": "svd"}, SettingsError, "choose one"),
        ({"scores": "best"}, SettingsError, "--scores best: choose one of magnitude, wanda, task-aware"),
        ({"sparsity": 1.0}, SettingsError, "--sparsity 1.0: it is the share"),
        ({"factors": "svd", "keep": 0.0}, SettingsError, "--keep 0.0"),
        ({"calibration": 0}, SettingsError, "--calibration 0"),
        ({"modules": "nothing"}, SettingsError, "no linear layer .* matches 'nothing'"),
        ({"modules": "("}, SettingsError, "--modules"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    tiny_model: Path, tmp_path: Path, more: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        compress(str(tiny_model), "mr", tmp_path / "out", **{**FEW, **more})
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_full_is_left_alone(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(RunError, match="is not empty; choose a new folder"):
        compress(str(tiny_model), "mr", tmp_path, **FEW)


def test_the_command(tiny_model: Path, tmp_path: Path) -> None:
    common = ["compress", "--model", str(tiny_model), "--task", "mr", "--calibration", "8", "--examples", "10"]
    run = CliRunner().invoke(app, [*common, "--sparsity", "0.3", "--out", str(tmp_path / "a"), "--json"])
    assert run.exit_code == 0, run.output
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["how"] == "wanda"
    assert result["numbers_after"] < 0.75 * result["numbers_before"]
    run = CliRunner().invoke(app, [*common, "--factors", "svd", "--keep", "0.5", "--out", str(tmp_path / "b")])
    assert run.exit_code == 0, run.output
    assert "as factors" in run.stdout
    assert "accuracy before" in run.stdout
    run = CliRunner().invoke(app, [*common, "--sparsity", "2", "--out", str(tmp_path / "c")])
    assert run.exit_code == 2
    assert "--sparsity 2.0" in run.output
    shown = CliRunner().invoke(app, ["compress", "--help"], env={"COLUMNS": "200"})
    assert "zograd compress --task trec --scores task-aware" in shown.stdout


@pytest.mark.slow
@pytest.mark.model
def test_the_bundled_model_keeps_most_of_a_task(tmp_path: Path) -> None:
    """All MLP matrices of SmolLM2-135M at 30 % zeros: the loss on trec is nearer to the dense one than by magnitude."""
    found = {
        how: compress(
            "smollm2-135m", "trec", tmp_path / how, scores=how, sparsity=0.3, modules="mlp", calibration=64,
            examples=200,
        )
        for how in ("magnitude", "wanda", "task-aware")
    }  # fmt: skip
    print({how: (r["value_before"], r["value_after"], r["loss_before"], r["loss_after"]) for how, r in found.items()})
    apart = {how: abs(r["loss_after"] - r["loss_before"]) for how, r in found.items()}
    assert min(apart["wanda"], apart["task-aware"]) < apart["magnitude"]
