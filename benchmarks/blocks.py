"""`python -m benchmarks.blocks`: peak memory and time of a step that trains all matrices of all blocks.

Residual feedback with none, four and eight exact blocks, beside backpropagation with checkpointed blocks and fused
updates, also with states that are computed again. All have factored moments, and sequences of one length. Every one
runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

from zograd.cli.options import script

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "residual, none exact": ("residual", {"exact": 0}),
    "residual, 4 exact": ("residual", {"exact": 4}),
    "residual, 8 exact": ("residual", {"exact": 8}),
    "backprop, recomputed": ("backprop", {"recompute": True}),
    "backprop": ("backprop", {}),
}
"""Method and settings of each."""

CHILD = """
import json, sys
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
done = train(TrainSettings.model_validate(json.loads(sys.argv[1])), sys.argv[2], quiet=True)
print(json.dumps({name: done[name] for name in ("peak_bytes", "inference_peak_bytes", "seconds")}))
"""


def long_texts(file: Path, tokens: int, count: int) -> None:
    """Prompts of so many tokens (of smollm2-135m), from the sentences of mr, with its labels."""
    from transformers import AutoTokenizer

    from zograd.hub import load_task, resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m"))
    examples = iter(load_task("mr").splits["train"])
    with file.open("w", encoding="utf-8") as lines:
        for k in range(count):
            ids: list[int] = []
            while len(ids) < tokens:
                example = next(examples)
                ids += tokenizer(" " + example.prompt.removesuffix(" It was")).input_ids
            text = tokenizer.decode(ids[:tokens])
            split = "train" if k < count - 4 else "validation"
            lines.write(json.dumps({"text": text, "label": "good" if k % 2 else "bad", "split": split}) + "\n")


def measure(
    tokens: Annotated[int, "Tokens of an example."] = 64,
    batch_size: Annotated[int, "Examples of a batch."] = 16,
    steps: Annotated[int, "Steps of a run."] = 3,
    model: Annotated[str, "The model."] = "smollm2-135m",
) -> dict[str, Any]:
    """Train by each method, and compare the peak of its steps with that of inference.

    Example: python -m benchmarks.blocks --tokens 256
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "long.jsonl"
        long_texts(file, tokens, 2 * batch_size + 4)
        for name, (method, settings) in WAYS.items():
            given = {
                "model": model, "task": str(file), "method": method, "train": "proj",
                "set": {"moments": "factored", **settings},
                "steps": steps, "batch_size": batch_size, "dtype": "float32", "threads": 1, "lr": 1e-4,
                "prompt_template": "{text}", "label_words": {"bad": " bad", "good": " good"},
            }  # fmt: skip
            command = [sys.executable, "-c", CHILD, json.dumps(given), str(Path(folder) / name)]
            done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found[name] = {
                "peak_mib": round(done["peak_bytes"] / 2**20),
                "inference_mib": round(done["inference_peak_bytes"] / 2**20),
                "ratio": round(done["peak_bytes"] / done["inference_peak_bytes"], 3),
                "seconds_a_step": round(done["seconds"] / steps, 2),
            }
    return {"tokens": tokens, "batch_size": batch_size, **found}


app = script(measure)

if __name__ == "__main__":
    app()
