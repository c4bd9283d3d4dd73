"""Text from a language model, causal or an encoder with a decoder, by the `generate` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zograd.hub import Example, TaskError
from zograd.hub.media import Recording
from zograd.llm.loading import plain_model, virtual_of, vocabulary
from zograd.llm.loading.structure import kind_of
from zograd.llm.scoring.encoding import Encoder, Tokens
from zograd.llm.scoring.positions import limits_of_pairs, positions_of
from zograd.llm.scoring.spectrum import spectrum
from zograd.llm.settings import SettingsError

TOGETHER = 16
"""Prompts in one call of `generate`."""

KEPT = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "use_cache", "cache_implementation", "cache_config", "compile_config", "disable_compile",
)  # fmt: skip
"""What counts of a model's own settings of generation: its ids, and how it computes."""

OF_SPEECH = ("suppress_tokens", "begin_suppress_tokens")
"""What counts of those of a model of speech, too: tokens that are no speech."""

DOUBTS = ("compression_ratio_threshold", "condition_on_prev_tokens", "logprob_threshold", "no_speech_threshold")
"""Whisper's settings of sampling: when an answer is drawn again, or left out."""


@dataclass(frozen=True)
class Generated:
    """What a model writes behind a prompt.

    tokens: how many it wrote. ended: "stop" where the model or a stop text ended it, "length" where the limit did.
    """

    prompt: str
    text: str
    tokens: int
    ended: str


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Example],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    stop: Sequence[str] = (),
    seed: int | None = 0,
    progress: Callable[[float], object] | None = None,
    chat: bool = True,
) -> list[Generated]:
    """The continuation of each prompt, or what the decoder answers. Prompts have the tokens of training.

    prompts: texts, or examples, whose prompts they are. chat: write conversations with the tokenizer's chat template.

    temperature: 0 takes the most likely token each time; above, tokens are drawn, by `seed`, from the whole vocabulary.
        Without a seed (None) they are drawn from the random state of torch as it is, which stays so.
    stop: texts at which to stop; they are left out of the answer.
    progress: called after each token of prompts that share forwards, with its share of their number.

    A prompt has the same answer alone and with others, up to rounding. Of the model's own settings of generation its
    ids count, those of its end for example, and none of sampling.

    Memory: keys and values of up to `TOGETHER` prompts, which share forwards. Raises TaskError for a prompt that
    leaves no room for `max_new_tokens`, and for a model that writes no text, before the first forward.
    """
    check_sampling(max_new_tokens, temperature, stop)
    base = plain_model(model)
    if kind_of(base) in ("masked", "classes", "images"):
        raise TaskError(f"{type(base).__name__} writes no text; use a causal model, or an encoder with a decoder")
    if kind_of(base) == "speech":
        if stop:
            raise SettingsError(
                "--stop is for answers to texts; what is said in a recording has its own end: leave it out"
            )
        return _heard(model, tokenizer, prompts, max_new_tokens, temperature, seed, progress)
    encoder, pairs = Encoder(tokenizer, vocabulary(base), chat=chat), kind_of(base) == "pairs"
    encoded = [encoder.whole(p) if pairs else encoder.asked(p) for p in map(_example, prompts)]
    texts = [p if isinstance(p, str) else p.prompt for p in prompts]
    virtual = None if pairs else virtual_of(model)
    _check_lengths(base, texts, encoded, max_new_tokens, 0 if virtual is None else virtual.count)
    front: Tokens = () if virtual is None else virtual.ids
    writer = base if front else model  # peft's own forward has a soft prompt in front of the padding
    order = sorted(range(len(texts)), key=lambda i: (len(encoded[i]), i))
    found: dict[int, Generated] = {}
    options = _options(max_new_tokens, temperature, encoder.padding)
    device = next(model.parameters()).device
    with _drawing(device, seed), _own_settings(base):
        for start in range(0, len(order), TOGETHER):
            part = order[start : start + TOGETHER]
            rows, mask = _padded([front + encoded[i] for i in part], encoder.padding, left=not pairs)
            before: list[Tokens] = [() if pairs else encoded[i] for i in part]  # a decoder writes from its first token
            width = 1 if pairs else rows.shape[1]
            told = _Told(progress, len(part), max_new_tokens)
            options["stopping_criteria"] = _criteria(tokenizer, before, width, stop, told)
            whole = writer.generate(input_ids=rows.to(device), attention_mask=mask.to(device), **options)
            told.rest()
            for i, asked, row in zip(part, before, whole[:, width:].tolist(), strict=True):
                found[i] = _written(texts[i], asked, row, base, tokenizer, stop, encoder.padding)
    return [found[i] for i in range(len(texts))]


