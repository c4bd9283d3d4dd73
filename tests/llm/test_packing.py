"""Laws of packed batches: a sequence packed with others has the states and the scores that it has alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_answers import EXAMPLES, family

from zograd.core.vector import Noise, Vector
from zograd.hub import Example, Task, load_task
from zograd.lens.branches import Branches
from zograd.llm import loading
from zograd.llm.scoring import Batches, Scorer
from zograd.llm.scoring.packing import TAILS, packed_layout, padded_layout, supports_packing
from zograd.noise import Kind
from zograd.stores import Store

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=24), st.sampled_from([4, 16, 576]), st.integers(1, 200))
def test_each_sequence_has_columns_of_its_own(lengths: list[int], hidden: int, widest: int) -> None:
    layout = packed_layout(tuple(lengths), hidden, widest)
    places = zip(layout.rows, layout.starts, lengths, strict=True)
    columns = {(row, start + k) for row, start, n in places for k in range(n)}
    assert len(columns) == sum(lengths)
    assert max(column for _, column in columns) == layout.width - 1
    assert {row for row, _ in columns} == set(range(layout.count))
    assert layout.width <= max(widest, *lengths)
    assert layout.tokens <= padded_layout(lengths).tokens


def test_wide_rows_cost_attention() -> None:
    """Lengths 5 to 40: a small model has few sequences to a row, a large one many."""
    counts = [packed_layout(tuple(range(5, 41)), hidden, 10**6).count for hidden in (4, 64, 4096)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "neox", "opt"])
@torch.no_grad()
def test_states_are_those_of_rows_of_their_own(name: str) -> None:
    """In float64, to 1e-10, with rotary and learned positions."""
    model = family(name)
    assert supports_packing(model, CPU)
    backbone = getattr(model, model.base_model_prefix)
    sequences = [[3, 4, 20, 21, 22, 23, 24], [30], [31, 32, 33], [5, 6, 7, 8], [9, 10]]
    layout = packed_layout(tuple(len(s) for s in sequences), 16, 64)
    assert not layout.one_per_row
    hidden = backbone(**layout.inputs(sequences, 0, CPU, torch.float64)).last_hidden_state
    for row, start, s in zip(layout.rows, layout.starts, sequences, strict=True):
        expected = backbone(input_ids=torch.tensor([s])).last_hidden_state[0]
        torch.testing.assert_close(hidden[row, start : start + len(s)], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mistral-window", "mamba", "bloom"])
def test_models_that_mix_a_row_in_another_way_are_told_apart(name: str) -> None:
    """Windows, recurrent states, biases made of a mask of two axes."""
    assert not supports_packing(family(name), CPU)


@pytest.mark.parametrize(("name", "tails"), [("llama", True), ("gpt2", True), ("neox", True), ("mpt", False)])
def test_models_that_count_positions_by_columns_take_no_tails(name: str, tails: bool) -> None:
    """A linear bias is right within a sequence, wherever it begins, and wrong behind another tail."""
    assert supports_packing(family(name), CPU)
    assert supports_packing(family(name), CPU, TAILS) == tails


def task(words: tuple[str, ...], kind: str = "classification") -> Task:
    return Task("toy", "{text} It was", words, {"train": EXAMPLES}, "made", "none", kind=kind)


TASKS = {
    "one token": task((" terrible", " great", " good", " no")),
    "several tokens": task((" very bad", " very good maybe", " good", " no great yes")),
    "completions": task((), "completion"),
}


def some(name: str) -> list[Example]:
    if name != "completions":
        return EXAMPLES[::3]
    return [Example(e.prompt, -1, f" very{' good' * (i % 3)}") for i, e in enumerate(EXAMPLES[::3])]


def scorers(module: Any, tokenizer: Any, name: str, **options: Any) -> tuple[Scorer, Scorer]:
    """One that packs, and one that pads; neither shares prompts."""
    both = Scorer(module, tokenizer, TASKS[name], **options), Scorer(module, tokenizer, TASKS[name], **options)
    assert both[0].packs
    both[1].packs = False
    for scorer in both:
        scorer.answers = None
    return both


@pytest.mark.parametrize("name", TASKS)
@torch.no_grad()
def test_scores_are_those_of_a_padded_batch(tiny_model: Path, name: str) -> None:
    """As the weights are, at a point, and at two points in one forward."""
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    new, old = scorers(model, tokenizer, name)
    examples = some(name)
    layout = new.layout([len(s.ids) for e in examples for s in new.encode(e)])
    assert not layout.one_per_row
    torch.testing.assert_close(new.scores(examples), old.scores(examples), rtol=0, atol=1e-5)
    store = Store(loading.select(model, "full"))
    z = Vector(((Noise(Kind.NORMAL, 7), 0.02),))
    expected = []
    for point in (z, -z):
        with store.at(point):
            expected.append(old.scores(examples))
            torch.testing.assert_close(new.scores(examples), expected[-1], rtol=0, atol=1e-5)
    assert float((expected[0] - expected[1]).abs().max()) > 1e-2
    with Branches(store, [z, -z]):
        torch.testing.assert_close(new.scores(examples, 2), torch.cat(expected), rtol=0, atol=2e-5)


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("name", ["one token", "completions"])
@torch.no_grad()
def test_kept_states_find_their_places(tiny_model: Path, name: str, train: str) -> None:
    """Recorded in one layout, recalled in another, in one copy and in two."""
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    module = loading.attach_lora(model, loading.LoraSpec(r=2, layers=2), seed=3) if train == "lora" else model
    chosen = loading.select(module, train, layers=2 if train == "full" else None)
    new, old = scorers(module, tokenizer, name, trained=list(chosen.values()), cache_prefix=True)
    plain, _ = scorers(module, tokenizer, name)
    examples = some(name)
    new.remember(examples)
    old.remember(examples)
    assert new.prefix is not None
    for p in chosen.values():
        p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    for part in (examples, examples[::-1], examples[2:5]):
        expected = plain.scores(part)
        torch.testing.assert_close(new.scores(part), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(old.scores(part), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(new.scores(part, 2), torch.cat([expected] * 2), rtol=0, atol=1e-5)


def test_a_long_sequence_under_a_window_is_not_packed(tiny_model: Path) -> None:
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    scorer = Scorer(model, tokenizer, TASKS["one token"])
    model.config.sliding_window = 20
    assert not scorer.layout([3, 20, 5]).one_per_row
    assert scorer.layout([3, 21, 5]).one_per_row


def test_little_of_a_batch_of_text_is_padding(tiny_model: Path) -> None:
    """16 reviews: below a tenth, where a padded batch has a third."""
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    loaded = load_task("mr")
    scorer = Scorer(model, tokenizer, loaded)
    batches = Batches(list(loaded.splits["train"][:400]), 16, 0)
    real = packed_ = padded = 0
    for t in range(20):
        lengths = [len(s.ids) for e in batches[t] for s in scorer.encode(e)]
        real += sum(lengths)
        packed_ += packed_layout(tuple(lengths), 576, 10**6).tokens
        padded += padded_layout(lengths).tokens
    assert packed_ < real / 0.9
    assert padded > real / 0.67
