"""A run: a store, a method and a seed. One step after another, resumable and replayable.

The run owns the seed, the step number and the scalar state of the rule; the store owns every tensor; the estimator,
the law, the space and the rule are frozen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from zograd.core import keys
from zograd.core.keys import OfStep
from zograd.core.schedules import Schedule, as_schedule
from zograd.core.seeds import Seed, as_seed
from zograd.core.vector import Ask, Estimate, Estimator, Query, Routine, Vector
from zograd.laws import Draw, Law
from zograd.learning_rate import AutoRate, Measured
from zograd.oracles import Oracle, as_number
from zograd.rules.base import Rule
from zograd.spaces import Euclidean, Space
from zograd.stores import Rate, Store
from zograd.stores.sharding import misfit

A = TypeVar("A")


@dataclass(frozen=True)
class Method(Generic[A]):
    """(law of directions) x (estimator) x (space) x (rule), with the schedules of mu and lr.

    mu: perturbation radius, in units of x (of log x on the positive orthant). lr: in units of x per unit of direction;
    "auto" or an `AutoRate` measures the curvature and stays below the edge of stability (`zograd.learning_rate`).
    weight_decay: decoupled, x <- (1 - lr weight_decay) x. name: the menu entry this came from.
    """

    estimator: Estimator[A]
    law: Law
    rule: Rule[A]
    space: Space = Euclidean()
    mu: Schedule | float = 2.0**-10
    lr: Schedule | AutoRate | float | Literal["auto"] = 1e-6
    weight_decay: float = 0.0
    name: str = "custom"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mu", as_schedule(self.mu))
        if self.lr == "auto":
            object.__setattr__(self, "lr", AutoRate())
        if isinstance(self.lr, AutoRate):
            if not getattr(self.estimator, "estimates_gradient", True):
                raise ValueError(
                    f"lr='auto' needs an estimate with the length of the gradient, which "
                    f"{type(self.estimator).__name__} does not give; give it a number"
                )
            if getattr(self.rule, "momentum", None) is None:
                raise ValueError(
                    f"lr='auto' knows the edge of stability of moves along the estimate (SGD, momentum), and "
                    f"{type(self.rule).__name__} makes another move; give it a number"
                )
        else:
            object.__setattr__(self, "lr", as_schedule(self.lr))  # type: ignore[arg-type]
        if self.weight_decay and not self.space.flat:
            raise ValueError(
                f"weight decay pulls towards 0, outside of {type(self.space).__name__}; use weight_decay=0"
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay}")
        if not as_schedule(self.mu).peak > 0:
            raise ValueError(f"mu must be > 0, got {as_schedule(self.mu).peak}")
        wanted, measured = getattr(self.rule, "reads", None), getattr(self.estimator, "aux", None)
        if wanted is not None and measured is not wanted:
            raise TypeError(
                f"{type(self.rule).__name__} reads the {wanted.__name__} of an estimate, but "
                f"{type(self.estimator).__name__} does not measure it. {getattr(self.rule, 'remedy', '')}"
            )
        for part in self.parts:
            if (why := getattr(part, "misfit", lambda method: None)(self)) is not None:
                raise TypeError(why)

    @property
    def measured(self) -> Estimator[A]:
        """The estimator as a run calls it: with lr="auto" it measures curvature and slope as well."""
        if not isinstance(self.lr, AutoRate) or isinstance(self.estimator, Measured):
            return self.estimator
        return Measured(self.estimator)

    @property
    def parts(self) -> tuple[Any, ...]:
        """Law, estimator, space and rule."""
        return self.law, self.estimator, self.space, self.rule

    @property
    def slots(self) -> dict[str, float]:
        """All that the parts keep in the store, by name, with initial values."""
        return {name: value for part in self.parts for name, value in getattr(part, "slots", {}).items()}

    @property
    def evaluations(self) -> int:
        """Loss evaluations a step; the most, where steps differ."""
        return self.measured.evaluations


@dataclass(frozen=True, slots=True)
class Record:
    """What one step did: everything a replay needs, and the losses for show."""

    step: int
    vector: Vector
    loss: float
    rates: tuple[Rate, ...]
    aux: tuple[float, ...] | None
    writes: tuple[tuple[str, Vector], ...] = ()
    evaluations: int = 0
    refused: bool = False
    losses: tuple[float, ...] = ()
    mu: float = 0.0
    moved: float = 0.0
    """Fraction of the weights whose bits changed."""
    meters: tuple[tuple[str, float], ...] = ()
    """Numbers measured on the way, by name."""


REPLAYED = 64
"""Steps whose moves a replay makes in one pass over the weights."""


class Run(Generic[A]):
    """Steps of one method on one store; `seed` fixes every direction, rounding and dropout mask.

    seed: an integer of 64 bits, also of NumPy's types; a NumPy Generator, which is asked for one; None for a fresh one.
        The attribute `seed` holds the number.
    terms: the number N of terms when the loss is a finite sum (1/N) sum_i f_i. Then a query may name some of them
    (`Query.rows`), and an evaluation is counted as the number of terms that it takes: N for the whole loss.
    """

    def __init__(self, store: Store, method: Method[A], seed: Seed = 0, *, terms: int = 0) -> None:
        if store.space != method.space:
            mine, its = (type(s).__name__ for s in (store.space, method.space))
            mine, its = (mine, its) if mine != its else (str(store.space), str(method.space))
            raise ValueError(f"the store stands in {mine}, the method in {its}; make the store with space=method.space")
        if store.sharded and (why := misfit(method)) is not None:
            raise TypeError(f"the weights are split over processes, which {method.name} cannot move: {why}")
        self.store, self.method, self.seed, self.terms = store, method, as_seed(seed), terms
        self.step_number = 0
        self.moves = 0
        self.evaluations = 0
        self.refused_in_a_row = 0
        self.flat_in_a_row = 0
        self.state: dict[str, Any] = {}
        self.control: dict[str, Any] = method.lr.initial() if isinstance(method.lr, AutoRate) else {}
        self._routine: Routine[A] | None = None
        self._queries: Sequence[Query] = ()
        self._given: Sequence[Rate] | None = None
        self._answers: list[list[float]] = []
        self._asked = 0
        new = store.require(method.slots)
        for part in method.parts:
            slots = set(getattr(part, "slots", {}))
            if hasattr(part, "prepare") and (new & slots or not slots):  # without slots: at every start
                part.prepare(store)

    # ---- one step, by its two halves -----------------------------------------------------------------------------

    @property
    def key(self) -> int:
        """The key of the current step, from which all its randomness derives."""
        return keys.of_step(self.seed, self.step_number)

    def ask(self, rates: Sequence[Rate] | None = None) -> Sequence[Query]:
        """The points whose losses the method wants next (the same again until they are told)."""
        if self._routine is None:
            store, law = self.store, self.method.law
            first = Draw(self.seed, self.step_number, 0, store.shapes, store.gram)
            ask = Ask(
                self.step_number,
                store.dim,
                as_schedule(self.method.mu)(self.step_number),
                lambda j: law(first.number(j)),
                store.gram,
                keys.of_step(self.seed, self.step_number, OfStep.SCALAR),
                self.moves,
                self.rates()[0].lr if rates is None else rates[0].lr,
                self.terms,
                first.shapes,
                self.seed,
            )
            self._routine = self.method.measured(ask)
            self._queries, self._given = next(self._routine), rates
        return self._queries

    def tell(self, losses: Sequence[float], rates: Sequence[Rate] | None = None) -> Record | None:
        """Give the losses of `ask`, in its order. A Record when that ended the step, None when more is to be asked.

        A loss that is not finite refuses the step: nothing moves, the step is counted, the next one draws anew.
        """
        if self._routine is None:
            raise RuntimeError("tell() without ask(): there are no points whose losses could be told")
        losses = [as_number(f) for f in losses]
        if len(losses) != len(self._queries):
            raise ValueError(f"asked for {len(self._queries)} losses, was told {len(losses)}")
        self._answers.append(losses)
        self._asked += sum(self.cost(query) for query in self._queries)
        if not all(math.isfinite(f) for f in losses):
            return self._refuse(losses, rates)
        try:
            self._queries = self._routine.send(losses)
        except StopIteration as stop:
            return self._finish(stop.value, rates)
        return None

    def step(self, oracle: Oracle, rates: Sequence[Rate] | None = None) -> Record:
        """One step: ask, evaluate, tell, until the estimate is there; then move.

        Whatever the oracle raises passes through with the weights bit-identical, and the step can be taken again.
        """
        try:
            while True:
                queries = self.ask(rates)
                key = keys.of_step(self.seed, self.step_number, OfStep.EVALUATION)
                record = self.tell(oracle(self.store, queries, key), rates)
                if record is not None:
                    return record
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Forget a step that was asked but not finished; nothing has moved."""
        self._routine, self._queries, self._answers, self._asked = None, (), [], 0

    def cost(self, query: Query) -> int:
        """Evaluations that a query counts for: 1, or with a finite sum the number of terms it takes."""
        return max(self.terms, 1) if query.rows is None else len(query.rows)

    @property
    def most_evaluations(self) -> int:
        """The most that one step can cost, in the units of `evaluations`."""
        per_step = getattr(self.method.measured, "most_evaluations", None)
        return int(per_step(self.terms)) if per_step is not None else self.method.evaluations * max(self.terms, 1)

    def rates(self) -> tuple[Rate, ...]:
        """The learning rate and weight decay of each group at the current step."""
        return self._rates(self.control)

    def _rates(self, control: dict[str, Any], estimate: Estimate[A] | None = None) -> tuple[Rate, ...]:
        auto = self.method.lr
        if isinstance(auto, AutoRate):
            rule = self.method.rule
            lr = auto.rate(control, self.step_number, getattr(self.method.estimator, "n", 1), rule.momentum)  # type: ignore[attr-defined]
            lr *= rule_units(rule, None if estimate is None else tuple(estimate.aux or ()))  # type: ignore[arg-type]
        else:
            lr = as_schedule(auto)(self.step_number)  # type: ignore[arg-type]
        return tuple(Rate(lr, self.method.weight_decay * decay) for decay in self.store.decays)

    def _refuse(self, losses: Sequence[float], rates: Sequence[Rate] | None) -> Record:
        bad = next((f for f in losses if not math.isfinite(f)), math.inf)  # inf: the estimate overflowed
        record = Record(
            self.step_number, Vector(), bad, tuple(rates or self.rates()), None, (), self._asked, True, tuple(losses)
        )
        self.abandon()
        self._count(record)
        return record

    def _finish(self, estimate: Estimate[A], rates: Sequence[Rate] | None) -> Record:
        scalars = (*(c for _, c in estimate.vector.terms), *(estimate.aux or ()))  # type: ignore[misc]
        if not all(math.isfinite(c) for c in scalars):  # differences of finite losses may overflow
            return self._refuse(list(estimate.losses), rates)
        aux = estimate.aux
        if rates is None and isinstance(self.method.lr, AutoRate):  # what this step measured counts for it already
            control = dict(self.control)
            self.method.lr.observe(control, estimate.loss, estimate.meters)
            rates = self._rates(control, estimate)
        record = Record(
            self.step_number,
            estimate.vector,
            estimate.loss,
            tuple(rates or self.rates()),
            None if aux is None else tuple(float(a) for a in aux),  # type: ignore[attr-defined]
            tuple(estimate.writes.items()),
            self._asked,
            False,
            tuple(estimate.losses),
            as_schedule(self.method.mu)(self.step_number),
            meters=tuple((name, float(value)) for name, value in estimate.meters.items()),
        )
        moved = self._apply(estimate, record)
        self.abandon()
        self._count(record)
        shown = tuple((name, self.state[name]) for name in getattr(self.method.rule, "meters", ()))
        return replace(record, moved=moved, meters=record.meters + shown)

    def _apply(self, estimate: Estimate[A], record: Record) -> float:
        """Assign slots, then move: the only order in which an anchor and its gradient belong to the same point."""
        if estimate.writes:
            self.store.assign(estimate.writes)
        iterate = self.store.iterate(record.rates, keys.of_step(self.seed, record.step, OfStep.ROUNDING))
        self.method.rule.apply(iterate, estimate, self.state)
        return self.store.health(iterate)

    def _count(self, record: Record) -> None:
        self.step_number = record.step + 1
        self.moves += not record.refused
        self.evaluations += record.evaluations
        self.refused_in_a_row = self.refused_in_a_row + 1 if record.refused else 0
        if isinstance(self.method.lr, AutoRate) and not record.refused:
            self.method.lr.observe(self.control, record.loss, dict(record.meters))
            unit = rule_units(self.method.rule, record.aux)
            self.method.lr.moved(self.control, record.rates[0].lr / unit if unit else 0.0)
        flat = not record.refused and bool(record.vector) and not any(c for _, c in record.vector.terms)
        self.flat_in_a_row = self.flat_in_a_row + 1 if flat else 0

    @property
    def share(self) -> float:
        """With lr="auto": the share of the largest stable learning rate that steps now take; otherwise 0."""
        return self.method.lr.safety * float(self.control["signal"]) if isinstance(self.method.lr, AutoRate) else 0.0

    # ---- replay and state ------------------------------------------------------------------------------------------

    def replay(self, tape: Iterable[Record], *, since: int | None = None) -> None:
        """Take the steps of a tape again, without evaluating anything: bit-identical weights, slots and state.

        since: moves from this step on are left to wait (`Store.deferring`), as in a run that has not been interrupted.
        """
        store = self.store
        records = list(tape)
        made = sum(since is None or record.step < since for record in records)
        with store.deferring():
            for k, record in enumerate(records[:made], 1):
                self._take_again(record)
                if k % REPLAYED == 0:
                    store.make_moves()
        with store.deferring(finish=False):
            for record in records[made:]:
                self._take_again(record)

    def _take_again(self, record: Record) -> None:
        if record.step != self.step_number:
            raise ValueError(f"the tape continues at step {record.step}, but this run stands at {self.step_number}")
        if not record.refused:
            aux = None if record.aux is None else self._scalars(record.aux)
            estimate = Estimate(record.vector, record.loss, record.losses, aux, dict(record.writes))
            self._apply(estimate, record)  # type: ignore[arg-type]
        self._count(record)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy, at any time: the estimator's place in an unfinished step is its answers so far."""
        return {**self.__dict__, "_routine": self._routine is not None, "_queries": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        asked, answers, given = state["_routine"], self._answers, self._given
        self.abandon()
        if asked:
            self._go_on(answers, given)

    def _go_on(self, answers: Iterable[Sequence[float]], rates: Sequence[Rate] | None = None) -> None:
        """Ask again, and tell the answers that an unfinished step had got."""
        self.ask(rates)
        for answer in answers:
            self.tell(answer, rates)

    def _scalars(self, aux: tuple[float, ...]) -> Any:
        """The scalars of a record by their names."""
        kind: Any = getattr(self.method.estimator, "aux", None)
        try:
            return kind._make(aux)
        except (AttributeError, TypeError):
            raise ValueError(
                f"the tape has {len(aux)} scalars for the rule at step {self.step_number}, which the "
                f"{type(self.method.estimator).__name__} of method {self.method.name!r} does not measure: it is the "
                f"tape of another method"
            ) from None

    def state_dict(self) -> dict[str, Any]:
        """Scalars only: step, evaluations, the state of the rule, answers given to an unfinished step.

        The weights and slots are `store.state_dict()`.
        """
        return {
            "seed": self.seed,
            "step": self.step_number,
            "moves": self.moves,
            "evaluations": self.evaluations,
            "refused_in_a_row": self.refused_in_a_row,
            "flat_in_a_row": self.flat_in_a_row,
            "state": dict(self.state),
            "control": dict(self.control),
            "answers": [list(answer) for answer in self._answers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, in the middle of a step too (its answers are told again)."""
        self.abandon()
        self.seed, self.step_number, self.moves = state["seed"], state["step"], state["moves"]
        self.refused_in_a_row, self.flat_in_a_row = state["refused_in_a_row"], state["flat_in_a_row"]
        self.evaluations, self.state = state["evaluations"], dict(state["state"])
        self.control = dict(state["control"])
        if state["answers"]:
            self._go_on(state["answers"])


def rule_units(rule: Rule[Any], aux: tuple[float, ...] | None) -> float:
    """What a rule's lr is worth: moving by lr along its direction is moving by lr / this along the estimate."""
    return float(rule.units(aux)) if aux is not None and hasattr(rule, "units") else 1.0
