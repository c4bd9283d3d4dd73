"""Objectives without a derivative: the share of right answers, or a reward of what the model answers."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch import Tensor

from zograd.errors import UsageError
from zograd.hub import Example
from zograd.llm.scoring.metrics import imported

if TYPE_CHECKING:
    from zograd.llm.scoring.scorer import Scorer

Reward: TypeAlias = Callable[[str, str, str], float]
"""Of the prompt, the answer of the model, and the answer in the data; the larger the better."""

LOSS: Final = "loss"


class ObjectiveError(UsageError, ValueError):
    """An objective that is unknown, does not fit the task, or fails."""


@dataclass(frozen=True)
class Objective:
    """What training lowers in place of the loss: `top` - reward of each example, in the mean.

    The answer of a classification is the name of the class with the highest score. Otherwise the model writes it: up to
    `tokens` tokens, each the most likely one.
    """

    name: str
    reward: Reward
    top: float = 1.0
    own: bool = False
    """Whether it is the user's."""
    tokens: int = 32

    def rewards(self, scorer: Scorer, examples: Sequence[Example], copies: int = 1) -> Tensor:
        """float32 [copies examples]: the reward of the answer to each example.

        Cost: one forward of each example (or class); where the model writes, one of each token that it writes.
        """
        task = scorer.task
        if task.kind == "classification":
            said = scorer.scores(examples, copies).argmax(1).tolist()
            pairs = [(task.classes[k], task.classes[e.label]) for k, e in zip(said, [*examples] * copies, strict=True)]
        else:
            from zograd.llm.generation import generate

            assert copies == 1, "answers of several points are written one point after the other"
            found = generate(scorer.model, scorer.tokenizer, examples, max_new_tokens=self.tokens, chat=scorer.chat)
            pairs = [(g.text.strip(), e.completion.strip()) for g, e in zip(found, examples, strict=True)]
        asked = [*examples] * copies
        values = [self._of(e.prompt, answer, wanted) for e, (answer, wanted) in zip(asked, pairs, strict=True)]
        return torch.tensor(values, device=scorer.device)

    def _of(self, prompt: str, answer: str, wanted: str) -> float:
        if not self.own:
            return self.reward(prompt, answer, wanted)
        try:
            return float(self.reward(prompt, answer, wanted))
        except Exception as e:
            raise ObjectiveError(
                f"the objective {self.name!r} failed on the answer {answer[:40]!r} ({type(e).__name__}: {e}); it is "
                f"called with prompt, answer and the answer in the data, and returns a number, the larger the better"
            ) from e


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


OF_CLASSES: Final[dict[str, Reward]] = {"accuracy": lambda prompt, answer, wanted: float(answer == wanted)}
OF_TEXTS: Final[dict[str, Reward]] = {"exact-match": same, "f1": f1}


def objective_of(asked: str | Reward, kind: str, tokens: int = 32) -> Objective | None:
    """The objective that was asked for; None for the loss.

    asked: "loss"; "accuracy" of a classification; "exact-match" or "f1" of what the model writes; `module:function`, or
    a function of prompt, answer and the answer in the data, which is a reward.

    Raises:
        ObjectiveError: an unknown name, one that does not fit the task, or a function that cannot be imported.
    """
    if asked == LOSS:
        return None
    fitting, other = (OF_CLASSES, OF_TEXTS) if kind == "classification" else (OF_TEXTS, OF_CLASSES)
    if kind == "text":
        raise ObjectiveError("texts without a prompt have no answer; their objective is the loss")
    if not isinstance(asked, str):
        return Objective(getattr(asked, "__name__", type(asked).__name__), asked, 0.0, own=True, tokens=tokens)
    if ":" in asked:
        return Objective(asked, imported(asked, "objective"), 0.0, own=True, tokens=tokens)
    if asked in fitting:
        return Objective(asked, fitting[asked], tokens=tokens)
    what = "is for answers that are written" if kind == "classification" else "is for tasks with classes"
    why = what if asked in other else "is not known"
    raise ObjectiveError(
        f"objective = {asked!r} {why}: choose one of {', '.join((LOSS, *fitting))}, or write module:function of "
        f"prompt, answer and the answer in the data, which gives a reward"
    )
