"""`zograd eval`: the metric of a model, or of a model with a run replayed onto it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zograd.hub import load_task
from zograd.llm import loading
from zograd.llm.settings import SettingsError
from zograd.llm.task import Scorer
from zograd.llm.train import restore


def evaluate(
    model: str | None,
    task: str | None,
    run: Path | None,
    *,
    split: str = "test",
    examples: int | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    quantized: bool = False,
    quantize: str | None = None,
    prompt_template: str | None = None,
    label_words: Mapping[str, str] | None = None,
    label_column: str | None = None,
) -> dict[str, Any]:
    """Metric, calibrated metric, majority share and loss over a split; one forward an example (or class)."""
    module: Any
    steps = None
    if run is not None:
        p, _ = restore(run, model)
        module, tokenizer, steps = p.model, p.tokenizer, p.run.step_number
        task = task or p.settings.task
        prompt_template = prompt_template or p.settings.prompt_template
        label_words = label_words or p.settings.label_words  # type: ignore[assignment]
        label_column = label_column or p.settings.label_column
    else:
        module, tokenizer = loading.load(
            model or "smollm2-135m", dtype=dtype, device=device, quantized=quantized, quantize=quantize
        )
    loaded = load_task(
        task or "trec", prompt_template=prompt_template, label_words=label_words, label_column=label_column
    )
    if split not in loaded.splits:
        raise SettingsError(f"--split {split}: the task has {', '.join(loaded.splits)}")
    chosen = list(loaded.splits[split])[:examples]
    result = asdict(Scorer(module, tokenizer, loaded).evaluate(chosen))
    return {**result, "task": loaded.name, "split": split, "steps": steps}
