"""`zograd train` on images: data, models, and every command that a run of texts has."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from typer.testing import CliRunner

from tests.pretrained import like_pretrained
from zograd.cli import app
from zograd.hub import TaskError, load_task
from zograd.hub.media import Picture
from zograd.llm import loading
from zograd.llm.evaluate import evaluate
from zograd.llm.pack import pack
from zograd.llm.restore import replay
from zograd.llm.scoring.kinds import scorer_of
from zograd.llm.scoring.media import ImageScorer
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
from zograd.llm.tuned import Tuned

SIZE = 16
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "size": {"height": SIZE, "width": SIZE}, "do_normalize": True,
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


def drawn(k: int) -> Image.Image:
    """Noise, brighter in its left half (even) or its right half (odd)."""
    pixels = np.random.default_rng(k).integers(0, 90, (SIZE, SIZE, 3))
    pixels[:, 8 * (k % 2) : 8 * (k % 2) + 8] += 150
    return Image.fromarray(pixels.astype(np.uint8))


NAMES = ("left", "right")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each class."""
    folder = tmp_path_factory.mktemp("data") / "sides"
    for k in range(60):
        (folder / NAMES[k % 2]).mkdir(parents=True, exist_ok=True)
        drawn(k).save(folder / NAMES[k % 2] / f"{k}.png")
    return folder


