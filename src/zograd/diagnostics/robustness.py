"""How a reader of examples answers when they are changed in ways that leave their answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from zograd.hub.examples import Example
from zograd.hub.perturb import content_words, text_of, with_text

Score = Callable[[Sequence[Any]], npt.NDArray[np.float64]]
"""Examples -> a score of each class, [examples, classes]."""
E = TypeVar("E")
Perturbation = Callable[[E, int, np.random.Generator], E | None]
SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Robustness:
    """One row of `robustness`: how many of the same examples are answered rightly before and after a change.

    low, high: Wilson's 95 % interval of the accuracy after. drop: accuracy before less after. p: of the exact McNemar
    test, that the answers which changed are as likely to get right as wrong. significant: p < 0.05.
    """

    kind: str
    strength: int
    examples: int
    before: float
    after: float
    low: float
    high: float
    drop: float
    p: float

    @property
    def significant(self) -> bool:
        return self.p < SIGNIFICANT


def robustness(
    score: Score, examples: Sequence[E], labels: Sequence[int], perturbations: Mapping[str, Perturbation[E]],
    strengths: Sequence[int], *, seed: int = 0,
) -> list[Robustness]:  # fmt: skip
    """Accuracy under each perturbation at each strength, on the examples to which it applies.

    score: a model as a function of examples, asked once for the plain ones and once a perturbation and strength. The
    test is paired: only examples whose answer changed between right and wrong count. ValueError without examples, or
    where labels are not as many.
    """
    if not len(examples) or len(labels) != len(examples):
        raise ValueError(f"{len(examples)} examples and {len(labels)} labels; pass at least one, and as many of each")
    plain = np.argmax(score(examples), axis=1) == np.asarray(labels)
    found = []
    for kind, perturb in perturbations.items():
        for strength in strengths:
            rng = np.random.default_rng([seed, strength])
            made = [(k, new) for k, e in enumerate(examples) if (new := perturb(e, strength, rng)) is not None]
            if made:
                at = np.array([k for k, _ in made])
                after = np.argmax(score([new for _, new in made]), axis=1) == np.asarray(labels)[at]
                found.append(compared(kind, strength, plain[at], after))
    return found


def compared(kind: str, strength: int, before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> Robustness:
    """A row from which answers were right before and after, example by example."""
    n, lost, won = len(before), int((before & ~after).sum()), int((~before & after).sum())
    p = float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    interval = binomtest(int(after.sum()), n).proportion_ci(method="wilson")
    a, b = float(before.mean()), float(after.mean())
    return Robustness(kind, strength, n, a, b, float(interval.low), float(interval.high), a - b, p)


@dataclass(frozen=True, slots=True)
class Attack:
    """The result of `one_word`: the example with one word changed that is answered wrongly, or None; evaluations."""

    found: Example | None
    evaluations: int
    exhausted: bool


def one_word(score: Score, example: Example, candidates: Callable[[str], Sequence[str]], *, most: int = 1000) -> Attack:
    """A single word of an example whose swap for one of its candidates makes a right answer wrong, if there is one.

    Words are tried in the order of how much the probability of the right class falls when the word is left out; all
    candidates of a word are asked together. So an attack is found early, and none is missed where `most` evaluations
    suffice (`exhausted`). Scores are taken as logarithms of probabilities up to a constant. After the
    one-word attacks of MSCR; the candidates are the caller's. An example that is answered wrongly as it is has no
    attack: found is None after one evaluation.
    """
    start, end = text_of(example)
    text = example.prompt[start:end]
    right = example.label
    if int(np.argmax(score([example])[0])) != right:
        return Attack(None, 1, True)
    places = [(i, j) for i, j in content_words(text) if len(candidates(text[i:j]))]
    if not places:
        return Attack(None, 1, True)
    if 1 + len(places) > most:
        return Attack(None, 1, False)
    without = log_softmax(score([with_text(example, text[:i] + text[j:]) for i, j in places]))[:, right]
    used = 1 + len(places)
    for k in np.argsort(without, kind="stable"):
        i, j = places[k]
        tried = [with_text(example, text[:i] + word + text[j:]) for word in candidates(text[i:j])]
        if used + len(tried) > most:
            return Attack(None, used, False)
        said = np.argmax(score(tried), axis=1)
        used += len(tried)
        wrong = np.flatnonzero(said != right)
        if len(wrong):
            return Attack(tried[int(wrong[0])], used, True)
    return Attack(None, used, True)


def log_softmax(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log(exp(z) / sum exp(z)) by row."""
    z = z - z.max(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return found
