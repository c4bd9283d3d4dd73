"""An estimator outside of a run: what it is asked, and its questions answered to the end."""

from __future__ import annotations

from typing import TypeVar

from zograd.core import keys
from zograd.core.query import Ask, Estimate, Routine
from zograd.laws import Draw, Law
from zograd.oracles import Oracle
from zograd.stores import Store

A = TypeVar("A")


def asking(store: Store, law: Law, part: keys.Part, *, mu: float, seed: int, step: int = 0) -> Ask:
    """What an estimator is handed in step `step`: directions of `law`, numbered from 0, which no run draws."""
    seed = keys.seed_of(seed, part)
    first = Draw(seed, step, 0, store.shapes, store.gram)
    draws = lambda j: law(first.number(j))  # noqa: E731
    return Ask(step, store.dim, mu, draws, store.gram, shapes=store.shapes, run=seed, names=store.names)


def answered(routine: Routine[A], oracle: Oracle, store: Store, key: int) -> Estimate[A]:
    """The estimate that a routine returns once an oracle has answered all of its questions."""
    queries = next(routine)
    while True:
        try:
            queries = routine.send(oracle(store, queries, key))
        except StopIteration as stop:
            estimate: Estimate[A] = stop.value
            return estimate
