"""Tokens of label words and completions are those that the tokenizer gives to the whole text, behind the prompt's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from zograd.hub import Example, Task, TaskError
from zograd.llm import loading
from zograd.llm.loading import ModelError
from zograd.llm.scoring.encoding import Encoder, _end
from zograd.llm.scoring.scorer import Scorer

TEXTS = ["a fine film It was great", "a dull film It was terrible", "very bad, not good: No", "Answer:\nYes or No"] * 40
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]


def tokenizer(kind: str) -> Any:
    """Small tokenizers of the kinds that people use, trained on `TEXTS`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind.startswith("bytes"):  # GPT-2, Llama 3, Qwen
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    else:  # Llama 2, Mistral: a space in front of every text
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind.startswith("bytes") else []
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    around = {"llama": "<s> $A", "bytes-eos": "$A </s>", "bytes-both": "<s> $A </s>"}.get(kind)
    if around:
        made.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", 2), ("</s>", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


KINDS = ["bytes", "llama", "bytes-eos", "bytes-both"]
MODELS: dict[str, Any] = {}


def model(rows: int = 400) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=rows, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=128,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval().requires_grad_(False)


def task(prompts: list[str], words: tuple[str, ...] = (" terrible", " great"), **more: Any) -> Task:
    examples = [Example(p, k % len(words)) for k, p in enumerate(prompts)]
    return Task("toy", "{text}", words, {"train": examples}, "made", "none", **more)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_the_tokens_behind_the_prompt(kind: str) -> None:
    """prompt + word is the text itself: no second space, no start and no end of a sequence between them."""
    made = tokenizer(kind)
    scorer = Scorer(model(), made, task(["a fine film It was", "very bad It was"]))
    assert scorer.alike
    for example in scorer.task.splits["train"]:
        (prompt,) = scorer.encode(example)
        for word, text in zip(scorer.words, (" terrible", " great"), strict=True):
            whole = [i for i in made.encode(example.prompt + text) if i != 3]
            assert [*prompt.ids, *word] == whole
    assert scorer.single


def test_words_of_llama_2_are_not_encoded_alone() -> None:
    """Alone, the tokenizer puts one more space in front: "▁" and "▁great", and the first carries no information."""
    made = tokenizer("llama")
    assert len(made.encode(" great", add_special_tokens=False)) == 2
    scorer = Scorer(model(), made, task(["a fine film It was"]))
    assert made.convert_ids_to_tokens([word[0] for word in scorer.words]) == ["▁terrible", "▁great"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eos", [True, False])
@torch.no_grad()
def test_completions_are_scored_on_the_text_itself(kind: str, eos: bool) -> None:
    """And on the token that ends them, once, also where the tokenizer appends it unasked."""
    made, network = tokenizer(kind), model()
    pairs = [("a fine film It was", " great"), ("Answer:\n", "No"), ("very bad, not", " good: No")]
    examples = [Example(p, -1, c) for p, c in pairs]
    task = Task("t", "{prompt}", (), {"train": examples}, "made", "none", kind="completion")
    scorer = Scorer(network, made, task, eos=eos)
    for e, loss in zip(examples, scorer.losses(examples), strict=True):
        whole = torch.tensor([[*(i for i in made.encode(e.prompt + e.completion) if i != 3), *[3] * eos]])
        first = len([i for i in made.encode(e.prompt) if i != 3])
        expected = F.cross_entropy(network(whole).logits[0, first - 1 : -1], whole[0, first:])
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_only_a_completion_has_an_end() -> None:
    """Label words, choices, texts and conversations have none; neither has a completion that ends with it."""
    encoder, bare = Encoder(tokenizer("bytes"), 400), Encoder(tokenizer("bytes"), 400, eos=False)
    e = Example("It was", -1, " great")
    assert encoder.learned(e) == (bare.learned(e)[0] + (3,), bare.learned(e)[1])
    assert encoder.learned(Example("It was", -1, " great</s>")) == encoder.learned(e)
    assert encoder.learned(Example("", -1, "It was great")) == bare.learned(Example("", -1, "It was great"))
    assert encoder.completed("It was", " great") == bare.completed("It was", " great")
    assert encoder.words(["It was"], [" great"]) == bare.words(["It was"], [" great"])
    assert Encoder(tokenizer("bytes"), 3).end == ()  # the model has no row for it


def test_a_completion_that_merges_with_its_prompt_begins_where_the_tokens_part() -> None:
    """ "terr" + "ible" has the token of " terrible": that is scored, not tokens which the text never has."""
    encoder = Encoder(tokenizer("bytes"), 400)
    ids, start = encoder.completed("It was terr", "ible")
    assert ids == encoder.text("It was terrible")
    assert ids[:start] == encoder.text("It was")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_space_at_the_end_of_a_prompt_belongs_to_the_word(kind: str) -> None:
    made, network = tokenizer(kind), model()
    prompts = ["a fine film It was", "very bad It was"]
    expected = Scorer(network, made, task(prompts))
    for words in ((" terrible", " great"), ("terrible", "great")):
        with pytest.warns(UserWarning, match=r"ends with a space, .* continues with ' terrible'; leave the space"):
            scorer = Scorer(network, made, task([f"{p} " for p in prompts], words))
        assert scorer.words == expected.words
        examples, plain = (list(s.task.splits["train"]) for s in (scorer, expected))
        torch.testing.assert_close(scorer.scores(examples), expected.scores(plain), rtol=0, atol=0)


@torch.no_grad()
def test_a_space_before_a_completion_belongs_to_the_completion() -> None:
    made, network = tokenizer("bytes"), model()

    def loss(prompt: str, completion: str) -> torch.Tensor:
        e = Example(prompt, -1, completion)
        t = Task("t", "{prompt}", (), {"train": [e]}, "made", "none", kind="completion")
        return Scorer(network, made, t).losses([e])

    with pytest.warns(UserWarning, match=r"a prompt ends with a space, .* continues with ' great'; leave the space"):
        moved = loss("It was ", "great")
    torch.testing.assert_close(moved, loss("It was", " great"), rtol=0, atol=0)


@torch.no_grad()
def test_words_that_depend_on_the_prompt_are_scored_behind_their_own(tiny_model: Path) -> None:
    """Where the tokenizer cuts the same word differently behind two prompts, each example has its own tokens."""
    made, network = tokenizer("bytes"), model()
    prompts = ["a film: ", "Answer:\n"]
    plain = task(["a film:\n", "Answer:\n"], ("No", "Yes"))
    with pytest.warns(UserWarning, match="ends with a space"):
        scorer = Scorer(network, made, task(prompts, ("No", "Yes")))
    assert not scorer.alike
    examples = list(scorer.task.splits["train"])
    for e, row in zip(examples, scorer.scores(examples), strict=True):
        for word, score in zip(("No", "Yes"), row, strict=True):
            whole, start = scorer.encoder.completed(e.prompt, word)
            ids = torch.tensor([whole])
            expected = -F.cross_entropy(network(ids).logits[0, start - 1 : -1], ids[0, start:])
            torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-5)
    assert Scorer(network, made, plain).alike


