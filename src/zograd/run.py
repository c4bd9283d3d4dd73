"""A run: a store, a method and a seed. One step after another, resumable and replayable.

The run owns the seed, the step number and the scalar state of the rule; the store owns every tensor; the estimator,
the law, the space and the rule are frozen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from zograd.laws import Law
from zograd.noise import fold
from zograd.oracles import Oracle
from zograd.rules.base import Rule
from zograd.schedules import Schedule, as_schedule
from zograd.spaces import Euclidean, Space
from zograd.stores.base import Rate, Store
from zograd.vector import Ask, Estimate, Estimator, Query, Routine, Vector

A = TypeVar("A")

# Domains of keys derived from the key of a step.
DIRECTION, SCALAR, ROUNDING, EVALUATION = range(4)


@dataclass(frozen=True)
class Method(Generic[A]):
    """(law of directions) x (estimator) x (space) x (rule), with the schedules of mu and lr.

    mu: perturbation radius, in units of x (of log x on the positive orthant). lr: in units of x per unit of direction.
    weight_decay: decoupled, x <- (1 - lr weight_decay) x. name: the menu entry this came from.
    """

    estimator: Estimator[A]
    law: Law
    rule: Rule[A]
    space: Space = Euclidean()
    mu: Schedule | float = 2.0**-10
    lr: Schedule | float = 1e-6
    weight_decay: float = 0.0
    name: str = "custom"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mu", as_schedule(self.mu))
        object.__setattr__(self, "lr", as_schedule(self.lr))
        if self.weight_decay and not self.space.flat:
            raise ValueError(
                f"weight decay pulls towards 0, outside of {type(self.space).__name__}; use weight_decay=0"
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay}")
        if not as_schedule(self.mu).peak > 0:
            raise ValueError(f"mu must be > 0, got {as_schedule(self.mu).peak}")
        check_pairing(self.estimator, self.rule)

    @property
    def evaluations(self) -> int:
        """Loss evaluations a step."""
        return self.estimator.evaluations


def check_pairing(estimator: Estimator[Any], rule: Rule[Any]) -> None:
    """Name the mistake that the type checker would find: a rule reading what the estimator does not measure."""
    from zograd.estimators import OneSided
    from zograd.rules import SpreadSGD

    if isinstance(rule, SpreadSGD) and not isinstance(estimator, OneSided):
        raise TypeError(
            f"SpreadSGD reads Estimate.aux.slope, but {type(estimator).__name__} does not measure it. "
            f"Use OneSided(n), or methods.fzoo()."
        )


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


class Run(Generic[A]):
    """Steps of one method on one store; `seed` fixes every direction, rounding and dropout mask."""

    def __init__(self, store: Store, method: Method[A], seed: int = 0) -> None:
        if type(store.space) is not type(method.space):
            raise ValueError(
                f"the store stands in {type(store.space).__name__}, the method in {type(method.space).__name__}; "
                f"make the store with space=method.space"
            )
        self.store, self.method, self.seed = store, method, seed
        self.step_number = 0
        self.evaluations = 0
        self.refused_in_a_row = 0
        self.flat_in_a_row = 0
        self.state: dict[str, Any] = {}
        self._routine: Routine[A] | None = None
        self._queries: Sequence[Query] = ()
        self._answers: list[list[float]] = []
        store.require(method.rule.slots)

    # ---- one step, by its two halves -----------------------------------------------------------------------------

    @property
    def key(self) -> int:
        """The key of the current step, from which all its randomness derives."""
        return fold(self.seed, self.step_number)

    def ask(self) -> Sequence[Query]:
        """The points whose losses the method wants next (the same again until they are told)."""
        if self._routine is None:
            key, store, law = self.key, self.store, self.method.law

            def draw(j: int) -> Vector:
                return law(fold(key, DIRECTION, j), store.dim, store.gram)

            mu = as_schedule(self.method.mu)(self.step_number)
            ask = Ask(self.step_number, store.dim, mu, draw, store.gram, fold(key, SCALAR))
            self._routine = self.method.estimator(ask)
            self._queries = next(self._routine)
        return self._queries

    def tell(self, losses: Sequence[float], rates: Sequence[Rate] | None = None) -> Record | None:
        """Give the losses of `ask`, in its order. A Record when that ended the step, None when more is to be asked.

        A loss that is not finite refuses the step: nothing moves, the step is counted, the next one draws anew.
        """
        if self._routine is None:
            raise RuntimeError("tell() without ask(): there are no points whose losses could be told")
        losses = [float(f) for f in losses]
        if len(losses) != len(self._queries):
            raise ValueError(f"asked for {len(self._queries)} losses, was told {len(losses)}")
        self._answers.append(losses)
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
                queries = self.ask()
                record = self.tell(oracle(self.store, queries, fold(self.key, EVALUATION)), rates)
                if record is not None:
                    return record
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Forget a step that was asked but not finished; nothing has moved."""
        self._routine, self._queries, self._answers = None, (), []

    def rates(self) -> tuple[Rate, ...]:
        """The learning rate and weight decay of each group at the current step."""
        lr = as_schedule(self.method.lr)(self.step_number)
        return tuple(Rate(lr, self.method.weight_decay * decay) for decay in self.store.decays)

    def _asked(self) -> int:
        return sum(len(answer) for answer in self._answers)

    def _refuse(self, losses: Sequence[float], rates: Sequence[Rate] | None) -> Record:
        bad = next((f for f in losses if not math.isfinite(f)), math.inf)  # inf: the estimate overflowed
        record = Record(
            self.step_number, Vector(), bad, tuple(rates or self.rates()), None, (), self._asked(), True, tuple(losses)
        )
        self.abandon()
        self._count(record)
        return record

    def _finish(self, estimate: Estimate[A], rates: Sequence[Rate] | None) -> Record:
        scalars = (*(c for _, c in estimate.vector.terms), *(estimate.aux or ()))  # type: ignore[misc]
        if not all(math.isfinite(c) for c in scalars):  # differences of finite losses may overflow
            return self._refuse(list(estimate.losses), rates)
        aux = estimate.aux
        record = Record(
            self.step_number,
            estimate.vector,
            estimate.loss,
            tuple(rates or self.rates()),
            None if aux is None else tuple(float(a) for a in aux),  # type: ignore[attr-defined]
            tuple(estimate.writes.items()),
            self._asked(),
            False,
            tuple(estimate.losses),
            as_schedule(self.method.mu)(self.step_number),
        )
        moved = self._apply(estimate, record)
        self.abandon()
        self._count(record)
        return replace(record, moved=moved)

    def _apply(self, estimate: Estimate[A], record: Record) -> float:
        """Assign slots, then move: the only order in which an anchor and its gradient belong to the same point."""
        if estimate.writes:
            self.store.assign(estimate.writes)
        iterate = self.store.iterate(record.rates, fold(fold(self.seed, record.step), ROUNDING))
        self.method.rule.apply(iterate, estimate, self.state)
        return self.store.health(iterate)

    def _count(self, record: Record) -> None:
        self.step_number = record.step + 1
        self.evaluations += record.evaluations
        self.refused_in_a_row = self.refused_in_a_row + 1 if record.refused else 0
        flat = not record.refused and bool(record.vector) and not any(c for _, c in record.vector.terms)
        self.flat_in_a_row = self.flat_in_a_row + 1 if flat else 0

    # ---- replay and state ------------------------------------------------------------------------------------------

    def replay(self, tape: Iterable[Record]) -> None:
        """Take the steps of a tape again, without evaluating anything: bit-identical weights, slots and state."""
        for record in tape:
            if record.step != self.step_number:
                raise ValueError(f"the tape continues at step {record.step}, but this run stands at {self.step_number}")
            if not record.refused:
                aux = None if record.aux is None else record_aux(record.aux)
                estimate = Estimate(record.vector, record.loss, record.losses, aux, dict(record.writes))
                self._apply(estimate, record)  # type: ignore[arg-type]
            self._count(record)

    def state_dict(self) -> dict[str, Any]:
        """Scalars only: step, evaluations, the state of the rule, answers given to an unfinished step.

        The weights and slots are `store.state_dict()`.
        """
        return {
            "seed": self.seed,
            "step": self.step_number,
            "evaluations": self.evaluations,
            "refused_in_a_row": self.refused_in_a_row,
            "flat_in_a_row": self.flat_in_a_row,
            "state": dict(self.state),
            "answers": [list(answer) for answer in self._answers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, in the middle of a step too (its answers are told again)."""
        self.abandon()
        self.seed, self.step_number = state["seed"], state["step"]
        self.refused_in_a_row, self.flat_in_a_row = state["refused_in_a_row"], state["flat_in_a_row"]
        self.evaluations, self.state = state["evaluations"], dict(state["state"])
        for answer in state["answers"]:
            self.ask()
            self.tell(answer)


def record_aux(values: tuple[float, ...]) -> Any:
    """The typed scalars of a tape's record. One kind so far: the slope of `OneSided`."""
    from zograd.estimators import Spread

    return Spread(*values)
