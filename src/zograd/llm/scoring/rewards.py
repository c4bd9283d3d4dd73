"""Rewards of a written answer by name, each from 0 to 1: the same text, F1 of its words, BLEU, chrF, ROUGE-L, and one
less its word error rate."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeAlias

from zograd.errors import needs

Reward: TypeAlias = Callable[[str, str, str], float]
"""Of the prompt, the answer of the model, and the answer in the data; the larger the better."""


def same(prompt: str, answer: str, wanted: str) -> float:
    """1 for the same text, up to case, punctuation, articles and spaces (as SQuAD has it).

    Punctuation is that of any script, as in MLQA (Lewis et al. 2020, arXiv 1910.07475).
    """
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
    plain = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def bleu(prompt: str, answer: str, wanted: str) -> float:
    """BLEU of one text by sacrebleu, with its smoothing for texts (Post 2018, arXiv 1804.08771); needs sacrebleu."""
    return float(_sacrebleu().sentence_bleu(answer, [wanted]).score) / 100


def chrf(prompt: str, answer: str, wanted: str) -> float:
    """F score of character n-grams by sacrebleu (Popovic 2015); needs sacrebleu."""
    return float(_sacrebleu().sentence_chrf(answer, [wanted]).score) / 100


def rouge_l(prompt: str, answer: str, wanted: str) -> float:
    """F score of the longest common subsequence of words, without stemming (Lin 2004); needs rouge-score.

    Words are those of any script (`AnyScript`).
    """
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
    """The words of a text without case and marks of any script, but for apostrophes inside of words."""
    plain = unicodedata.normalize("NFKC", text).lower().translate(APOSTROPHES)
    kept = (" " if c != "'" and unicodedata.category(c)[0] in "PS" else c for c in plain)
    return [word for part in "".join(kept).split() if (word := part.strip("'"))]


APOSTROPHES: Final = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\uff07", "'"))
"""Typographic apostrophes, which are written for the one on a keyboard."""


class AnyScript:
    """The tokenizer of rouge-score for texts of any script; that of its own keeps a to z and 0 to 9 alone.

    Of English texts the words are the same. Han characters and kana are words of their own, since no space parts them.

    >>> AnyScript().tokenize("Don't, caf\u00e9 \u4f60\u597d")
    ['don', 't', 'caf\u00e9', '\u4f60', '\u597d']
    """

    def tokenize(self, text: str) -> list[str]:
        kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower())
        return re.sub(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])", r" \1 ", kept).split()


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
    return RougeScorer(["rougeL"], tokenizer=AnyScript())


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
