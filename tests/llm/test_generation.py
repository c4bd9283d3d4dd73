"""Text from a model: greedy text is the most likely next tokens, whatever stands beside it, within its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, MarianConfig, MarianMTModel

from tests.families import family
from tests.llm.test_speech import recordings, whisper
from zograd.hub import TaskError
from zograd.llm import loading
from zograd.llm.generation import generate
from zograd.llm.tuned import Tuned

__all__ = ["recordings", "whisper"]  # fixtures

TEXTS = ["bad", "it was very , very good and it was not", "a good film"]
SIZES: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None, "init_std": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return loading.load(str(tiny_model), dtype="float32")[1]


def spread(model: Any) -> Any:
    """The model with larger weights, whose most likely tokens are far from the next ones, and which never ends."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0 if p.ndim > 1 else 1.0)
    model.generation_config.eos_token_id = None
    return model


def bart(tokenizer: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), **SIZES)).eval()
    model.generation_config.eos_token_id = None
    return model


def virtual(name: str, tokenizer: Any, part: str, tokens: int = 4) -> Any:
    model: Any = loading.attach_virtual(spread(family(name, len(tokenizer))), part, tokens, 0)
    weight = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight += 0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return model


@torch.no_grad()
@pytest.mark.parametrize("part", ["prompt", "prefix"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
def test_behind_virtual_tokens_it_is_that_of_pefts_own_forward(tokenizer: Any, name: str, part: str) -> None:
    """A soft prompt stood in front of the padding, not in front of the text."""
    model = virtual(name, tokenizer, part)
    for text, found in zip(TEXTS, generate(model, tokenizer, TEXTS, max_new_tokens=5), strict=True):
        ids = tokenizer.encode(text)
        for _ in range(5):
            whole = torch.tensor([ids])
            ids = [*ids, int(model(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0, -1].argmax())]
        assert found.text.strip() == tokenizer.decode(ids[-5:], skip_special_tokens=True).strip()


@torch.no_grad()
def test_an_encoder_with_learned_positions_reads_a_text_from_the_first_one(tokenizer: Any) -> None:
    """Padding stood in front of the shorter texts, which so had other positions than alone."""
    model = bart(tokenizer)
    found = [g.text for g in generate(model, tokenizer, TEXTS, max_new_tokens=5)]
    for text, together in zip(TEXTS, found, strict=True):
        ids, written = torch.tensor([tokenizer.encode(text)]), [2]
        for _ in range(5):
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits[0, -1]
            written.append(int(logits.argmax()))
        assert together == tokenizer.decode(written[1:], skip_special_tokens=True)
    assert len(set(found)) == 3


SAMPLING: dict[str, Any] = {
    "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(3, 60)), "min_p": 0.99,
    "typical_p": 0.1, "epsilon_cutoff": 0.5, "num_return_sequences": 2, "num_beams": 3, "min_length": 90,
    "bad_words_ids": [[k] for k in range(3, 60)], "sequence_bias": [[[5], 100.0]], "stop_strings": ["good"],
    "return_dict_in_generate": True, "output_scores": True, "max_time": 1e-9, "guidance_scale": 3.0,
}  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("kind", ["llama", "lora", "prompt", "prefix", "bart"])
def test_a_models_own_settings_of_sampling_do_not_count(tokenizer: Any, kind: str, temperature: float) -> None:
    if kind in ("prompt", "prefix"):
        model = virtual("llama", tokenizer, kind)
    elif kind == "lora":
        model = loading.attach_lora(spread(family("llama", len(tokenizer))), loading.LoraSpec(), 0)
    else:
        model = bart(tokenizer) if kind == "bart" else spread(family("llama", len(tokenizer)))
    base = loading.plain_model(model)
    given: dict[str, Any] = {"max_new_tokens": 6, "temperature": temperature}
    expected = generate(model, tokenizer, TEXTS, **given)
    for name, value in SAMPLING.items():
        setattr(base.generation_config, name, value)
    own = base.generation_config
    assert generate(model, tokenizer, TEXTS, **given) == expected
    assert base.generation_config is own
    with pytest.raises(ZeroDivisionError):
        generate(model, tokenizer, TEXTS, progress=lambda _: 1 / 0, **given)
    assert base.generation_config is own
    base.generation_config.forced_eos_token_id = 7  # the ids of a model count
    assert all(g.text.endswith(tokenizer.decode([7])) for g in generate(model, tokenizer, TEXTS, max_new_tokens=4))


def test_a_padding_with_a_score_is_not_written(tokenizer: Any) -> None:
    """Marian forbids its padding token among the bad words."""
    model = MarianMTModel(MarianConfig(vocab_size=len(tokenizer), **SIZES)).eval()
    model.generation_config.eos_token_id = None
    model.final_logits_bias[0, 0] = 1e4
    model.generation_config.bad_words_ids = [[0]]
    assert generate(model, tokenizer, ["a good film"], max_new_tokens=3)[0].text.split()
    model.generation_config.bad_words_ids = [[k] for k in range(len(tokenizer))]
    assert not generate(model, tokenizer, ["a good film"], max_new_tokens=3)[0].text.split()


def test_a_model_of_speech_keeps_what_is_no_speech(recordings: Path, whisper: str) -> None:
    files = [str(recordings / f"{k}.wav") for k in range(3)]
    tuned = Tuned(whisper)
    expected = [g.text for g in tuned.generate(files, max_new_tokens=6)]
    config = tuned._ready[0].generation_config
    others = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "num_return_sequences": 2, "bad_words_ids": [[65]]}
    for name, value in {**others, "no_speech_threshold": 0.0, "logprob_threshold": 0.0}.items():
        setattr(config, name, value)
    assert [g.text for g in tuned.generate(files, max_new_tokens=6)] == expected
    x = ord("x") - ord("!")
    config.suppress_tokens = [k for k in range(259) if k != x]
    assert {c for g in tuned.generate(files, max_new_tokens=6) for c in g.text} == {"x"}


@pytest.mark.parametrize("part", [None, "prompt", "prefix"])
def test_virtual_tokens_take_positions(tokenizer: Any, part: str | None) -> None:
    more = 0 if part is None else 5
    model = spread(family("gpt2", len(tokenizer))) if part is None else virtual("gpt2", tokenizer, part, more)
    text = " ".join(["good"] * 100)
    (found,) = generate(model, tokenizer, [text], max_new_tokens=28 - more)
    assert found.tokens == 28 - more
    said = r"has 100 tokens behind 5 virtual ones, and with" if more else r"has 100 tokens, and with"
    with pytest.raises(TaskError, match=rf"{said} --max-new-tokens {29 - more} it is longer than the 128"):
        generate(model, tokenizer, [text], max_new_tokens=29 - more)


def test_an_encoder_and_a_decoder_have_limits_of_their_own(tokenizer: Any) -> None:
    model = bart(tokenizer)
    assert generate(model, tokenizer, [" ".join(["good"] * 16)], max_new_tokens=16)[0].tokens == 16
    with pytest.raises(TaskError, match=r"has 17 tokens, more than the 16 that the encoder reads; shorten it"):
        generate(model, tokenizer, ["bad", " ".join(["good"] * 17)], max_new_tokens=4)
    with pytest.raises(TaskError, match="--max-new-tokens 17 is more than the 16 that the decoder writes; lower it"):
        generate(model, tokenizer, ["bad"], max_new_tokens=17)
    t5 = family("t5", len(tokenizer), "AutoModelForSeq2SeqLM")
    t5.generation_config.eos_token_id = None
    assert generate(t5, tokenizer, [" ".join(["good"] * 600)], max_new_tokens=2)[0].tokens == 2
