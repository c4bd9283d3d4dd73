"""Rewards of a written answer by name, each from 0 to 1: the same text, F1 of its words, BLEU, chrF, ROUGE-L, and one
less its word error rate."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeAlias

from zograd.errors import needs

Reward: TypeAlias = Callable[[str, str, str], float]
"""Of the prompt, the answer of the model, and the answer in the data; the larger the better."""


def same(prompt: str, answer: str, wanted: str) -> float:
    """1 for the same text, up to case, punctuation, articles and spaces (as SQuAD has it)."""
    return float(_words(answer) == _words(wanted))


def f1(prompt: str, answer: str, wanted: str) -> float:
    """F1 of the words of two texts (Rajpurkar et al. 2016, arXiv 1606.05250).

    >>> f1("", "the red house", "a house")
    0.6666666666666666
    """
    mine, there = _words(answer), _words(wanted)
    both = sum((Counter(mine) & Counter(there)).values())
    return 2 * both / (len(mine) + len(there)) if mine or there else 1.0


def _words(text: str) -> list[str]:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def bleu(prompt: str, answer: str, wanted: str) -> float:
    """BLEU of one text by sacrebleu, with its smoothing for texts (Post 2018, arXiv 1804.08771); needs sacrebleu."""
    return float(_sacrebleu().sentence_bleu(answer, [wanted]).score) / 100


def chrf(prompt: str, answer: str, wanted: str) -> float:
    """F score of character n-grams by sacrebleu (Popovic 2015); needs sacrebleu."""
    return float(_sacrebleu().sentence_chrf(answer, [wanted]).score) / 100


def rouge_l(prompt: str, answer: str, wanted: str) -> float:
    """F score of the longest common subsequence of words, without stemming (Lin 2004); needs rouge-score."""
    return float(_rouge().score(wanted, answer)["rougeL"].fmeasure)


def word_accuracy(prompt: str, answer: str, wanted: str) -> float:
    """1 - the word error rate, at least 0: the words to put in, leave out or replace, over those of the right text.

    >>> word_accuracy("", "the cat sat", "The cat sat down.")
    0.75
    """
    mine, there = _spoken(answer), _spoken(wanted)
    row = list(range(len(there) + 1))  # of Levenshtein's table
    for i, word in enumerate(mine, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(there, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return max(0.0, 1.0 - row[-1] / len(there)) if there else float(not mine)


def _spoken(text: str) -> list[str]:
    """The words of a text without case and marks, but for apostrophes."""
    marks = string.punctuation.replace("'", "")
    return text.lower().translate(str.maketrans(marks, " " * len(marks))).split()


@cache
def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as e:
        raise needs("BLEU or chrF of answers", "sacrebleu", "text-metrics") from e
    return sacrebleu


@cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as e:
        raise needs("ROUGE-L of answers", "rouge-score", "text-metrics") from e
    return RougeScorer(["rougeL"])


OF_TEXTS: Final[dict[str, Reward]] = {
    "exact-match": same,
    "f1": f1,
    "bleu": bleu,
    "chrf": chrf,
    "rouge-l": rouge_l,
    "word-accuracy": word_accuracy,
}
"""The rewards by name."""


def reward_named(name: str) -> Reward:
    """The reward of that name; one that comes from a library is tried. Raises ImportError where it is missing."""
    reward = OF_TEXTS[name]
    reward("", "a", "a")
    return reward
