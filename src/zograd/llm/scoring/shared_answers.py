"""Score label words of several tokens with one forward: all words share the keys and values of the prompt.

    log p(w | x) = log p(w_0 | x) + sum_{j > 0} log p(w_j | x w_0 ... w_{j - 1})

The tails w_0 ... w_{|w| - 2} follow the prompt x in its row, each under a mask that lets it attend to x and to itself
(`llm/scoring/packing.py`). With prompts of P tokens and C words of L tokens, an example takes P + C (L - 1) tokens
instead of C (P + L).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Answers:
    """Words (token ids) as continuations of any prompt; at least one of them has several tokens.

    tails: the beginnings w[:-1] of words, without those that begin another tail. `size`: number of their tokens.
    tokens: the predicted tokens. `where`: for each, the distance from the last token of the prompt to the state that
        predicts it, if the tails follow the prompt one after the other. Words with the same beginning share
        predictions.
    """

    def __init__(self, words: Sequence[Sequence[int]], device: torch.device) -> None:
        beginnings = sorted({tuple(w[:-1]) for w in words if len(w) > 1})
        self.tails = [tail for tail in beginnings if not any(o != tail and o[: len(tail)] == tail for o in beginnings)]
        self.size = sum(map(len, self.tails))
        predictions = sorted({(tuple(w[:j]), w[j]) for w in words for j in range(len(w))})
        number = {prediction: k for k, prediction in enumerate(predictions)}
        self.tokens = torch.tensor([token for _, token in predictions], device=device)
        self.where = torch.tensor([self._distance(before) for before, _ in predictions])
        self._used = torch.tensor([number[tuple(w[:j]), w[j]] for w in words for j in range(len(w))], device=device)
        self._word = torch.tensor([k for k, w in enumerate(words) for _ in w], device=device)
        self._lengths = torch.tensor([len(w) for w in words], device=device)

    def _distance(self, before: tuple[int, ...]) -> int:
        """Distance from the last token of the prompt to the last token of `before`."""
        if not before:
            return 0
        tail = next(k for k, tail in enumerate(self.tails) if tail[: len(before)] == before)
        return sum(map(len, self.tails[:tail])) + len(before)

    def means(self, picked: Tensor) -> Tensor:
        """[rows, words]: mean log-probability of each word, from those of `tokens`, [rows, len(tokens)]."""
        total = picked.new_zeros(len(picked), len(self._lengths)).index_add_(1, self._word, picked[:, self._used])
        return total / self._lengths
