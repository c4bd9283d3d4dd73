"""`zograd protect` and `train --protect`: what a model gives on a task stays while it learns another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from zograd.cli import app
from zograd.hub import load_task
from zograd.laws import Memory
from zograd.llm import loading
from zograd.llm.protecting import protect
from zograd.llm.restore import restore
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.runs.errors import RunError


def settings(model: Path, file: Path, **more: Any) -> TrainSettings:
    common = {
        "model": str(model), "task": "mr", "method": "zo_sgd", "protect": str(file), "dtype": "float32", "threads": 1,
        "batch_size": 8, "steps": 6, "train_examples": 40, "eval_examples": 10, "lr": 1e-2, "seed": 3,
    }  # fmt: skip
    return TrainSettings.model_validate({**common, **more})


@pytest.fixture(scope="module")
def remembered(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("memory") / "mr.safetensors"
    done = protect(str(tiny_model), "mr", file, layers=1, calibration=16, energy=0.9)
    assert done["layers"] == 7
    assert 0.0 < done["least"] <= done["most"] < 1.0
    return file


def test_training_leaves_the_remembered_directions_alone(tiny_model: Path, tmp_path: Path, remembered: Path) -> None:
    done = train(settings(tiny_model, remembered), tmp_path / "run", quiet=True)
    prepared, _ = restore(tmp_path / "run")
    assert prepared.store.digest() == done["sha256"], "the run replays"
    base = dict(loading.load(str(tiny_model), dtype="float32")[0].named_parameters())
    memory = Memory.load(remembered).by_name
    assert set(prepared.trained) == set(memory)
    for name, m in memory.items():
        change = (prepared.trained[name] - base[name]).detach().double()
        assert float((change @ m.double()).norm()) < 1e-4 * float(change.norm())
        assert float(change.norm()) > 0.0
    resumed = train(settings(tiny_model, remembered, steps=9), tmp_path / "run", resume=True, quiet=True)
    whole = train(settings(tiny_model, remembered, steps=9), tmp_path / "whole", quiet=True)
    assert resumed["sha256"] == whole["sha256"]


def test_the_memory_is_that_of_single_forwards(tiny_model: Path, remembered: Path) -> None:
    """The span holds 90 % of the squares of what enters the layer, without padding."""
    from zograd.llm.compressing import batches
    from zograd.llm.scoring.kinds import scorer_of

    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    task = load_task("mr")
    scorer = scorer_of(model, tokenizer, task)
    layer = model.get_submodule("model.layers.3.mlp.down_proj")
    rows: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: rows.append(args[0][0].double()))
    with torch.no_grad():
        for example in [e for batch in batches(task, 16, 0) for e in batch]:
            for sequence in scorer.encode(example):
                model(torch.tensor([sequence.ids]))
    hook.remove()
    x, m = torch.cat(rows), Memory.load(remembered).by_name["model.layers.3.mlp.down_proj.weight"].double()
    kept = [float((x @ m[:, :k]).square().sum() / x.square().sum()) for k in (m.shape[1] - 1, m.shape[1])]
    assert kept[0] < 0.9 <= kept[1] + 1e-6


def test_the_commands(tiny_model: Path, tmp_path: Path, remembered: Path) -> None:
    file = tmp_path / "both.safetensors"
    words = [
        "protect",
        "--model",
        str(tiny_model),
        "--task",
        "mr",
        "--layers",
        "1",
        "--calibration",
        "24",
        "--seed",
        "5",
    ]
    done = CliRunner().invoke(
        app, [*words, "--extend", str(remembered), "--energy", "0.95", "--out", str(file), "--json"]
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    before, after = Memory.load(remembered), Memory.load(file)
    assert result["shares"] == pytest.approx(after.shares())
    for name, m in before.by_name.items():
        torch.testing.assert_close(after.by_name[name][:, : m.shape[1]], m)
    again = CliRunner().invoke(app, [*words, "--out", str(file)])
    assert again.exit_code == 2
    assert "exists; choose another name" in again.output
    shown = CliRunner().invoke(app, ["protect", "--help"], env={"COLUMNS": "200"})
    assert "zograd protect --task mr --layers 1" in shown.stdout
    text = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "c.safetensors")])
    assert "are taken" in text.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": "zo_adam"}, "--protect does not go with --method zo_adam: NullSpace keeps"),
        ({"train": "lora"}, "--protect is for the weights that are remembered, and --train lora adds others"),
        ({"weight_decay": 0.1}, "use weight_decay=0"),
        ({"train": "embed"}, "none of the weights that .* remembers is trained"),
        ({"protect": "nowhere.safetensors"}, "--protect nowhere.safetensors cannot be read"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tiny_model: Path, tmp_path: Path, remembered: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        train(settings(tiny_model, remembered, **more), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"energy": 0.0}, "--energy 0.0"),
        ({"calibration": 0}, "--calibration 0"),
        ({"modules": "nothing"}, "--modules nothing"),
        ({"extend": Path("nowhere")}, "--extend nowhere cannot be read"),
    ],
)
def test_bad_input_writes_nothing(tiny_model: Path, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        protect(str(tiny_model), "mr", tmp_path / "m", **more)
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
@pytest.mark.model
def test_the_bundled_model_forgets_less(tmp_path: Path) -> None:
    """mr is remembered in the top block of SmolLM2-135M, then trec is learned: mr changes less than without memory."""
    from zograd.llm.evaluate import evaluate

    file = tmp_path / "mr.safetensors"
    protect("smollm2-135m", "mr", file, layers=1, calibration=48)
    common = {"model": "smollm2-135m", "task": "trec", "method": "fzoo", "layers": 1, "steps": 50, "threads": 1,
              "train_examples": 100, "eval_examples": 8, "baseline": False, "lr": 1e-4}  # fmt: skip
    found = {}
    for name, more in (("memory", {"protect": str(file)}), ("none", {})):
        train(TrainSettings.model_validate({**common, **more}), tmp_path / name, quiet=True)
        found[name] = evaluate(None, "mr", tmp_path / name, examples=80)["loss"]
    start = evaluate("smollm2-135m", "mr", None, examples=80)["loss"]
    print(start, found)
    assert abs(found["memory"] - start) < 0.2 * abs(found["none"] - start)


def test_another_file_in_the_place_of_the_remembered_one_is_refused(
    tiny_model: Path, tmp_path: Path, remembered: Path
) -> None:
    """The directions of the run depend on it: with another file the tape gives other weights."""
    file = tmp_path / "memory.safetensors"
    shutil.copy(remembered, file)
    done = train(settings(tiny_model, file, steps=3), tmp_path / "run", quiet=True)
    other = tmp_path / "other.safetensors"
    protect(str(tiny_model), "mr", other, layers=1, calibration=8)
    own = file.rename(tmp_path / "away.safetensors")
    shutil.copy(other, file)
    with pytest.raises(RunError, match=r"--protect .* of the run is another file than the run was trained with"):
        restore(tmp_path / "run")
    with pytest.raises(RunError, match=r"--protect names another file than the run was trained with"):
        train(TrainSettings(steps=5), tmp_path / "run", resume=True, quiet=True)
    file.unlink()
    with pytest.raises(RunError, match=r"was trained with --protect .*, which is not to be found from"):
        restore(tmp_path / "run")
    own.rename(file)
    assert restore(tmp_path / "run")[0].store.digest() == done["sha256"]
