"""The shares of problems solved, on runs that were written down; the package optiprofiler is not needed."""

from __future__ import annotations

import math

import pytest

from benchmarks.optiprofiler_run import Ran, among, measure, shares
from zograd.errors import UsageError


def ran(solver: str, problem: str, *truth: float, failure: str = "") -> Ran:
    return Ran(problem, "plain", solver, 0, 100.0, truth, failure)


def test_shares_follow_the_definition() -> None:
    """f* is the least over all solvers: 0 on p, 10 on q. At tol 0.1 the bars are 10 and 19; d + 1 is 2 and 4."""
    runs = [
        ran("a", "p", 50.0, 10.0, 0.0),
        ran("a", "q", 19.0, math.nan),
        ran("b", "p", math.nan, 11.0, 10.5, failure="ValueError: x"),
        ran("b", "q", 30.0, 30.0, 30.0, 30.0, 10.0),
    ]
    rows = shares(runs, 0.1, [0.5, 1, 2], {"p": 1, "q": 3})
    assert rows == [
        {"feature": "plain", "solver": "a", "0.5 (d + 1)": 0.5, "1 (d + 1)": 1.0, "2 (d + 1)": 1.0, "failures": 0},
        {"feature": "plain", "solver": "b", "0.5 (d + 1)": 0.0, "1 (d + 1)": 0.0, "2 (d + 1)": 0.5, "failures": 1},
    ]


def test_a_start_that_is_never_improved_is_not_solved() -> None:
    assert ran("a", "p", 120.0).solved_after(0.0, 1e-3) == math.inf
    assert ran("a", "p", math.nan).least == 100.0


def test_names_and_numbers_are_checked() -> None:
    assert among("plain, noisy", ["plain", "noisy"], "feature") == ["plain", "noisy"]
    for wrong in ("plane", ""):
        with pytest.raises(UsageError, match="use plain, noisy"):
            among(wrong, ["plain", "noisy"], "feature")
    with pytest.raises(UsageError, match="problems is 1 to 20"):
        measure(problems=0)
