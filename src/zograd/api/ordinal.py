"""Answers without values: which of two is better, or an order; only for methods that compute with the order alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from zograd.api.sources import Source
from zograd.api.trials import Answer, Desk, FeedbackError
from zograd.methods.menu import MENU

__all__ = ["comparison", "ranking", "takers"]


def takers(kind: str) -> list[str]:
    """Names of the menu whose methods read "order" or "pairs" of the losses."""
    return [name for name, feedback in _feedback(tuple(MENU)).items() if feedback == kind]


@lru_cache(maxsize=1)
def _feedback(names: tuple[str, ...]) -> dict[str, str]:
    return {name: MENU[name].build(**MENU[name].example).estimator.feedback for name in names}


def comparison(source: Source, desk: Desk, pair: tuple[int, int] | None = None, tie: bool = False) -> list[Answer]:
    """The answers to a pair (winner, loser). Raises FeedbackError where the method compares no pairs."""
    if source.feedback == "values":
        raise FeedbackError(_needs_values(source))
    if source.feedback == "order" and desk.size > 2:
        raise FeedbackError(
            f"{source.name} ranks its {desk.size} points together: use tell_ranking() or values; to compare two, "
            f"take {_either(takers('pairs'))}"
        )
    if pair is None:
        return []
    winner, loser = pair
    known = all(desk.status(i) != "unknown" and i >= desk.first for i in pair)
    if known and (winner - desk.first) ^ 1 != loser - desk.first:
        rival = desk.first + ((winner - desk.first) ^ 1)
        raise ValueError(f"trials {winner} and {loser} are no rivals: the method compares {winner} with {rival}")
    return [Answer(winner, 0.0, True), Answer(loser, 0.0 if tie else 1.0, True)]


def ranking(source: Source, desk: Desk, order: Sequence[Sequence[int]]) -> list[Answer]:
    """The answers to a ranking, from the best group of equals to the worst."""
    if source.feedback == "values":
        raise FeedbackError(_needs_values(source))
    answers = [Answer(i, float(rank), True) for rank, group in enumerate(order) for i in group]
    numbers = [answer.id for answer in answers]
    if not numbers:
        raise ValueError("the ranking is empty; pass the ids of trials, the best first")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"the ranking has trial {next(i for i in numbers if numbers.count(i) > 1)} twice")
    if any(desk.status(i) != "counted" for i in numbers):
        return answers
    if source.feedback == "pairs":
        lacking = [i for i in desk.unanswered if desk.first + ((i - desk.first) ^ 1) in numbers and i not in numbers]
        if lacking:
            raise ValueError(f"the ranking lacks trial {lacking[0]}, the rival of one in it; name both of a pair")
        return answers
    if lacking := [i for i in desk.unanswered if i not in numbers]:
        raise ValueError(f"the ranking has {len(numbers)} trials and lacks {lacking[0]}; rank all of the group")
    if any(answer.value == answer.value for answer in desk.answers.values()):
        raise ValueError("some trials of this group have values; report values of the others too")
    return answers


def _needs_values(source: Source) -> str:
    return (
        f"{source.name} computes with the values of the points, which an order does not give: use report(); methods "
        f"that rank: {', '.join(takers('order'))}; that compare pairs: {', '.join(takers('pairs'))}"
    )


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)
