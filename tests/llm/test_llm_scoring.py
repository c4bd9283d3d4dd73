"""Laws of the scorer: scores with label words, padding, caches and buckets equal those of the plain forward."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from zograd.hub import Example, Task, TaskError, load_task
from zograd.llm import loading
from zograd.llm.scoring import Batches, Scorer

EXAMPLES = [Example(f"{'very ' * k}good It was", k % 2) for k in range(1, 9)]


def task(words: tuple[str | tuple[str, ...], ...] = (" terrible", " great"), kind: str = "classification") -> Task:
    return Task("toy", "{text} It was", words, {"train": EXAMPLES}, "made", "none", kind=kind)


@pytest.fixture
def model_and_tokenizer(tiny_model: Path):
    return loading.load(str(tiny_model), dtype="float32")


def plain_logits(model, tokenizer, text: str) -> torch.Tensor:
    ids = torch.tensor([tokenizer.encode(text)])
    return model(input_ids=ids).logits[0].float()


def test_label_scores_are_the_logits_of_the_next_token(model_and_tokenizer) -> None:
    """scores = the rows of the full logits, whatever the padding of the batch."""
    model, tokenizer = model_and_tokenizer
    ids = [tokenizer.encode(w)[0] for w in ("terrible", "great")]
    with torch.no_grad():
        scores = Scorer(model, tokenizer, task()).scores(EXAMPLES)
        for row, e in zip(scores, EXAMPLES, strict=True):
            expected = plain_logits(model, tokenizer, e.prompt)[-1, ids]
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_longer_label_words_are_scored_by_their_mean_log_probability(model_and_tokenizer) -> None:
    model, tokenizer = model_and_tokenizer
    words = (" very bad", " good")
    with torch.no_grad():
        scores = Scorer(model, tokenizer, task(words)).scores(EXAMPLES[:3])
        for row, e in zip(scores, EXAMPLES[:3], strict=True):
            for score, word in zip(row, words, strict=True):
                tail = tokenizer.encode(word)
                logp = torch.log_softmax(plain_logits(model, tokenizer, e.prompt + word), -1)
                first = len(tokenizer.encode(e.prompt)) - 1
                expected = sum(logp[first + k, t] for k, t in enumerate(tail)) / len(tail)
                torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words", [(" terrible", " bad", " great"), (" very bad", " bad", " great")])
def test_the_probabilities_of_several_words_of_a_class_are_added(model_and_tokenizer, words: tuple[str, ...]) -> None:
    model, tokenizer = model_and_tokenizer
    both = (words[:2], words[2])
    examples = [Example(e.prompt, e.label) for e in EXAMPLES]
    with torch.no_grad():
        apart = Scorer(model, tokenizer, task(words)).scores(examples).double()
        scorer = Scorer(model, tokenizer, task(both))
        together = scorer.scores(examples).double()
        p = apart.softmax(1)
        expected = torch.stack([p[:, 0] + p[:, 1], p[:, 2]], 1)
        torch.testing.assert_close(together.softmax(1), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(scorer.scores(examples, 2), scorer.scores(examples).repeat(2, 1))
        assert scorer.evaluate(examples).loss == pytest.approx(
            float(F.nll_loss(expected.log(), torch.tensor([e.label for e in examples]))), rel=1e-5
        )


def test_completions_are_scored_by_their_mean_log_likelihood(model_and_tokenizer) -> None:
    model, tokenizer = model_and_tokenizer
    e = Example("It was", -1, " very good")
    with torch.no_grad():
        loss = Scorer(model, tokenizer, task((), "completion")).losses([e, e])
        ids = torch.tensor(tokenizer.encode("It was very good"))
        expected = F.cross_entropy(plain_logits(model, tokenizer, "It was very good")[1:3], ids[2:])
    torch.testing.assert_close(loss, expected.expand(2), rtol=1e-4, atol=1e-5)


LAST_MLP = r"layers\.3\.(mlp|post_attention_layernorm)|model\.norm"


@pytest.mark.parametrize("train", ["full", "lora", LAST_MLP])
def test_cached_prefix_gives_the_same_numbers(tiny_model: Path, train: str) -> None:
    """With the activations of the frozen blocks recalled, losses are those of the full forward."""
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    module = model
    if train == "lora":
        module = loading.attach_lora(model, loading.LoraSpec(r=2, layers=2), seed=3)
        chosen = loading.select(module, "lora")
    else:
        chosen = loading.select(model, train, layers=2 if train == "full" else None)
    plain = Scorer(module, tokenizer, task())
    cached = Scorer(module, tokenizer, task(), trained=list(chosen.values()), cache_prefix=True)
    assert cached.prefix is not None
    assert cached.prefix.below == (3 if train == LAST_MLP else 2)
    assert cached.prefix.last_only == (train == LAST_MLP)
    with torch.no_grad():
        expected = plain.losses(EXAMPLES)
        torch.testing.assert_close(cached.losses(EXAMPLES), expected, rtol=1e-5, atol=1e-6)  # records
        for p in chosen.values():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        moved = plain.losses(EXAMPLES)
        recalled = cached.losses(EXAMPLES[::-1]).flip(0)
    torch.testing.assert_close(recalled, moved, rtol=1e-5, atol=1e-6)
    assert not torch.equal(moved, expected)


def test_no_prefix_is_cached_when_the_embedding_is_trained(tiny_model: Path) -> None:
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    chosen = loading.select(model, "full")
    assert Scorer(model, tokenizer, task(), trained=list(chosen.values()), cache_prefix=True).prefix is None


def test_calibration_subtracts_the_mean_score(model_and_tokenizer) -> None:
    """A constant added to one class's score changes the plain accuracy, not the calibrated one."""
    model, tokenizer = model_and_tokenizer
    scorer = Scorer(model, tokenizer, task())
    before = scorer.evaluate(EXAMPLES)
    original = scorer.scores
    scorer.scores = lambda examples: original(examples) + torch.tensor([100.0, 0.0])  # type: ignore[method-assign]
    after = scorer.evaluate(EXAMPLES)
    assert after.calibrated == before.calibrated
    assert after.value == after.majority == 0.5


