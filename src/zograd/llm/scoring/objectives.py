"""Objectives without a derivative: the share of right answers, a reward of an answer, or a judge of two answers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

import torch
from torch import Tensor

from zograd.errors import UsageError
from zograd.hub import Example
from zograd.llm.scoring.metrics import imported
from zograd.llm.scoring.rewards import OF_TEXTS, Reward, reward_named

if TYPE_CHECKING:
    from zograd.llm.scoring.scorer import Scorer

Judge: TypeAlias = Callable[[str, str, str], float]
"""Of the prompt and two answers: 1 or True where the first is better, 0 or False where the second is, 0.5 for a tie."""

LOSS: Final = "loss"
PREFERS: Final = "prefers:"
"""What a judge begins with, in front of `module:function`."""


class ObjectiveError(UsageError, ValueError):
    """An objective that is unknown, does not fit the task, or fails."""


@dataclass(frozen=True)
class Objective:
    """What training lowers in place of the loss: `top` - reward of each example, in the mean.

    The answer of a classification is the name of the class with the highest score, that of multiple choice the choice.
    Otherwise the model writes it: up to `tokens` tokens, each the most likely one. Where the data has several right
    answers, the largest reward counts.
    """

    name: str
    reward: Reward
    top: float = 1.0
    own: bool = False
    """Whether it is the user's."""
    tokens: int = 32
    called: ClassVar[str] = "prompt, answer and the answer in the data, and returns a number, the larger the better"
    """How the function is called, for messages."""
    temperature: float = 0.0
    """Above 0, answers of a training step are drawn; all points of a step draw with the same random numbers."""

    @property
    def best(self) -> float | None:
        """The lowest loss that there is: 0 of the named rewards, which end at `top`; None of a user's."""
        return None if self.own else 0.0

    def rewards(self, scorer: Scorer, examples: Sequence[Example], copies: int = 1, *, drawn: bool = False) -> Tensor:
        """float32 [copies examples]: the reward of the answer to each example.

        drawn: answers that are written are drawn at `temperature`, from the random state of torch as it is.
        Cost: one forward of each example (or class); where the model writes, one of each token that it writes.
        """
        values = [
            max(self._of(e.prompt, answer, right.strip()) for right in wanted)
            for e, answer, wanted in self._answered(scorer, examples, copies, drawn)
        ]
        return torch.tensor(values, device=scorer.device)

    def answers(self, scorer: Scorer, examples: Sequence[Example], *, drawn: bool = False) -> list[str]:
        """The answer to each example. Cost: see `rewards`."""
        return [answer for _, answer, _ in self._answered(scorer, examples, 1, drawn)]

    def _answered(
        self, scorer: Scorer, examples: Sequence[Example], copies: int, drawn: bool
    ) -> list[tuple[Example, str, Sequence[str]]]:
        """Each example with its answer, and the right ones."""
        task, asked = scorer.task, [*examples] * copies
        if task.kind == "classification":
            said = scorer.scores(examples, copies).argmax(1).tolist()
            pairs = [(task.classes[k], [task.classes[e.label]]) for k, e in zip(said, asked, strict=True)]
        elif task.kind == "choice":
            said = scorer.scores(examples, copies).argmax(1).tolist()
            pairs = [(e.choices[k], [e.choices[e.label], *e.also]) for k, e in zip(said, asked, strict=True)]
        else:
            from zograd.llm.generation import generate

            assert copies == 1, "answers of several points are written one point after the other"
            prompts = [scorer.asked(e, self.tokens) for e in examples]
            found = generate(
                scorer.model, scorer.tokenizer, prompts, max_new_tokens=self.tokens, chat=scorer.chat,
                temperature=self.temperature if drawn else 0.0, seed=None,
            )  # fmt: skip
            pairs = [(g.text, [e.completion, *e.also]) for g, e in zip(found, examples, strict=True)]
        return [(e, answer.strip(), wanted) for e, (answer, wanted) in zip(asked, pairs, strict=True)]

    def _of(self, prompt: str, answer: str, wanted: str) -> float:
        if not self.own:
            return self.reward(prompt, answer, wanted)
        try:
            return float(self.reward(prompt, answer, wanted))
        except Exception as e:
            raise ObjectiveError(
                f"the objective {self.name!r} failed on the answer {answer[:40]!r} ({type(e).__name__}: {e}); it is "
                f"called with {self.called}"
            ) from e