def _heard(
    model: Any, processor: Any, examples: Sequence[str | Example], limit: int, temperature: float, seed: int | None,
    progress: Callable[[float], object] | None,
) -> list[Generated]:  # fmt: skip
    """What a model of speech writes down of each recording. Cost: the encoder, and a forward of each token."""
    base, found = plain_model(model), []
    limit = min(limit, base.config.max_target_positions - len(processor.tokenizer.prefix_tokens or [0]))
    device, ends = next(model.parameters()).device, base.generation_config.eos_token_id
    options = {name: value for name, value in _options(limit, temperature, ends).items() if value is not None}
    special = {*processor.tokenizer.all_special_ids, *processor.tokenizer.prefix_tokens}
    with _drawing(device, seed), _own_settings(base, OF_SPEECH):
        for start in range(0, len(examples), TOGETHER):
            part = [_example(e) for e in examples[start : start + TOGETHER]]
            recordings = [e.media for e in part if isinstance(e.media, Recording)]
            if len(recordings) < len(part):
                raise TaskError(f"{type(base).__name__} reads recordings, and here is a text: give the path of a file")
            features = torch.cat([spectrum(processor, r) for r in recordings])
            written = base.generate(input_features=features.to(device, base.dtype), **options)
            for e, row in zip(part, written.tolist(), strict=True):
                tokens = [t for t in row if t not in special]
                text = processor.tokenizer.decode(tokens).strip()
                found.append(Generated(e.prompt, text, len(tokens), "length" if len(tokens) >= limit else "stop"))
            if progress is not None:
                progress(len(part))
    return found


def _example(prompt: str | Example) -> Example:
    return Example(prompt, -1) if isinstance(prompt, str) else prompt


def _check_lengths(base: Any, texts: Sequence[str], encoded: Sequence[Tokens], new: int, virtual: int) -> None:
    """Raise TaskError for a prompt without tokens, or more tokens than the model takes, with the virtual ones."""
    pairs = kind_of(base) == "pairs"
    longest: int | None = positions_of(base)
    if pairs:
        longest, written = limits_of_pairs(base)
        if written is not None and new > written:
            raise TaskError(f"--max-new-tokens {new} is more than the {written} that the decoder writes; lower it")
    for prompt, ids in zip(texts, encoded, strict=True):
        if not ids:
            raise TaskError(f"the prompt {prompt[:40]!r} has no tokens; write more")
        if longest is None or virtual + len(ids) + (0 if pairs else new) <= longest:
            continue
        if pairs:
            raise TaskError(
                f"the prompt {prompt[:40]!r}... has {len(ids)} tokens, more than the {longest} that the encoder reads; "
                f"shorten it"
            )
        behind = f" behind {virtual} virtual ones" if virtual else ""
        raise TaskError(
            f"the prompt {prompt[:40]!r}... has {len(ids)} tokens{behind}, and with --max-new-tokens {new} it is "
            f"longer than the {longest} that the model takes; shorten it, or lower --max-new-tokens"
        )


def check_sampling(max_new_tokens: int, temperature: float, stop: Sequence[str]) -> None:
    """Raise SettingsError for a setting of `generate` that is out of range."""
    if max_new_tokens < 1:
        raise SettingsError(f"--max-new-tokens {max_new_tokens}: at least 1 is needed")
    if not 0 <= temperature < float("inf"):
        raise SettingsError(f"--temperature {temperature}: it is 0 (the most likely token) or a positive number")
    if not all(stop):
        raise SettingsError("--stop is empty; give the text at which to stop")


