"""Scorers of models that read images or recordings in place of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zograd.blockwise import Terms
from zograd.hub import Example, TaskError
from zograd.hub.media import Picture, Recording
from zograd.llm.scoring.encoding import ScoredTokens, Tokens
from zograd.llm.scoring.others import ClassScorer, PairScorer
from zograd.llm.scoring.packing import Layout, padded_layout
from zograd.llm.scoring.scorer import TOGETHER, Scorer
from zograd.llm.scoring.spectrum import spectrum

KEPT = 256
"""Images whose pixel values are kept: 150 MB of 224 x 224 in float32."""
PATCHES = 8
"""Tokens that an image counts for where a forward is cut by tokens."""


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

    def asked(self, example: Example, tokens: int) -> Example:
        """The example itself: a recording has its own end, and `generate` writes no more than the decoder does."""
        return example

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
