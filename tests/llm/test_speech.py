"""`zograd train` on recordings: data, a tiny Whisper, and every command that a run of texts has."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from typer.testing import CliRunner

from zograd.cli import app
from zograd.hub import TaskError, load_task
from zograd.hub.media import Recording, media_of
from zograd.llm import loading
from zograd.llm.evaluate import evaluate
from zograd.llm.generation import generate
from zograd.llm.restore import replay
from zograd.llm.scoring.kinds import scorer_of
from zograd.llm.scoring.media import SpeechScorer
from zograd.llm.scoring.rewards import word_accuracy
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.llm.tuned import Tuned

RATE = 16_000
TONES = {"low": 300.0, "high": 3000.0}


def sound(k: int) -> Any:
    """Two tones of a tenth of a second in noise; the words are their names."""
    drawn, t = np.random.default_rng(k), np.arange(RATE // 10) / RATE
    tones = [np.sin(2 * np.pi * TONES[word] * t) for word in said(k).split()]
    return (0.3 * np.concatenate(tones) + 0.01 * drawn.standard_normal(2 * len(t))).astype(np.float32)


def said(k: int) -> str:
    names = list(TONES)
    return f"{names[k % 2]} {names[k // 2 % 2]}"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with metadata.csv, as `datasets` reads it."""
    folder = tmp_path_factory.mktemp("data") / "tones"
    folder.mkdir()
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file_name", "transcription", "split"])
        for k in range(24):
            wavfile.write(folder / f"{k}.wav", RATE, sound(k))
            rows.writerow([f"{k}.wav", said(k), "train" if k < 16 else "test"])
    return folder


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Whisper of 2 + 2 layers for recordings of one second, which spells by bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder = tmp_path_factory.mktemp("models") / "whisper"
    vocabulary = {character: k for k, character in enumerate(bytes_to_unicode().values())}
    special = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")
    vocabulary |= {token: 256 + k for k, token in enumerate(special)}
    (folder.parent / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder.parent / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = WhisperTokenizer.from_pretrained(folder.parent)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special[1:])})
    end, start, plain = (tokenizer.convert_tokens_to_ids(token) for token in special)
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, num_mel_bins=8, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_source_positions=50, max_target_positions=24, pad_token_id=end, bos_token_id=end, eos_token_id=end,
        decoder_start_token_id=start, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(config)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(50.0)  # tokens as far apart as those of a pretrained model
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=end, bos_token_id=end, is_multilingual=False,
        no_timestamps_token_id=plain, return_timestamps=False, max_length=24,
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return str(folder)


def settings(model: str, task: Path | str, **more: Any) -> TrainSettings:
    given = {"model": model, "task": str(task), "threads": 1, "eval_split": "test", "dtype": "float32", **more}
    return TrainSettings.model_validate(given)


# ---- data ------------------------------------------------------------------------------------------------------------


def test_a_folder_with_a_table(recordings: Path) -> None:
    task = load_task(recordings)
    assert (task.reads, task.kind, task.classes) == ("speech", "completion", ())
    assert [len(task.splits[s]) for s in ("train", "validation", "test")] == [16, 0, 8]
    for k, e in enumerate(task.splits["train"]):
        assert isinstance(e.media, Recording)
        assert e.completion == said(k)
        assert np.allclose(e.media.samples(RATE), sound(k), atol=1e-6)


def test_samples_of_every_width_are_the_same_sound(tmp_path: Path) -> None:
    wanted = sound(0)
    for dtype, scale, zero in ((np.int16, 2**15, 0), (np.int32, 2**31, 0), (np.uint8, 2**7, 2**7), (np.float32, 1, 0)):
        stored = (wanted.astype(np.float64) * scale + zero).astype(dtype)
        wavfile.write(tmp_path / "a.wav", RATE, np.stack([stored, stored], 1))
        found = media_of("a.wav", tmp_path, "here")
        assert isinstance(found, Recording)
        assert np.allclose(found.samples(RATE), wanted, atol=2 / min(scale, 2**15) if scale > 1 else 1e-6)


def test_another_rate_is_resampled(tmp_path: Path) -> None:
    t = np.arange(8000) / 8000
    wavfile.write(tmp_path / "a.wav", 8000, np.sin(2 * np.pi * 440 * t).astype(np.float32))
    found = media_of("a.wav", tmp_path, "here")
    assert isinstance(found, Recording)
    samples = found.samples(RATE)
    assert len(samples) == RATE
    assert np.abs(np.fft.rfft(samples)).argmax() == 440


