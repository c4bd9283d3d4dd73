"""Score the examples of a task with a language model: forward passes, losses and metrics.

Classification as in MeZO: the text is put into a template ("... It was"), and each class has a label word
(" terrible", " great"). The loss is the cross-entropy over the label words only; the prediction is the word with the
best score. If all label words have one token, a single forward of the prompt scores them. Longer words are scored by
the mean log-probability of their tokens: all words share the keys and values of one prompt
(`llm/scoring/shared_answers.py`), or each has a prompt of its own if the model does not allow that.
Multiple choice: each choice of an example is scored as such a word, behind a prompt of its own.
Completion: mean negative log-likelihood of the tokens of the completion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zograd.blockwise import Terms
from zograd.distributed.peers import Peers
from zograd.hub import Example, Task, TaskError
from zograd.hub.labels import flat_words
from zograd.llm import loading
from zograd.llm.scoring import head as heads
from zograd.llm.scoring.batches import length_buckets
from zograd.llm.scoring.choices import choices_there, labels_of_choices
from zograd.llm.scoring.encoding import Encoder, ScoredTokens, Tokens
from zograd.llm.scoring.loss import token_losses
from zograd.llm.scoring.metrics import Metric, Metrics, losses_of, metric_of, metrics_of, of_rewards, why_not_finite
from zograd.llm.scoring.objectives import Objective, objective_of
from zograd.llm.scoring.packing import TAILS, Layout, packed_layout, padded_layout, supports_packing
from zograd.llm.scoring.positions import NO_LIMIT, positions_of
from zograd.llm.scoring.prefix import Prefix, first_trained_block, trained_after_attention
from zograd.llm.scoring.shared_answers import Answers
from zograd.llm.scoring.truncation import capped, cut, fitting
from zograd.quantized import libraries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TOGETHER = 64
"""Largest number of examples in one forward of a batch."""
WRITTEN_TOGETHER = 16
"""Number of answers that an evaluation writes together."""
EVALUATION = 32
"""Largest number of examples in one forward of an evaluation."""
SAMPLE = 16
"""Largest number of tokens of the example with which a model is checked."""
SATURATED = 512
"""Number of tokens in a forward above which more of them are no faster."""


class Scorer:
    """Computes scores, losses and metrics of examples of a task with one model.

    `scorer_of` (`llm/scoring/kinds.py`) makes the one that fits a model; this one is for causal models.

    model: a causal language model of transformers, with or without peft adapters, on any device.
    task: the task. Its examples are encoded when they are first used, and kept.
    trained: the trained tensors. If all of them are in upper blocks, `cache_prefix=True` stores the activations of the
        frozen lower blocks of each example after its first forward (`group`).
    max_length: the longest sequence; None: the limit of the model. A longer one raises TaskError, or with `truncate`
        ("left", "middle", "right") its longest columns are cut there (`llm/scoring/truncation.py`).
    chat: write conversations with the tokenizer's chat template, where it has one. eos: a plain completion ends with
        the tokenizer's end of sequence, which is learned too. answer_tokens: most tokens of an answer that a metric of
        written answers looks at.
    metric: what `evaluate` reports, see `zograd.llm.scoring.metrics.metric_of`.
    objective: what `losses` are in place of the loss, see `zograd.llm.scoring.objectives.objective_of`. Where the model
        writes its answers, `evaluate` reports their mean reward, and no states are stored.

    Cost: some forwards of at most 50 tokens, which check the model. Raises ModelError for a model that is not causal,
    or whose logits cannot be computed from its hidden states; TaskError for label words with equal tokens.

        Scorer(model, tokenizer, load_task("trec")).evaluate(examples).value
    """

    causal = True
    """Whether a token sees no later ones."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        *,
        trained: Sequence[Tensor] = (),
        cache_prefix: bool = False,
        max_length: int | None = None,
        truncate: str | None = None,
        chat: bool = True,
        metric: Metric | None = None,
        objective: Objective | None = None,
        eos: bool = True,
        answer_tokens: int = 32,
    ) -> None:
        self.model, self.tokenizer, self.task, self.objective, self.chat = model, tokenizer, task, objective, chat
        self.labelled = task.kind in ("classification", "choice")
        """Whether one of several answers is right, so that scores are compared."""
        self.writes = objective is not None and not self.labelled
        """Whether the model writes the answers that training looks at."""
        cache_prefix = cache_prefix and not self.writes
        self.metric = metric_of(None, task.kind, len(task.label_words)) if metric is None else metric
        self.judge = objective if self.writes else None
        """What `evaluate` reports of written answers; None where no answer is written."""
        if self.judge is None and self.metric.written:
            self.judge = objective_of(self.metric.name, task.kind, answer_tokens)
        self.base = loading.plain_model(model)
        self.device = next(model.parameters()).device
        self._read_with(tokenizer, chat, eos)
        self.limit = positions_of(self.base)
        """The longest sequence that the model takes."""
        self.max_length, self.truncate = min(max_length or NO_LIMIT, self.limit), truncate
        self.cut: set[Example] = set()
        """The examples that were cut."""
        self.cut_for_answers: set[Example] = set()
        """Those whose prompts were cut further, to leave room for an answer."""
        self._asked: dict[tuple[Example, int], Example] = {}
        prompts = (e.prompt for examples in task.splits.values() for e in examples)
        self.label_words, owners = flat_words(task.label_words)
        ways = self._ways(prompts)
        self.words = ways[0]
        """The tokens of the label words, of all classes."""
        self.members = [[k for k, owner in enumerate(owners) if owner == c] for c in range(len(task.label_words))]
        """The label words of each class."""
        self.alike = len(ways) == 1
        """Whether these are the same after every prompt."""
        self.single = task.kind == "classification" and self.alike and all(len(w) == 1 for w in self.words)
        self.label_ids = torch.tensor([w[0] for w in self.words], device=self.device) if self.single else None
        self.prefix: Prefix | None = None
        self.virtual: loading.Virtual | None = None
        """The virtual tokens in front of each sequence; None without any."""
        self._numbers: dict[ScoredTokens, int] = {}
        self._groups: list[list[ScoredTokens]] = []
        self._group: dict[ScoredTokens, int] = {}
        self._encoded: dict[Example, list[ScoredTokens]] = {}
        self.packs, self.answers = False, None
        self.around: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Makes the context of the forward under way, in which stored states stand for modules."""
        self._shape = padded_layout([1])  # of the last forward
        self._check()
        self.virtual = loading.virtual_of(model)
        if self.virtual is not None:
            if self.virtual.count >= self.max_length:
                raise TaskError(
                    f"{self.virtual.count} virtual tokens leave no room for a text: the model takes {self.max_length} "
                    f"tokens in all; lower --tokens"
                )
            self.max_length -= self.virtual.count
        behind = self.virtual is not None and self.virtual.part == "prefix"
        below = first_trained_block(self.base, trained) if trained and cache_prefix else 0
        if below:
            last = loading.blocks(self.base)[-1]
            last_only = self.causal and self.single and below == len(loading.blocks(self.base)) - 1
            self.prefix = self._prefix(below, last_only and trained_after_attention(last, trained))
        self.packs = self.causal and not behind and supports_packing(self.base, self.device)
        """Whether several sequences may share a row of a batch."""
        several = self.packs and task.kind == "classification" and self.alike and not self.single
        shares = several and supports_packing(self.base, self.device, TAILS)
        self.answers = Answers(self.words, self.device) if shares else None
        """The label words if they share the keys and values of a prompt, else None."""

    def _read_with(self, tokenizer: Any, chat: bool, eos: bool) -> None:
        """Make what turns examples into inputs of the model."""
        self.encoder = Encoder(tokenizer, loading.vocabulary(self.base), chat=chat, eos=eos)
        self.pad = self.encoder.padding

    def _ways(self, prompts: Iterable[str]) -> list[list[Tokens]]:
        """The tokens of the label words, as many times as they differ after these prompts."""
        if self.task.kind == "classification":
            return self.encoder.words(prompts, self.label_words)
        if self.task.kind in ("completion", "choice"):
            self.encoder.check_ends(e for examples in self.task.splits.values() for e in examples)
        return [[]]

    # ---- checks of the model -------------------------------------------------------------------------------------

    def _sample(self) -> list[int]:
        """At least two tokens of the first example."""
        first = next((e for examples in self.task.splits.values() for e in examples), None)
        text = "" if first is None else first.prompt + (first.choices[0] if first.choices else first.completion)
        ids = list(self.encoder.text(text)) if first is not None else []
        ids = ids[: min(SAMPLE, self.max_length)]
        return ids if len(ids) > 1 else [*ids, *range(3)][:2]

    @torch.no_grad()
    def _check(self) -> None:
        """Raise ModelError if states depend on later tokens, or if the logits used here are not those of the model.

        Cost: two forwards of at most `SAMPLE` tokens.
        """
        ids, name = self._sample(), type(self.base).__name__
        seen = heads.observe(self.base, ids, self.device)
        exact = self.base.dtype in (torch.float32, torch.float64) and not libraries.is_quantized(self.model)
        if self.causal and not heads.nearly_equal(*seen.states, 1e-4 if exact else 1e-2):
            raise loading.ModelError(
                f"{name} is not a causal language model as configured: its states at a token depend on later tokens "
                f"(a bidirectional or masked language model), so it does not predict the next one; choose a causal "
                f"model, set is_decoder or the like in its config.json where it was trained as one, or save it with "
                f"the head that it has (AutoModelForMaskedLM, AutoModelForSequenceClassification)"
            )
        hidden, _ = self._hidden([ScoredTokens(tuple(ids), len(ids))])
        some = torch.arange(2, device=self.device) if self.label_ids is None else self.label_ids
        for chosen, expected in ((None, seen.logits), (some, seen.logits[some])):
            found = self._logits(hidden[0, len(ids) - 1][None], chosen)[0]
            if not heads.nearly_equal(found, expected, heads.rounding(torch.float32 if exact else torch.bfloat16)):
                raise loading.ModelError(
                    f"the scores of {name} would not be its logits: its own forward passes its backbone more than "
                    f"tokens and a mask; train it through zograd.ZOOptimizer with a loss of your own"
                )

    @torch.no_grad()
    def _prefix(self, below: int, last_only: bool) -> Prefix | None:
        """The cache that stores as much as this model allows, checked against a full forward; None if nothing works."""
        ids = self._sample()
        sequence = [ScoredTokens(tuple(ids), len(ids))]
        expected, whole = self._hidden(sequence)
        for only in (True, False) if last_only else (False,):
            self.prefix = Prefix(self.base, below, last_only=only)
            try:
                found, layout = self._hidden(sequence)
            except Exception:  # blocks may need more inputs than the states before them
                continue
            finally:
                self.prefix = None
                self._numbers.clear()
            if heads.nearly_equal(
                self._last(found, layout), self._last(expected, whole), heads.rounding(self.base.dtype)
            ):
                return Prefix(self.base, below, last_only=only)
        return None

    def _last(self, found: Tensor, layout: Layout) -> Tensor:
        """What a forward of one sequence (`_run`) gives at its end."""
        return found[0, layout.lengths[0] - 1]

    def encode(self, example: Example) -> list[ScoredTokens]:
        """The sequences whose forwards score this example. They are kept, since each epoch needs them again."""
        if example not in self._encoded:
            found, front = self._encode(example), () if self.virtual is None else self.virtual.ids
            self._encoded[example] = [ScoredTokens((*front, *s.ids), len(front) + s.scored_from) for s in found]
        return self._encoded[example]

    def _encode(self, example: Example) -> list[ScoredTokens]:
        _, sequences = self._seen(example)
        return sequences if self._longest(sequences) <= self.max_length else [self._cut(*sequences)]

    def _seen(self, example: Example) -> tuple[Example, list[ScoredTokens]]:
        """The example with its prompt cut where it is too long, and its sequences.

        They are short enough, but for a text, and for a completion that does not fit behind half as many tokens.
        """
        sequences = self._sequences(example)
        if not sequences[0].ids[: sequences[0].scored_from]:
            raise TaskError(f"the prompt {example.prompt[:40]!r} has no tokens; leave the example out")
        if (longest := self._longest(sequences)) <= self.max_length:
            return example, sequences
        begins = repr((example.prompt or example.completion)[:40])
        if self.truncate is None:
            raise TaskError(
                f"the example that begins {begins} has {longest} tokens, but the model takes {self.max_length}: cut "
                f"such examples with --truncate left, middle or right, or leave them out"
            )
        self.cut.add(example)
        side = self.truncate
        shorter = fitting(example, side, lambda e: self._longest(self._sequences(e)) <= self.max_length)
        if shorter is None and self.labelled:
            raise TaskError(
                f"the example that begins {begins} has more than {self.max_length} tokens even without its columns; "
                f"raise --max-length, or shorten the prompt template"
            )
        if shorter is None and self.task.kind == "text":
            return example, sequences
        if shorter is None:
            shorter = fitting(example, side, lambda e: self._sequences(e)[0].scored_from <= self.max_length // 2)
        shorter = capped(example, 1, side) if shorter is None else shorter
        return shorter, self._sequences(shorter)

    def _cut(self, sequence: ScoredTokens) -> ScoredTokens:
        """A text cut on a side; or the beginning of a completion."""
        if self.task.kind == "text":
            assert self.truncate is not None
            keep = len(self.encoder.text(""))
            return replace(sequence, ids=cut(sequence.ids, self.max_length, self.truncate, keep=keep))
        if sequence.scored_from >= self.max_length:
            raise TaskError(
                f"a prompt has more than {self.max_length} tokens even without its columns; raise --max-length"
            )
        return replace(sequence, ids=sequence.ids[: self.max_length])

    def asked(self, example: Example, tokens: int) -> Example:
        """The example with the prompt behind which a model writes an answer of up to `tokens` tokens.

        It is cut as its sequence is, and further where the answer would not fit behind it. Raises TaskError for one
        that leaves no room, where nothing is to be cut.
        """
        if (example, tokens) not in self._asked:
            self._asked[example, tokens] = self._with_room(self._seen(example)[0], example, tokens)
        return self._asked[example, tokens]

    def _with_room(self, seen: Example, example: Example, tokens: int) -> Example:
        """See `asked`. seen: what training sees of the example."""
        room = self._room(tokens)
        if room is None or len(self._prompt(seen)) <= room:
            return seen
        begins = (
            f"the prompt {example.prompt[:40]!r}... has {len(self._prompt(seen))} tokens, and with --answer-tokens "
            f"{tokens} it is longer than the {room + tokens} that the model takes"
        )
        if self.truncate is None:
            raise TaskError(
                f"{begins}: cut such prompts with --truncate left, middle or right, lower --answer-tokens, or leave "
                f"them out"
            )
        shorter = fitting(seen, self.truncate, lambda e: len(self._prompt(e)) <= room)
        if shorter is None:
            raise TaskError(
                f"{begins}, even without its columns; lower --answer-tokens, or shorten the prompt template"
            )
        self.cut_for_answers.add(example)
        return shorter

    def _prompt(self, example: Example) -> Tokens:
        """The tokens of a prompt behind which the model writes."""
        return self.encoder.asked(example)

    def _room(self, tokens: int) -> int | None:
        """How many tokens a prompt may have with `tokens` behind it; None for any number."""
        virtual = 0 if self.virtual is None else self.virtual.count
        return None if self.limit == NO_LIMIT else self.limit - virtual - tokens

    def check_answers(self, examples: Iterable[Example]) -> None:
        """Raise TaskError for an example whose answer, if the model writes one, has no room."""
        if self.judge is not None:
            for example in examples:
                self.asked(example, self.judge.tokens)

    def _longest(self, sequences: Sequence[ScoredTokens]) -> int:
        """The number of tokens of the longest sequence, or of the prompt with the longest word behind it."""
        behind = 0 if self.answers is None else max(map(len, self.words))
        return max(len(s.ids) for s in sequences) + behind

    def _sequences(self, example: Example) -> list[ScoredTokens]:
        """The sequences of an example, however long."""
        if self.task.kind == "classification":
            prompt = self.encoder.text(example.prompt.rstrip(" "))
            words = self.words if self.alike else self.encoder.behind(example.prompt, self.label_words)
            tails: Sequence[Tokens] = [()] if self.single or self.answers is not None else words
            return [ScoredTokens((*prompt, *tail), len(prompt)) for tail in tails]
        if self.task.kind == "choice":
            return [ScoredTokens(*self.encoder.completed(example.prompt, choice)) for choice in example.choices]
        ids, start = self.encoder.learned(example)
        if not example.completion or start >= len(ids):
            what = f"an empty completion for the prompt {example.prompt[:40]!r}"
            if not example.prompt:
                what = f"the text {example.completion!r} has no token to predict"
            elif example.completion:
                what = (
                    f"the completion {example.completion[:40]!r} has no token of its own behind the prompt that ends "
                    f"in {example.prompt[-20:]!r}: the tokenizer joins them; begin the completion with a space or a "
                    f"new line"
                )
            raise TaskError(what)
        return [ScoredTokens(ids, start)]

    def said(self, count: int) -> str:
        """What happened to `count` examples when they became tokens, as a clause; "" where nothing is to be said."""
        parts = []
        if self.cut:
            what = "they" if self.task.kind == "text" else "their longest parts"
            parts.append(
                f"{len(self.cut):,} of {count:,} examples have more than {self.max_length} tokens: {what} are cut "
                f"({self.truncate})"
            )
        if self.cut_for_answers and self.judge is not None:
            parts.append(
                f"{len(self.cut_for_answers):,} prompts are cut to leave room for --answer-tokens {self.judge.tokens}"
            )
        if any(e.chat for e in self._encoded):
            with_template = "with the chat template of the tokenizer" if self.encoder.chat else "as plain text"
            parts.append(f"conversations are written {with_template}")
        return "; ".join(parts)

    def tokens(self, examples: Sequence[Example]) -> int:
        """Number of tokens of a batch, without padding."""
        return sum(self.lengths(examples))

    # ---- forward passes ------------------------------------------------------------------------------------------

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Number of tokens of each sequence of these examples, including tails of label words after a prompt."""
        behind = 0 if self.answers is None else self.answers.size
        return [len(s.ids) + behind for e in examples for s in self.encode(e)]

    def layout(self, lengths: Sequence[int]) -> Layout:
        """The layout of sequences of these lengths in a batch."""
        if not self.packs or max(lengths) > self._window:  # the mask of a packed batch has no window
            return padded_layout(lengths)
        return packed_layout(tuple(lengths), self.base.config.get_text_config().hidden_size, self.limit)

    @property
    def _window(self) -> int:
        """The longest sequence in which each token attends to all earlier ones."""
        config = self.base.config.get_text_config()
        return min(getattr(config, name, None) or 10**9 for name in ("sliding_window", "attention_chunk_size"))

    def _tails(self, sequences: Sequence[ScoredTokens]) -> list[tuple[int, ...]]:
        """The tails of label words after each prompt; none if one of these prompts leaves no room for them."""
        if self.answers is None or sequences[0].scored_from < len(sequences[0].ids):
            return []
        longest = max(len(s.ids) for s in sequences) + self.answers.size
        return self.answers.tails if longest <= min(self._window, self.limit) else []

    def _hidden(self, sequences: Sequence[ScoredTokens], copies: int = 1) -> tuple[Tensor, Layout]:
        """Last hidden states [copies rows, width, d] of a batch, and its layout."""
        tails = self._tails(sequences)
        behind = sum(map(len, tails))
        self._shape = layout = self.layout([len(s.ids) + behind for s in sequences])
        if self.prefix is None:
            return self._run(self._inputs(sequences, layout, copies, tails)), layout
        self._store(sequences)
        numbers = [self._numbers[s] for s in sequences]
        if self.prefix.last_only:  # one position with any token: its states are recalled
            layout = padded_layout([1] * len(sequences))
            sequences = [ScoredTokens((1,), 1)] * len(sequences)
        self.around, self._shape = partial(self.prefix.recall, numbers, layout, copies), layout
        try:
            with self.around():
                return self._run(self._inputs(sequences, layout, copies, tails)), layout
        finally:
            self.around = nullcontext

    def _run(self, inputs: dict[str, Any]) -> Tensor:
        """What a forward gives for each token: the last hidden states."""
        if self.virtual is not None and self.virtual.part == "prefix":
            inputs = self.virtual.past(inputs)
        hidden: Tensor = heads.backbone_of(self.base)(**inputs).last_hidden_state
        return hidden

    @property
    def filled(self) -> Tensor:
        """bool [rows, width]: the positions that hold tokens in the forward under way, or in the last one."""
        return self.owners >= 0

    @property
    def owners(self) -> Tensor:
        """int64 [rows, width]: the sequence of each token in the forward under way, or in the last one; -1: padding."""
        return self._shape.owners.to(self.device)

    def _inputs(
        self, sequences: Sequence[ScoredTokens], layout: Layout, copies: int, tails: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """Token ids with their mask, for all copies."""
        inputs = layout.inputs([s.ids for s in sequences], self.pad, self.device, self.base.dtype, tails)
        return {k: v if isinstance(v, bool) else torch.cat([v] * copies) for k, v in inputs.items()}

    def group(self, groups: Iterable[Sequence[Example]]) -> None:
        """Say which examples share forwards when the states of the frozen prefix are stored: those of a group.

        All of a group are stored when the first of them is needed. The last bits of an activation depend on the batch
        in which it is computed; so they depend on the groups, and not on the step at which a run was interrupted. An
        example belongs to the first of its groups, and one without a group to whatever is stored with it.
        """
        if self.prefix is None:
            return
        groups = list(groups)
        if self.answers is not None and not all(self._tails(self.encode(e)) for group in groups for e in group):
            self.answers = None  # what is stored for an example may not depend on others
            self._encoded.clear()
        for group in groups:
            new = dict.fromkeys(s for e in group for s in self.encode(e) if s not in self._group)
            self._group |= dict.fromkeys(new, len(self._groups))
            self._groups.append(list(new))

    def remember(self, examples: Sequence[Example], progress: Callable[[float], object] | None = None) -> None:
        """Store the states of the frozen prefix of these examples, and of their groups, that are not stored yet.

        progress: called after each forward with its number of sequences.
        """
        if self.prefix is not None:
            self._store([s for e in examples for s in self.encode(e)], progress)

    @property
    def share(self) -> float:
        """The part of the blocks that a forward runs where the states in front of them are stored; 1 without such."""
        return 1.0 if self.prefix is None else 1 - self.prefix.below / len(loading.blocks(self.base))

    def unknown(self, examples: Sequence[Example]) -> int:
        """How many sequences `remember` would run forward for these examples."""
        if self.prefix is None:
            return 0
        return sum(map(len, self._missing([s for e in examples for s in self.encode(e)])))

    def _missing(self, sequences: Sequence[ScoredTokens]) -> list[list[ScoredTokens]]:
        """Those without stored states, with all of their groups."""
        assert self.prefix is not None
        kept = self.prefix.kept
        missing = [s for s in dict.fromkeys(sequences) if self._numbers.get(s, -1) not in kept]
        groups = dict.fromkeys(self._group[s] for s in missing if s in self._group)
        alone = [s for s in missing if s not in self._group]
        return [*(self._groups[n] for n in groups), *([alone] if alone else [])]

    @torch.no_grad()
    def _store(self, sequences: Sequence[ScoredTokens], progress: Callable[[float], object] | None = None) -> None:
        assert self.prefix is not None
        for part in self._missing(sequences):
            behind = sum(map(len, self._tails(part)))
            lengths = [len(s.ids) + behind for s in part]
            for bucket in length_buckets(lengths, TOGETHER, packs=self.packs):
                some, layout = [part[i] for i in bucket], self.layout([lengths[i] for i in bucket])
                numbers = [self._numbers.setdefault(s, len(self._numbers)) for s in some]
                with self.prefix.record(numbers, layout):
                    heads.backbone_of(self.base)(**self._inputs(some, layout, 1, self._tails(some)))
                if progress is not None:
                    progress(len(some))

    def _logits(self, hidden: Tensor, ids: Tensor | None, copies: int = 1) -> Tensor:
        """float32 logits of rows of hidden states; with `ids`, of these tokens only."""
        return heads.logits(self.base, hidden, ids, copies)

    def scores(self, examples: Sequence[Example], copies: int = 1) -> Tensor:
        """float32 [examples, classes]: log-score of each class. Completions: [examples, 1], mean log-likelihood.

        Multiple choice: [examples, most choices], of each choice its mean log-likelihood, and -inf behind the last one.
        The score of a class with several words is log sum_w exp(score of w): their probabilities are added.

        copies: repeat the examples in one forward, a copy for each branch (`lens/branches.py`): [copies examples, ...].
        """
        found = self._word_scores(examples, copies)
        if all(len(words) == 1 for words in self.members):
            return found
        return torch.stack([found[:, words].logsumexp(1) for words in self.members], 1)

    def _word_scores(self, examples: Sequence[Example], copies: int) -> Tensor:
        """float32 [copies examples, label words]; of completions one column."""
        encoded = [self.encode(e) for e in examples]
        sequences = [s for group in encoded for s in group]
        if self.answers is not None:
            if self._tails(sequences):
                return self._shared_scores(self.answers, sequences, copies)
            sequences = [ScoredTokens((*s.ids, *word), len(s.ids)) for s in sequences for word in self.words]
        hidden, layout = self._hidden(sequences, copies)
        if self.single:
            at = layout.lengths if self._last_only else [s.scored_from for s in sequences]
            rows, columns = layout.places([n - 1 for n in at], copies)
            return self._logits(hidden[rows.to(self.device), columns.to(self.device)], self.label_ids, copies)
        picked, owner, _ = self._completions(hidden, layout, sequences, copies)
        total = torch.zeros(copies * len(sequences), device=self.device).index_add_(0, owner, picked)
        counts = torch.tensor([len(s.ids) - s.scored_from for s in sequences] * copies, device=self.device)
        return self._by_example(total / counts, examples, copies)

    def _by_example(self, found: Tensor, examples: Sequence[Example], copies: int) -> Tensor:
        """Scores [copies sequences] as [copies examples, sequences of an example], -inf where it has none."""
        if self.task.kind != "choice":
            return found.view(copies * len(examples), -1)
        there = choices_there(examples).to(found.device).repeat(copies, 1)
        rows = torch.full(there.shape, -torch.inf, device=found.device, dtype=found.dtype)
        return rows.masked_scatter(there, found)

    def _completions(
        self, hidden: Tensor, layout: Layout, sequences: Sequence[ScoredTokens], copies: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The log-likelihood float32 [n] of each scored token, its sequence, and the column that predicts it."""
        count = torch.tensor([len(s.ids) - s.scored_from for s in sequences] * copies)
        first_rows, first = layout.places([s.scored_from - 1 for s in sequences], copies)
        rows = first_rows.repeat_interleave(count).to(self.device)
        columns = torch.cat([torch.arange(c, c + n) for c, n in zip(first.tolist(), count.tolist(), strict=True)])
        columns = columns.to(self.device)
        tokens = torch.tensor([t for s in sequences for t in s.ids[s.scored_from :]] * copies, device=self.device)
        picked = -token_losses(self.base, hidden[rows, columns], tokens, copies)
        return picked, torch.arange(len(count)).repeat_interleave(count).to(self.device), columns

    def _shared_scores(self, answers: Answers, prompts: Sequence[ScoredTokens], copies: int) -> Tensor:
        """float32 [copies prompts, classes]: scores of label words that share the keys and values of each prompt."""
        hidden, layout = self._hidden(prompts, copies)
        rows, columns = layout.places([len(s.ids) - 1 for s in prompts], copies)
        states = hidden[rows[:, None].to(self.device), (columns[:, None] + answers.where).to(self.device)]
        picked = -token_losses(self.base, states.flatten(0, 1), answers.tokens.repeat(len(states)), copies)
        return answers.means(picked.view(len(states), -1))

    def losses(self, examples: Sequence[Example], copies: int = 1) -> Tensor:
        """float32 [copies examples]: cross-entropy over the label words, or negative mean log-likelihood.

        With an objective, what the rewards lack of its `top`.
        """
        if self.objective is not None:
            return self.objective.top - self.objective.rewards(self, examples, copies, drawn=True)
        return losses_of(self.scores(examples, copies), self._labels(examples))

    def _labels(self, examples: Sequence[Example]) -> Tensor | None:
        """int64 [examples]: the labels of a classification, or rows (`labels_of_choices`); None for completions."""
        if self.task.kind == "choice":
            return labels_of_choices(examples).to(self.device)
        if self.task.kind != "classification":
            return None
        return torch.tensor([e.label for e in examples], device=self.device)

    def loss(self, examples: Sequence[Example], most: int = TOGETHER) -> Tensor:
        """Mean loss of a batch. It is cut into buckets of similar lengths, so that little is spent on padding.

        most: examples in one forward.
        """
        return self.copy_losses(examples, 1, most)[0]

    @torch.no_grad()
    def terms(self, examples: Sequence[Example], most: int = TOGETHER) -> list[Terms]:
        """What `loss` sums up, for each of its forwards: token by token in completions, else one term an example."""
        buckets = self.buckets(examples, most)
        return [self._terms([examples[i] for i in bucket], len(examples)) for bucket in buckets]

    def _terms(self, part: Sequence[Example], size: int) -> Terms:
        """Of one forward, as parts of the mean over `size` examples."""
        sequences = [s for e in part for s in self.encode(e)]
        if not self.labelled:
            hidden, layout = self._hidden(sequences)
            picked, owners, columns = self._completions(hidden, layout, sequences)
            counts = owners.bincount(minlength=len(part))
            return Terms(-picked / (counts[owners] * size), owners, columns, layout.owners.to(self.device))
        values = self.losses(part) / size
        layout = self._shape
        owners = torch.arange(len(part), device=self.device)
        last = torch.full_like(owners, layout.width - 1)
        each = len(layout.lengths) // len(part)
        sizes = [len(e.choices) for e in part] if self.task.kind == "choice" else [each] * len(part)
        example = torch.arange(len(part)).repeat_interleave(torch.tensor(sizes))
        cells = torch.where(layout.owners < 0, -1, example[layout.owners.clamp(min=0)])  # -1 for padding
        return Terms(values, owners, last, cells.to(self.device))

    def copy_losses(self, examples: Sequence[Example], copies: int, most: int = TOGETHER) -> Tensor:
        """float32 [copies]: mean loss of a batch on each branch."""
        buckets = self.buckets(examples, most)
        parts = [self.losses([examples[i] for i in bucket], copies).view(copies, -1) for bucket in buckets]
        return torch.cat(parts, 1).mean(1)

    @torch.no_grad()
    def infer(self, batch: Sequence[Example], held_out: Sequence[Example], *, evaluated: bool = False) -> None:
        """Run the largest forward of inference on a training batch and in an evaluation, to measure its memory.

        evaluated: the forwards of the evaluation have been made. What is stored in these forwards is not computed
        again.
        """
        candidates = [[batch[i] for i in bucket] for bucket in self.buckets(batch)]
        evaluations = [[held_out[i] for i in bucket] for bucket in self.buckets(held_out, EVALUATION)]
        largest = max([*candidates, *evaluations], key=lambda part: self.layout(self.lengths(part)).tokens)
        if not (evaluated and largest in evaluations):
            self.scores(largest)

    @property
    def _last_only(self) -> bool:
        """Whether a forward computes the last position of each example alone."""
        return self.prefix is not None and self.prefix.last_only

    def longest(self, examples: Sequence[Example]) -> list[int]:
        """Number of tokens that a forward computes of each example: 1 if the states of the others are stored."""
        if self._last_only:
            return [1] * len(examples)
        return [max(self.lengths([e])) for e in examples]

    def buckets(self, examples: Sequence[Example], most: int = TOGETHER) -> list[list[int]]:
        """Positions sorted by length and cut into batches of at most `most`, at the least total cost.

        See `zograd.llm.scoring.batches.length_buckets`. Batches of one token an example may hold 1024 of them.
        """
        lengths = self.longest(examples)
        return length_buckets(lengths, 1024 if max(lengths, default=0) == 1 else most, packs=self.packs)

    def together(self, examples: Sequence[Example]) -> int:
        """Number of points worth evaluating in one forward: as many as bring it to `SATURATED` tokens, at least 1.

        With more tokens a matrix product gets no faster, and activations no longer fit the processor's cache.
        """
        if self.writes:
            return 1
        parts = [self.lengths([examples[i] for i in bucket]) for bucket in self.buckets(examples)]
        widest = max(len(part) if self._last_only else self.layout(part).tokens for part in parts)
        return max(1, SATURATED // widest)

    def parts(self, examples: Sequence[Example], count: int) -> list[list[Example]]:
        """Cut a batch into `count` parts of about equal cost: each gets every count-th example in order of length."""
        if count == 1:
            return [list(examples)]
        order = sorted(range(len(examples)), key=lambda i: (-self.tokens([examples[i]]), i))
        return [[examples[i] for i in order[part::count]] for part in range(count)]

    @property
    def reports(self) -> str:
        """The name of what `evaluate` reports."""
        return self.metric.name if self.judge is None else self.judge.name

    # ---- evaluation ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self,
        examples: Sequence[Example],
        *,
        progress: Callable[[float], object] | None = None,
        peers: Peers | None = None,
        interval: bool = False,
        scores: Tensor | None = None,
    ) -> Metrics:
        """Metrics over examples; interval: with a confidence interval. scores: `all_scores` of them, where known.

        progress: called after each forward with the number of examples that it has done, or the share of them where it
            stores their states, or where answers are written behind it. peers: the forwards are dealt to them.
        Cost: one forward of each example, or of each of its classes; where answers are written, one more of each token.
        Raises TaskError without examples.
        """
        if not examples:
            raise TaskError("there are no examples to evaluate; give the task more data")
        self.check_answers(examples)
        tokens = [] if self.labelled else [self._learned(e) for e in examples]
        share = 1.0 if self.judge is None else 1.0 / (1 + self.judge.tokens)  # a token that is written is a forward
        tell = None if progress is None else lambda count: progress(share * count)
        found = metrics_of(
            self.all_scores(examples, progress=tell, peers=peers) if scores is None else scores,
            self._labels(examples), metric=self.metric,
            names=self.task.classes, tokens=tokens, interval=interval,
        )  # fmt: skip
        if self.judge is None or found.not_finite:
            return found
        tell = None if progress is None else lambda count: progress((1.0 - share) * count)
        return of_rewards(found, self.judge.name, self._rewards(self.judge, examples, peers, tell), interval)

    def _rewards(
        self,
        judge: Objective,
        examples: Sequence[Example],
        peers: Peers | None,
        progress: Callable[[float], object] | None = None,
    ) -> Tensor:
        """float64 [examples] on the CPU: the reward of what the model writes; the forwards are dealt to the peers."""
        peers = Peers() if peers is None else peers
        rewards = torch.zeros(len(examples), dtype=torch.float64)
        order = sorted(range(len(examples)), key=lambda i: (self.tokens([examples[i]]), i))
        for number, start in enumerate(range(0, len(order), WRITTEN_TOGETHER)):
            part = order[start : start + WRITTEN_TOGETHER]
            if number % peers.world == peers.rank:
                rewards[torch.tensor(part)] = judge.rewards(self, [examples[i] for i in part]).double().cpu()
            if progress is not None:
                progress(len(part))
        return peers.total(rewards)

    def _learned(self, example: Example) -> int:
        """The number of tokens of an example without label that are learned."""
        (sequence,) = self.encode(example)
        return len(sequence.ids) - sequence.scored_from

    @torch.no_grad()
    def all_scores(
        self,
        examples: Sequence[Example],
        *,
        progress: Callable[[float], object] | None = None,
        peers: Peers | None = None,
    ) -> Tensor:
        """float32 [examples, classes or most choices] on the CPU: `scores` of any number of examples.

        Some of them share a forward. Multiple choice: -inf behind the last choice of an example.

        progress, peers: see `evaluate`. All examples are encoded before the first forward.
        """
        peers = Peers() if peers is None else peers
        classes = len(self.members) if self.task.kind == "classification" else 1
        classes = max(len(e.choices) for e in examples) if self.task.kind == "choice" else classes
        scores = torch.zeros(len(examples), classes)
        for number, bucket in enumerate(self.buckets(examples, EVALUATION)):
            part, left = [examples[i] for i in bucket], float(len(bucket))
            if number % peers.world == peers.rank:
                left -= self._stored_for(part, progress)
                found = self.scores(part).cpu()
                scores[torch.tensor(bucket), : found.shape[1]] = found
            if progress is not None:
                progress(left)
        total = peers.total(scores)
        return total if self.task.kind != "choice" else total.masked_fill(~choices_there(examples), -torch.inf)

    def _stored_for(self, part: Sequence[Example], progress: Callable[[float], object] | None) -> float:
        """Store the states of a part of an evaluation; what `progress` was told of it: its share in the forwards."""
        told = 0.0
        if self.prefix is not None and progress is not None:
            below, sequences = 1 - self.share, sum(len(self.encode(e)) for e in part)

            def tell(count: float) -> None:
                nonlocal told
                done = min(count * len(part) / sequences, len(part) - told) * below
                told += done
                progress(done)

            self.remember(part, tell)
        return told

    def why_not_finite(self, metrics: Metrics) -> str | None:
        """One sentence for metrics of scores that are not finite; None where all are finite."""
        return why_not_finite(metrics, self.base)
