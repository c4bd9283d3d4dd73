"""Scorers of models that do not predict the next token: masked ones, classifiers, and encoders with a decoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from zograd.hub import Example, TaskError
from zograd.llm import loading
from zograd.llm.loading import ModelError
from zograd.llm.parts import without_cache
from zograd.llm.scoring.encoding import ScoredTokens, Tokens
from zograd.llm.scoring.packing import Layout, padded_layout
from zograd.llm.scoring.positions import limits_of_pairs
from zograd.llm.scoring.prefix import States
from zograd.llm.scoring.scorer import Scorer


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

    def _answer(self, text: str, **options: Any) -> Tokens:
        """The tokens of a label word, or of another answer."""
        return self._ids(text, **options)

    def _words(self) -> list[Tokens]:
        """The tokens of the label words. Raises TaskError for two with the same tokens."""
        words = [self._answer(word, add_special_tokens=False) for word in self.label_words]
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

    The classes of the head are told by the names in the model's configuration where these are the labels of the task.
    Labels that are the numbers 0, 1, ..., or false and true, are the numbers of its classes; others have the order of
    the task. TaskError for another number of classes than the head has.
    """

    def _ways(self, prompts: Iterable[str]) -> list[list[Tokens]]:
        config, name = self.base.config, type(self.base).__name__
        count = len(self.task.label_words) if self.task.kind == "classification" else 0
        if count != config.num_labels:
            what = f"{count} classes" if count else "choices" if self.task.kind == "choice" else "completions"
            raise TaskError(f"{name} has a head of {config.num_labels} classes, and the task has {what}")
        named = [str(config.id2label[k]).lower() for k in range(count)]
        asked = [label.lower() for label in self.task.classes]
        if sorted(named) == sorted(asked):
            order = [named.index(label) for label in asked]
        else:
            numbers = [_number(label) for label in asked]
            order = [int(k) for k in numbers] if sorted(numbers) == list(range(count)) else list(range(count))
        self.order = torch.tensor(order, device=self.device)
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


def _number(label: str) -> float:
    """The number that a label is: of false and true 0 and 1; -1 for one that is none."""
    try:
        return {"false": 0.0, "true": 1.0}[label] if label in ("false", "true") else float(label)
    except ValueError:
        return -1.0


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
            answers = [self._answer(choice) for choice in example.choices]
        else:
            if not example.completion:
                raise TaskError(f"an empty completion for the prompt {example.prompt[:40]!r}")
            answers = [self._answer(example.completion)]
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
        """What stands in front of an answer in the decoder: its start, and the token that it writes first in any case.

        BART and mBART have such a token (`forced_bos_token_id`), which `generate` puts there; T5, Pegasus and Marian
        have none.
        """
        own = getattr(self.base, "generation_config", None)
        forced = getattr(own, "forced_bos_token_id", None)
        return (self.base.config.decoder_start_token_id, *(() if forced is None else (forced,)))

    def _answer(self, text: str, **options: Any) -> Tokens:
        """The tokens of what the decoder writes behind `front`, as the tokenizer splits a target (Marian has two)."""
        there = getattr(self.tokenizer, "tgt_lang", "") is not None  # None: of several languages, and none is chosen
        ids = tuple(self.tokenizer(text_target=text, verbose=False, **options)["input_ids"]) if there else ()
        ids = self.encoder.known(ids) if ids else self._ids(text, **options)
        forced = self.front[1:]
        return ids[len(forced) :] if ids[: len(forced)] == forced and len(ids) > len(forced) else ids

    def _prompt(self, example: Example) -> Tokens:
        return self.encoder.whole(example)

    def _room(self, tokens: int) -> int | None:
        """The encoder has positions of its own. Raises TaskError where the decoder has too few."""
        reads, writes = limits_of_pairs(self.base)
        if writes is not None and tokens > writes:
            raise TaskError(f"--answer-tokens {tokens} is more than the {writes} that the decoder writes; lower it")
        return reads

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
