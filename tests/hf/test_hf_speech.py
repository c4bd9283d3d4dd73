"""Speech to text (Whisper) through the Trainer: by the loss of the right words, and by the word error rate alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import zograd as zo
from tests.hf.helpers import arguments, digest, losses
from zograd.hf import forward_only

SHORT = GenerationConfig(max_new_tokens=3, do_sample=False, decoder_start_token_id=1, eos_token_id=2, pad_token_id=2)
START, END, WORDS = 1, 2, ("low", "mid", "high")
"""Two tokens, and the words that have the tokens behind them."""


def whisper() -> nn.Module:
    """A Whisper of 2 + 2 layers for sounds of 16 frames."""
    config = WhisperConfig(
        vocab_size=8, d_model=16, num_mel_bins=4, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=8,
        max_target_positions=8, pad_token_id=END, bos_token_id=START, eos_token_id=END, decoder_start_token_id=START,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WhisperForConditionalGeneration(config)


def sounds(n: int = 12) -> list[dict[str, Tensor]]:
    """Two tones a sound; each is a band of the spectrum, and a word."""
    drawn = torch.Generator().manual_seed(1)
    found = []
    for k in range(n):
        said = [k % 3, (k // 3) % 3]
        frames = 0.1 * torch.randn(4, 16, generator=drawn)
        for place, word in enumerate(said):
            frames[word, 8 * place : 8 * place + 8] += 2.0
        found.append({"input_features": frames, "labels": torch.tensor([*(3 + w for w in said), END])})
    return found


def text(ids: Tensor) -> str:
    return " ".join(WORDS[t - 3] for t in ids.tolist() if 3 <= t < 6)


def word_errors(said: str, right: str) -> int:
    """Words that are to be put in, left out or replaced."""
    mine, there = said.split(), right.split()
    row = list(range(len(there) + 1))
    for i, word in enumerate(mine, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(there, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


class ByWords(Seq2SeqTrainer):  # type: ignore[misc]  # to mypy it is Any
    """What the model writes is compared with the right words: no derivative, and no probability of a word."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        said = model.generate(input_features=inputs["input_features"], generation_config=SHORT)
        pairs = [(text(s), text(w)) for s, w in zip(said, inputs["labels"], strict=True)]
        loss = torch.tensor(sum(word_errors(s, w) for s, w in pairs) / sum(len(w.split()) for _, w in pairs))
        return (loss, {}) if return_outputs else loss


def given(folder: Path, **settings: Any) -> Any:
    return arguments(folder, Seq2SeqTrainingArguments, remove_unused_columns=False, **settings)


def test_the_decoder_learns_by_residual_feedback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What stands before the decoder is left as it is, and the line before training says so."""
    model = whisper()
    before = digest(model.model.encoder)
    trainer = forward_only(Seq2SeqTrainer)(
        model=model, args=given(tmp_path, max_steps=30, logging_steps=10), train_dataset=sounds(), lr=1e-2
    )
    trainer.train()
    assert "by residual, lr 0.01" in (said := capsys.readouterr().err)
    assert "not trained, since not in the blocks: model.encoder.conv1.weight" in said
    found = losses(trainer)
    assert found[-1] < 0.98 * found[0], found  # the encoder stays random
    assert digest(model.model.encoder) == before


def test_the_word_error_rate_is_a_loss(tmp_path: Path) -> None:
    """Written answers are evaluated at each point; the weights move, and evaluations leave no trace."""
    model = whisper()
    before, rows = digest(model), sounds(4)
    trainer = forward_only(ByWords)(
        model=model, args=given(tmp_path, max_steps=2, logging_steps=1), train_dataset=rows,
        method=zo.methods.rank(n=2, lr=0.3, mu=0.5),
    )  # fmt: skip
    trainer.train()
    assert all(round(loss * 8 * 4) == pytest.approx(loss * 8 * 4, abs=1e-3) for loss in losses(trainer))
    assert trainer.state.log_history[-1]["evaluations"] == 4
    assert digest(model) != before
    moved = digest(model)
    assert 0.0 <= trainer.evaluate(rows)["eval_loss"] <= 1.5
    assert digest(model) == moved


@pytest.mark.slow
def test_the_word_error_rate_alone_is_lowered(tmp_path: Path) -> None:
    """A model that knows the words, and whose last norm was disturbed, finds them again from its errors alone."""
    model = whisper()
    batch = {name: torch.stack([row[name] for row in sounds()]) for name in ("input_features", "labels")}
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        adam.zero_grad()
        model(**batch).loss.backward()
        adam.step()
    norm = model.model.decoder.layer_norm
    with torch.no_grad():
        norm.bias.add_(5.0 * torch.randn(16, generator=torch.Generator().manual_seed(3)))
    model.requires_grad_(False)
    norm.requires_grad_(True)
    trainer = forward_only(ByWords)(
        model=model, train_dataset=sounds(), method=zo.methods.rank(n=8, lr=0.3, mu=0.5),
        args=given(tmp_path, max_steps=20, per_device_train_batch_size=12, lr_scheduler_type="constant"),
    )  # fmt: skip
    before = trainer.evaluate(sounds())["eval_loss"]
    trainer.train()
    assert before > 0.4
    assert trainer.evaluate(sounds())["eval_loss"] < before / 2
