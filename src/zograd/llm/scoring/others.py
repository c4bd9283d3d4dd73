"""Scorers of models that do not predict the next token: masked ones, classifiers of texts or images, and encoders of
texts or recordings with a decoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zograd.blockwise import Terms
from zograd.hub import Example, TaskError
from zograd.hub.media import Picture, Recording
from zograd.llm import loading
from zograd.llm.loading import ModelError
from zograd.llm.loading.structure import kind_of
from zograd.llm.parts import without_cache
from zograd.llm.scoring.encoding import ScoredTokens, Tokens
from zograd.llm.scoring.packing import Layout, padded_layout
from zograd.llm.scoring.prefix import States
from zograd.llm.scoring.scorer import TOGETHER, Scorer


def scorer_of(model: Any, *args: Any, **options: Any) -> Scorer:
    """The scorer for this kind of model; arguments are those of `Scorer`.

    Raises TaskError for a task of images with a model of text, or the other way round.
    """
    base, task = loading.plain_model(model), args[1] if len(args) > 1 else options["task"]
    kind = kind_of(base)
    reads = kind if kind in ("images", "speech") else "text"
    if task.reads != reads:
        instead = OF_MEDIA.get(task.reads)
        raise TaskError(
            f"{type(base).__name__} reads {reads}, and {task.source} holds {_HOLDS[task.reads]}: choose a model of "
            f"{task.reads} with --model{f' such as {instead}' if instead else ''}"
        )
    return _KINDS.get(kind, Scorer)(model, *args, **options)


OF_MEDIA = {"images": "efficientnet-lite0", "speech": "whisper-tiny.en"}
"""The bundled models of images and of speech."""

_HOLDS = {"text": "texts", "images": "images", "speech": "recordings"}


class _Unpacked(Scorer):
    """What the three have in common: each sequence has a row of its own, with what the tokenizer puts around it."""

    causal = False

    def __init__(self, model: Any, tokenizer: Any, *args: Any, **options: Any) -> None:
        longest = min(options.get("max_length") or 10**9, tokenizer.model_max_length)
        super().__init__(model, tokenizer, *args, **{**options, "max_length": longest})

    def _ids(self, text: str, **options: Any) -> Tokens:
        ids = tuple(self.tokenizer.encode(text, verbose=False, **options))
        if not ids:
            raise TaskError(f"the text {text[:40]!r} has no tokens; leave the example out")
        return self.encoder.known(ids)

    def _words(self) -> list[Tokens]:
        """The tokens of the label words. Raises TaskError for two with the same tokens."""
        words = [self._ids(word, add_special_tokens=False) for word in self.label_words]
        for k, word in enumerate(words):
            if word in words[:k]:
                one, two = self.label_words[words.index(word)], self.label_words[k]
                raise TaskError(
                    f"label words {one!r} and {two!r} have the same tokens: use words that this tokenizer knows"
                )
        return words


class MaskedScorer(_Unpacked):
    """A masked language model (BERT): a score is the logit of a label word at the mask behind the prompt.

    The mask stands where the prompt has the tokenizer's mask token, or at its end. TaskError for completions and for
    label words of several tokens.
    """

    def _ways(self, prompts: Iterable[str]) -> list[list[Tokens]]:
        name = type(self.base).__name__
        if self.task.kind != "classification":
            raise TaskError(
                f"{name} fills masks and scores no longer answers; use a causal model, or a task with labels"
            )
        words = self._words()
        for word, tokens in zip(self.label_words, words, strict=True):
            if len(tokens) > 1:
                split = ", ".join(self.tokenizer.convert_ids_to_tokens(list(tokens)))
                raise TaskError(
                    f"{name} fills one mask, and the label word {word!r} has {len(tokens)} tokens ({split}); give "
                    f"--label-words of one token each"
                )
        return [words]

    def _sequences(self, example: Example) -> list[ScoredTokens]:
        mask, prompt = self.tokenizer.mask_token, example.prompt
        ids = self._ids(prompt if mask in prompt else f"{prompt.rstrip(' ')} {mask}")
        if (count := ids.count(self.tokenizer.mask_token_id)) != 1:
            raise TaskError(f"the prompt {prompt[:40]!r} has {count} masks {mask}, and one is filled")
        return [ScoredTokens(ids, ids.index(self.tokenizer.mask_token_id) + 1)]


class ClassScorer(_Unpacked):
    """A model with a head of classes: its scores are its logits, and label words have no part in them.

    The classes of the head are told by the names in the model's configuration where these are the labels of the task;
    otherwise they have its order. TaskError for another number of classes than the head has.
    """

    def _ways(self, prompts: Iterable[str]) -> list[list[Tokens]]:
        config, name = self.base.config, type(self.base).__name__
        count = len(self.task.label_words) if self.task.kind == "classification" else 0
        if count != config.num_labels:
            what = f"{count} classes" if count else "choices" if self.task.kind == "choice" else "completions"
            raise TaskError(f"{name} has a head of {config.num_labels} classes, and the task has {what}")
        named = [str(config.id2label[k]).lower() for k in range(count)]
        asked = [label.lower() for label in self.task.classes]
        same = sorted(named) == sorted(asked)
        self.order = torch.tensor([named.index(label) for label in asked] if same else range(count), device=self.device)
        return [[(k,) for k in range(count)]]

    def _sequences(self, example: Example) -> list[ScoredTokens]:
        ids = self._ids(example.prompt)
        return [ScoredTokens(ids, len(ids))]

    def _check(self) -> None:
        """Nothing to check: the logits are the model's own."""

    def _run(self, inputs: dict[str, Any]) -> Tensor:
        with without_cache(self.base):  # encoders have no such argument
            logits: Tensor = self.base(**{k: v for k, v in inputs.items() if k != "use_cache"}).logits
        return logits

    def _last(self, found: Tensor, layout: Layout) -> Tensor:
        return found[0]

    def scores(self, examples: Sequence[Example], copies: int = 1) -> Tensor:
        logits, _ = self._hidden([s for e in examples for s in self.encode(e)], copies)
        return logits.float()[:, self.order]