def test_recordings_of_a_dataset_and_in_memory(recordings: Path) -> None:
    import datasets

    rows = {"audio": [str(recordings / f"{k}.wav") for k in range(20)], "sentence": [said(k) for k in range(20)]}
    task = load_task(datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio()))
    assert task.reads == "speech"
    listed = load_task([{"audio": {"array": sound(k), "sampling_rate": RATE}, "text": said(k)} for k in range(20)])
    assert listed.reads == "speech"
    for split in task.splits:
        for e in listed.splits[split]:
            assert e.completion in {said(k) for k in range(4)}


def test_data_that_does_not_fit_is_named(tmp_path: Path, recordings: Path, whisper: str) -> None:
    with pytest.raises(TaskError, match=r"record 1: the recording 'a\.wav' cannot be read"):
        load_task([{"audio": "a.wav", "text": "hello"}])
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    wavfile.write(tmp_path / "long.wav", RATE, np.zeros(2 * RATE, np.float32))
    wavfile.write(tmp_path / "empty.wav", RATE, np.zeros(0, np.float32))
    model, processor = loading.load(whisper, dtype="float32")
    for name, says in (
        ("broken", r"broken\.wav cannot be read as a recording"), ("empty", "empty.wav is a recording of no length"),
        ("long", "takes 2 s, and the model hears 1 s"),
    ):  # fmt: skip
        task = load_task([{"audio": str(tmp_path / f"{name}.wav"), "text": "low", "split": "test"}])
        with pytest.raises(TaskError, match=says):
            scorer_of(model, processor, task).evaluate(task.splits["test"])
    with pytest.raises(TaskError, match=r"has no column 'text'.*completion_column"):
        load_task([{"audio": {"array": sound(0), "sampling_rate": RATE}, "words": "low"}])


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_loss_of_transformers(recordings: Path, whisper: str) -> None:
    """The mean log-probability of the tokens of the text and of its end, behind those that the tokenizer puts first."""
    task = load_task(recordings)
    model, processor = loading.load(whisper, dtype="float32")
    scorer = scorer_of(model, processor, task)
    assert isinstance(scorer, SpeechScorer)
    examples = [*task.splits["train"]][:4]
    with torch.no_grad():
        found = scorer.scores(examples)[:, 0]
    for e, score in zip(examples, found, strict=True):
        assert isinstance(e.media, Recording)
        features = processor.feature_extractor(e.media.samples(RATE), sampling_rate=RATE, return_tensors="pt")
        ids = processor.tokenizer(e.completion, return_tensors="pt").input_ids
        front = len(processor.tokenizer.prefix_tokens)
        labels = ids[:, 1:].clone()
        labels[:, : front - 1] = -100
        with torch.no_grad():
            loss = model(input_features=features.input_features, decoder_input_ids=ids[:, :-1], labels=labels).loss
        assert float(score) == pytest.approx(-float(loss), abs=1e-5)


def test_stored_states_of_the_encoder_change_nothing(recordings: Path, whisper: str) -> None:
    task = load_task(recordings)
    model, processor = loading.load(whisper, dtype="float32")
    trained = list(model.get_decoder().layers[-1].parameters())
    stored = scorer_of(model, processor, task, trained=trained, cache_prefix=True)
    assert isinstance(stored, SpeechScorer)
    assert stored.read is not None
    examples = [*task.splits["train"]][:5]
    expected = scorer_of(model, processor, task).scores(examples)
    for _ in range(2):
        assert torch.allclose(stored.scores(examples), expected, atol=1e-5)
    assert torch.allclose(stored.scores(examples, copies=2), expected.repeat(2, 1), atol=1e-5)


