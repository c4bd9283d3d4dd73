"""Words and completions have the tokens of the whole text, whatever kind of tokenizer splits it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from zograd.hub import Example, TaskError
from zograd.llm.scoring.encoding import Encoder

TEXTS = ["a fine film It was great", "a dull film It was terrible", "very bad, not good: No", "Answer:\nYes or No"] * 40
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "en_XX"]
ADDED = range(5)
"""Ids of the special tokens."""


def wrapped(made: Any, around: str) -> Any:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    named = [(name, made.token_to_id(name)) for name in ("<s>", "</s>", "en_XX")]
    made.post_processor = processors.TemplateProcessing(single=around, special_tokens=named)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def unigram(around: str) -> Any:
    """SentencePiece of T5, mBART, XLM-R: a space in front of the first word, whole words with their space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return wrapped(made, around)


def gemma() -> Any:
    """A byte-level fallback, spaces as a letter, no space in front, and <s> before a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split("▁", "merged_with_next")]
    )
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False))
    return wrapped(made, "<s> $A")


def wordpiece() -> Any:
    """BERT without case: words without their spaces, and a token at both ends."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return wrapped(made, "<s> $A </s>")


def by_bytes() -> Any:
    """ByT5, a tokenizer of transformers in Python: a token a byte, and </s> at the end."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer(extra_ids=0)


KINDS: dict[str, Any] = {
    "T5": lambda: unigram("$A </s>"), "mBART": lambda: unigram("en_XX $A </s>"), "Gemma": gemma, "BERT": wordpiece,
    "ByT5": by_bytes,
}  # fmt: skip
PROMPTS = ["a fine film It was", "very bad,\nnot good:", "Answer:\n", "x  y"]


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_word_are_the_text(kind: str) -> None:
    made = KINDS[kind]()
    encoder = Encoder(made, len(made))
    for prompt in PROMPTS:
        words = [" great", " terrible", " No"] if not prompt.endswith("\n") else ["Yes", "No"]
        found = encoder.behind(prompt, words)
        for word, tail in zip(words, found, strict=True):
            whole = made.encode(prompt + word)
            end = [made.eos_token_id] if whole[-1] == made.eos_token_id else []
            assert [*encoder.text(prompt), *tail, *end] == whole
            ids, start = encoder.completed(prompt, word)
            assert [*ids, *end] == whole
            assert tail == ids[start:]


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_a_text_but_what_is_put_in_front_is_learned(kind: str) -> None:
    made = KINDS[kind]()
    encoder = Encoder(made, len(made))
    ids, start = encoder.learned(Example("", -1, "a fine film"))
    assert list(ids) == [i for i in made.encode("a fine film") if i != made.eos_token_id]
    assert start == 1
    assert (ids[0] in ADDED) == (kind in ("mBART", "Gemma", "BERT"))


@pytest.mark.parametrize("kind", ["T5", "BERT"])
def test_words_without_a_difference_are_refused_by_name(kind: str) -> None:
    made = KINDS[kind]()
    words = {"T5": (" ☃", " ☂"), "BERT": (" Yes", " yes")}[kind]
    with pytest.raises(
        TaskError, match=rf"{words[0]!r} and {words[1]!r} have the same tokens, .*: use words that this"
    ):
        Encoder(made, len(made)).behind("It was", list(words))


def test_a_space_at_the_end_of_the_prompt_of_a_completion_is_said() -> None:
    made = KINDS["Gemma"]()
    encoder = Encoder(made, len(made))
    with pytest.warns(UserWarning, match="a prompt ends with a space, which belongs to the token of the next word"):
        encoder.check_ends([Example("It was ", -1, "great"), Example("It was", -1, " great")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.check_ends([Example("It was", -1, " great"), Example("", -1, "text")])
