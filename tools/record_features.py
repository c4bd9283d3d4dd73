"""Record what SmolLM2-135M makes of questions and of messages, for examples that train a last layer alone.

    python tools/record_features.py        # a few minutes of one core

A text stands in a template of questions; recorded is the last hidden state of its last token, centred by the mean over
the training questions and projected on their `KEPT` leading principal directions, each scaled to variance 1 there.
Written is src/zograd/data/trec_features.npz: `train`, `test` and `sms`, (texts, KEPT), float16, and `train_labels`,
`test_labels`. The texts are the first ones of the train and test splits of trec and of the test split of sms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zograd import hub
from zograd.hub import Example
from zograd.hub.perturb import text_of
from zograd.llm import loading
from zograd.problems.recorded import TEMPLATES

MODEL = "smollm2-135m"
KEPT = 64
COUNTS = {"train": 1000, "test": 500, "sms": 300}
OUT = Path(__file__).resolve().parents[1] / "src/zograd/data/trec_features.npz"


@torch.no_grad()
def states(model: Any, tokenizer: Any, examples: Sequence[Example]) -> np.ndarray:
    """(texts, width), float64: the last hidden state of the last token of each text in the template."""
    found = []
    for e in examples:
        start, stop = text_of(e)
        ids = tokenizer(TEMPLATES[0].format(text=e.prompt[start:stop]), return_tensors="pt").input_ids
        found.append(model.model(input_ids=ids).last_hidden_state[0, -1].double().numpy())
    return np.array(found)


def main() -> None:
    trec, sms = hub.load_task("trec").splits, hub.load_task("sms").splits
    texts = {"train": trec["train"], "test": trec["test"], "sms": sms["test"]}
    model, tokenizer = loading.load(MODEL, dtype="float32")
    raw = {name: states(model, tokenizer, texts[name][:count]) for name, count in COUNTS.items()}
    mean = raw["train"].mean(0)
    _, sigma, directions = np.linalg.svd(raw["train"] - mean, full_matrices=False)
    scaled = directions[:KEPT].T * np.sqrt(COUNTS["train"]) / sigma[:KEPT]
    labels = {f"{n}_labels": np.array([e.label for e in texts[n][: COUNTS[n]]], np.uint8) for n in ("train", "test")}
    np.savez_compressed(OUT, **{n: ((x - mean) @ scaled).astype(np.float16) for n, x in raw.items()}, **labels)
    print(OUT.name, OUT.stat().st_size, hashlib.sha256(OUT.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