@dataclass(frozen=True)
class Contest(Objective):
    """A judge of two answers as an objective: the loss of a point is the share of its comparisons that it does not win.

    The points of a step answer the same prompts, and the judge compares each pair of answers once:

        loss_k = 1 - mean over examples and rivals j != k of prefers(prompt, answer_k, answer_j)

    so losses of one step are compared with each other, and their mean is always 1/2. A pair of equal answers is a tie
    that no judge sees. Which of the two stands first alternates, so a judge that leans to one side gains nothing. What
    `rewards` gives, for evaluations, is the share of comparisons won against the answer in the data.
    """

    called: ClassVar[str] = "prompt and two answers, and returns True where the first is better"

    def compared(self, examples: Sequence[Example], answers: Sequence[Sequence[str]]) -> list[float]:
        """The loss of each point, from its answers [points][examples]. Cost: points (points - 1) / 2 comparisons."""
        points = len(answers)
        won = [0.0] * points
        for number, e in enumerate(examples):
            for j in range(points):
                for k in range(j + 1, points):
                    first, second = (j, k) if (number + j + k) % 2 else (k, j)
                    share = self.prefers(e.prompt, answers[first][number], answers[second][number])
                    won[first] += share
                    won[second] += 1.0 - share
        return [1.0 - w / (len(examples) * (points - 1)) for w in won]

    def prefers(self, prompt: str, first: str, second: str) -> float:
        """1 where the first answer is better, 0 where the second is, or between. Raises ObjectiveError otherwise."""
        if first == second:
            return 0.5
        found = super()._of(prompt, first, second)
        if not 0.0 <= found <= 1.0:
            raise ObjectiveError(
                f"the judge {self.name!r} returned {found!r} for {first[:40]!r} and {second[:40]!r}; expected "
                f"True (the first is better), False (the second is), or a number between 0 and 1"
            )
        return found

    def _of(self, prompt: str, answer: str, wanted: str) -> float:
        """Against the answer in the data, which stands first for every second prompt."""
        if zlib.crc32(prompt.encode()) % 2:
            return 1.0 - self.prefers(prompt, wanted, answer)
        return self.prefers(prompt, answer, wanted)


OF_CLASSES: Final[dict[str, Reward]] = {"accuracy": lambda prompt, answer, wanted: float(answer == wanted)}


def objective_of(asked: str | Reward, kind: str, tokens: int = 32, temperature: float = 0.0) -> Objective | None:
    """The objective that was asked for; None for the loss.

    asked: "loss"; "accuracy" of a classification; a name of `OF_TEXTS` for what the model writes; `module:function`, or
        a function of prompt, answer and the answer in the data, which is a reward; `prefers:module:function` of the
        prompt and two answers, which says whether the first is better (`Contest`).

    Raises:
        ObjectiveError: an unknown name, one that does not fit the task, or a function that cannot be imported.
        ImportError: the library of a reward is missing.
    """
    if asked == LOSS:
        return None
    labelled = kind in ("classification", "choice")
    fitting, other = (OF_CLASSES, OF_TEXTS) if labelled else (OF_TEXTS, OF_CLASSES)
    if kind == "text":
        raise ObjectiveError("texts without a prompt have no answer; their objective is the loss")
    found: Objective | None = None
    if not isinstance(asked, str):
        found = Objective(getattr(asked, "__name__", type(asked).__name__), asked, 0.0, own=True)
    elif asked.startswith(PREFERS):
        found = Contest(asked, imported(asked.removeprefix(PREFERS), "objective"), 1.0, own=True)
    elif ":" in asked:
        found = Objective(asked, imported(asked, "objective"), 0.0, own=True)
    elif asked in fitting:
        found = Objective(asked, fitting[asked] if labelled else reward_named(asked))
    if found is not None:
        return replace(found, tokens=tokens, temperature=temperature)
    what = "is for answers that are written" if labelled else "is for tasks with classes or choices"
    why = what if asked in other else "is not known"
    raise ObjectiveError(
        f"objective = {asked!r} {why}: choose one of {', '.join((LOSS, *fitting))}, or write module:function of "
        f"prompt, answer and the answer in the data, which gives a reward, or prefers:module:function of prompt and "
        f"two answers, which says whether the first is better"
    )
