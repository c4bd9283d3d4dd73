"""What a part of a method may declare, and what happens to parts that declare nothing, or are no parts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from small_problems import CASES, tensors, values_oracle

from zograd import Method, Run, Store, ZOOptimizer, methods
from zograd.core.parts import Part
from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.schedules import Schedule, cosine
from zograd.core.vector import Basis, Vector, basis
from zograd.estimators import SAM, Central, Conservative, Estimator
from zograd.laws import Draw, Gaussian, Law, Rademacher, RankOne, SmallWeights
from zograd.learning_rate import AutoRate, Controller, Measured
from zograd.rules import SGD, Balanced, FrankWolfe, Momentum, Optimistic, Proximal, Rule
from zograd.sets import L1, GroupL2, L1Ball
from zograd.spaces import Diagonal, Euclidean, PositiveOrthant, Space, Sphere


@dataclass(frozen=True, slots=True)
class OnePoint(Estimator[None]):
    """f(x + mu v) / mu v; `n` has no default, although every estimator has one."""

    n: int
    scale: float = 1.0

    @property
    def evaluations(self) -> int:
        return self.n

    def __call__(self, ask: Ask) -> Routine[None]:
        v = [ask.draw(j) for j in range(self.n)]
        f = yield [Query(ask.mu * vj) for vj in v]
        g = sum((fj * self.scale / (ask.mu * self.n) * vj for fj, vj in zip(f, v, strict=True)), Vector())
        return Estimate(g, f[0], f, None)


class Halved(Law):
    """Half of a Rademacher direction: a class without fields."""

    def __call__(self, draw: Draw) -> Vector:
        return 0.5 * Rademacher()(draw)


class Flipped(Rule[Any]):
    def apply(self, x: Any, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        x.step_(-1.0 * estimate.vector)


def test_a_part_declares_only_what_differs_from_the_default() -> None:
    estimator, law, rule = OnePoint(3), Halved(), Flipped()
    assert (estimator.n, estimator.aux, estimator.estimates_gradient) == (3, None, True)
    assert (estimator.fewest_evaluations, estimator.most_evaluations(0), estimator.most_evaluations(5)) == (3, 3, 15)
    assert not law.fixed_norm
    assert (rule.reads, rule.remedy, rule.linear, rule.momentum, rule.meters, rule.whole_leaf) == (
        None, "", False, None, (), False,
    )  # fmt: skip
    assert rule.units((2.0,)) == 1.0
    for part in (estimator, law, rule, Euclidean()):
        assert part.slots == {}
        assert part.works_on_pieces
    method = Method(estimator, law, rule, lr=1e-3)
    run = Run(Store(tensors(torch.float64)), method, 0)
    assert run.step(values_oracle).evaluations == 3
    with pytest.raises(ValueError, match="Flipped makes another move"):
        Method(estimator, law, rule, lr="auto")


def test_a_field_takes_the_place_of_a_default_and_may_have_none() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'n'"):
        OnePoint()  # type: ignore[call-arg]
    assert [f.name for f in fields(OnePoint)] == ["n", "scale"]


def test_a_part_without_its_formula_cannot_be_made() -> None:
    for kind, missing in ((Law, "__call__"), (Estimator, "evaluations"), (Rule, "apply"), (Space, "explain")):
        with pytest.raises(TypeError, match=f"abstract.*{missing}"):
            type("Mine", (kind,), {})()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"law": lambda draw: Vector()},
            r"law must be a zograd.laws.Law, got function; derive it, class function",
        ),
        ({"law": Rademacher}, r"got the class Rademacher; make an instance, Rademacher\(\)"),
        ({"estimator": SGD()}, r"estimator must be a zograd.estimators.Estimator, got SGD"),
        ({"rule": Central(1)}, r"rule must be a zograd.rules.Rule, got Central"),
        ({"space": "flat"}, r"space must be a zograd.spaces.Space, got str"),
    ],
    ids=["a function", "a class", "a rule", "an estimator", "a word"],
)
def test_what_is_no_part_is_refused_with_what_to_write(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Method(**{"estimator": Central(1), "law": Rademacher(), "rule": SGD(), **wrong})


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_every_part_of_the_menu_is_a_part(case: Any) -> None:
    method = case.method()
    assert all(isinstance(part, Part) for part in method.parts)
    assert not any(hasattr(part, "__dict__") for part in method.parts), "the base classes leave slots=True its effect"


def test_only_a_rule_whose_move_is_the_estimate_lets_an_estimator_try_the_move() -> None:
    """`Conservative` asks what the rule declares, and does not know its class."""

    class Plain(Flipped):
        linear = True

    assert Method(Conservative(), Rademacher(), Plain()).rule.linear
    for rule in (Flipped(), Momentum(), Optimistic()):
        with pytest.raises(TypeError, match="Conservative tries the move"):
            Method(Conservative(), Rademacher(), rule)


def test_what_looks_at_whole_tensors_is_not_for_pieces_of_them() -> None:
    def why(law: Law = Gaussian(), rule: Rule[Any] = SGD(), space: Space = Euclidean()) -> str | None:
        return Method(Central(1), law, rule, space).why_not_sharded()

    assert why() is None
    assert why(rule=Momentum()) is None
    assert why(rule=Proximal(L1(0.1))) is None
    assert why(space=PositiveOrthant()) is None
    for law, rule in (
        (SmallWeights(), SGD()),
        (Gaussian(), Balanced(SGD())),
        (Gaussian(), FrankWolfe(L1Ball(1.0))),
        (Gaussian(), Proximal(L1Ball(1.0))),
        (Gaussian(), Proximal(GroupL2(0.1))),
    ):
        assert "looks at whole tensors" in str(why(law, rule))
    assert "couples elements" in str(why(space=Sphere()))
    assert "a number a row" in str(why(space=Diagonal(by_row=True)))


def test_a_basis_vector_declares_what_differs_and_is_one() -> None:
    class Constant(Basis):
        def add_(self, out: torch.Tensor, coef: float, at: Any, slots: Any) -> None:
            out.add_(coef)

    e = Constant()
    assert (e.reads, e.low_rank, e.signs) == ((), False, False)
    assert RankOne()(Draw(0, 0, 0, ((2, 3),), None)).terms[0][0].low_rank  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"derived from zograd.Basis: class Plain\(zograd.Basis\)"):
        basis(type("Plain", (), {}))


# ---- the learning rate -----------------------------------------------------------------------------------------------


class Falling(Controller):
    """1 over the number of losses seen, above a floor: state, and no measurement of the estimator's."""

    measures = True
    peak = 1.0

    def initial(self) -> dict[str, Any]:
        return {"seen": 0}

    def observe(self, state: dict[str, Any], loss: float, meters: Any) -> None:
        state["seen"] += 1

    def rate(self, state: dict[str, Any], step: int, q: int = 1, beta: float = 0.0, unit: float = 1.0) -> float:
        return 1e-2 / max(state["seen"], 1)


