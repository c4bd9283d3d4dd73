"""The race to bars: what is counted, what a row says, and which parts can be chosen. Results are not asserted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import blackbox
from benchmarks.race import Course, minimize, pycma, run, scipy, shown, summary
from zograd.errors import UsageError
from zograd.problems.lasso import L1Logistic


def sphere(x) -> float:
    return float(np.sum(np.square(x)))


@pytest.mark.parametrize("solver", [minimize(), minimize("snes"), scipy(), pycma(True)], ids=range(4))
def test_the_evaluation_that_first_reaches_a_bar_is_counted(solver) -> None:
    values: list[float] = []

    def f(x) -> float:
        values.append(sphere(x))
        return values[-1]

    bars = {"half": 2.0, "tenth": 0.4, "never": -1.0}
    found = run(solver, Course(f, bars, 300), np.ones(4), 0)
    for bar in ("half", "tenth"):
        assert found[bar] == 1 + next(i for i, v in enumerate(values) if v <= bars[bar])
    assert found["never"] == math.inf
    assert len(values) <= 300


def test_a_race_ends_when_all_bars_are_reached() -> None:
    course = Course(sphere, {"start": 4.0}, 300)
    assert run(minimize(), course, np.ones(4), 0) == {"start": 1.0}
    assert course.n == 1


def test_a_judge_sees_iterates_and_not_values() -> None:
    """f is a hundred below the judge's value: only the judge may reach the bar."""
    course = Course(lambda x: sphere(x) - 100, {"bar": 1.0}, 400, judge=sphere, every=1)
    assert 1 < run(scipy(), course, np.ones(4), 0)["bar"] < 400
    late = Course(lambda x: sphere(x) - 100, {"bar": 1.0}, 400, judge=sphere, every=1000)
    assert run(scipy(), late, np.ones(4), 0)["bar"] == math.inf


def test_a_summary_keeps_what_was_not_reached() -> None:
    assert summary([3.0, math.inf, 5.0]) == {"median": 5.0, "least": 3.0, "largest": None, "reached": 2, "seeds": 3}
    (row,) = blackbox.rows("toy", [{"a": {"bar": v}} for v in (3.0, math.inf, math.inf)])
    assert (row["median"], row["reached"]) == (None, 1)
    assert shown(row).split() == ["toy", "a", "bar", "-", "3", "to", "-", "1", "of", "3"]


def test_parts_by_name() -> None:
    assert blackbox.chosen("attack, l1") == ["attack", "l1"]
    for wrong in ("attak", ""):
        with pytest.raises(UsageError, match="use quadratic, digits-same"):
            blackbox.chosen(wrong)
    with pytest.raises(UsageError, match="at least 1"):
        blackbox.measure("l1", seeds=0)


def test_the_minimum_of_the_l1_problem_is_stationary() -> None:
    """0 lies in the subdifferential, by differences: |slope| <= weight where w = 0, -weight sign(w) elsewhere."""
    problem = L1Logistic(0.01)
    w = problem.solution
    slope = np.array([(problem.smooth(w + h) - problem.smooth(w - h)) / 2e-6 for h in 1e-6 * np.eye(w.size)])
    assert np.abs(slope[w == 0]).max() <= 0.01 + 1e-7
    np.testing.assert_allclose(slope[w != 0], -0.01 * np.sign(w[w != 0]), atol=1e-7)
    assert 5 < (w == 0).sum() < 26
