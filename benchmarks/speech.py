"""`python -m benchmarks.speech`: Whisper learns a synthetic voice from its word error rate alone.

Questions of TREC are read by eSpeak NG, a synthesizer with a voice that Whisper tiny.en often mishears. Trained are the
norms of the decoder, 9,984 numbers, by a method that sees the word error rate of what the model writes, and no
derivative or probability. Half of the questions are never trained on.

Needs `pip install espeakng-loader` (GPL-3), which brings the synthesizer; the model comes through `zograd fetch`.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor

import zograd as zo
from zograd.cli.options import script
from zograd.cli.output import say as say_so
from zograd.hub import fetch, load_task
from zograd.llm.scoring.rewards import word_accuracy

RATE = 16_000
"""Samples a second that Whisper takes."""
FRAMES = 200
"""States of the encoder that are kept of each recording: its first four seconds."""

Sound = np.ndarray[Any, np.dtype[np.float32]]


def synthesizer() -> Callable[[str], Sound]:
    """text -> its sound in the voice en-us of eSpeak NG, at `RATE`."""
    try:
        import espeakng_loader
    except ImportError as e:
        raise ImportError("this needs the synthesizer eSpeak NG: pip install espeakng-loader") from e
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)  # sound as it is made
    heard: list[np.ndarray[Any, Any]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def take(samples: Any, count: int, events: Any) -> int:
        if samples and count:
            heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(take)
    library.espeak_SetVoiceByName(b"en-us")

    def say(text: str, keep: Any = take) -> Sound:
        heard.clear()
        data = text.encode()
        library.espeak_Synth(data, len(data) + 1, 0, 1, 0, 1, None, None)  # by characters, UTF-8
        library.espeak_Synchronize()
        sound = np.concatenate(heard).astype(np.float32) / 2**15
        return np.asarray(resample_poly(sound, RATE, rate), dtype=np.float32)

    return say


def questions(count: int) -> list[str]:
    """Questions of TREC of four to nine plain words, as they are spoken."""
    found = []
    for example in load_task("trec").splits["train"]:
        text = example.prompt.removeprefix("Question: ").partition("\n")[0]
        text = re.sub(r"\s+([?,'])", r"\1", re.sub("``|''", "", text)).strip()
        if 4 <= len(text.split()) <= 9 and re.fullmatch(r"[A-Za-z' ?,]+", text):
            found.append(text)
    return found[:count]


class Listener:
    """Whisper with the states that its encoder, which is not trained, has of each recording."""

    def __init__(self, sounds: Sequence[Sound], texts: Sequence[str]) -> None:
        from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

        folder = fetch("whisper-tiny.en").path
        self.model = AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval().requires_grad_(False)
        self.processor, self.texts = AutoProcessor.from_pretrained(folder), list(texts)
        take = self.processor.feature_extractor
        with torch.no_grad():
            inputs = [take(s, sampling_rate=RATE, return_tensors="pt").input_features for s in sounds]
            encoder = self.model.get_encoder()
            self.states = torch.cat([encoder(x).last_hidden_state[:, :FRAMES] for x in inputs])
        never = self.model.generation_config
        self.never = torch.zeros(self.model.config.vocab_size)
        self.never[never.suppress_tokens] = -torch.inf
        self.first = self.never.clone()
        self.first[never.begin_suppress_tokens] = -torch.inf

    @torch.no_grad()
    def write(self, rows: Sequence[int], longest: int = 24) -> list[str]:
        """What the model hears in these recordings: the most likely token each time."""
        given = self.model.generation_config
        states: Any = (self.states[list(rows)],)
        step = torch.tensor([[given.decoder_start_token_id, given.no_timestamps_token_id]] * len(rows))
        past: Any = None
        ended, tokens = torch.zeros(len(rows), dtype=torch.bool), list[Tensor]()
        while len(tokens) < longest and not bool(ended.all()):
            out = self.model(encoder_outputs=states, decoder_input_ids=step, past_key_values=past, use_cache=True)
            past, barred = out.past_key_values, self.never if tokens else self.first
            new = (out.logits[:, -1] + barred).argmax(1).masked_fill(ended, given.eos_token_id)
            ended = ended | (new == given.eos_token_id)
            tokens.append(new)
            step = new[:, None]
        found: list[str] = self.processor.batch_decode(torch.stack(tokens, 1), skip_special_tokens=True)
        return found

    def rate(self, rows: Sequence[int]) -> float:
        """The word error rate on these recordings."""
        right = [self.texts[k] for k in rows]
        pairs = zip(self.write(rows), right, strict=True)
        wrong = sum((1.0 - word_accuracy("", said, text)) * len(text.split()) for said, text in pairs)
        return wrong / sum(len(text.split()) for text in right)


def measure(
    count: Annotated[int, "Questions; half of them are for training."] = 96,
    batch_size: Annotated[int, "Recordings of a step."] = 16,
    steps: Annotated[int, "Steps."] = 40,
    method: Annotated[str, "A method of the menu that needs values alone."] = "rank",
    n: Annotated[int, "Directions of a step."] = 4,
    lr: Annotated[float, "Learning rate."] = 3e-2,
    mu: Annotated[float, "Radius."] = 0.05,
    every: Annotated[int, "Steps between evaluations of all questions."] = 10,
    seed: Annotated[int, "Draws batches and directions."] = 0,
) -> dict[str, Any]:
    """Train the norms of the decoder by the word error rate.

    Example: python -m benchmarks.speech --steps 40
    """
    torch.set_num_threads(1)
    texts, say = questions(count), synthesizer()
    listener = Listener([say(text) for text in texts], texts)
    half = len(texts) // 2
    seen, held_out = list(range(half)), list(range(half, len(texts)))
    trained = [p for name, p in listener.model.named_parameters() if re.search("decoder.*layer_norm", name)]
    optimizer = zo.ZOOptimizer(trained, zo.methods.make(method, n=n, lr=lr, mu=mu), seed=seed, frozen=True)
    rng, start = np.random.default_rng(seed), time.process_time()
    rows = [{"step": 0, "trained on": listener.rate(seen), "held out": listener.rate(held_out)}]
    for step in range(1, steps + 1):
        batch = rng.choice(half, batch_size, replace=False).tolist()
        optimizer.step(lambda batch=batch: listener.rate(batch))
        if step % every == 0 or step == steps:
            rows.append({"step": step, "trained on": listener.rate(seen), "held out": listener.rate(held_out)})
            say_so(f"{step}: {rows[-1]['trained on']:.1%} trained on, {rows[-1]['held out']:.1%} held out")
    return {
        "numbers": sum(p.numel() for p in trained), "questions": len(texts), "cpu_seconds": time.process_time() - start,
        "rows": rows,
    }  # fmt: skip


def text(result: dict[str, Any]) -> str:
    """A line an evaluation."""
    lines = [f"{'step':>4}  trained on  held out"]
    lines += [f"{r['step']:>4}  {r['trained on']:>10.1%}  {r['held out']:>8.1%}" for r in result["rows"]]
    return "\n".join([*lines, f"{result['numbers']:,} numbers, {result['cpu_seconds']:.0f} CPU seconds"])


app = script(measure, text)

if __name__ == "__main__":
    app()