def test_a_controller_of_ones_own_steers_a_run_and_its_replay() -> None:
    method = methods.zo_sgd(lr=Falling())
    assert method.evaluations == 2
    run = Run(Store(tensors(torch.float64)), method, 3)
    records = [run.step(values_oracle) for _ in range(4)]
    assert [r.rates[0].lr for r in records] == [1e-2 / k for k in (1, 2, 3, 4)]
    again = Run(Store(tensors(torch.float64)), method, 3)
    again.replay(records)
    assert again.control == run.control == {"seen": 4}
    assert again.state_dict()["control"] == {"seen": 4}
    w = torch.nn.Parameter(torch.ones(4))
    optimizer = ZOOptimizer([w], method)
    optimizer.step(lambda: (w**2).sum())
    optimizer.step(lambda: (w**2).sum())
    assert optimizer.param_groups[0]["lr"] == 5e-3


def test_a_schedule_is_a_controller_without_state() -> None:
    schedule: Controller = cosine(0.5, 10)
    assert isinstance(schedule, Controller)
    state = schedule.initial()
    schedule.observe(state, 1.0, {"trace": 1.0})
    schedule.moved(state, 1.0)
    assert state == {}
    assert (schedule.measures, schedule.standstill, schedule.share(state)) == (False, "", 0.0)
    assert schedule.rate(state, 4, 8, 0.9, 3.0) == cosine(0.5, 10)(4)
    assert schedule.wrap(Central(2)) == Central(2)
    assert methods.zo_sgd(lr=0.1).controller == Schedule(0.1)
    assert methods.zo_sgd(lr="auto").controller == AutoRate()


def test_what_measures_passes_on_what_the_estimator_declares() -> None:
    inner = SAM(OnePoint(3))
    outer = Measured(inner)
    assert (outer.n, outer.aux, outer.slots) == (3, None, {})
    assert (outer.fewest_evaluations, outer.evaluations) == (6, 8)
    assert outer.most_evaluations(5) == inner.most_evaluations(5) + 10 == 40
