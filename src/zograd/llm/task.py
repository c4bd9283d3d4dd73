"""A task on a model: what an example costs in forward passes, its loss, and how well the model does.

Classification as MeZO does it: the text goes into a template ("... It was"), each class has a label word (" terrible",
" great"), the loss is the cross-entropy over the label words only, the prediction is the best-scoring one. Label words
of one token are scored by a single forward of the prompt; longer ones by the mean log-probability of their tokens,
one forward for each class. Prompt/completion data: mean negative log-likelihood of the completion's tokens.
"""

from __future__ import annotations

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
from zograd.llm.prefix import Prefix, first_trained_block, trained_after_attention
from zograd.noise import fold
from zograd.stores.lens import WatchedParameter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


EVALUATION = 32
"""Examples of an evaluation that share a forward, at most."""
FORWARD_TOKENS = 256
"""What one more forward costs, in tokens: the time of a short forward is that of reading the weights."""


@dataclass(frozen=True, slots=True)
class Sequence_:
    """Token ids of one sequence, and from which token on they are scored (len(ids) when the next token is)."""

    ids: tuple[int, ...]
    scored_from: int


@dataclass(frozen=True)
class Metrics:
    """accuracy after subtracting the mean score of each class (`calibrated`), share of the largest class, mean loss."""

    metric: str
    value: float
    calibrated: float | None
    majority: float | None
    examples: int
    loss: float


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
        self.pad = int(tokenizer.pad_token_id or 0)
        longest = getattr(self.base.config, "max_position_embeddings", None)
        self.max_length = min(max_length or 10**9, longest or 10**9)
        self.words = [self._word(w) for w in task.label_words]
        self.single = task.kind == "classification" and all(len(w) == 1 for w in self.words)
        self.label_ids = torch.tensor([w[0] for w in self.words], device=self.device) if self.single else None
        below = first_trained_block(self.base, trained) if trained and cache_prefix else 0
        self.prefix: Prefix | None = None
        if below:
            last = loading.blocks(self.base)[-1]
            last_only = self.single and below == len(loading.blocks(self.base)) - 1
            self.prefix = Prefix(self.base, below, last_only=last_only and trained_after_attention(last, trained))
        self._numbers: dict[Sequence_, int] = {}
        self._encoded: dict[Example, list[Sequence_]] = {}

    def _word(self, word: str) -> list[int]:
        ids = list(self.tokenizer.encode(word, add_special_tokens=False))
        if not ids:
            raise TaskError(f"label word {word!r} has no tokens in this tokenizer; use another word")
        return ids

    def encode(self, example: Example) -> list[Sequence_]:
        """The sequences whose forwards score this example (kept, since batches come back each epoch)."""
        if example not in self._encoded:
            self._encoded[example] = self._encode(example)
        return self._encoded[example]

    def _encode(self, example: Example) -> list[Sequence_]:
        prompt = list(self.tokenizer.encode(example.prompt))
        if self.task.kind == "classification":
            tails = [[]] if self.single else self.words
        else:
            tails = [list(self.tokenizer.encode(example.completion, add_special_tokens=False))]
            if not tails[0]:
                raise TaskError(f"an empty completion for the prompt {example.prompt[:40]!r}")
        longest = len(prompt) + max(map(len, tails))
        if not prompt or longest > self.max_length:
            what = f"{longest} tokens, but the model takes {self.max_length}" if prompt else "no tokens"
            raise TaskError(f"the prompt {example.prompt[:40]!r}... has {what}; shorten it or leave the example out")
        return [Sequence_((*prompt, *tail), len(prompt)) for tail in tails]

    def tokens(self, examples: Sequence[Example]) -> int:
        """Tokens of a batch, without padding."""
        return sum(len(s.ids) for e in examples for s in self.encode(e))

    # ---- forward passes ----------------------------------------------------------------------------------------

    def _hidden(self, sequences: Sequence[Sequence_]) -> Tensor:
        """Last hidden states [len(sequences), width, d] of a right-padded batch."""
        backbone = getattr(self.base, self.base.base_model_prefix)
        if self.prefix is None:
            return backbone(**self._inputs(sequences)).last_hidden_state  # type: ignore[no-any-return]
        numbers = [self._numbers.setdefault(s, len(self._numbers)) for s in sequences]
        if any(n not in self.prefix.kept for n in numbers):
            with torch.no_grad(), self.prefix.record(numbers, [len(s.ids) for s in sequences]):
                backbone(**self._inputs(sequences))
        if self.prefix.last_only:  # one position, whatever its token: its states are recalled
            one = torch.full((len(sequences), 1), 1, device=self.device)
            inputs: dict[str, Any] = {"input_ids": one, "attention_mask": one, "use_cache": False}
        else:
            inputs = self._inputs(sequences)
        with self.prefix.recall(numbers, inputs["input_ids"].shape[1]):
            return backbone(**inputs).last_hidden_state  # type: ignore[no-any-return]

    def _inputs(self, sequences: Sequence[Sequence_]) -> dict[str, Any]:
        """Right-padded token ids and their mask."""
        width = max(len(s.ids) for s in sequences)
        ids = torch.tensor([[*s.ids, *[self.pad] * (width - len(s.ids))] for s in sequences])
        mask = torch.tensor([[1] * len(s.ids) + [0] * (width - len(s.ids)) for s in sequences])
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device), "use_cache": False}

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
            for bucket in self.buckets(examples):
                self._hidden([s for i in bucket for s in self.encode(examples[i])])

    def _logits(self, hidden: Tensor, ids: Tensor | None) -> Tensor:
        """Logits in float32 of rows of hidden states; of the tokens `ids` only, when given."""
        head = self.base.get_output_embeddings()
        if ids is None:
            logits = head(hidden)
        elif not hasattr(head, "lookup") and type(getattr(head, "weight", None)) not in (
            nn.Parameter,
            WatchedParameter,
        ):
            logits = head(hidden)[..., ids]  # quantized by another library: its rows are not to be had
        else:
            rows = head.lookup(ids).to(hidden.dtype) if hasattr(head, "lookup") else F.embedding(ids, head.weight)
            logits = F.linear(hidden, rows, None if head.bias is None else head.bias[ids])
        cap = getattr(self.base.config, "final_logit_softcapping", None)
        logits = logits.float()
        capped: Tensor = logits if not cap else torch.tanh(logits / cap) * cap
        return capped

    def scores(self, examples: Sequence[Example]) -> Tensor:
        """float32 [examples, classes]: the log-score of each class. Completions: [examples, 1], mean log-likelihood."""
        encoded = [self.encode(e) for e in examples]
        sequences = [s for group in encoded for s in group]
        hidden = self._hidden(sequences)
        if self.single:
            one = hidden.shape[1] == 1  # the last positions alone
            last = torch.tensor([0 if one else len(s.ids) - 1 for s in sequences], device=self.device)
            rows = hidden[torch.arange(len(sequences), device=self.device), last]
            return self._logits(rows, self.label_ids)
        where = [(row, t) for row, s in enumerate(sequences) for t in range(s.scored_from, len(s.ids))]
        rows = torch.tensor([row for row, _ in where], device=self.device)
        times = torch.tensor([t - 1 for _, t in where], device=self.device)
        tokens = torch.tensor([sequences[row].ids[t] for row, t in where], device=self.device)
        picked = -F.cross_entropy(self._logits(hidden[rows, times], None), tokens, reduction="none")
        total = torch.zeros(len(sequences), device=self.device).index_add_(0, rows, picked)
        count = torch.tensor([len(s.ids) - s.scored_from for s in sequences], device=self.device)
        return (total / count).view(len(examples), -1)

    def losses(self, examples: Sequence[Example]) -> Tensor:
        """float32 [examples]: cross-entropy over the label words, or negative mean log-likelihood of the completion."""
        return self._losses(self.scores(examples), examples)

    def _losses(self, scores: Tensor, examples: Sequence[Example]) -> Tensor:
        if self.task.kind != "classification":
            return -scores[:, 0]
        labels = torch.tensor([e.label for e in examples], device=self.device)
        return F.cross_entropy(scores, labels, reduction="none")

    def loss(self, examples: Sequence[Example]) -> Tensor:
        """Mean loss of a batch, in length buckets so that little is spent on padding."""
        parts = [self.losses([examples[i] for i in bucket]) for bucket in self.buckets(examples)]
        return torch.cat(parts).mean()

    @torch.no_grad()
    def infer(self, batch: Sequence[Example], held_out: Sequence[Example]) -> None:
        """The forwards of inference, in full: one training batch, and the largest batch of an evaluation."""
        prefix, self.prefix = self.prefix, None
        self.loss(batch)
        if held_out:
            parts = [[held_out[i] for i in bucket] for bucket in self.buckets(held_out, EVALUATION)]
            self.scores(max(parts, key=lambda part: len(part) * max(len(s.ids) for e in part for s in self.encode(e))))
        self.prefix = prefix

    def buckets(self, examples: Sequence[Example], most: int = 64) -> list[list[int]]:
        """Positions sorted by length and cut into batches of at most `most`, at the least total cost.

        A batch costs its padded tokens plus `FORWARD_TOKENS`, since below that a forward reads weights, not tokens.
        """
        lengths = [max(len(s.ids) for s in self.encode(e)) for e in examples]
        if self.prefix is not None and self.prefix.last_only and self._remembered(examples):
            lengths, most = [1] * len(examples), 1024
        order = sorted(range(len(examples)), key=lambda i: (lengths[i], i))
        best: list[tuple[float, int]] = [(0.0, 0)]  # least cost of the first k, and where their last batch begins
        for k in range(1, len(order) + 1):
            width = lengths[order[k - 1]]
            first = max(0, k - most)
            best.append(min((best[j][0] + (k - j) * width + FORWARD_TOKENS, j) for j in range(first, k)))
        cut, k = [], len(order)
        while k:
            cut.append(order[best[k][1] : k])
            k = best[k][1]
        return cut[::-1]

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
        loss = float(self._losses(scores.to(self.device), examples).mean())
        if self.task.kind != "classification":
            return Metrics("loss", loss, None, None, len(examples), loss)
        labels = torch.tensor([e.label for e in examples])
        hit = (scores.argmax(1) == labels).double().mean()
        logp = torch.log_softmax(scores.double(), 1)
        calibrated = ((logp - logp.mean(0)).argmax(1) == labels).double().mean()
        majority = torch.bincount(labels).max() / len(labels)
        return Metrics("accuracy", float(hit), float(calibrated), float(majority), len(examples), loss)


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
