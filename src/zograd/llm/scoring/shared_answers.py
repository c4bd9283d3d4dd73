"""Label words of several tokens, scored on one forward of the prompt, whose keys and values all of them share.

    log p(w | x) = log p(w_0 | x) + sum_{j > 0} log p(w_j | x w_0 ... w_{j - 1})

The beginnings w_0 ... w_{|w| - 2} lie behind the prompt x in its row, each under a mask that lets it see x and itself
(`llm/scoring/packing.py`). With prompts of P tokens and C words of L tokens that is P + C (L - 1) tokens an example in
place of C (P + L).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Answers:
    """Words (token ids), of which at least one has several tokens, as continuations of any prompt.

    tails: the beginnings w[:-1] of words that are no beginning of another tail; `size` is the number of their tokens.
    tokens: what is predicted, and `where`: how far behind the last token of the prompt the state lies that predicts it,
        with the tails behind the prompt one after the other. A word that begins like another shares its predictions.
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
        """From the last token of the prompt to that of `before`."""
        if not before:
            return 0
        tail = next(k for k, tail in enumerate(self.tails) if tail[: len(before)] == before)
        return sum(map(len, self.tails[:tail])) + len(before)

    def means(self, picked: Tensor) -> Tensor:
        """[rows, words]: mean log-probability of each word's tokens, from those of `tokens` [rows, len(tokens)]."""
        total = picked.new_zeros(len(picked), len(self._lengths)).index_add_(1, self._word, picked[:, self._used])
        return total / self._lengths
