"""Laws of shared prompts: log-probabilities and losses are those of one forward of prompt and word for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zograd.core.vector import Noise, Vector
from zograd.hub import Example, Task
from zograd.lens.branches import Branches
from zograd.llm import loading
from zograd.llm.scoring.packing import Layout
from zograd.llm.scoring.packing import padded_layout as padded
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.scoring.shared_answers import Answers
from zograd.llm.settings import TrainSettings
from zograd.llm.train import train
from zograd.noise import Kind
from zograd.stores import Store

EXAMPLES = [Example(f"{'very ' * k}good {'maybe ' * (k // 2)}It was", k % 4) for k in range(9, 33)]
WORDS = (" very bad", " very good maybe", " good", " no great yes")
IDS = [[5, 6, 7], [5, 6], [5, 8], [9], [10, 11, 12, 13]]


def task(words: tuple[str, ...] = WORDS) -> Task:
    return Task("toy", "{text} It was", words, {"train": EXAMPLES}, "made", "none", kind="classification")


def scorers(model: Any, tokenizer: Any, words: tuple[str, ...] = WORDS, **options: Any) -> tuple[Scorer, Scorer]:
    """One that shares prompts, and one that does not."""
    new, old = Scorer(model, tokenizer, task(words), **options), Scorer(model, tokenizer, task(words), **options)
    old.answers = None
    return new, old


def log_probabilities(head: Any, hidden: Tensor, tokens: Tensor) -> Tensor:
    return torch.log_softmax(head(hidden), -1).gather(-1, tokens.expand(hidden.shape[:-1])[..., None])[..., 0]


def family(name: str) -> Any:
    """A random model of 2 blocks of one family of transformers, in float64."""
    import transformers as t

    sizes: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    llama: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    gpt = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
    opt: dict[str, Any] = {
        "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }  # fmt: skip
    configs = {
        "llama": lambda: t.LlamaConfig(**sizes, **llama),
        "qwen3": lambda: t.Qwen3Config(**sizes, **llama, head_dim=4),
        "gpt2": lambda: t.GPT2Config(**sizes, **gpt),
        "neox": lambda: t.GPTNeoXConfig(**sizes, **{k: v for k, v in llama.items() if k != "num_key_value_heads"}),
        "opt": lambda: t.OPTConfig(**sizes, **opt),
        "bloom": lambda: t.BloomConfig(**sizes, hidden_size=16, n_layer=2, n_head=4),
        "mpt": lambda: t.MptConfig(**sizes, d_model=16, n_layers=2, n_heads=4, max_seq_len=64),
        "mistral-window": lambda: t.MistralConfig(**sizes, **llama, sliding_window=8),
        "mamba": lambda: t.MambaConfig(**sizes, hidden_size=16, num_hidden_layers=2, state_size=4),
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = t.AutoModelForCausalLM.from_config(configs[name]())
        for p in model.parameters():
            p.data += 0.3 * torch.randn(p.shape)  # biases and gains, too
    return model.double().eval()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "neox", "opt"])
@pytest.mark.parametrize("together", [False, True])
@torch.no_grad()
def test_log_probabilities_are_those_of_prompt_and_word_in_one_forward(name: str, together: bool) -> None:
    """In float64, to 1e-11, for prompts of different lengths, with rotary and learned positions."""
    model = family(name)
    answers = Answers(IDS, torch.device("cpu"))
    prompts = [[3, 4, 20, 21, 22, 23, 24], [30], [31, 32, 33]]
    lengths = tuple(len(p) + answers.size for p in prompts)
    layout = Layout(lengths, (0, 0, 1), (0, lengths[0], 0), sum(lengths[:2])) if together else padded(lengths)
    inputs = layout.inputs(prompts, 0, torch.device("cpu"), torch.float64, answers.tails)
    hidden = getattr(model, model.base_model_prefix)(**inputs).last_hidden_state
    rows, columns = layout.places([len(p) - 1 for p in prompts])
    states = hidden[rows[:, None], columns[:, None] + answers.where]
    found = answers.means(log_probabilities(model.get_output_embeddings(), states, answers.tokens))
    for row, prompt in zip(found, prompts, strict=True):
        for value, word in zip(row, IDS, strict=True):
            logp = torch.log_softmax(model(input_ids=torch.tensor([prompt + word])).logits[0], -1)
            expected = sum(logp[len(prompt) - 1 + j, token] for j, token in enumerate(word)) / len(word)
            assert abs(float(value - expected)) < 1e-11


def test_tails_that_begin_alike_are_computed_once() -> None:
    answers = Answers(IDS, torch.device("cpu"))
    assert answers.tails == [(5, 6), (10, 11, 12)]  # of 5 6 7, 5 6 and 5 8: what lies before their last tokens
    assert answers.size == 5
    assert sorted(answers.tokens.tolist()) == [5, 6, 7, 8, 9, 10, 11, 12, 13]


@torch.no_grad()
def test_scores_and_losses_are_those_of_the_long_way(tiny_model: Path) -> None:
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    new, old = scorers(model, tokenizer)
    assert new.answers is not None
    torch.testing.assert_close(new.scores(EXAMPLES), old.scores(EXAMPLES), rtol=0, atol=1e-5)
    torch.testing.assert_close(new.loss(EXAMPLES), old.loss(EXAMPLES), rtol=0, atol=1e-5)
    assert 2.5 * new.tokens(EXAMPLES) < old.tokens(EXAMPLES)
    before, after = old.evaluate(EXAMPLES), new.evaluate(EXAMPLES)
    assert (after.value, after.calibrated) == (before.value, before.calibrated)


@torch.no_grad()
@pytest.mark.parametrize("why", ["window", "length"])
def test_prompts_without_room_for_all_words_go_the_long_way(
    tiny_model: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of their batch with them; other batches share as before."""
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    new, old = scorers(model, tokenizer)
    longest = max(new.lengths(EXAMPLES))
    monkeypatch.setattr(*{"window": (Scorer, "_window"), "length": (new, "limit")}[why], longest - 1)
    assert new._tails(new.encode(EXAMPLES[0]))
    torch.testing.assert_close(new.scores(EXAMPLES[:4]), old.scores(EXAMPLES[:4]), rtol=0, atol=1e-5)
    assert not new._tails([s for e in EXAMPLES for s in new.encode(e)])
    torch.testing.assert_close(new.scores(EXAMPLES), old.scores(EXAMPLES), rtol=0, atol=1e-5)


