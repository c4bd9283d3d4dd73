"""`AskTell`: it gives points and takes losses. People, queues, clusters or other languages evaluate them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from zograd.api import trials
from zograd.api.bounds import as_bounds
from zograd.api.checkpoint import of_bounds, settings_of
from zograd.api.constraints import Evaluated, as_rows
from zograd.api.domains import is_set
from zograd.api.ordinal import comparison, ranking
from zograd.api.saved import described, rebuilt, strict, x0_from
from zograd.api.sources import RunSource, SearchSource, source
from zograd.api.strategies import Points, Problem, as_strategy
from zograd.api.trials import Answer, Desk, Receipt, Trial
from zograd.api.variables import Variables
from zograd.core.method import Method
from zograd.core.record import Record
from zograd.core.records import Records
from zograd.core.run import Run
from zograd.core.seeds import Seed, as_seed
from zograd.errors import UsageError
from zograd.files import atomic_write
from zograd.methods.defaults import BUDGET
from zograd.oracles import as_number
from zograd.stores import Store

FORMAT = 1
"""Of saved files."""

FAILURES = 20
"""Steps in a row without a finite value after which a search with constraints gives up."""


class AskTell:
    """The same run as `minimize`, one question at a time.

        loop = AskTell(x0, methods.rank(n=16))
        while not done:
            losses = [f(x) for x in loop.ask()]
            loop.tell(losses)

    Where answers arrive one by one, take trials, which have a number:

        for trial in loop.trials(8):
            queue.put((trial.id, trial.x))
        ...
        receipt = loop.report(number, value)

    Answers may come in any order. The first one of each trial counts, and a step is made when the last one of its
    points has come; the trajectory is that of `ask` and `tell`. An answer that comes twice, or after its step, changes
    nothing, and its `Receipt` says so. A failed evaluation is `report_failure`. Methods that compare or rank take
    `prefer` and `tell_ranking` in place of values.

    All points of one `ask` belong together: evaluate them on the same data and randomness. A NaN or infinite loss is a
    failed evaluation. Two-point methods leave it out, methods that rank put it last, and "lbfgs" keeps away from there.
    Where a method cannot do without it, or no loss is finite, the step is refused: nothing moves, and the next `ask`
    brings new points. Pickle and deepcopy work at any time, `save` and `load` with a file of JSON.

    x0: a number, a list, an array of float64 or float32, a torch tensor, or a dict of arrays; points have its form.
    method: a name of the menu with the defaults of `zograd.methods.defaults`, a `zograd.Method`, or "auto", "lbfgs",
        "cma", see `zograd.minimize`.
    bounds: see `zograd.minimize`; no point is outside of them.
    constraints: see `zograd.minimize`, but no set, which is a method here (`methods.frank_wolfe(set)`). With
        `zograd.Constraints`, an answer is a pair (value, c); with SciPy's objects it is the value, and the loop calls
        the functions of the constraints itself. The multipliers move as in `zograd.minimize`; `maxcv` and `multipliers`
        belong to the recommended point.
    budget: points that are asked for, at most. None: no end, and 15,000 for "auto", "lbfgs", "cma" and constraints.
    maximize: larger values are better. `records` hold the values with their sign changed.
    lease: seconds for which `trials` does not give a trial to somebody else. 0: each call gives all that are open.
    seed: see `zograd.Run`.

    Memory: O(d), and a point for each trial that is held. One thread at a time. Raises ValueError for a budget of less
    than a step, an empty or non-finite x0, or an x0 outside of the bounds or of the method's set.
    """

    def __init__(
        self,
        x0: Any,
        method: str | Method[Any] | Any = "zo_sgd",
        *,
        bounds: Any = None,
        constraints: Any = None,
        budget: int | None = None,
        maximize: bool = False,
        lease: float = 0.0,
        seed: Seed = 0,
    ) -> None:
        variables = Variables(x0)
        if is_set(constraints):
            raise TypeError(
                f"constraints={type(constraints).__name__}(...) is a set, which AskTell takes as its method: "
                f"methods.frank_wolfe(set) where it has a linear minimizer, otherwise methods.zo_prox(set)"
            )
        lower, upper = as_bounds(bounds, variables)
        if budget is not None and not (
            isinstance(budget, int | float | np.integer) and math.isfinite(budget) and budget >= 1
        ):
            raise ValueError(f"budget={budget} must be a number of evaluations, at least 1, or None for no end")
        problem = Problem(
            variables, lower, upper, as_seed(seed), budget=BUDGET if budget is None else int(budget),
            thorough=budget is not None,
        )  # fmt: skip
        self.method, self.budget, self.maximize = method, budget, maximize
        self.rows = as_rows(constraints, variables)
        self.strategy = as_strategy(method, variables.dim, 1 if self.rows is None else FAILURES)
        self.source = source(self.strategy, problem, budget, self.rows)
        self.desk = Desk(lease)
        self.journal: Callable[[Sequence[Answer]], None] | None = None
        """Called with new answers before they count; where it raises, they do not count. It is not pickled."""

    # ---- all points at once --------------------------------------------------------------------------------------

    def ask(self) -> list[Any]:
        """The points to evaluate, each a fresh array; the same points again until they are told. [] after the end."""
        self._request()
        self.desk.asked = self.desk.first
        return [trial.x for trial in self._trials(range(self.desk.first, self.desk.first + self.desk.size))]

    def tell(self, losses: Sequence[float]) -> Record | None:
        """The losses in the order of `ask`. Returns the step's record, or None when the method asks for more points.

        Raises RuntimeError where nobody has asked for these points, as after a `tell` that is repeated, and where some
        of them have been answered one by one.
        """
        try:
            told = list(losses) if not isinstance(losses, Mapping | str) else None
        except TypeError:  # a single number, also as an array without axes
            told = None
        if told is None:
            raise TypeError(f"tell() takes the losses in the order of ask(), as a list, got {type(losses).__name__}")
        if self.desk.answers:
            raise RuntimeError(
                f"{len(self.desk.answers)} of these {self.desk.size} points have an answer by report(); report the "
                f"others too"
            )
        if self._request() is not None and self.desk.asked != self.desk.first:
            raise RuntimeError("tell() without ask(): there are no points whose losses could be told")
        return self.source.tell([self._signed(self._value(self.desk.first + i, f)) for i, f in enumerate(told)])

    # ---- one by one ----------------------------------------------------------------------------------------------

    def trials(self, n: int | None = None) -> list[Trial]:
        """Open trials, at most n: those without an answer that nobody has.

        A trial is given to somebody else when `lease` seconds have passed without an answer; then the first answer
        counts. [] where everything is given out or the search has ended (`done`).
        """
        if n is not None and n < 0:
            raise ValueError(f"n={n} trials; pass a number >= 0, or None for all that are open")
        self._request()
        moment = trials.now()
        free = self.desk.free(moment)[:n]
        self.desk.give(free, moment)
        return self._trials(free)

    @property
    def free(self) -> int:
        """How many trials `trials()` would give now."""
        self._request()
        return len(self.desk.free(trials.now()))

    @property
    def unanswered(self) -> list[int]:
        """Ids of the trials of the open step that have no answer."""
        self._request()
        return self.desk.unanswered

    @property
    def wait(self) -> float | None:
        """Seconds until the lease of the next trial without an answer ends; None after the end."""
        self._request()
        return self.desk.wait(trials.now())

    def pair(self) -> tuple[Trial, Trial] | None:
        """Two trials that the method compares, for `prefer`; None where all are given out or the search has ended.

        Raises `FeedbackError` where the method does not compare pairs.
        """
        self._request()
        comparison(self.source, self.desk)
        moment = trials.now()
        free = self.desk.free(moment)
        for number in free:
            if (rival := self._rival(number)) in free:
                both = sorted([number, rival])
                self.desk.give(both, moment)
                a, b = self._trials(both)
                return a, b
        return None

    def report(self, trial: Trial | int, value: Any) -> Receipt:
        """The value of one trial, with constraints as in `tell`; NaN or infinity is a failed evaluation."""
        return self.report_all({_number(trial): value})[0]

    def report_all(self, values: Mapping[Any, Any]) -> list[Receipt]:
        """The values of several trials, by id; a receipt for each. NaN or infinity is a failed evaluation."""
        self._request()
        answers = [Answer(_number(trial), self._value(_number(trial), value)) for trial, value in values.items()]
        new = [answer for answer in answers if self.desk.status(answer.id) == "counted"]
        receipts = {a.id: Receipt(self.desk.status(a.id), (a.id,)) for a in answers}
        if new:
            receipts[new[-1].id] = replace(receipts[new[-1].id], record=self._answered(new).record)
        return list(receipts.values())

    def report_failure(self, trial: Trial | int) -> Receipt:
        """The trial could not be evaluated."""
        return self.report(trial, math.nan)

    def prefer(self, winner: Trial | int, loser: Trial | int, *, tie: bool = False) -> Receipt:
        """The first of two rivals is better; with `tie`, they are equally good.

        For methods that compare pairs (`preference`, `zo_sign_scalar`) or rank two points. They compute with the
        order itself; the record of the step has no loss (NaN). Raises `FeedbackError` for other methods, ValueError for
        trials that are no rivals.
        """
        self._request()
        return self._answered(comparison(self.source, self.desk, (_number(winner), _number(loser)), tie))

    def tell_ranking(self, order: Sequence[Any]) -> Receipt:
        """Open trials from the best to the worst; a list among them holds equally good ones: [4, [7, 5], 6].

        For methods that rank (`rank`, `snes`, `sep_cma`, `cr_fm_nes`), which need all trials of the group that have not
        failed, and methods that compare pairs, which need both of each pair. They compute with the order itself; the
        record has no loss (NaN).
        Raises `FeedbackError` for other methods, ValueError for a ranking that lacks trials or has one twice.
        """
        self._request()
        groups = [item if isinstance(item, list | tuple) else [item] for item in order]
        return self._answered(ranking(self.source, self.desk, [[_number(trial) for trial in g] for g in groups]))

    def restore(self, answers: Iterable[Answer]) -> int:
        """Take answers that an equal loop had counted, in the order of their ids. Returns how many count here too.

        What `zograd serve` does at its start: the answers alone are the state of a run.
        """
        return sum(self._answered([answer]).counted for answer in answers)

    # ---- what there is -------------------------------------------------------------------------------------------

    def recommend(self) -> Any:
        """The point to use, in the form of x0: the iterate of a method of the menu, the strategy's own choice else."""
        problem = self.source.problem
        return problem.variables.shaped(problem.inside(self.source.x).copy())

    @property
    def x(self) -> Any:
        """The same as `recommend()`."""
        return self.recommend()

    @property
    def maxcv(self) -> float | None:
        """The largest violation of a constraint at `recommend()`; None without constraints, or before it is known."""
        standing = self._standing
        if self.rows is None or standing is None or standing.value is None:
            return None
        return float(max(self.rows.excess(standing.value.c)))

    @property
    def multipliers(self) -> Any:
        """The multipliers of the constraints, as `minimize` returns them; None without constraints."""
        return None if self._standing is None else self._standing.multipliers

    @property
    def done(self) -> bool:
        """Whether the search has ended: the budget is used, or the strategy has nothing more to ask."""
        return self._request() is None

    @property
    def message(self) -> str | None:
        """Why the search ended; None as long as it goes on."""
        return self.source.message

    @property
    def records(self) -> Records:
        """A record for each step."""
        return self.source.records

    @property
    def seed(self) -> int:
        """The seed of the run, also where a fresh one was drawn."""
        return self.run.seed if isinstance(self.source, RunSource) else self.source.problem.seed

    @property
    def evaluations(self) -> int:
        """Losses told so far in finished steps; for "auto", "lbfgs" and "cma", in finished requests."""
        return self.source.evaluations

    @property
    def run(self) -> Run[Any]:
        """The run of a method of the menu. AttributeError for other strategies."""
        if not isinstance(self.source, RunSource):
            raise AttributeError(f"{self.source.name} is no method of the menu and has no Run")
        return self.source.run

    @property
    def store(self) -> Store:
        """The store of the run."""
        return self.run.store

    # ---- stop and go on ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on elsewhere, between `ask` and `tell` too: arrays, and what JSON holds.

        Answers that wait for the others of their step are part of it.
        """
        waiting = [[a.id, self._kept(a.value), a.ranked] for a in self.desk.answers.values()]
        return {**self.source.state_dict(), "trials": waiting, "asked": self.desk.asked, "of": self._identity}

    @property
    def _identity(self) -> dict[str, Any]:
        """What a state belongs to, as plain data."""
        return {
            "method": settings_of(self.strategy), "bounds": of_bounds(self.source.problem),
            "constraints": None if self.rows is None else self.rows.digest, "maximize": bool(self.maximize),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; arrays may have become lists.

        ValueError for the state of another method, or of other settings, bounds or constraints; nothing has changed.
        """
        before, mine = state.get("of", {}), self._identity
        for name, was in before.items():
            if was != mine[name]:
                known = name in ("method", "maximize")
                said = f" {str(was)[:200]}, and here it is {str(mine[name])[:200]}" if known else " others than here"
                raise ValueError(f"the state is of another run: its {name}{said}; pass what it was saved with")
        self.source.load_state_dict(state)
        self.desk = Desk(self.desk.lease)
        self.desk.asked = int(state.get("asked", self.source.told))
        if waiting := rebuilt(state.get("trials", [])):
            self._request()
            self.restore(Answer(i, self._value_kept(kept), ranked) for i, kept, ranked in waiting)

    def save(self, path: str | Path) -> None:
        """Write a file of JSON for `load`: x0, settings and state. The file is whole or not there."""
        problem = self.source.problem
        sides = (problem.lower, problem.upper)
        told = {
            "zograd": FORMAT,
            "method": self.method if isinstance(self.method, str) else None,
            "name": self.source.name,
            "x0": described(problem.variables),
            "bounds": None if sides[0] is None or sides[1] is None else [s.tolist() for s in sides if s is not None],
            "constraints": None if self.rows is None else list(self.rows.names),
            "budget": self.budget,
            "maximize": self.maximize,
            "lease": self.desk.lease,
            "state": self.state_dict(),
        }
        atomic_write(Path(path), json.dumps(strict(told), allow_nan=False).encode())

    @classmethod
    def load(cls, path: str | Path, method: Method[Any] | Any = None, *, constraints: Any = None) -> AskTell:
        """Go on where `save` was called.

        method: has to be passed again where it was not a name, and so have constraints. Raises ValueError for a file
        that is none of `save`, or is of another method or of other constraints.
        """
        try:
            told = rebuilt(json.loads(Path(path).read_text(encoding="utf-8")))
            if not isinstance(told, dict) or told.get("zograd") != FORMAT:
                raise ValueError
        except ValueError:
            raise ValueError(f"{path} is no file of AskTell.save of this version") from None
        chosen = told["method"] if method is None else method
        if chosen is None:
            raise UsageError(
                f"{path} was saved with a Method {told['name']!r}; pass it again: AskTell.load(path, method)"
            )
        bounds = None if told["bounds"] is None else list(zip(*told["bounds"], strict=True))
        loop = cls(
            x0_from(told["x0"]), chosen, bounds=bounds, constraints=constraints, budget=told["budget"],
            maximize=told["maximize"], lease=told["lease"],
        )  # fmt: skip
        mine = None if loop.rows is None else list(loop.rows.names)
        if mine != told.get("constraints"):
            raise ValueError(
                f"{path} was saved with constraints {told.get('constraints')}, but those passed are {mine}; pass the "
                f"same again: AskTell.load(path, constraints=...)"
            )
        if loop.source.name != told["name"]:
            raise ValueError(f"{path} was saved with {told['name']}, but the method passed is {loop.source.name}")
        loop.load_state_dict(told["state"])
        return loop

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "journal": None}

    # ---- inside --------------------------------------------------------------------------------------------------

    @property
    def _sign(self) -> float:
        return -1.0 if self.maximize else 1.0

    def _signed(self, value: float) -> float:
        return Evaluated(self._sign * value, value.c) if isinstance(value, Evaluated) else self._sign * value

    def _value(self, number: int, answer: Any) -> float:
        """What was answered to a trial, with constraints as one `Evaluated`."""
        if self.rows is None:
            return as_number(answer)
        points, i = self.source.ask(), number - self.desk.first
        if points is None or not 0 <= i < len(points):  # its receipt says why it does not count
            return math.nan
        return self.rows.told(self._shaped(points, i), answer)

    def _shaped(self, points: Points, i: int) -> Any:
        problem = self.source.problem
        return problem.variables.shaped(problem.inside(points.make(i)))

    def _kept(self, value: float) -> Any:
        """A value as plain data."""
        if self.rows is not None:
            return [None if math.isnan(n) else n for n in self.rows.flat([value])]
        return None if math.isnan(value) else value

    def _value_kept(self, kept: Any) -> float:
        """The inverse of `_kept`."""
        if self.rows is not None:
            return self.rows.unflat([math.nan if n is None else float(n) for n in kept])[0]
        return math.nan if kept is None else float(kept)

    @property
    def _standing(self) -> Any:
        return self.source.search.trace.standing if isinstance(self.source, SearchSource) else None

    def _request(self) -> Points | None:
        """The open request, which the desk then has too."""
        points = self.source.ask()
        self.desk.open(self.source.told, 0 if points is None else len(points))
        return points

    def _rival(self, number: int) -> int:
        return self.desk.first + ((number - self.desk.first) ^ 1)

    def _trials(self, numbers: Iterable[int]) -> list[Trial]:
        points, first = self._request(), self.desk.first
        pairs = self.source.feedback == "pairs"
        return [
            Trial(i, self._shaped(points, i - first), first, self._rival(i) if pairs else None)
            for i in numbers
            if points is not None
        ]  # fmt: skip

    def _answered(self, answers: Sequence[Answer]) -> Receipt:
        """Count answers, all or none of them, and make the step when the last one is there."""
        self._request()
        numbers = tuple(answer.id for answer in answers)
        for number in numbers:
            if (status := self.desk.status(number)) != "counted":
                return Receipt(status, numbers)
        if self.journal is not None:
            self.journal(answers)
        self.desk.answers |= {answer.id: answer for answer in answers}
        record = None
        if (complete := self.desk.complete()) is not None:
            values = [a.value if a.ranked else self._signed(a.value) for a in complete]
            record = self.source.tell(values, ranked=any(a.ranked for a in complete))
            self._request()
        return Receipt("counted", numbers, record)


def _number(trial: Trial | int) -> int:
    return trial.id if isinstance(trial, Trial) else int(trial)
