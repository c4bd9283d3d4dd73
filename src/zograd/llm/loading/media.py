"""Load models of images and of speech, and what turns a file into their input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zograd.llm.loading.errors import ModelError, extra, first_line


def load_images(path: str, dtype: torch.dtype, device: str, classes: int | None, seed: int) -> tuple[Any, Any]:
    """A classifier of images in eval mode, and its image processor (`AutoImageProcessor`).

    classes: it gets a new head of so many classes, drawn from `seed`. Raises ModelError.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        processor = AutoImageProcessor.from_pretrained(path)
    except ImportError as e:
        raise ModelError(f"cannot load the image processor of {path}: {first_line(e)}; {extra('images')}") from e
    head = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    model = AutoModelForImageClassification.from_pretrained(path, dtype=dtype, **head)
    if classes is not None:
        _draw_head(model, seed)
    return model.to(device).eval(), processor


def _draw_head(model: Any, seed: int) -> None:
    """Draw the layers behind the backbone as PyTorch does for new ones."""
    backbone = {id(m) for m in getattr(model, model.base_model_prefix).modules()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in model.modules():
            if id(module) not in backbone and isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()


def load_speech(path: str, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """A model in eval mode that writes down what is said (Whisper), and its processor (`AutoProcessor`)."""
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    processor = AutoProcessor.from_pretrained(path)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(path, dtype=dtype)
    return model.to(device).eval(), processor