@torch.no_grad()
def test_scores_under_the_lens_and_under_branches(tiny_model: Path) -> None:
    """At one perturbed point, and at several in one forward: the scores of one prompt for each word."""
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    new, old = scorers(model, tokenizer)
    store = Store(loading.select(model, "full"))
    z = Vector(((Noise(Kind.NORMAL, 7), 0.02),))
    expected = []
    for point in (z, -z):
        with store.at(point):
            expected.append(old.scores(EXAMPLES))
            torch.testing.assert_close(new.scores(EXAMPLES), expected[-1], rtol=0, atol=1e-5)
    assert float((expected[0] - expected[1]).abs().max()) > 1e-2
    with Branches(store, [z, -z]):
        both = new.scores(EXAMPLES, 2)
    torch.testing.assert_close(both, torch.cat(expected), rtol=0, atol=2e-5)


@torch.no_grad()
def test_words_and_prompts_above_a_kept_prefix(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept are the states of a prompt and of the words behind it; where one has no room, all go the long way."""
    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    chosen = loading.select(model, "full", layers=2)
    store = Store(chosen)
    z = Vector(((Noise(Kind.NORMAL, 7), 0.02),))
    plain = Scorer(model, tokenizer, task())
    for shared in (True, False):
        scorer = Scorer(model, tokenizer, task(), trained=list(chosen.values()), cache_prefix=True)
        assert scorer.prefix is not None
        if not shared:
            monkeypatch.setattr(scorer, "limit", max(scorer.lengths(EXAMPLES)) - 1)
        scorer.group([EXAMPLES])
        scorer.remember(EXAMPLES)
        assert (scorer.answers is not None) == shared
        torch.testing.assert_close(scorer.scores(EXAMPLES), plain.scores(EXAMPLES), rtol=0, atol=1e-5)
        with Branches(store, [z, -z]):
            both, expected = scorer.scores(EXAMPLES, 2), plain.scores(EXAMPLES, 2)
        torch.testing.assert_close(both, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("trained", [{"train": "full"}, {"train": "lora"}, {"layers": 1}], ids=str)
def test_a_run_with_label_words_of_several_tokens_resumes_to_the_bit(
    tiny_model: Path, tmp_path: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps at once, or four and then two: the same weights, with prompts shared in all of them."""
    calls: list[int] = []
    shared_scores = Scorer._shared_scores

    def counted(self: Scorer, answers: Answers, prompts: Any, copies: int) -> Tensor:
        calls.append(len(prompts))
        return shared_scores(self, answers, prompts, copies)

    monkeypatch.setattr(Scorer, "_shared_scores", counted)
    s = TrainSettings.model_validate(
        {"model": str(tiny_model), "task": "mr", "steps": 6, "batch_size": 16, "train_examples": 64, **trained,
         "eval_examples": 16, "lr": 1e-3, "mu": 1e-3, "dtype": "float32",
         "label_words": [" very bad", " no good yes"]}
    )  # fmt: skip
    whole = train(s, tmp_path / "whole", quiet=True)
    assert len(calls) >= 6
    train(s.model_copy(update={"steps": 4}), tmp_path / "parts", quiet=True)
    resumed = train(s, tmp_path / "parts", resume=True, quiet=True)
    assert resumed["sha256"] == whole["sha256"]
    assert resumed["loss_last"] == whole["loss_last"]