def test_a_word_that_merges_with_the_prompt_is_announced() -> None:
    with pytest.warns(UserWarning, match=r"the label word 'ible' merges with the end of the prompt, ' was terr'"):
        scorer = Scorer(model(), tokenizer("bytes"), task(["It was terr"], ("ible", " great")))
    assert scorer.words[1] == tuple(tokenizer("bytes").encode(" great"))


def test_words_that_the_tokenizer_does_not_tell_apart_are_refused(tiny_model: Path) -> None:
    network, words = loading.load(str(tiny_model), dtype="float32")
    with pytest.raises(TaskError, match=r"' zzzz' and ' qqqq' have the same tokens, <unk>: use words"):
        Scorer(network, words, task(["It was"], (" zzzz", " qqqq")))


@pytest.mark.parametrize("where", ["prompt", "word", "completion"])
def test_a_token_beyond_the_embedding_is_named(where: str) -> None:
    made = tokenizer("bytes")
    made.add_tokens(["zzzz", "qqqq"])
    rows = len(made) - 2
    text = {"prompt": "a zzzz film It was"}.get(where, "It was")
    words = (" zzzz", " great") if where == "word" else (" terrible", " great")
    message = rf"{len(made)} tokens\) gives 'zzzz' the id {rows}, but the embedding of the model has {rows} rows; use"
    t = task([text], words)
    if where == "completion":
        e = Example("It was", -1, " zzzz")
        t = Task("t", "{prompt}", (), {"train": [e]}, "made", "none", kind="completion")

    def encoded() -> None:
        Scorer(model(rows), made, t).encode(t.splits["train"][0])

    with pytest.raises(ModelError, match=message):
        encoded()


@torch.no_grad()
def test_padding_that_the_model_has_no_row_for_is_padding_all_the_same() -> None:
    """A padding token that was added to the tokenizer but not to the model, as is common for Llama."""
    made, prompts = tokenizer("bytes"), ["It was", "a fine film, very good It was", "not bad It was"]
    plain = Scorer(model(), made, task(prompts))
    examples = list(plain.task.splits["train"])
    expected = plain.scores(examples)
    rows = len(made)
    made.add_special_tokens({"pad_token": "[PAD]"})
    assert made.pad_token_id >= rows
    scorer = Scorer(model(), made, task(prompts))
    scorer.encoder.rows = rows
    scorer.pad, scorer.packs = scorer.encoder.padding, False
    assert scorer.pad < rows
    torch.testing.assert_close(scorer.scores(examples), expected, rtol=1e-5, atol=1e-6)


def test_the_end_of_a_prompt_is_its_last_two_words() -> None:
    found = {t: _end(t) for t in ("a b c", "a  b\nc ", "a b", "a", "", "  ", "x: y:\n", " b  c d")}
    assert found == {
        "a b c": " b c", "a  b\nc ": "  b\nc ", "a b": "a b", "a": "a", "": "", "  ": "  ", "x: y:\n": "x: y:\n",
        " b  c d": "  c d",
    }  # fmt: skip