class ImageScorer(ClassScorer):
    """A classifier of images (ViT, EfficientNet): its scores are its logits.

    In place of a tokenizer it has an image processor (`AutoImageProcessor`), which makes the pixel values [3, H, W] of
    an image whenever a forward needs them; those of `KEPT` images are kept. The states below the trained blocks are
    stored as those of texts are. A sequence is one number, that of the image.
    """

    def __init__(self, model: Any, processor: Any, *args: Any, **options: Any) -> None:
        self._images: dict[Example, int] = {}
        self._by_number: list[Example] = []
        self._pixels: dict[int, Tensor] = {}
        self._empty: Tensor | None = None
        Scorer.__init__(self, model, processor, *args, **{**options, "max_length": None})

    def _read_with(self, processor: Any, chat: bool, eos: bool) -> None:
        self.processor, self.pad = processor, 0

    def _sample(self) -> list[int]:
        """The number of the first image."""
        first = next(e for examples in self.task.splits.values() for e in examples)
        return list(self._sequences(first)[0].ids)

    def _sequences(self, example: Example) -> list[ScoredTokens]:
        if example not in self._images:
            assert example.media is not None
            example.media.check()
            self._images[example] = len(self._images)
            self._by_number.append(example)
        return [ScoredTokens((self._images[example],), 1)]

    def layout(self, lengths: Sequence[int]) -> Layout:
        return replace(padded_layout(lengths), whole=True)

    def _inputs(
        self, sequences: Sequence[ScoredTokens], layout: Layout, copies: int, tails: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        stored = [self._numbers.get(s, -1) for s in sequences]
        if self.prefix is not None and self._empty is not None and all(n in self.prefix.kept for n in stored):
            pixels = self._empty.expand(len(sequences), *self._empty.shape)  # what they give is replaced
        else:
            pixels = torch.stack([self._values(s.ids[0]) for s in sequences])
            self._empty = torch.zeros_like(pixels[0])
        return {"pixel_values": torch.cat([pixels] * copies)}

    def _values(self, number: int) -> Tensor:
        """The pixel values of an image as the model takes them."""
        if number not in self._pixels:
            example = self._by_number[number]
            assert isinstance(example.media, Picture)
            made = self.processor(images=example.media.open(), return_tensors="pt")["pixel_values"][0]
            while len(self._pixels) >= KEPT:
                self._pixels.pop(next(iter(self._pixels)))
            self._pixels[number] = made.to(self.device, self.base.dtype)
        return self._pixels[number]

    def longest(self, examples: Sequence[Example]) -> list[int]:
        """Each image counts as `PATCHES` tokens."""
        return [PATCHES] * len(examples)

    def together(self, examples: Sequence[Example]) -> int:
        """One: a forward of a few images keeps the processor busy."""
        return 1

    def terms(self, examples: Sequence[Example], most: int = TOGETHER) -> list[Terms]:
        raise TaskError("a method that perturbs the outputs of layers has no images; use residual or backprop")


KEPT = 256
"""Images whose pixel values are kept: 150 MB of 224 x 224 in float32."""
PATCHES = 8
"""Tokens that an image counts for where a forward is cut by tokens."""


class PairScorer(_Unpacked):
    """An encoder with a decoder (T5): the encoder reads the prompt, and the decoder is scored on what it writes.

    Label words of one token are scored by the first token of the decoder, longer ones and completions by the mean
    log-probability of their tokens; a completion ends with the end of the sequence.

    Where no tensor of the encoder is trained, its states are computed once for each prompt, and kept. Memory: the
    logits of all tokens that the decoder writes in a forward.
    """

    def __init__(self, model: Any, tokenizer: Any, *args: Any, **options: Any) -> None:
        base = loading.plain_model(model)
        trained = {id(p) for p in options.get("trained", ())}
        frozen = bool(trained) and not any(id(p) in trained for p in base.get_encoder().parameters())
        self.read = States() if frozen and options.get("cache_prefix") else None
        self._prompts: dict[Tokens, int] = {}
        super().__init__(model, tokenizer, *args, **{**options, "cache_prefix": False})

    def _ways(self, prompts: Iterable[str]) -> list[list[Tokens]]:
        return [self._words()] if self.task.kind == "classification" else [[]]

    def _sequences(self, example: Example) -> list[ScoredTokens]:
        prompt = self._ids(example.prompt.rstrip(" "))
        if self.task.kind == "classification":
            answers: Sequence[Tokens] = [()] if self.single else self.words
        elif self.task.kind == "choice":
            answers = [self._ids(choice) for choice in example.choices]
        else:
            if not example.completion:
                raise TaskError(f"an empty completion for the prompt {example.prompt[:40]!r}")
            answers = [self._ids(example.completion)]
        return [ScoredTokens((*prompt, *answer), len(prompt)) for answer in answers]

    def _check(self) -> None:
        """Raise ModelError for a model that does not say with which token its decoder starts."""
        if self.base.config.decoder_start_token_id is None:
            raise ModelError(
                f"the configuration of {type(self.base).__name__} has no decoder_start_token_id; set it to the id of "
                f"the token before an answer"
            )

    @property
    def front(self) -> Tokens:
        """What stands in front of an answer in the decoder."""
        return (self.base.config.decoder_start_token_id,)

    def _encoded_prompts(self, prompts: Sequence[Tokens], copies: int) -> dict[str, Any]:
        """The inputs of the model that stand for these prompts: tokens, or the states that its encoder gave."""
        layout = padded_layout([len(p) for p in prompts])
        inputs = layout.inputs(prompts, self.pad, self.device, self.base.dtype)
        mask = torch.cat([inputs["attention_mask"]] * copies)
        if self.read is None:
            return {"input_ids": torch.cat([inputs["input_ids"]] * copies), "attention_mask": mask}
        from transformers.modeling_outputs import BaseModelOutput

        numbers = [self._prompts.setdefault(p, len(self._prompts)) for p in prompts]
        for number, prompt in zip(numbers, prompts, strict=True):
            if number not in self.read:  # alone, so that the states do not depend on the batch
                with torch.no_grad():
                    ids = torch.tensor([prompt], device=self.device)
                    self.read.keep(number, self.base.get_encoder()(input_ids=ids).last_hidden_state[0])
        states = torch.zeros(*mask.shape[:1], layout.width, self.read[numbers[0]].shape[-1], dtype=self.base.dtype)
        for k, number in enumerate(numbers * copies):
            found = self.read[number]
            states[k, : len(found)] = found
        return {"encoder_outputs": BaseModelOutput(states.to(self.device)), "attention_mask": mask}

    def _word_scores(self, examples: Sequence[Example], copies: int) -> Tensor:
        sequences = [s for e in examples for s in self.encode(e)]
        self._shape = padded_layout([len(s.ids) for s in sequences])
        answers = [s.ids[s.scored_from :] for s in sequences]
        before = self.front
        written = [(*before, *answer[:-1]) for answer in answers]
        decoder = padded_layout([len(w) for w in written]).inputs(written, self.pad, self.device, self.base.dtype)
        logits = self.base(
            **self._encoded_prompts([s.ids[: s.scored_from] for s in sequences], copies),
            decoder_input_ids=torch.cat([decoder["input_ids"]] * copies),
            decoder_attention_mask=torch.cat([decoder["attention_mask"]] * copies),
            use_cache=False,
        ).logits
        if self.single:
            found: Tensor = logits[:, len(before) - 1, self.label_ids].float()
            return found
        rows, picked = [], torch.log_softmax(logits.float(), -1)
        for k, answer in enumerate(answers * copies):
            tokens = torch.tensor(answer, device=self.device)
            rows.append(picked[k, len(before) - 1 :][: len(answer)].gather(1, tokens[:, None]).mean())
        return self._by_example(torch.stack(rows), examples, copies)

    def infer(self, batch: Sequence[Example], held_out: Sequence[Example], *, evaluated: bool = False) -> None:
        if not evaluated:
            super().infer(batch, held_out)


class SpeechScorer(PairScorer):
    """A model that writes down what is said in a recording (Whisper), scored on the tokens of the right text.

    Its processor makes the spectrum of a recording, whose states the encoder computes once where it is not trained. A
    sequence is the number of the recording and the tokens of the text, which end with the end of the sequence; in the
    decoder they stand behind the tokens of task and language that the tokenizer puts in front.

    Memory: 1500 states of a recording of up to 30 seconds, in a temporary file.
    """

    def __init__(self, model: Any, processor: Any, *args: Any, **options: Any) -> None:
        self.processor = processor
        self._recordings: dict[Any, int] = {}
        self._by_number: list[Recording] = []
        super().__init__(model, processor.tokenizer, *args, **options)
        self.tokenizer = processor  # for `generate`, which reads the recordings too

    @property
    def front(self) -> Tokens:
        return tuple(self.processor.tokenizer.prefix_tokens) or super().front

    def _sequences(self, example: Example) -> list[ScoredTokens]:
        assert isinstance(example.media, Recording)
        if not example.completion:
            raise TaskError(f"nothing is said in {example.prompt}: its text is empty; leave the recording out")
        if example.media not in self._recordings:
            example.media.check()
            self._recordings[example.media] = len(self._by_number)
            self._by_number.append(example.media)
        words = self.processor.tokenizer.encode(example.completion, add_special_tokens=False)
        ids = self.encoder.known((*words, self.base.config.eos_token_id))
        return [ScoredTokens((self._recordings[example.media], *ids), 1)]

    def _encoded_prompts(self, prompts: Sequence[Tokens], copies: int) -> dict[str, Any]:
        numbers = [number for (number,) in prompts]
        if self.read is None:
            features = torch.cat([self._spectrum(n) for n in numbers])
            return {"input_features": torch.cat([features] * copies)}
        from transformers.modeling_outputs import BaseModelOutput

        for number in numbers:
            if number not in self.read:  # alone, so that the states do not depend on the batch
                with torch.no_grad():
                    self.read.keep(number, self.base.get_encoder()(self._spectrum(number)).last_hidden_state[0])
        states = torch.stack([self.read[number] for number in numbers]).to(self.device)
        return {"encoder_outputs": BaseModelOutput(torch.cat([states] * copies))}

    def _spectrum(self, number: int) -> Tensor:
        """[1, bands, frames] of a recording."""
        return spectrum(self.processor, self._by_number[number]).to(self.device, self.base.dtype)


def spectrum(processor: Any, recording: Recording) -> Tensor:
    """[1, bands, frames]: what a model of speech reads of a recording. Raises TaskError for one that is too long."""
    extractor = processor.feature_extractor
    samples, rate = recording.samples(extractor.sampling_rate), extractor.sampling_rate
    if len(samples) > (longest := extractor.chunk_length * rate):
        raise TaskError(
            f"{recording.name} takes {len(samples) / rate:.0f} s, and the model hears {longest / rate:.0f} s: cut it "
            f"into pieces with the text of each"
        )
    found: Tensor = extractor(samples, sampling_rate=rate, return_tensors="pt").input_features
    return found


_KINDS: dict[str, type[Scorer]] = {
    "masked": MaskedScorer, "classes": ClassScorer, "pairs": PairScorer, "images": ImageScorer, "speech": SpeechScorer,
}  # fmt: skip
