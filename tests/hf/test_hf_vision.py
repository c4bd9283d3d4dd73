"""Classifiers of images through the Trainer: attention (ViT) and convolutions (EfficientNet)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import EfficientNetConfig, EfficientNetForImageClassification, ViTConfig, ViTForImageClassification

from tests.hf.helpers import Forward, arguments, digest, losses
from tests.pretrained import like_pretrained

VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
    "patch_size": 8, "num_labels": 2,
}  # fmt: skip
NET: dict[str, Any] = {
    "image_size": 16, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "num_labels": 2,
    "in_channels": [32, 16], "out_channels": [16, 24], "kernel_sizes": [3, 3], "strides": [1, 2],
    "expand_ratios": [1, 6], "num_block_repeats": [1, 2], "depthwise_padding": [],
}  # fmt: skip
MODELS: dict[str, Any] = {
    "vit": lambda: ViTForImageClassification(ViTConfig(**VIT)),
    "efficientnet": lambda: EfficientNetForImageClassification(EfficientNetConfig(**NET)),
}


def made(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = like_pretrained(MODELS[kind](), torch.stack([row["pixel_values"] for row in images()]))
        return model


def images(n: int = 16) -> list[dict[str, Tensor]]:
    """The brighter half, left or right, is the class."""
    drawn = torch.Generator().manual_seed(1)
    found = []
    for k in range(n):
        pixels = 0.3 * torch.randn(3, 16, 16, generator=drawn)
        pixels[:, :, 8 * (k % 2) : 8 * (k % 2) + 8] += 1.0
        found.append({"pixel_values": pixels, "labels": torch.tensor(k % 2)})
    return found


@pytest.mark.parametrize(("kind", "method", "lr"), [
    ("vit", None, 3e-3), ("efficientnet", None, 1e-2), pytest.param("vit", "fzoo", 5e-3, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_classifier_of_images_learns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, method: str | None, lr: float
) -> None:
    model = made(kind)
    before, buffers = digest(model), {name: b.clone() for name, b in model.named_buffers()}
    args = arguments(tmp_path, max_steps=30, per_device_train_batch_size=16, lr_scheduler_type="constant")
    trainer = Forward(model=model, args=args, train_dataset=images(), eval_dataset=images(), method=method, lr=lr)
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < (0.8 if method is None else 1.0) * first
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert digest(model) != before
    for name, b in model.named_buffers():  # running means are those of the pretrained model
        assert torch.equal(b, buffers[name]), name
    said = capsys.readouterr().err
    assert f"by {method or ('residual' if kind == 'vit' else 'backprop')}, lr" in said


def test_the_exact_gradient_of_a_convolution_block_is_that_of_autograd(tmp_path: Path) -> None:
    """One step of plain SGD moves the last block and the head along autograd's gradient."""
    import zograd as zo
    from zograd.estimators import FromBlocks
    from zograd.rules import SGD

    model = made("efficientnet").eval()
    batch = {key: torch.stack([row[key] for row in images()]) for key in ("pixel_values", "labels")}
    trained = {name: p for name, p in model.named_parameters() if "blocks.1." in name or "classifier" in name}
    gradients = dict(zip(trained, torch.autograd.grad(model(**batch).loss, list(trained.values())), strict=True))
    assert sum(float(g.abs().max()) > 1e-3 for g in gradients.values()) > len(trained) / 2
    before = {name: p.detach().clone() for name, p in trained.items()}
    method = zo.Method(FromBlocks("backprop"), zo.laws.Rademacher(), SGD(), lr=0.1)
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=16, lr_scheduler_type="constant")
    Forward(model=model, args=args, train_dataset=images(), method=method).train()
    for name, p in trained.items():
        torch.testing.assert_close(before[name] - p.detach(), 0.1 * gradients[name], rtol=1e-3, atol=1e-6, msg=name)