@contextmanager
def _drawing(device: torch.device, seed: int | None) -> Iterator[None]:
    """Without gradients; with a seed tokens are drawn by it. The random state is then as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        if seed is not None:
            torch.manual_seed(seed)
        yield


@contextmanager
def _own_settings(base: Any, more: Sequence[str] = ()) -> Iterator[None]:
    """The model's settings of generation without those of sampling; transformers lays them under its arguments.

    more: names of settings that count besides `KEPT`. What transformers has no name for is of the architecture, such
    as the languages of Whisper.
    """
    from transformers import GenerationConfig

    own, plain = base.generation_config, GenerationConfig()
    named = {name for name in vars(own).keys() - vars(plain).keys() - {*DOUBTS} if not name.startswith("_")}
    for name in named.union(KEPT, more):
        if hasattr(own, name):
            setattr(plain, name, getattr(own, name))
    never = [[own.pad_token_id]]
    if getattr(own, "bad_words_ids", None) == never:  # Marian's padding has a score like a token, and is none
        plain.bad_words_ids = never
    base.generation_config = plain
    try:
        yield
    finally:
        base.generation_config = own


def _options(limit: int, temperature: float, pad: int) -> dict[str, Any]:
    """The arguments of transformers' generate: a model's own settings of sampling do not count."""
    drawn = bool(temperature)
    return {
        "do_sample": drawn, "temperature": temperature or None, "top_k": 0 if drawn else None,
        "top_p": 1.0 if drawn else None, "num_beams": 1, "max_new_tokens": limit, "pad_token_id": pad,
    }  # fmt: skip


class _Told:
    """What `progress` hears of prompts that share forwards: after each token its share, at the end what is left."""

    def __init__(self, progress: Callable[[float], object] | None, prompts: int, tokens: int) -> None:
        self.progress, self.left, self.share = progress, float(prompts), prompts / tokens

    def token(self) -> None:
        self._tell(min(self.share, self.left))

    def rest(self) -> None:
        """All have ended, some of them before the limit."""
        self._tell(self.left)

    def _tell(self, count: float) -> None:
        self.left -= count
        if self.progress is not None:
            self.progress(count)


def _criteria(tokenizer: Any, asked: Sequence[Sequence[int]], width: int, stop: Sequence[str], told: _Told) -> Any:
    """Ends a row when its new text holds one of these; transformers' own search does not know every tokenizer.

    told: hears of each token.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Stops(StoppingCriteria):  # type: ignore[misc]  # to mypy it is Any
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            told.token()
            if not stop:
                return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
            texts = [
                _behind(tokenizer, ids, row) for ids, row in zip(asked, input_ids[:, width:].tolist(), strict=True)
            ]
            return torch.tensor([any(s in text for s in stop) for text in texts], device=input_ids.device)

    return StoppingCriteriaList([Stops()])


def _padded(rows: Sequence[Tokens], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """int64 [rows, width] of token ids with padding, and the mask of the tokens.

    left: of a causal model, which goes on at the right. An encoder counts positions from the first column.
    """
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.int64)
    for k, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        ids[k, place], mask[k, place] = torch.tensor(row), 1
    return ids, mask


def _written(
    prompt: str, asked: Sequence[int], row: list[int], base: Any, tokenizer: Any, stop: Sequence[str], pad: int
) -> Generated:
    """The answer in the new tokens of one row, which end with an end of sequence, a stop text, or the limit."""
    ends = base.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    cut = next((k for k, token in enumerate(row) if token in ends), len(row))
    ended = "stop" if cut < len(row) else "length"
    text = _behind(tokenizer, asked, row[:cut])
    if places := [at for s in stop if (at := text.find(s)) >= 0]:
        text, ended = text[: min(places)], "stop"
        while cut and cut == len(row) and row[-1] == pad:  # the other prompts went on
            row, cut = row[:-1], cut - 1
    return Generated(prompt, text, min(cut + 1, len(row)), ended)


def _behind(tokenizer: Any, asked: Sequence[int], row: list[int]) -> str:
    """The text of the new tokens, with the space that a tokenizer leaves out at the beginning of a text."""
    before: str = tokenizer.decode(asked, skip_special_tokens=True)
    whole: str = tokenizer.decode([*asked, *row], skip_special_tokens=True)
    return whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(row, skip_special_tokens=True))
