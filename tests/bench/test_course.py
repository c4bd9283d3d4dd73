"""Runs that are measured on their way, and the rate that is best on another seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zograd as zo
from zograd.problems.course import compared, course, tuned
from zograd.problems.small import method_problem

PROBLEM = method_problem("quadratic-100")


def test_a_course_is_the_run_step_by_step() -> None:
    method = zo.methods.zo_sgd(lr=1e-3, mu=1e-3)
    found = course(PROBLEM, method, 40, seed=3, marks=4)
    session = PROBLEM.begin(method.space, 3)
    run, values = zo.Run(session.store, method, 3), [session.judge()["value"]]
    while run.evaluations < 40:
        run.step(session.oracle)
        if run.evaluations % 10 == 0:
            values.append(session.judge()["value"])
    assert found.evaluations.tolist() == [0, 10, 20, 30, 40]
    assert found.values.tolist() == values
    assert found.at([5])[0] == pytest.approx((values[0] + values[1]) / 2)
    assert found.at([100])[0] == values[-1]


def test_a_course_never_passes_its_budget_and_is_judged_at_its_end() -> None:
    found = course(PROBLEM, zo.methods.zo_sgd(lr=1e-4, mu=1e-3, n=3), 40, marks=4)  # 6 evaluations a step
    assert found.evaluations[-1] == 36
    with pytest.raises(ValueError, match="budget=5: a step takes up to 6 evaluations"):
        course(PROBLEM, zo.methods.zo_sgd(lr=1e-4, mu=1e-3, n=3), 5)


def test_a_course_ends_where_it_diverges_and_such_a_rate_is_not_taken() -> None:
    def make(lr: float) -> zo.Method[None]:
        return zo.methods.zo_sgd(lr=lr, mu=1e-3)

    wild = course(PROBLEM, make(1e6), 400, marks=40)
    assert not wild.values[-1] < wild.values[0]
    assert tuned(PROBLEM, make, (1e6, 1e-3, 1e-7), 100, seed=1) == 1e-3
    with pytest.raises(ValueError, match="rates is empty"):
        tuned(PROBLEM, make, (), 100, seed=1)


def test_weights_of_a_tiny_model_start_as_it_is_and_learn(tiny_model: Path) -> None:
    from zograd.llm.problems import WeightsTask

    problem = WeightsTask("w", "mr", model=str(tiny_model), batch=4, train_examples=12, eval_examples=10)
    assert problem.dim == 3 * 32 * 64  # gate, up and down of the last block
    assert "weights mlp of the top 1 block(s)" in problem.about()
    found = [course(problem, zo.methods.mezo(lr=1e-3, mu=1e-3), 8, seed=s, marks=1) for s in (0, 0, 1)]
    assert np.array_equal(found[0].values, found[1].values)
    assert found[0].values[0] == found[2].values[0]
    assert found[0].values[1] != found[2].values[1]
    assert {"accuracy", "calibrated"} <= set(found[0].measured)


def test_a_comparison_is_the_chosen_rate_and_its_runs() -> None:
    problem, make = PROBLEM, lambda lr: zo.methods.zo_sgd(lr=lr, mu=1e-3)
    found = compared(problem, make, (1e-4, 1e-3), 200, seed=3, seeds=2)
    assert found.rate == tuned(problem, make, (1e-4, 1e-3), 40, seed=1003)
    by_hand = [course(problem, make(found.rate), 200, seed=s, marks=12).values for s in (3, 4)]
    assert [c.values.tolist() for c in found.courses] == [v.tolist() for v in by_hand]
    low, middle, high = found.quartiles([200])
    assert low < middle < high
    assert middle[0] == pytest.approx(np.mean([v[-1] for v in by_hand]))