def test_buckets_hold_every_position_once_and_cost_least(model_and_tokenizer) -> None:
    model, tokenizer = model_and_tokenizer
    scorer = Scorer(model, tokenizer, task())
    buckets = scorer.buckets(EXAMPLES, most=3)
    assert sorted(i for b in buckets for i in b) == list(range(len(EXAMPLES)))
    assert max(map(len, buckets)) <= 3
    assert scorer.buckets(EXAMPLES) == [list(range(len(EXAMPLES)))]  # short prompts: one forward


def test_batches_depend_on_seed_and_step_alone() -> None:
    examples = list(load_task("mr").splits["train"][:50])
    one, two = Batches(examples, 8, 5), Batches(examples, 8, 5)
    forward = [one[t] for t in range(20)]
    assert [two[t] for t in reversed(range(20))][::-1] == forward
    assert [Batches(examples, 8, 6)[t] for t in range(20)] != forward
    first_epoch = [e for t in range(7) for e in one[t]][:50]
    assert sorted(e.prompt for e in first_epoch) == sorted(e.prompt for e in examples)


def test_each_epoch_has_an_order_of_its_own() -> None:
    """Every example once an epoch, in a fresh permutation: not that of the epoch before, nor that of the file."""
    examples = list(load_task("mr").splits["train"][:40])
    batches = Batches(examples, 8, 5)
    orders = [[examples.index(e) for t in range(5 * epoch, 5 * epoch + 5) for e in batches[t]] for epoch in range(4)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in (*orders, range(40))}) == 5
    # Two permutations of 40 agree at one place on average, and at 8 with probability 1e-5.
    agree = [sum(a == b for a, b in zip(one, two, strict=True)) for one, two in itertools.combinations(orders, 2)]
    assert max(agree) < 8


def test_a_prompt_longer_than_the_model_takes_is_named(model_and_tokenizer) -> None:
    model, tokenizer = model_and_tokenizer
    with pytest.raises(TaskError, match=r"202 tokens, but the model takes 128"):
        Scorer(model, tokenizer, task()).encode(Example("very " * 200 + "It was", 0))


def test_select_says_what_names_look_like(tiny_model: Path) -> None:
    model, _ = loading.load(str(tiny_model), dtype="float32")
    assert set(loading.select(model, "*.q_proj.weight", layers=1)) == {"model.layers.3.self_attn.q_proj.weight"}
    with pytest.raises(loading.ModelError, match="selects no parameter; names look like model"):
        loading.select(model, "nonsense")
    with pytest.raises(loading.ModelError, match="neither full, lora, polar, prefix, prompt nor a valid pattern"):
        loading.select(model, "(")


def test_adapters_depend_on_the_seed_and_leave_the_random_state_alone(tiny_model: Path) -> None:
    def adapters(seed: int) -> torch.Tensor:
        model, _ = loading.load(str(tiny_model), dtype="float32")
        chosen = loading.select(loading.attach_lora(model, loading.LoraSpec(r=2), seed), "lora")
        return torch.cat([p.detach().flatten() for p in chosen.values()])

    torch.manual_seed(11)
    state = torch.get_rng_state()
    assert torch.equal(adapters(0), adapters(0))
    assert not torch.equal(adapters(0), adapters(1))
    assert torch.equal(torch.get_rng_state(), state)