def saved(model: nn.Module, folder: Path) -> str:
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=48, image_size=SIZE,
            patch_size=8, num_labels=5,
        )  # fmt: skip
        return saved(ViTForImageClassification(config), tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = EfficientNetConfig(
            image_size=SIZE, width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320, num_labels=2,
            in_channels=[32, 16], out_channels=[16, 24], kernel_sizes=[3, 3], strides=[1, 2], expand_ratios=[1, 6],
            num_block_repeats=[1, 2], depthwise_padding=[],
        )  # fmt: skip
        values = torch.stack([torch.tensor(np.asarray(drawn(k)) / 127.5 - 1).permute(2, 0, 1) for k in range(16)])
        model = like_pretrained(EfficientNetForImageClassification(config), values.float())
        return saved(model, tmp_path_factory.mktemp("models") / "net")


def settings(model: str, task: Path | str, **more: Any) -> TrainSettings:
    given = {"model": model, "task": str(task), "threads": 1, "eval_split": "validation", **more}
    return TrainSettings.model_validate(given)


# ---- data ------------------------------------------------------------------------------------------------------------


def test_a_folder_for_each_class(pictures: Path) -> None:
    task = load_task(pictures)
    assert (task.reads, task.kind, task.classes, task.drawn) == ("images", "classification", NAMES, True)
    examples = [e for split in task.splits.values() for e in split]
    assert len(examples) == 60
    for e in examples:
        assert isinstance(e.media, Picture)
        assert e.prompt == e.media.name
        assert NAMES[e.label] == Path(e.prompt).parent.name
        assert np.array_equal(np.asarray(e.media.open()), np.asarray(drawn(int(Path(e.prompt).stem))))


def test_folders_of_classes_within_folders_of_splits(tmp_path: Path) -> None:
    for split, numbers in (("train", range(8)), ("val", range(8, 12)), ("test", range(12, 14))):
        for k in numbers:
            (tmp_path / split / NAMES[k % 2]).mkdir(parents=True, exist_ok=True)
            drawn(k).save(tmp_path / split / NAMES[k % 2] / f"{k}.jpg")
    (tmp_path / "train" / "left" / "notes.txt").write_text("no image", encoding="utf-8")
    (tmp_path / "train" / "left" / ".hidden.png").write_bytes(b"")
    task = load_task(tmp_path)
    assert {split: len(part) for split, part in task.splits.items()} == {"train": 8, "validation": 4, "test": 2}
    assert not task.drawn


@pytest.mark.parametrize("column", ["image", "file_name", "scan"])
def test_a_table_names_files_beside_it(tmp_path: Path, column: str) -> None:
    (tmp_path / "files").mkdir()
    for k in range(6):
        drawn(k).save(tmp_path / "files" / f"{k}.png")
    with (tmp_path / "table.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow([column, "label", "split"])
        rows.writerows([f"files/{k}.png", NAMES[k % 2], "train"] for k in range(6))
    named = {"text_column": "scan"} if column == "scan" else {}
    task = load_task(tmp_path / "table.csv", **named)
    assert task.reads == "images"
    assert [e.label for e in task.splits["train"]] == [0, 1] * 3


def test_images_in_memory() -> None:
    import datasets

    rows = {"img": [drawn(k) for k in range(20)], "label": [k % 2 for k in range(20)]}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    task = load_task(datasets.Dataset.from_dict(rows, features=features))
    assert task.reads == "images"
    assert task.classes == NAMES
    listed = load_task([{"image": drawn(k), "label": NAMES[k % 2]} for k in range(20)])
    assert sum(map(len, listed.splits.values())) == 20


def test_the_same_image_is_in_one_split_whatever_its_name(tmp_path: Path) -> None:
    for k in range(40):
        (tmp_path / NAMES[k % 2]).mkdir(exist_ok=True)
        for copy in "abc":
            drawn(k).save(tmp_path / NAMES[k % 2] / f"{copy}{k}.png")
    where: dict[str, set[str]] = {}
    for split, part in load_task(tmp_path).splits.items():
        for e in part:
            assert isinstance(e.media, Picture)
            where.setdefault(e.media.sha256, set()).add(split)
    assert len(where) == 40
    assert all(len(splits) == 1 for splits in where.values())


def test_texts_beside_images_are_read_as_before() -> None:
    rows = [{"text": f"word {k}", "image": "a.png", "label": k % 2} for k in range(20)]
    with pytest.raises(TaskError, match=r"record 1: the image 'a\.png' cannot be read"):
        load_task([{"image": "a.png", "label": 0}])
    assert load_task(rows).reads == "text"  # whatever the image is, there or not
    for row in rows:
        row["image"] = drawn(0)
    assert load_task(rows).reads == "text"
    assert load_task(rows, text_column="image").reads == "images"


@pytest.mark.parametrize(("name", "content", "says"), [
    ("broken.png", b"no image", "cannot be read as an image"), ("empty.png", b"", "cannot be read as an image"),
])  # fmt: skip
def test_a_file_that_is_no_image_is_named(
    pictures: Path, vit: str, tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    shutil.copytree(pictures, tmp_path / "sides")
    (tmp_path / "sides" / "left" / name).write_bytes(content)
    with pytest.raises(TaskError, match=rf"left/{name}.*{says}"):
        train(settings(vit, tmp_path / "sides", steps=4), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_images_or_files_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(TaskError, match="without folders of images, one for each class; it holds cat"):
        load_task(tmp_path)


# ---- models ----------------------------------------------------------------------------------------------------------


def test_scores_are_the_logits_of_the_model(pictures: Path, net: str) -> None:
    task = load_task(pictures)
    model, processor = loading.load(net, dtype="float32")
    scorer = scorer_of(model, processor, task)
    examples = [*task.splits["train"]][:5]
    values = processor(images=[e.media.open() for e in examples if e.media], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert torch.allclose(scorer.scores(examples), model(pixel_values=values).logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "net"])
def test_stored_states_give_the_scores_of_a_full_forward(
    pictures: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    task = load_task(pictures)
    model, processor = loading.load(request.getfixturevalue(kind), dtype="float32", classes=2)
    trained = [*loading.blocks(model)[-1].parameters(), *loading.head_of(model).values()]
    plain = scorer_of(model, processor, task)
    stored = scorer_of(model, processor, task, trained=trained, cache_prefix=True)
    assert isinstance(stored, ImageScorer)
    assert stored.prefix is not None
    assert stored.prefix.below > 0
    examples = [*task.splits["train"]][:7]
    expected = plain.all_scores(examples)
    for _ in range(2):  # computed, and recalled
        assert torch.allclose(stored.all_scores(examples), expected, atol=1e-5)
    twice = stored.scores(examples[:3], copies=2)
    assert torch.allclose(twice, plain.scores(examples[:3]).repeat(2, 1), atol=1e-5)


FAMILIES: dict[str, Any] = {
    "convnext": {"num_channels": 3, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": 32},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "swin": {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
             "window_size": 4},
    "deit": {"architectures": ["DeiTForImageClassification"], "hidden_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16, "patch_size": 8},
    "beit": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
             "image_size": 16, "patch_size": 8},
    "dinov2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 32},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_of_models(family: str, pictures: Path, tmp_path: Path) -> None:
    """Each is trained by default and by losses alone, stops, and is scored again."""
    config = AutoConfig.for_model(family, num_labels=3, **FAMILIES[family])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageClassification.from_config(config)
    folder = saved(model, tmp_path / family)
    side = FAMILIES[family].get("image_size", 32)
    processor = {**PROCESSOR, "size": {"height": side, "width": side}}
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    for name, more in (("default", {}), ("values", {"method": "zo_sgd", "lr": 1e-3, "layers": 1})):
        done = train(settings(folder, pictures, steps=2, batch_size=4, **more), tmp_path / name, quiet=True)
        assert done["steps"] == 2
    assert evaluate(None, None, tmp_path / "default", split="validation")["value"] is not None


def test_a_head_of_other_classes_is_drawn_anew_and_one_of_the_same_names_is_kept(pictures: Path, vit: str) -> None:
    first, _ = loading.load(vit, dtype="float32", classes=2, seed=1)
    again, _ = loading.load(vit, dtype="float32", classes=2, seed=1)
    other, _ = loading.load(vit, dtype="float32", classes=2, seed=2)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert torch.equal(first.vit.layernorm.weight, other.vit.layernorm.weight)


def test_a_model_of_images_and_a_task_of_texts_are_refused(pictures: Path, vit: str, tiny_model: Path) -> None:
    model, processor = loading.load(vit, dtype="float32")
    with pytest.raises(TaskError, match=r"ViTForImageClassification reads images, and .* holds texts: choose a model"):
        scorer_of(model, processor, load_task("trec"))
    with pytest.raises(TaskError, match=r"reads text, and .* holds images.*--model such as efficientnet-lite0"):
        train(settings(str(tiny_model), pictures, steps=2), pictures.parent / "refused", quiet=True)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "net"])
def test_the_default_learns_and_every_command_knows_the_run(
    pictures: Path, kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = request.getfixturevalue(kind), tmp_path / "run"
    done = train(settings(base, pictures, steps=40, lr=1e-2), out)
    assert done["metric_after"] >= 0.8
    said = capsys.readouterr().err
    assert f"by {'residual' if kind == 'vit' else 'backprop'}" in said
    assert "scored by" not in said

    again = evaluate(None, None, out, split="validation")
    assert again["value"] == done["metric_after"]

    files = sorted(pictures.glob("*/*.png"))
    found = Tuned(out).predict([str(f) for f in files[:8]] + [str(f) for f in files[-8:]])
    right = [p.label == f.parent.name for p, f in zip(found, [*files[:8], *files[-8:]], strict=True)]
    assert sum(right) >= 12
    assert set(found[0].probabilities) == set(NAMES)

    replay(out, None, tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text(encoding="utf-8"))["id2label"] == {
        "0": "left", "1": "right",
    }  # fmt: skip
    alone = Tuned(str(tmp_path / "whole")).predict([str(files[0])])[0]
    assert alone.label == found[0].label
    assert alone.probabilities == pytest.approx(found[0].probabilities, abs=1e-6)


def test_evaluations_alone_train_it_too_and_a_resumed_run_has_the_same_bits(pictures: Path, net: str) -> None:
    given = {"method": "zo_sgd", "lr": 1e-3, "layers": 1, "batch_size": 8}
    whole = train(settings(net, pictures, steps=6, **given), pictures.parent / "whole", quiet=True)
    part = pictures.parent / "part"
    train(settings(net, pictures, steps=3, **given), part, quiet=True)
    resumed = train(settings(net, pictures, steps=6, **given), part, quiet=True, resume=True)
    assert resumed["sha256"] == whole["sha256"]


def test_a_packed_run_of_images_gives_the_same_answers(pictures: Path, net: str, tmp_path: Path) -> None:
    train(settings(net, pictures, steps=2), tmp_path / "run", quiet=True)
    packed = pack(tmp_path / "run", tmp_path / "a.zopack")
    files = [str(f) for f in sorted(pictures.glob("*/*.png"))[:4]]
    assert packed["kind"] == "difference"
    assert Tuned(packed["path"]).predict(files) == Tuned(tmp_path / "run").predict(files)


def test_adapters_of_a_vision_transformer(pictures: Path, vit: str, tmp_path: Path) -> None:
    done = train(settings(vit, pictures, steps=40, lr=1e-2, train="lora"), tmp_path / "run", quiet=True)
    assert done["metric_after"] >= 0.8
    found = Tuned(tmp_path / "run").predict([drawn(100), drawn(101)])
    assert [p.label in NAMES for p in found] == [True, True]


def test_commands(pictures: Path, net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    args = ["train", "--model", net, "--task", str(pictures), "--steps", "2", "--out", str(run), "--json"]
    assert CliRunner().invoke(app, args).exit_code == 0
    image = next(pictures.glob("left/*.png"))
    for given in ([str(image)], ["--file", str(image)]):
        found = json.loads(CliRunner().invoke(app, ["predict", str(run), *given, "--json"]).stdout)
        assert found["predictions"][0]["label"] in NAMES
    missing = CliRunner().invoke(app, ["predict", str(run), "nothing.png"])
    assert missing.exit_code in (1, 2)
    assert "the image 'nothing.png' cannot be read" in missing.stderr
    for command, says in (
        (["plan", "--task", str(pictures)], "holds images, and what is planned"),
        (["robustness", "--model", net, "--task", str(pictures)], "holds images, and what is changed is words"),
        (["generate", str(run), str(image)], "writes no text"),
        (["bench", "batches", "--model", net], "EfficientNetForImageClassification reads images, and"),
        (["train", "--model", net, "--task", str(pictures), "--method", "node_perturbation", "--out", str(run) + "2"],
         "there are none in the images of"),
        (["train", "--model", net, "--task", str(pictures), "--train", "prompt", "--out", str(run) + "3"],
         "virtual tokens are for causal language models"),
        (["train", "--model", net, "--task", str(pictures), "--train", "lora", "--out", str(run) + "4"],
         "no linear layer in its blocks"),
        *((["train", "--model", net, "--task", str(pictures), *option, "--out", str(run) + "5"],
           option[0]) for option in (["--max-length", "5"], ["--offload", "disk"], ["--truncate", "left"])),
    ):  # fmt: skip
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code in (1, 2)
        assert says in refused.stderr, (command, refused.stderr[-300:])


def test_two_pictures_are_equal_by_their_content() -> None:
    assert Picture("1", "a", path="x") == Picture("1", "b", content=b"y") != Picture("2", "a", path="x")


def test_settings_of_texts_are_refused(pictures: Path, vit: str, tmp_path: Path) -> None:
    with pytest.raises(loading.ModelError, match="virtual tokens are for causal language models"):
        train(settings(vit, pictures, steps=2, train="prefix"), tmp_path / "run", quiet=True)


@pytest.mark.slow
@pytest.mark.model
def test_the_bundled_model_knows_a_flower() -> None:
    """Class 985 of ImageNet is a daisy; the photograph, of scikit-learn, shows one (a China aster)."""
    from sklearn.datasets import load_sample_image

    found = Tuned("efficientnet-lite0").predict([Image.fromarray(load_sample_image("flower.jpg"))])[0]
    assert found.label == "LABEL_985"
    assert len(found.probabilities) == 1000