def test_word_accuracy_is_one_less_the_word_error_rate() -> None:
    assert word_accuracy("", "Hello, world!", "hello world") == 1.0
    assert word_accuracy("", "the hat sat on the mat", "the cat sat on the mat") == pytest.approx(5 / 6)
    assert word_accuracy("", "one two three four five", "one") == 0.0
    assert word_accuracy("", "", "") == 1.0


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_the_default_learns_and_every_command_knows_the_run(recordings: Path, whisper: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = train(settings(whisper, recordings, steps=200, lr=1e-2, batch_size=16), out, quiet=True)
    assert done["metric_after"] < 0.6 * done["metric_before"]  # the loss
    again = evaluate(None, None, out, split="test")
    assert again["value"] == pytest.approx(done["metric_after"], rel=1e-6)
    files = [recordings / f"{k}.wav" for k in range(16, 24)]
    heard = Tuned(out).generate([str(f) for f in files], max_new_tokens=12)
    assert all(g.text for g in heard)
    replay(out, None, tmp_path / "whole")
    alone = Tuned(str(tmp_path / "whole")).generate([str(f) for f in files], max_new_tokens=12)
    assert [g.text for g in alone] == [g.text for g in heard]
    by_words = evaluate(None, None, out, split="test", metric="word-accuracy", answer_tokens=12)
    right = [word_accuracy("", g.text, said(16 + k)) for k, g in enumerate(heard)]
    assert by_words["metric"] == "word-accuracy"
    assert by_words["value"] == pytest.approx(sum(right) / len(right), abs=1e-6)
    assert by_words["value"] > 0.0


def test_the_word_error_rate_alone_is_lowered(recordings: Path, whisper: str, tmp_path: Path) -> None:
    given = {"objective": "word-accuracy", "method": "rank", "train": "*decoder*layer_norm*", "answer_tokens": 4}
    done = train(settings(whisper, recordings, steps=3, lr=1e-2, batch_size=4, **given), tmp_path / "run", quiet=True)
    assert done["steps"] == 3
    with pytest.raises(SettingsError, match="an answer is written in several"):
        train(settings(whisper, recordings, steps=3, **{**given, "method": "residual"}), tmp_path / "no", quiet=True)


def test_a_resumed_run_has_the_same_bits(recordings: Path, whisper: str, tmp_path: Path) -> None:
    given = {"method": "zo_sgd", "lr": 1e-3, "layers": 1, "batch_size": 4}
    whole = train(settings(whisper, recordings, steps=4, **given), tmp_path / "whole", quiet=True)
    train(settings(whisper, recordings, steps=2, **given), tmp_path / "part", quiet=True)
    resumed = train(settings(whisper, recordings, steps=4, **given), tmp_path / "part", quiet=True, resume=True)
    assert resumed["sha256"] == whole["sha256"]


def test_commands_and_what_does_not_go(recordings: Path, whisper: str, tmp_path: Path, tiny_model: Path) -> None:
    run = tmp_path / "run"
    args = ["train", "--model", whisper, "--task", str(recordings), "--eval-split", "test", "--steps", "2"]
    done = CliRunner().invoke(app, [*args, "--train", "lora", "--out", str(run), "--json"])
    assert done.exit_code == 0, done.stderr[-500:]
    heard = ["generate", str(run), str(recordings / "3.wav"), "--max-new-tokens", "5", "--json"]
    written = CliRunner().invoke(app, heard)
    assert written.exit_code == 0, written.stderr[-500:]
    assert json.loads(written.stdout)["predictions"][0]["prompt"].endswith("3.wav")
    for command, says in (
        ([*args, "--out", str(run) + "1", "--method", "node_perturbation"], "an encoder reads those of"),
        ([*args, "--out", str(run) + "2", "--truncate", "left"], "--truncate is for models of text"),
        (["predict", str(run), str(recordings / "3.wav")], "was trained to write"),
        (["generate", str(run), "hello"], "the image 'hello' cannot be read"),
        (["generate", str(run), str(recordings / "3.wav"), "--stop", "x"], "--stop is for answers to texts"),
        ([*args[:2], str(tiny_model), *args[3:], "--out", str(run) + "3"], "--model such as whisper-tiny.en"),
    ):  # fmt: skip
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code in (1, 2)
        assert says in refused.stderr, (command, refused.stderr[-300:])


def test_texts_with_labels_beside_recordings_are_read_as_before() -> None:
    rows = [{"text": f"word {k}", "audio": "a.wav", "label": k % 2} for k in range(20)]
    assert load_task(rows).reads == "text"
    with pytest.raises(TaskError, match="holds recordings with labels"):
        load_task([{"audio": {"array": sound(k), "sampling_rate": RATE}, "label": k % 2} for k in range(4)])


def test_a_text_is_no_recording(whisper: str) -> None:
    model, processor = loading.load(whisper, dtype="float32")
    with pytest.raises(TaskError, match="reads recordings, and here is a text"):
        generate(model, processor, ["hello"], max_new_tokens=2)


def test_bytes_are_told_apart() -> None:
    stored = io.BytesIO()
    wavfile.write(stored, RATE, sound(1))
    assert isinstance(media_of(stored.getvalue(), Path(), "here"), Recording)
