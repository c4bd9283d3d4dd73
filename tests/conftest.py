"""Shared fixtures: a tiny random language model with its tokenizer, on disk, made without any download."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

# Seeds fixed, and no deadline for an example: a busy machine is slow, not wrong.
settings.register_profile("zograd", deadline=None, derandomize=True)
settings.load_profile("zograd")

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Also for the processes that tests start: threads that wait for a core which another worker has spin, and take minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    """The suite runs in several processes: more threads than cores only wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _one_dtype() -> Iterator[None]:
    """dtype "auto" is float32, as on most processors: those that are faster in bfloat16 would give other numbers."""
    import torch

    from zograd.llm.loading import models

    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setattr(models, "fast_bfloat16", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_full_collections() -> Iterator[None]:
    """What a worker has loaded stays out of garbage collections, of which each training run would make a full one.

    A full collection visits the objects of torch, transformers and thousands of tests, half a second each time.
    """
    import gc

    from zograd.runs import memory

    gc.collect()
    gc.freeze()
    unfrozen = SimpleNamespace(collect=lambda: None, freeze=lambda: None, unfreeze=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "gc", unfrozen)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 blocks, width 32, whose tokenizer splits the movie reviews into words."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=0)


@pytest.fixture(scope="session")
def other_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    return make_tiny_model(tmp_path_factory.mktemp("other") / "model", seed=1)


def make_tiny_model(path: Path, seed: int) -> Path:
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from zograd.hub import load_task

    words = {w for e in load_task("mr").splits["train"][:300] for w in re.findall(r"\w+|[^\w\s]+", e.prompt)}
    words |= {"terrible", "great", "It", "was", "good", "bad", "very", "yes", "no", "maybe"}
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<unk>", *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return path
