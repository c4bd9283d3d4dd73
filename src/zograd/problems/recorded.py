"""What SmolLM2-135M made of questions of trec, recorded once: answers under 40 prompts, and features of the texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

WORDS = (
    (" Expression", " Description", " Entity", " Human", " Location", " Number"),
    (" Expression", " Explanation", " Object", " Person", " Place", " Number"),
)
"""Two choices of a word for each class of trec."""
TEMPLATES = (
    "Question: {text}\nAnswer type:",
    "Question: {text}\nType:",
    "{text}\nThe answer is of the type",
    "Classify the question by its answer.\nQuestion: {text}\nClass:",
)
DEMONSTRATIONS = (("none", 0), ("drawn", 2), ("drawn", 4), ("nearest", 2), ("nearest", 4))
"""Training questions in front, with their words: drawn once for all questions, or the nearest by TF-IDF."""


class Prompt(NamedTuple):
    """One of the 40: a template, the words of the classes, the kind of demonstrations and their number."""

    template: str
    words: tuple[str, ...]
    demonstrations: str
    number: int


PROMPTS = tuple(Prompt(t, w, kind, n) for t in TEMPLATES for w in WORDS for kind, n in DEMONSTRATIONS)
"""The prompts in the order of the recorded answers."""


@dataclass(frozen=True)
class Answers:
    """What was recorded, of 300 validation and 300 test questions.

    scores: (prompts, questions, classes), float32: log-probabilities of the words of the classes among themselves.
    tokens: (prompts, questions): of the whole prompt, which is what an answer costs. labels: (questions,).
    """

    scores: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    def right(self) -> npt.NDArray[np.bool_]:
        """(prompts, questions): whether the class of the highest score is the right one."""
        return np.asarray(self.scores.argmax(2) == self.labels)

    def part(self, questions: Any) -> Answers:
        """The answers to some of the questions, by number or mask."""
        return Answers(self.scores[:, questions], self.tokens[:, questions], self.labels[questions])


@dataclass(frozen=True)
class Features:
    """Texts as the model sees them at its last token: x (texts, 64), float64; labels (texts,), None for messages."""

    x: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64] | None


@cache
def features(part: str) -> Features:
    """Features of 1,000 "train" and 500 "test" questions of trec, and of 300 messages, "sms", in the same template.

    64 principal directions of the training questions, each of mean 0 and variance 1 there. Made by
    `tools/record_features.py`. Raises ValueError for another part.

    >>> features("train").x.shape, features("sms").labels is None
    ((1000, 64), True)
    """
    if part not in ("train", "test", "sms"):
        raise ValueError(f"part={part!r}: recorded are 'train', 'test' and 'sms'")
    with np.load(str(files("zograd.data").joinpath("trec_features.npz"))) as data:
        labels = data[f"{part}_labels"].astype(np.int64) if part != "sms" else None
        return Features(data[part].astype(np.float64), labels)


@cache
def answers(split: str) -> Answers:
    """The recorded answers of a split, "validation" or "test". Made by `tools/record_answers.py`.

    >>> found = answers("validation")
    >>> found.scores.shape, len(PROMPTS)
    ((40, 300, 6), 40)
    """
    if split not in ("validation", "test"):
        raise ValueError(f"split={split!r}: recorded are 'validation' and 'test'")
    with np.load(str(files("zograd.data").joinpath("trec_prompts.npz"))) as data:
        mine = data["split"] == ("validation", "test").index(split)
        return Answers(
            data["scores"][:, mine].astype(np.float32),
            data["tokens"][:, mine].astype(np.int64),
            data["labels"][mine].astype(np.int64),
        )
