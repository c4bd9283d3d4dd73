"""A task on a model: what an example costs in forward passes, its loss, and how well the model does.

Classification as MeZO does it: the text goes into a template ("... It was"), each class has a label word (" terrible",
" great"), the loss is the cross-entropy over the label words only, the prediction is the best-scoring one. Label words
of one token are scored by a single forward of the prompt; longer ones by the mean log-probability of their tokens,
behind one prompt whose keys and values they share (`llm/scoring/shared_answers.py`), or behind a prompt for each where
the model does not allow that. Prompt/completion data: mean negative log-likelihood of the completion's tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zograd.distributed.peers import Peers
from zograd.hub import Example, Task, TaskError
from zograd.llm import loading
from zograd.llm.scoring import head as heads
from zograd.llm.scoring.encoding import Encoder, Tokens
from zograd.llm.scoring.loss import token_losses
from zograd.llm.scoring.packing import TAILS, Layout, in_rows_of_their_own, packed, packs
from zograd.llm.scoring.prefix import Prefix, first_trained_block, trained_after_attention
from zograd.llm.scoring.shared_answers import Answers
from zograd.noise import fold
from zograd.quantized import libraries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


EVALUATION = 32
"""Examples of an evaluation that share a forward, at most."""
SAMPLE = 16
"""Tokens of an example by which a model is looked at."""
SATURATED = 512
"""Tokens of a forward from which on larger batches are no faster."""
FORWARD_TOKENS = 256
"""What one more forward costs, in tokens: the time of a short forward is that of reading the weights."""


@dataclass(frozen=True, slots=True)
class Sequence_:
    """Token ids of one sequence, and from which token on they are scored (len(ids) when the next token is)."""

    ids: tuple[int, ...]
    scored_from: int


@dataclass(frozen=True)
class Metrics:
    """accuracy after subtracting the mean score of each class (`calibrated`), share of the largest class, mean loss.

    not_finite: examples with a score that is NaN or infinite. With one of those, value, calibrated and loss are NaN.
    """

    metric: str
    value: float
    calibrated: float | None
    majority: float | None
    examples: int
    loss: float
    not_finite: int = 0


class Scorer:
    """The examples of a task, encoded for one model; computes losses and metrics of any subset.

    model: a causal language model of transformers, with or without peft adapters, on any device.
    trained: the trained tensors; when all of them sit in upper blocks, `cache_prefix=True` keeps the activations of
        the frozen lower blocks of each example after its first forward.
    max_length: longest sequence the model takes; a longer prompt is refused by name.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        *,
        trained: Sequence[Tensor] = (),
        cache_prefix: bool = False,
        max_length: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.task = model, tokenizer, task
        self.base = loading.plain_model(model)
        self.device = next(model.parameters()).device
        self.encoder = Encoder(tokenizer, loading.vocabulary(self.base))
        self.pad = self.encoder.padding
        longest = getattr(self.base.config, "max_position_embeddings", None)
        self.max_length = min(max_length or 10**9, longest or 10**9)
        prompts = (e.prompt for examples in task.splits.values() for e in examples)
        ways = self.encoder.words(prompts, task.label_words) if task.kind == "classification" else [[]]
        self.words = ways[0]
        """The tokens of the label words."""
        self.alike = len(ways) == 1
        """Whether they are the same behind every prompt."""
        self.single = task.kind == "classification" and self.alike and all(len(w) == 1 for w in self.words)
        self.label_ids = torch.tensor([w[0] for w in self.words], device=self.device) if self.single else None
        self.prefix: Prefix | None = None
        self._numbers: dict[Sequence_, int] = {}
        self._encoded: dict[Example, list[Sequence_]] = {}
        self.packs, self.answers = False, None
        self._check()
        below = first_trained_block(self.base, trained) if trained and cache_prefix else 0
        if below:
            last = loading.blocks(self.base)[-1]
            last_only = self.single and below == len(loading.blocks(self.base)) - 1
            self.prefix = self._prefix(below, last_only and trained_after_attention(last, trained))
        self.packs = packs(self.base, self.device)
        """Whether sequences may share a row of the batch."""
        several = self.packs and task.kind == "classification" and self.alike and not self.single
        shares = several and packs(self.base, self.device, TAILS)
        self.answers = Answers(self.words, self.device) if shares else None
        """The label words where they share a prompt's keys and values."""

    # ---- what is found on the model ------------------------------------------------------------------------------

    def _sample(self) -> list[int]:
        """Some tokens of the first example, two at least."""
        first = next((e for examples in self.task.splits.values() for e in examples), None)
        ids = list(self.encoder.text(first.prompt)) if first is not None else []
        ids = ids[: min(SAMPLE, self.max_length)]
        return ids if len(ids) > 1 else [*ids, *range(3)][:2]

    @torch.no_grad()
    def _check(self) -> None:
        """Refuse a model whose states know later tokens, or whose logits are not those that are scored here.

        Cost: two forwards of some tokens.
        """
        ids, name = self._sample(), type(self.base).__name__
        seen = heads.observe(self.base, ids, self.device)
        exact = self.base.dtype in (torch.float32, torch.float64) and not libraries.is_quantized(self.model)
        if not heads.close(*seen.states, 1e-4 if exact else 1e-2):
            raise loading.ModelError(
                f"{name} is no causal language model as it is configured: its states at a token depend on later tokens "
                f"(a bidirectional or masked language model), so it does not predict the next one; choose a causal "
                f"model, or set is_decoder or the like in its config.json where it was trained as one"
            )
        hidden, _ = self._hidden([Sequence_(tuple(ids), len(ids))])
        some = torch.arange(2, device=self.device) if self.label_ids is None else self.label_ids
        for chosen, expected in ((None, seen.logits), (some, seen.logits[some])):
            found = self._logits(hidden[0, len(ids) - 1][None], chosen)[0]
            if not heads.close(found, expected, heads.rounding(torch.float32 if exact else torch.bfloat16)):
                raise loading.ModelError(
                    f"the scores of {name} would not be its logits: its own forward gives its backbone more than the "
                    f"tokens and a mask; train it through zograd.ZOOptimizer with a loss of your own"
                )

    @torch.no_grad()
    def _prefix(self, below: int, last_only: bool) -> Prefix | None:
        """The prefix that keeps as much as this model allows: what is recalled gives the states of a whole forward."""
        ids = self._sample()
        sequence = [Sequence_(tuple(ids), len(ids))]
        expected, _ = self._hidden(sequence)
        for only in (True, False) if last_only else (False,):
            self.prefix = Prefix(self.base, below, last_only=only)
            try:
                found, layout = self._hidden(sequence)
            except Exception:  # blocks of any library may want more than the states before them
                continue
            finally:
                self.prefix = None
                self._numbers.clear()
            if heads.close(found[0, layout.lengths[0] - 1], expected[0, -1], heads.rounding(self.base.dtype)):
                return Prefix(self.base, below, last_only=only)
        return None

    def encode(self, example: Example) -> list[Sequence_]:
        """The sequences whose forwards score this example (kept, since batches come back each epoch)."""
        if example not in self._encoded:
            self._encoded[example] = self._encode(example)
        return self._encoded[example]

    def _encode(self, example: Example) -> list[Sequence_]:
        tails: Sequence[Tokens]
        if self.task.kind == "classification":
            prompt = self.encoder.text(example.prompt.rstrip(" "))
            words = self.words if self.alike else self.encoder.behind(example.prompt, self.task.label_words)
            tails = [()] if self.single or self.answers is not None else words
        else:
            whole, start = self.encoder.completed(example.prompt, example.completion)
            prompt, tails = whole[:start], [whole[start:]]
            if not example.completion or not tails[0]:
                raise TaskError(f"an empty completion for the prompt {example.prompt[:40]!r}")
        longest = len(prompt) + max(map(len, tails if self.answers is None else self.words))
        if not prompt or longest > self.max_length:
            what = f"{longest} tokens, but the model takes {self.max_length}" if prompt else "no tokens"
            raise TaskError(f"the prompt {example.prompt[:40]!r}... has {what}; shorten it or leave the example out")
        return [Sequence_((*prompt, *tail), len(prompt)) for tail in tails]

    def tokens(self, examples: Sequence[Example]) -> int:
        """Tokens of a batch, without padding."""
        return sum(self.lengths(examples))

    # ---- forward passes ----------------------------------------------------------------------------------------

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of the sequences of these examples, one after the other; with those of label words behind a prompt."""
        behind = 0 if self.answers is None else self.answers.size
        return [len(s.ids) + behind for e in examples for s in self.encode(e)]

    def layout(self, lengths: Sequence[int]) -> Layout:
        """Where sequences of these lengths lie in a batch."""
        if not self.packs or max(lengths) > self._window:  # the mask of a packed batch says nothing of windows
            return in_rows_of_their_own(lengths)
        return packed(tuple(lengths), self.base.config.get_text_config().hidden_size, self.max_length)

    @property
    def _window(self) -> int:
        """The longest sequence that attends to all of itself."""
        config = self.base.config.get_text_config()
        return min(getattr(config, name, None) or 10**9 for name in ("sliding_window", "attention_chunk_size"))

    def _tails(self, sequences: Sequence[Sequence_]) -> list[tuple[int, ...]]:
        """The beginnings of label words that lie behind each prompt: all, where these prompts have the room."""
        if self.answers is None or sequences[0].scored_from < len(sequences[0].ids):
            return []
        longest = max(len(s.ids) for s in sequences) + self.answers.size
        return self.answers.tails if longest <= min(self._window, self.max_length) else []

    def _hidden(self, sequences: Sequence[Sequence_], copies: int = 1) -> tuple[Tensor, Layout]:
        """Last hidden states [copies rows, width, d] of a batch, and where each sequence lies in it."""
        backbone = heads.backbone_of(self.base)
        tails = self._tails(sequences)
        behind = sum(map(len, tails))
        layout = self.layout([len(s.ids) + behind for s in sequences])
        if self.prefix is None:
            return backbone(**self._inputs(sequences, layout, copies, tails)).last_hidden_state, layout
        numbers = [self._numbers.setdefault(s, len(self._numbers)) for s in sequences]
        if any(n not in self.prefix.kept for n in numbers):
            with torch.no_grad(), self.prefix.record(numbers, layout):
                backbone(**self._inputs(sequences, layout, 1, tails))
        if self.prefix.last_only:  # one position, whatever its token: its states are recalled
            layout = in_rows_of_their_own([1] * len(sequences))
            sequences = [Sequence_((1,), 1)] * len(sequences)
        with self.prefix.recall(numbers, layout, copies):
            return backbone(**self._inputs(sequences, layout, copies, tails)).last_hidden_state, layout

    def _inputs(
        self, sequences: Sequence[Sequence_], layout: Layout, copies: int, tails: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """Token ids with their mask, in copies one after the other."""
        inputs = layout.inputs([s.ids for s in sequences], self.pad, self.device, self.base.dtype, tails)
        return {k: v if isinstance(v, bool) else torch.cat([v] * copies) for k, v in inputs.items()}

    def _remembered(self, examples: Sequence[Example]) -> bool:
        assert self.prefix is not None
        return all(self._numbers.get(s, -1) in self.prefix.kept for e in examples for s in self.encode(e))

    @torch.no_grad()
    def remember(self, examples: Sequence[Example]) -> None:
        """Keep the frozen prefix of all examples, in an order of their own.

        The last bits of an activation depend on the batch it was computed in. Computed once and beforehand, they do not
        depend on where a run was interrupted.
        """
        if self.prefix is not None:
            if self.answers is not None and not all(self._tails(self.encode(e)) for e in examples):
                self.answers = None  # what is kept of an example depends on no other one
                self._encoded.clear()
            for bucket in self.buckets(examples):
                self._hidden([s for i in bucket for s in self.encode(examples[i])])

    def _logits(self, hidden: Tensor, ids: Tensor | None, copies: int = 1) -> Tensor:
        """Logits in float32 of rows of hidden states; of the tokens `ids` only, when given."""
        return heads.logits(self.base, hidden, ids, copies)

    def scores(self, examples: Sequence[Example], copies: int = 1) -> Tensor:
        """float32 [examples, classes]: the log-score of each class. Completions: [examples, 1], mean log-likelihood.

        copies: of the examples, in one forward, for as many branches (`lens/branches.py`): [copies examples, ...].
        """
        encoded = [self.encode(e) for e in examples]
        sequences = [s for group in encoded for s in group]
        if self.answers is not None:
            if self._tails(sequences):
                return self._shared_scores(self.answers, sequences, copies)
            sequences = [Sequence_((*s.ids, *word), len(s.ids)) for s in sequences for word in self.words]
        hidden, layout = self._hidden(sequences, copies)
        if self.single:
            rows, columns = layout.places([n - 1 for n in layout.lengths], copies)
            return self._logits(hidden[rows.to(self.device), columns.to(self.device)], self.label_ids, copies)
        scored = [len(s.ids) - s.scored_from for s in sequences] * copies
        first_rows, first = layout.places([s.scored_from - 1 for s in sequences], copies)
        count = torch.tensor(scored)
        rows = first_rows.repeat_interleave(count).to(self.device)
        columns = torch.cat([torch.arange(c, c + n) for c, n in zip(first.tolist(), scored, strict=True)])
        tokens = torch.tensor([t for s in sequences for t in s.ids[s.scored_from :]] * copies, device=self.device)
        picked = -token_losses(self.base, hidden[rows, columns.to(self.device)], tokens, copies)
        owner = torch.arange(len(scored)).repeat_interleave(count).to(self.device)
        total = torch.zeros(len(scored), device=self.device).index_add_(0, owner, picked)
        return (total / count.to(self.device)).view(copies * len(examples), -1)

    def _shared_scores(self, answers: Answers, prompts: Sequence[Sequence_], copies: int) -> Tensor:
        """float32 [copies prompts, classes], with the keys and values of each prompt shared by the label words."""
        hidden, layout = self._hidden(prompts, copies)
        rows, columns = layout.places([len(s.ids) - 1 for s in prompts], copies)
        states = hidden[rows[:, None].to(self.device), (columns[:, None] + answers.where).to(self.device)]
        picked = -token_losses(self.base, states.flatten(0, 1), answers.tokens.repeat(len(states)), copies)
        return answers.means(picked.view(len(states), -1))

    def losses(self, examples: Sequence[Example], copies: int = 1) -> Tensor:
        """float32 [copies examples]: cross-entropy over the label words, or negative mean log-likelihood."""
        return self._losses(self.scores(examples, copies), examples)

    def _losses(self, scores: Tensor, examples: Sequence[Example]) -> Tensor:
        if self.task.kind != "classification":
            return -scores[:, 0]
        labels = torch.tensor([e.label for e in examples], device=self.device)
        return F.cross_entropy(scores, labels.repeat(len(scores) // len(labels)), reduction="none")

    def loss(self, examples: Sequence[Example]) -> Tensor:
        """Mean loss of a batch, in length buckets so that little is spent on padding."""
        return self.copy_losses(examples, 1)[0]

    def copy_losses(self, examples: Sequence[Example], copies: int) -> Tensor:
        """float32 [copies]: the mean loss of a batch on each branch."""
        buckets = self.buckets(examples)
        parts = [self.losses([examples[i] for i in bucket], copies).view(copies, -1) for bucket in buckets]
        return torch.cat(parts, 1).mean(1)

    @torch.no_grad()
    def infer(self, batch: Sequence[Example], held_out: Sequence[Example]) -> None:
        """The forwards of inference, in full: one training batch, and the largest batch of an evaluation."""
        prefix, self.prefix = self.prefix, None
        self.loss(batch)
        if held_out:
            parts = [[held_out[i] for i in bucket] for bucket in self.buckets(held_out, EVALUATION)]
            self.scores(max(parts, key=lambda part: self.layout(self.lengths(part)).tokens))
        self.prefix = prefix

    def _recalled(self, examples: Sequence[Example]) -> bool:
        """Whether a forward computes the last position of these examples alone."""
        return self.prefix is not None and self.prefix.last_only and self._remembered(examples)

    def _longest(self, examples: Sequence[Example]) -> list[int]:
        """Tokens that a forward computes of each example: one where the states of the others are kept."""
        if self._recalled(examples):
            return [1] * len(examples)
        return [max(self.lengths([e])) for e in examples]

    def buckets(self, examples: Sequence[Example], most: int = 64) -> list[list[int]]:
        """Positions sorted by length and cut into batches of at most `most`, at the least total cost.

        A batch costs its tokens plus `FORWARD_TOKENS`, since below that a forward reads weights, not tokens. Its tokens
        are those of its examples where these may share rows, and those of a padded batch otherwise.
        """
        lengths = self._longest(examples)
        most = 1024 if max(lengths, default=0) == 1 else most
        order = sorted(range(len(examples)), key=lambda i: (lengths[i], i))
        best: list[tuple[float, int]] = [(0.0, 0)]  # least cost of the first k, and where their last batch begins
        up_to = [0, *itertools.accumulate(lengths[i] for i in order)]

        def tokens(j: int, k: int) -> int:
            return up_to[k] - up_to[j] if self.packs else (k - j) * lengths[order[k - 1]]

        for k in range(1, len(order) + 1):
            best.append(min((best[j][0] + tokens(j, k) + FORWARD_TOKENS, j) for j in range(max(0, k - most), k)))
        cut, k = [], len(order)
        while k:
            cut.append(order[best[k][1] : k])
            k = best[k][1]
        return cut[::-1]

    def together(self, examples: Sequence[Example]) -> int:
        """How many points it pays to evaluate in one forward: as many as make `SATURATED` tokens of it.

        Above that a matrix product is as fast as it gets, and activations leave the cache.
        """
        parts = [self.lengths([examples[i] for i in bucket]) for bucket in self.buckets(examples)]
        recalled = self._recalled(examples)
        widest = max(len(part) if recalled else self.layout(part).tokens for part in parts)
        return max(1, SATURATED // widest)

    def parts(self, examples: Sequence[Example], count: int) -> list[list[Example]]:
        """A batch in `count` parts of about equal cost; each gets every count-th example in order of length."""
        if count == 1:
            return [list(examples)]
        order = sorted(range(len(examples)), key=lambda i: (-self.tokens([examples[i]]), i))
        return [[examples[i] for i in order[part::count]] for part in range(count)]

    # ---- evaluation --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self,
        examples: Sequence[Example],
        *,
        progress: Callable[[int], object] | None = None,
        peers: Peers | None = None,
    ) -> Metrics:
        """Metric, calibrated metric, majority share and mean loss over examples; forwards are dealt to `peers`."""
        peers = Peers() if peers is None else peers
        if not examples:
            raise TaskError("there are no examples to evaluate; give the task more data")
        classes = len(self.words) if self.task.kind == "classification" else 1
        scores = torch.zeros(len(examples), classes)
        for number, bucket in enumerate(self.buckets(examples, EVALUATION)):
            if number % peers.world == peers.rank:
                scores[torch.tensor(bucket)] = self.scores([examples[i] for i in bucket]).cpu()
            if progress is not None:
                progress(len(bucket))
        scores = peers.total(scores)
        bad = int((~scores.isfinite()).any(1).sum())
        loss = math.nan if bad else float(self._losses(scores.to(self.device), examples).mean())
        if self.task.kind != "classification":
            return Metrics("loss", loss, None, None, len(examples), loss, bad)
        labels = torch.tensor([e.label for e in examples])
        majority = float(torch.bincount(labels).max() / len(labels))
        if bad:
            return Metrics("accuracy", math.nan, math.nan, majority, len(examples), math.nan, bad)
        hit = (scores.argmax(1) == labels).double().mean()
        logp = torch.log_softmax(scores.double(), 1)
        calibrated = ((logp - logp.mean(0)).argmax(1) == labels).double().mean()
        return Metrics("accuracy", float(hit), float(calibrated), majority, len(examples), loss)

    def why_not_finite(self, metrics: Metrics) -> str | None:
        """One sentence for metrics of scores that are not finite; None where all are."""
        if not metrics.not_finite:
            return None
        plain = ((name, p.detach()) for name, p in self.base.named_parameters() if type(p) is nn.Parameter)
        found = next((name for name, p in plain if not bool(p.isfinite().all())), None)
        held, overflow = f"its weight {found!r} holds numbers that are not", f"its forward overflows {self.base.dtype}"
        why = held if found else overflow
        what = f"{metrics.not_finite} of {metrics.examples} examples have scores that are not finite"
        return f"{what}, so there is no {metrics.metric} of this model: {why}"


class Batches:
    """Deterministic batches: batch t is a function of (seed, t) alone, each epoch a fresh permutation."""

    def __init__(self, examples: Sequence[Example], size: int, seed: int) -> None:
        if not examples:
            raise TaskError("the training split is empty; give the task more data")
        if size < 1:
            raise ValueError(f"the batch size must be at least 1, got {size}")
        self.examples, self.size, self.seed = examples, min(size, len(examples)), seed

    def __getitem__(self, step: int) -> list[Example]:
        n, first = len(self.examples), step * self.size
        return [self.examples[self._order(k // n)[k % n]] for k in range(first, first + self.size)]

    def _order(self, epoch: int) -> Any:
        if getattr(self, "_kept", (None,))[0] != epoch:
            rng = np.random.Generator(np.random.Philox(fold(self.seed, epoch)))
            self._kept = (epoch, rng.permutation(len(self.examples)))
        return self._kept[1]
