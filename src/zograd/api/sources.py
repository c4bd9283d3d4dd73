"""Where the points of `AskTell` come from: a run of a method of the menu, or a search by another strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from zograd.api.constraints import Rows
from zograd.api.ending import End, Ending
from zograd.api.saved import plain, rebuilt
from zograd.api.search import Search
from zograd.api.strategies import Constrained, OfMenu, Points, Problem, Strategy
from zograd.api.variables import Flat, Variables
from zograd.core.record import Record
from zograd.core.records import Records
from zograd.estimators.base import Feedback


class Source(Protocol):
    """Gives requests, takes their values.

    records: of the steps so far. message: why it ended; None as long as it goes on. told: points of all requests that
    are finished. feedback: what is read of the values of a request.
    """

    problem: Problem

    @property
    def records(self) -> Records: ...
    @property
    def name(self) -> str: ...
    @property
    def message(self) -> str | None: ...
    @property
    def told(self) -> int: ...
    @property
    def evaluations(self) -> int: ...
    @property
    def feedback(self) -> Feedback: ...
    @property
    def x(self) -> Flat: ...
    def ask(self) -> Points | None: ...
    def tell(self, values: Sequence[float], *, ranked: bool = False) -> Record | None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def source(strategy: Strategy, problem: Problem, budget: int | None, rows: Rows | None = None) -> Source:
    """The source for a strategy. Raises ValueError where it cannot start at x0, or the budget is less than a step.

    rows: constraints; then values are `Evaluated`.
    """
    if rows is not None:
        return SearchSource(Constrained(strategy, rows), problem, rows)
    if isinstance(strategy, OfMenu):
        return RunSource(strategy, problem, budget)
    return SearchSource(strategy, problem)


class RunSource:
    """A `Run`. It asks when it is asked, and is pickled and loaded as it is.

    ranked values have no size: the record of their step has the loss NaN.
    """

    def __init__(self, strategy: OfMenu, problem: Problem, budget: int | None) -> None:
        self.problem, self.budget = problem, budget
        self.run = strategy.run_at(problem.x0, problem)
        self.records = Records()
        self.ended: End | None = None
        self.in_step = 0
        """Values told to the unfinished step."""
        if budget is not None and budget < self.run.most_evaluations:
            raise ValueError(f"budget={budget} is less than one step: use at least {self.run.most_evaluations}")

    @property
    def name(self) -> str:
        return self.run.method.name

    @property
    def message(self) -> str | None:
        return None if self.ended is None else self.ended.message

    @property
    def told(self) -> int:
        return self.run.evaluations + self.in_step

    @property
    def evaluations(self) -> int:
        return self.run.evaluations

    @property
    def feedback(self) -> Feedback:
        return self.run.estimator.feedback

    @property
    def x(self) -> Flat:
        return np.concatenate([leaf.tensor.detach().numpy().reshape(-1) for leaf in self.run.store.leaves])

    def ask(self) -> Points | None:
        if self.ended is not None:
            return None
        store: Any = self.run.store
        queries = self.run.ask()
        if self.budget is not None and self.told + len(queries) > self.budget:  # failures cost more than a step has
            self.ended = End(Ending.BUDGET)
            return None
        return Points(lambda i: store.point(queries[i].at).reshape(-1), len(queries))

    def tell(self, values: Sequence[float], *, ranked: bool = False) -> Record | None:
        if self.ended is not None:
            raise RuntimeError("tell() after the end: there are no points whose values could be told")
        record = self.run.tell(values)
        if record is None:
            self.in_step += len(values)
            return None
        if ranked:
            record = replace(record, loss=float("nan"), losses=())
        self.records.append(record)
        self._finished_step()
        return record

    def _finished_step(self) -> None:
        self.in_step = 0
        left = None if self.budget is None else self.budget - self.run.evaluations
        self.ended = End(Ending.BUDGET) if left is not None and left < self.run.most_evaluations else None

    def state_dict(self) -> dict[str, Any]:
        tensors = {k: v.clone().numpy() for k, v in self.run.store.state_dict().items()}
        return {"run": plain(self.run.state_dict()), "tensors": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "run" not in state:
            raise ValueError(f"the state is of {state['search']['strategy']}, but this is a run of {self.name}")
        mine = self.run.store.state_dict()
        arrays = dict(state["tensors"])
        for name in arrays.keys() & mine.keys():
            if not isinstance(arrays[name], np.ndarray):
                arrays[name] = np.array(rebuilt(arrays[name]), mine[name].numpy().dtype)
        self.run.store.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        self.run.load_state_dict(rebuilt(state["run"]))
        self._finished_step()
        self.in_step = sum(map(len, state["run"]["answers"]))
        self.ended = None if self.in_step else self.ended


class SearchSource:
    """A `Search`. Its state are the values told so far: copies and loaded states search again with them.

    So a state takes 8 bytes an evaluation, and a number for each row of constraints, and to load it takes the
    computations of the strategy again.
    """

    feedback: Feedback = "values"

    def __init__(self, strategy: Strategy, problem: Problem, rows: Rows | None = None) -> None:
        self.strategy, self.problem, self.rows = strategy, problem, rows
        self.answers: list[list[float]] = []
        self._search_again()

    def _search_again(self) -> None:
        self.search = Search(self.strategy, self.problem, self.problem.budget)
        for values in self.answers:
            self.search.tell(values)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "search"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._search_again()

    @property
    def name(self) -> str:
        return self.strategy.name

    @property
    def records(self) -> Records:
        return self.search.tape

    @property
    def message(self) -> str | None:
        return self.search.message

    @property
    def told(self) -> int:
        return self.search.evaluations

    @property
    def evaluations(self) -> int:
        return self.search.evaluations

    @property
    def x(self) -> Flat:
        return self.search.x

    def ask(self) -> Points | None:
        return self.search.ask()

    def tell(self, values: Sequence[float], *, ranked: bool = False) -> Record | None:
        wanted, steps = self.search.ask(), len(self.records)
        if wanted is not None and len(values) != len(wanted):
            raise ValueError(f"asked for {len(wanted)} losses, was told {len(values)}")
        told = list(values)
        self.search.tell(told)
        self.answers.append(told)
        return self.records[-1] if len(self.records) > steps else None

    def state_dict(self) -> dict[str, Any]:
        p, rows = self.problem, self.rows
        answers = [list(values) if rows is None else rows.flat(values) for values in self.answers]
        return {
            "search": {
                "strategy": self.name, "seed": p.seed, "budget": p.budget, "thorough": p.thorough,
                "x0": p.x0.tolist(), "answers": answers,
            }
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        told = rebuilt(state.get("search", {"strategy": "a method of the menu"}))
        if told["strategy"] != self.name:
            raise ValueError(f"the state is of {told['strategy']}, but this is a search by {self.name}")
        old = self.problem.variables
        variables = Variables(old.shaped(np.array(told["x0"], old.flat.dtype)))
        given = {name: told[name] for name in ("seed", "budget", "thorough")}
        self.problem = replace(self.problem, variables=variables, **given)
        answers = [[float(f) for f in values] for values in told["answers"]]
        self.answers = answers if self.rows is None else [self.rows.unflat(values) for values in answers]
        self._search_again()
