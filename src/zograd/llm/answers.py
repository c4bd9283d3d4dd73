"""Label words of several tokens, scored on one forward of the prompt, whose keys and values all of them share.

    log p(w | x) = log p(w_0 | x) + sum_{j > 0} log p(w_j | x w_0 ... w_{j - 1})

The forward of the prompts x gives the first term of every word. The others come from a second forward of the
beginnings w_0 ... w_{|w| - 2} alone, which attends to the kept keys and values of x. With prompts of P tokens and C
words of L tokens that is P + C (L - 1) tokens an example in place of C (P + L), and one more read of the weights for
each batch.

Memory: the keys and values of the prompts, once; repeated for the words in one layer at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from zograd.vector import HALF


class NotShared(ValueError):
    """A model whose keys and values cannot be shared in this way."""


class Answers:
    """Words (token ids), of which at least one has several tokens, as continuations of any prompt.

    tails: the beginnings w[:-1] of words that are no beginning of another tail; each is one row of the second forward.
    tokens: what is predicted, and `where`: from which of the states of `hidden`. A word that begins like another
        shares its predictions.
    """

    def __init__(self, words: Sequence[Sequence[int]], pad: int, device: torch.device) -> None:
        beginnings = sorted({tuple(w[:-1]) for w in words if len(w) > 1})
        self.tails = [tail for tail in beginnings if not any(o != tail and o[: len(tail)] == tail for o in beginnings)]
        self.width = max(map(len, self.tails), default=0)
        predictions = sorted({(tuple(w[:j]), w[j]) for w in words for j in range(len(w))})
        number = {prediction: k for k, prediction in enumerate(predictions)}
        self.tokens = torch.tensor([token for _, token in predictions], device=device)
        self.where = torch.tensor([self._state(before) for before, _ in predictions], device=device)
        self._used = torch.tensor([number[tuple(w[:j]), w[j]] for w in words for j in range(len(w))], device=device)
        self._word = torch.tensor([k for k, w in enumerate(words) for _ in w], device=device)
        self._lengths = torch.tensor([len(w) for w in words], device=device)
        self._ids, self._mask = _right_padded(self.tails, device, pad)

    def _state(self, before: tuple[int, ...]) -> int:
        """The place of the state behind prompt and `before`: 0 behind the prompt, then those of all tails in a row."""
        if not before:
            return 0
        row = next(k for k, tail in enumerate(self.tails) if tail[: len(before)] == before)
        return 1 + row * self.width + len(before) - 1

    @property
    def size(self) -> int:
        """Tokens of the tails, without padding."""
        return sum(map(len, self.tails))

    def hidden(self, backbone: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """[rows, len(tokens), d]: for right-padded prompts, the last hidden states that predict `tokens`.

        ids, mask: int64 [rows, longest]. The order of the rows is kept, so that branches lie below each other in both
        forwards (`stores/branches.py`). Raises NotShared where the model keeps anything but plain keys and values.
        """
        rows, count = ids.shape[0], len(self.tails)
        out = backbone(input_ids=ids, attention_mask=mask, use_cache=True)
        length = mask.sum(1)
        last = out.last_hidden_state[torch.arange(rows, device=ids.device), length - 1]
        positions = length[:, None] + torch.arange(self.width, device=ids.device)
        behind = backbone(
            input_ids=self._ids.repeat(rows, 1),
            attention_mask=torch.cat([mask.repeat_interleave(count, 0), self._mask.repeat(rows, 1)], 1),
            position_ids=positions.repeat_interleave(count, 0),
            past_key_values=shared(out.past_key_values, count),
            use_cache=True,
        ).last_hidden_state.view(rows, count * self.width, -1)
        return torch.cat([last[:, None], behind], 1)[:, self.where]

    def means(self, picked: Tensor) -> Tensor:
        """[rows, words]: mean log-probability of each word's tokens, from those of `tokens` [rows, len(tokens)]."""
        total = picked.new_zeros(len(picked), len(self._lengths)).index_add_(1, self._word, picked[:, self._used])
        return total / self._lengths

    @torch.no_grad()
    def fit(self, backbone: nn.Module) -> bool:
        """Whether a model gives the same states this way as in one forward of prompt and tail, measured.

        On two prompts of different lengths, made of the words, so that padding lies between prompt and tail. A model
        that counts positions by columns (some linear biases), or with a window, or without keys and values is found.
        In train mode the answer is no, since dropout would differ.
        """
        if backbone.training:
            return False
        long = ([token for tail in self.tails for token in tail] * 8)[:16]
        prompts = [long, long[:1]]
        ids, mask = _right_padded(prompts, self.tokens.device)
        try:
            found = self.hidden(backbone, ids, mask)
        except Exception:  # whatever a model says to these arguments, it is then called as any model may be
            return False
        ids, mask = _right_padded([[*p, *tail] for p in prompts for tail in self.tails], ids.device)
        plain = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for k, prompt in enumerate(prompts):
            mine = plain[k * len(self.tails) : (k + 1) * len(self.tails), len(prompt) - 1 :]
            expected = torch.cat([mine[:1, 0], mine[:, 1 : 1 + self.width].flatten(0, 1)])[self.where]
            error = (found[k] - expected).float().norm(dim=1) / expected.float().norm(dim=1)
            if not bool((error <= (2.0**-5 if expected.dtype in HALF else 1e-3)).all()):
                return False
        return True


def _right_padded(sequences: Sequence[Sequence[int]], device: torch.device, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids and their mask."""
    width = max(map(len, sequences))
    ids = [[*s, *[pad] * (width - len(s))] for s in sequences]
    mask = [[1] * len(s) + [0] * (width - len(s)) for s in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class SharedLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values [rows, heads, P, d] of prompts, each read by `count` rows in a row; nothing is added to them."""

    def __init__(self, layer: DynamicLayer, count: int) -> None:
        super().__init__()
        self.keys, self.values, self.count = layer.keys, layer.values, count
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompts, and behind them the new ones, [rows count, heads, P + new, d]."""
        return self._behind(self.keys, key_states), self._behind(self.values, value_states)

    def _behind(self, kept: Tensor, new: Tensor) -> Tensor:
        rows, heads, length, d = kept.shape
        repeated = kept[:, None].expand(rows, self.count, heads, length, d)
        return torch.cat([repeated, new.view(rows, self.count, heads, -1, d)], 3).flatten(0, 1)


def shared(cache: Any, count: int) -> DynamicCache:
    """The cache of a forward over prompts, for `count` continuations of each; it is used up."""
    if type(cache) is not DynamicCache or not all(type(x) is DynamicLayer and x.is_initialized for x in cache.layers):
        layers = sorted({type(x).__name__ for x in getattr(cache, "layers", [])})
        raise NotShared(f"the model keeps {type(cache).__name__} of {', '.join(layers) or 'no layers'}")
    cache.layers[:] = [SharedLayer(layer, count) for layer in cache.layers]
    return cache
