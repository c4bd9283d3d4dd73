"""A run: a store, a method and a seed. One step after another, resumable and replayable.

The run owns the seed, the step number and the scalar state of the rule and of the learning rate; the store owns every
tensor; the estimator, the law, the space and the rule are frozen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

from zograd.core import keys
from zograd.core.keys import OfStep
from zograd.core.method import Method
from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.record import Record
from zograd.core.seeds import Seed, as_seed
from zograd.core.vector import Vector
from zograd.laws import Draw
from zograd.learning_rate.controller import State
from zograd.oracles import Oracle, as_number
from zograd.stores import Rate, Store

__all__ = ["Method", "Record", "Run"]

A = TypeVar("A")

REPLAYED = 64
"""Steps whose moves a replay makes in one pass over the weights."""


def is_flat(vector: Vector) -> bool:
    """Whether all coefficients of an estimate are 0: the loss had the same value at every point."""
    for _, c in vector.terms:
        if c:
            return False
    return bool(vector.terms)


class Run(Generic[A]):
    """Steps of one method on one store; `seed` fixes every direction, rounding and dropout mask.

    seed: an integer of 64 bits, also of NumPy's types; a NumPy Generator, which is asked for one; None for a fresh one.
        The attribute `seed` holds the number.
    terms: the number N of terms when the loss is a finite sum (1/N) sum_i f_i. Then a query may name some of them
    (`Query.rows`), and an evaluation is counted as the number of terms that it takes: N for the whole loss.
    """

    def __init__(self, store: Store, method: Method[A], seed: Seed = 0, *, terms: int = 0) -> None:
        if not isinstance(method, Method):
            raise TypeError(f"Run takes a Method, such as zograd.methods.fzoo(lr=1e-3), and got {method!r}")
        if store.space != method.space:
            mine, its = (type(s).__name__ for s in (store.space, method.space))
            mine, its = (mine, its) if mine != its else (str(store.space), str(method.space))
            raise ValueError(f"the store is in {mine}, the method in {its}; make the store with space=method.space")
        if store.sharded and (why := method.why_not_sharded()) is not None:
            raise TypeError(f"the weights are split over processes, which {method.name} cannot move: {why}")
        self.store, self.method, self.seed, self.terms = store, method, as_seed(seed), terms
        self.estimator = method.measured
        self.step_number = 0
        self.moves = 0
        self.evaluations = 0
        self.refused_in_a_row = 0
        self.flat_in_a_row = 0
        self.state: dict[str, Any] = {}
        self.control = {**method.radius.initial(), **method.controller.initial()}
        self.weight_decays: Sequence[float] | None = None
        """Of each group, in place of the method's times `Store.decays`."""
        """The state of the controllers of the learning rate and of the radius."""
        self._shown = method.rule.meters
        self._measures = method.radius.measures or method.controller.measures
        self._routine: Routine[A] | None = None
        self._queries: Sequence[Query] = ()
        self._given: Sequence[Rate] | None = None
        self._own: tuple[Rate, ...] = ()
        """The rates of the controller at the step that was asked for."""
        self._mu = 0.0
        """The radius of its probes."""
        self._answers: list[list[float]] = []
        self._asked = 0
        new = store.require(method.slots)
        for part in method.parts:
            if new & part.slots.keys() or not part.slots:  # without slots: at every start
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
            self._own = self.rates() if rates is None else ()
            self._mu = self.mu
            ask = Ask(
                self.step_number,
                store.dim,
                self._mu,
                lambda j: law(first.number(j)),
                store.gram,
                None,
                self.moves,
                (rates or self._own)[0].lr,
                self.terms,
                first.shapes,
                self.seed,
                self._repeats(),
                store.names,
            )
            self._routine = self.estimator(ask)
            self._queries, self._given = next(self._routine), rates
        return self._queries

    def _repeats(self) -> int:
        """How often f(x) is to be evaluated in this step where a measuring estimator evaluates it."""
        if not self._measures:
            return 1
        return max(c.repeats(self.control, self.step_number) for c in (self.method.controller, self.method.radius))

    def tell(self, losses: Sequence[float], rates: Sequence[Rate] | None = None) -> Record | None:
        """Give the losses of `ask`, in its order. A Record when that ended the step, None when more is to be asked.

        A loss that is not finite refuses the step: nothing moves, the step is counted, the next one draws anew. An
        estimator that `takes_failures` is told it instead, unless no loss of the step so far is finite.
        """
        if self._routine is None:
            raise RuntimeError("tell() without ask(): there are no points whose losses could be told")
        losses = [as_number(f) for f in losses]
        if len(losses) != len(self._queries):
            raise ValueError(f"asked for {len(self._queries)} losses, was told {len(losses)}")
        self._answers.append(losses)
        self._asked += sum([self.cost(query) for query in self._queries])
        if not all(map(math.isfinite, losses)) and not (
            self.estimator.takes_failures and any(math.isfinite(f) for told in self._answers for f in told)
        ):
            return self._refuse(losses, rates)
        try:
            self._queries = self._routine.send(losses)
        except StopIteration as stop:
            return self._finish(stop.value, rates)
        return None

    def step(self, oracle: Oracle, rates: Sequence[Rate] | None = None) -> Record:
        """One step: ask, evaluate, tell, until the estimate is there; then move.

        Whatever the oracle raises passes through with the weights bit-identical, and the step can be taken again.
        Before the first step ValueError where the rule needs a start in its set, and the weights are none.
        """
        if self.step_number == 0 and (why := self.method.rule.misplaced(self.store)) is not None:
            raise ValueError(f"x {why}")
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
        return self.estimator.in_dimensions(self.store.dim).most_evaluations(self.terms)

    def rates(self) -> tuple[Rate, ...]:
        """The learning rate and weight decay of each group at the current step."""
        return self._rates(self.control)

    def _rates(self, control: State, aux: tuple[float, ...] | None = None) -> tuple[Rate, ...]:
        method = self.method
        rule = method.rule
        lr = method.controller.rate(
            control, self.step_number, method.estimator.n, rule.momentum or 0.0, rule.units(aux)
        )
        decays = self.weight_decays or [method.weight_decay * decay for decay in self.store.decays]
        return tuple([Rate(lr, decay) for decay in decays])

    def _refuse(self, losses: Sequence[float], rates: Sequence[Rate] | None) -> Record:
        bad = next((f for f in losses if not math.isfinite(f)), math.inf)  # inf: the estimate overflowed
        control = dict(self.control)
        self._failed(control)
        nothing: Estimate[Any] = Estimate(Vector(), bad, losses, None)
        estimate, back = nothing, self.rates()
        if rates is None:  # the step that led here may be taken back
            estimate, back = self.method.controller.revise(control, self.method, nothing, back)
        moves = bool(estimate.vector or estimate.writes)
        record = Record(
            self.step_number, estimate.vector, bad, tuple(rates or back), None, tuple(estimate.writes.items()),
            self._asked, not moves, tuple(losses), self.mu if moves else 0.0,
        )  # fmt: skip
        if moves:
            record = replace(record, moved=self._apply(estimate, record.step, record.rates))
        self.abandon()
        self._count(record)
        return record

    def _finish(self, estimate: Estimate[A], rates: Sequence[Rate] | None) -> Record:
        vectors = (estimate.vector, *estimate.writes.values())
        scalars = [*[c for v in vectors for _, c in v.terms], *(estimate.aux or ())]  # type: ignore[misc]
        if not all(map(math.isfinite, scalars)):  # differences of finite losses may overflow
            return self._refuse(list(estimate.losses), rates)
        if not (estimate.vector or math.isfinite(estimate.loss)):  # what failed left no estimate
            return self._refuse([estimate.loss], rates)
        mu = self._mu
        aux = None if estimate.aux is None else tuple(float(a) for a in estimate.aux)  # type: ignore[attr-defined]
        if rates is None and not self._measures:
            rates = self._own if aux is None and self._own else self._rates(self.control, aux)
        elif rates is None:  # what this step measured counts for it already
            control = dict(self.control)
            self._observe(control, estimate.loss, estimate.meters, mu)
            rates = self._rates(control, aux)
            if self.method.radius.ready(control):
                estimate, rates = self.method.controller.revise(control, self.method, estimate, rates)
            else:  # the slopes mean nothing yet
                estimate, rates = replace(estimate, vector=Vector()), tuple(Rate(0.0, r.weight_decay) for r in rates)
        moved = self._apply(estimate, self.step_number, rates)
        shown = [(name, self.state[name]) for name in self._shown]
        record = Record(
            self.step_number,
            estimate.vector,
            estimate.loss,
            tuple(rates),
            aux,
            tuple(estimate.writes.items()),
            self._asked,
            False,
            tuple(estimate.losses),
            mu,
            moved,
            (*[(name, float(value)) for name, value in estimate.meters.items()], *shown),
        )
        self.abandon()
        self._count(record)  # with all meters, as a replay counts it
        return record

    def _apply(self, estimate: Estimate[A], step: int, rates: Sequence[Rate]) -> float:
        """Assign slots, then move: the only order in which an anchor and its gradient belong to the same point."""
        if estimate.writes:
            self.store.assign(estimate.writes)
        if "x" in estimate.writes:  # back to an earlier iterate: the rule begins anew
            self.state.clear()
            return 1.0
        iterate = self.store.iterate(rates, partial(keys.of_step, self.seed, step, OfStep.ROUNDING))
        self.method.rule.apply(iterate, estimate, self.state)
        return self.store.health(iterate, warn=self._is_high(rates[0].lr) and not is_flat(estimate.vector))

    def _is_high(self, lr: float) -> bool:
        """Whether a rate is half of its peak or more: a warm-up and the end of a schedule are to have short steps."""
        peak = self.method.controller.peak or 0.0  # a controller of a user may not know it
        return math.isinf(peak) or lr >= peak / 2

    def _count(self, record: Record) -> None:
        self.step_number = record.step + 1
        self.moves += not record.refused
        self.evaluations += record.evaluations
        self.refused_in_a_row = self.refused_in_a_row + 1 if record.refused else 0
        controller = self.method.controller
        if not self._measures:  # their state stays empty
            pass
        elif not math.isfinite(record.loss):
            self._failed(self.control)
            controller.taken(self.control, self.method, record)
        elif not record.refused:
            unit = self.method.rule.units(record.aux)
            self._observe(self.control, record.loss, dict(record.meters), record.mu)
            whole = unit * (1.0 - (self.method.rule.momentum or 0.0))  # momentum makes 1 / (1 - beta) of each step
            controller.moved(self.control, record.rates[0].lr / whole if whole else 0.0)
            controller.taken(self.control, self.method, record)
        flat = not record.refused and is_flat(record.vector)
        self.flat_in_a_row = self.flat_in_a_row + 1 if flat else 0

    def _failed(self, control: State) -> None:
        for part in (self.method.radius, self.method.controller):
            part.failed(control)

    def _observe(self, control: State, loss: float, meters: Mapping[str, float], mu: float) -> None:
        """What a step measured, for the controllers; the radius of its probes counts as measured."""
        meters = {**meters, "mu": mu, "n": self.method.estimator.n}
        self.method.radius.observe(control, loss, meters)
        self.method.controller.observe(control, loss, meters)

    @property
    def mu(self) -> float:
        """The radius of the probes of the current step."""
        return self.method.radius.rate(self.control, self.step_number)

    @property
    def share(self) -> float:
        """The share of the largest stable learning rate that steps now take, with lr="auto"; otherwise 0."""
        return self.method.controller.share(self.control)

    # ---- replay and state ------------------------------------------------------------------------------------------

    def replay(self, tape: Iterable[Record], *, since: int | None = None) -> None:
        """Take the steps of a tape again, without evaluating anything: bit-identical weights, slots and state.

        since: moves from this step on are left to wait (`Store.deferring`), as in a run that has not been interrupted.
        """
        store = self.store
        records = tape if isinstance(tape, Sequence) else list(tape)
        made = len(records) if since is None else sum(record.step < since for record in records)
        with store.deferring():
            for k, record in enumerate(islice(records, made), 1):
                self._take_again(record)
                if k % REPLAYED == 0:
                    store.make_moves()
        with store.deferring(finish=False):
            for record in islice(records, made, None):
                self._take_again(record)

    def _take_again(self, record: Record) -> None:
        if record.step != self.step_number:
            raise ValueError(f"the tape continues at step {record.step}, but this run stands at {self.step_number}")
        if not record.refused:
            aux = None if record.aux is None else self._scalars(record.aux)
            estimate = Estimate(record.vector, record.loss, record.losses, aux, dict(record.writes))
            try:
                self._apply(estimate, record.step, record.rates)  # type: ignore[arg-type]
            except AttributeError:
                if aux is not None or self.method.estimator.aux is None:
                    raise
                self._scalars(())  # says that the tape is of another method
                raise
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
        kind: Any = self.method.estimator.aux
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
